/* What the kernel tests share: a stream with workspace, numbers to compute with, and comparisons
 * whose bounds follow from the rounding unit and the length of a sum. */
#pragma once

#include "kernels/kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Half the distance from 1 to the next number of `real`. */
static const double UNIT = sizeof(real) == sizeof(float) ? 0x1p-24 : 0x1p-53;

static inline Stream *open_stream(size_t workspace_bytes) {
    Stream *s = BACKEND_CPU.stream_open();
    BACKEND_CPU.stream_workspace(s, BACKEND_CPU.alloc(workspace_bytes), workspace_bytes);
    return s;
}

static inline real *numbers(int64_t n, uint32_t seed) {
    real *x = BACKEND_CPU.alloc((size_t)n * sizeof *x);
    uint64_t state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (int64_t i = 0; i < n; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        x[i] = (real)((double)(int32_t)(state >> 32) * 0x1p-30);
    }
    return x;
}

/* An output: with keep 0 poisoned with NaN, which no kernel may read. */
static inline real *output(int64_t n, real keep, uint32_t seed) {
    real *x = numbers(n, seed);
    for (int64_t i = 0; keep == 0 && i < n; i++) x[i] = NAN;
    return x;
}

static inline real *copy_of(const real *x, int64_t n) {
    real *y = BACKEND_CPU.alloc((size_t)n * sizeof *y);
    memcpy(y, x, (size_t)n * sizeof *y);
    return y;
}

/* keep * old + value, where old may be NaN if keep is 0. */
static inline double plus_kept(real keep, real old, double value) {
    return keep != 0 ? (double)keep * (double)old + value : value;
}

/* `got` lies within `roundings` rounding errors of numbers as large as `size`. The f64 build's own
 * reference is no more exact than the kernel, so that both may err. */
static inline void expect_near(const char *what, int64_t i, double got, double want,
                               double roundings, double size) {
    double bound = 2 * roundings * UNIT * size;
    if (fabs(got - want) <= bound) return;
    fail_msg("%s[%lld] is %.9g, not %.9g: off by %.3g, may be off by %.3g", what, (long long)i, got,
             want, fabs(got - want), bound);
}

static inline void expect_same(const char *what, const void *a, const void *b, size_t bytes) {
    if (memcmp(a, b, bytes)) fail_msg("%s: the bits differ", what);
}

static inline void release(int count, ...) {
    va_list pointers;
    va_start(pointers, count);
    for (int i = 0; i < count; i++) BACKEND_CPU.release(va_arg(pointers, void *));
    va_end(pointers);
}
