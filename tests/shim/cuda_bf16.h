/* Stands for NVIDIA's cuda_bf16.h where there is no toolkit: the type and what cogsmith uses of it,
 * by the formulas of kernels/math.h. */
#pragma once

#include "kernels/math.h"

struct __nv_bfloat16 {
    uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

static inline float __bfloat162float(__nv_bfloat16 h) { return float_from_bf16(h.bits); }
static inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {bf16_from_float(x)}; }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }
