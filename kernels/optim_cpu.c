/* The optimizer's kernels, over flat ranges of parameters. */
#include "kernels/cpu.h"
#include "kernels/math.h"

void cpu_adamw(Stream *s, const AdamW *a, int64_t n, const real *grad, real *master, real *m,
               real *v) {
    (void)s;
    AdamW step = *a;
#pragma omp parallel for simd schedule(static) if (parallel : n >= PARALLEL_MIN)
    for (int64_t i = 0; i < n; i++) adamw_update(&step, grad[i], master + i, m + i, v + i);
}

/* The sum of up to 1,024 squares, in the order that Backend gives. */
static double squares(int64_t n, const real *x) {
    enum { SUMS = 128, LANES_GPU = 32 };
    double sums[SUMS] = {0}, lane[LANES_GPU];
    int64_t whole = n / SUMS * SUMS;
    for (int64_t i = 0; i < whole; i += SUMS)
        for (int k = 0; k < SUMS; k++) sums[k] += (double)x[i + k] * x[i + k];
    for (int64_t i = whole; i < n; i++) sums[i - whole] += (double)x[i] * x[i];
    for (int k = 0; k < LANES_GPU; k++)
        lane[k] = (sums[4 * k] + sums[4 * k + 1]) + (sums[4 * k + 2] + sums[4 * k + 3]);
    for (int half = LANES_GPU / 2; half; half /= 2)
        for (int k = 0; k < half; k++) lane[k] += lane[k + half];
    return lane[0];
}

void cpu_sum_squares(Stream *s, int64_t n, const real *x, double *partial) {
    (void)s;
    enum { CHUNK = 1024 };
#pragma omp parallel for schedule(static) if (n >= PARALLEL_MIN)
    for (int64_t i = 0; i < n; i += CHUNK) partial[i / CHUNK] = squares(MIN(CHUNK, n - i), x + i);
}
