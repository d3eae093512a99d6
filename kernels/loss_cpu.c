/* The mean squared error of samples laid end to end. */
#include "kernels/cpu.h"

/* The sum of squared differences, in eight interleaved sums. */
static double squared_error(int64_t n, const real *x, const real *target) {
    double sums[8] = {0};
    int64_t whole = n / 8 * 8;
    for (int64_t i = 0; i < whole; i += 8)
        for (int k = 0; k < 8; k++) {
            double d = (double)x[i + k] - (double)target[i + k];
            sums[k] += d * d;
        }
    for (int64_t i = whole; i < n; i++) {
        double d = (double)x[i] - (double)target[i];
        sums[i - whole] += d * d;
    }
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) +
           ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

void cpu_mse(Stream *s, DType t, int samples, const int64_t *cu, const void *x, const real *target,
             real *loss, real *per_sample) {
    (void)s;
    check_type(t, "mse");
    double total = 0;
    for (int b = 0; b < samples; b++) {
        int64_t n = cu[b + 1] - cu[b];
        double mean = squared_error(n, (const real *)x + cu[b], target + cu[b]) / (double)n;
        per_sample[b] = (real)mean;
        total += mean;
    }
    loss[0] = (real)(total / samples);
}

void cpu_mse_grad(Stream *s, DType t, int samples, const int64_t *cu, const void *x,
                  const real *target, const real *dloss, real keep, void *dx) {
    (void)s;
    check_type(t, "mse_grad");
    const real *from = x;
    real *to = dx;
    for (int b = 0; b < samples; b++) {
        int64_t n = cu[b + 1] - cu[b];
        real scale = (real)((double)dloss[0] * 2 / ((double)samples * (double)n));
#pragma omp parallel for simd schedule(static) if (parallel : n >= PARALLEL_MIN)
        for (int64_t i = cu[b]; i < cu[b + 1]; i++)
            to[i] = kept(keep, to + i, scale * (from[i] - target[i]));
    }
}
