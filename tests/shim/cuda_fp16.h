/* Stands for NVIDIA's cuda_fp16.h where there is no toolkit: the type and what cogsmith uses of it,
 * by the formulas of kernels/math.h. */
#pragma once

#include "kernels/math.h"

struct __half {
    uint16_t bits;
};
struct alignas(4) __half2 {
    __half x, y;
};

static inline float __half2float(__half h) { return float_from_f16(h.bits); }
static inline __half __float2half_rn(float x) { return {f16_from_float(x)}; }
static inline __half2 __floats2half2_rn(float x, float y) {
    return {__float2half_rn(x), __float2half_rn(y)};
}
static inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
static inline unsigned short __half_as_ushort(__half h) { return h.bits; }
