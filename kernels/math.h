/* The scalar formulas, once, for the CPU and CUDA alike.
 *
 * What is `float` here stays float in the f64 build. exp_float, log_float and sincos_turns are
 * polynomials whose every product and sum is an fmaf or stands alone, so that no compiler can
 * contract them differently: the CPU and the GPU give the same bits. They have no branches, so
 * that a loop over them becomes vector code.
 */
#pragma once

#include "kernels/kernels.h"

#include <math.h>
#include <string.h>

HD static inline uint32_t float_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

HD static inline float float_from_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

HD static inline real sqrt_real(real x) {
    return sizeof(real) == sizeof(float) ? (real)sqrtf((float)x) : (real)sqrt((double)x);
}

/* e^x within 1 ulp; 0 where e^x is below the smallest normal number. NaN stays NaN.
 * Polynomial of Cephes' expf on [-log(2)/2, log(2)/2]. */
HD static inline float exp_float(float x) {
    const float magic =
        12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    float shifted = fmaf(x, 1.44269504f, magic), n = shifted - magic;
    float r = fmaf(n, -0.693147182f, x);
    r = fmaf(n, 1.90465421e-9f, r);
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    float y = float_from_bits(float_bits(p) + (float_bits(shifted) << 23));
    y = x < -87.3365479f ? 0.0f : y;
    y = x > 88.7228394f ? INFINITY : y;
    return x == x ? y : x;
}

HD static inline real exp_real(real x) {
    return sizeof(real) == sizeof(float) ? (real)exp_float((float)x) : (real)exp((double)x);
}

/* log x of a positive normal number. Polynomial of Cephes' logf on [sqrt(1/2), sqrt(2)). */
HD static inline float log_float(float x) {
    const uint32_t sqrt_half = 0x3f3504f3u;
    uint32_t u = float_bits(x) - sqrt_half;
    float e = (float)((int32_t)u >> 23);
    float f = float_from_bits((u & 0x7fffffu) + sqrt_half) - 1.0f, z = f * f;
    float p = 7.0376836292e-2f;
    p = fmaf(p, f, -1.1514610310e-1f);
    p = fmaf(p, f, 1.1676998740e-1f);
    p = fmaf(p, f, -1.2420140846e-1f);
    p = fmaf(p, f, 1.4249322787e-1f);
    p = fmaf(p, f, -1.6668057665e-1f);
    p = fmaf(p, f, 2.0000714765e-1f);
    p = fmaf(p, f, -2.4999993993e-1f);
    p = fmaf(p, f, 3.3333331174e-1f);
    p = fmaf(p * f, z, e * -2.12194440e-4f);
    p = fmaf(z, -0.5f, p);
    return fmaf(e, 0.693359375f, f + p);
}

/* Sine and cosine of 2 pi u, 0 <= u <= 1. The reduction to an eighth of a turn is exact. */
HD static inline void sincos_turns(float u, float *sine, float *cosine) {
    const float magic = 12582912.0f;
    float shifted = fmaf(u, 4.0f, magic);
    uint32_t quarter = float_bits(shifted);
    float x = fmaf(shifted - magic, -0.25f, u) * 6.28318531f, z = x * x;
    float s = -1.9515295891e-4f;
    s = fmaf(s, z, 8.3321608736e-3f);
    s = fmaf(s, z, -1.6666654611e-1f);
    s = fmaf(s * z, x, x);
    float c = 2.443315711809948e-5f;
    c = fmaf(c, z, -1.388731625493765e-3f);
    c = fmaf(c, z, 4.166664568298827e-2f);
    c = fmaf(c * z, z, fmaf(z, -0.5f, 1.0f));
    float sine0 = quarter & 1 ? c : s, cosine0 = quarter & 1 ? s : c;
    *sine = quarter & 2 ? -sine0 : sine0;
    *cosine = (quarter + 1) & 2 ? -cosine0 : cosine0;
}

/* Two standard normals from two uniforms of (0, 1) (Box and Muller 1958). */
HD static inline void normal_pair(float u0, float u1, float *z0, float *z1) {
    float radius = sqrtf(-2.0f * log_float(u0)), s, c;
    sincos_turns(u1, &s, &c);
    *z0 = radius * c;
    *z1 = radius * s;
}

HD static inline real sigmoid(real x) { return 1 / (1 + exp_real(-x)); }

/* gelu's tanh form is x * sigmoid(2u): 0.5 (1 + tanh u) is sigmoid(2u). */
HD static inline real gelu(real x) {
    const real two_root = (real)1.5957691216057308; /* 2 sqrt(2/pi) */
    return x * sigmoid(two_root * x * (1 + (real)0.044715 * x * x));
}

HD static inline real gelu_grad(real x) {
    const real two_root = (real)1.5957691216057308;
    real s = sigmoid(two_root * x * (1 + (real)0.044715 * x * x));
    return s + x * s * (1 - s) * two_root * (1 + (real)0.134145 * x * x);
}

HD static inline real silu(real x) { return x * sigmoid(x); }

HD static inline real silu_grad(real x) {
    real s = sigmoid(x);
    return s * (1 + x * (1 - s));
}

/* The update of torch.optim.AdamW for one element. */
HD static inline void adamw_update(const AdamW *a, real grad, real *master, real *m, real *v) {
    grad *= a->grad_scale;
    *m += (1 - a->beta1) * (grad - *m);
    *v = a->beta2 * *v + (1 - a->beta2) * grad * grad;
    real scale = sqrt_real(*v) / sqrt_real(a->correction2) + a->eps;
    real decayed = *master * (1 - a->learning_rate * a->weight_decay);
    *master = decayed - a->learning_rate / a->correction1 * *m / scale;
}

HD static inline float float_from_bf16(uint16_t h) { return float_from_bits((uint32_t)h << 16); }

/* To the nearest, ties to even; a NaN stays a (quiet) NaN with its sign and high bits. */
HD static inline uint16_t bf16_from_float(float x) {
    uint32_t u = float_bits(x), rounded = (u + 0x7fffu + (u >> 16 & 1)) >> 16;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? u >> 16 | 0x40u : rounded);
}

HD static inline float float_from_f16(uint16_t h) {
    uint32_t magnitude = (uint32_t)(h & 0x7fffu) << 13, sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t normal = magnitude + (112u << 23);
    float subnormal = float_from_bits(magnitude + (113u << 23)) - float_from_bits(113u << 23);
    uint32_t u = magnitude < 1u << 23 ? float_bits(subnormal) : normal;
    u = magnitude >= 31u << 23 ? normal + (112u << 23) : u;
    return float_from_bits(u | sign);
}

/* To the nearest, ties to even; from 65,520 on infinity; a NaN stays a (quiet) NaN. */
HD static inline uint16_t f16_from_float(float x) {
    uint32_t u = float_bits(x), sign = u & 0x80000000u, magnitude = u ^ sign;
    uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1)) >> 13;
    /* 0.5 has its last bit where half precision has it among subnormals: the sum rounds there. */
    uint32_t subnormal = float_bits(float_from_bits(magnitude) + 0.5f) - float_bits(0.5f);
    uint32_t special = magnitude > 0x7f800000u ? 0x7e00u | (magnitude >> 13 & 0x3ffu) : 0x7c00u;
    uint32_t h = magnitude < 113u << 23 ? subnormal : normal;
    h = magnitude >= 143u << 23 ? special : h;
    return (uint16_t)(h | sign >> 16);
}
