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

/* The sum of up to 1,024 squares, in eight interleaved sums. */
static double squares(int64_t n, const real *x) {
    double sums[8] = {0};
    int64_t whole = n / 8 * 8;
    for (int64_t i = 0; i < whole; i += 8)
        for (int k = 0; k < 8; k++) sums[k] += (double)x[i + k] * x[i + k];
    for (int64_t i = whole; i < n; i++) sums[i - whole] += (double)x[i] * x[i];
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) +
           ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

void cpu_sum_squares(Stream *s, int64_t n, const real *x, double *partial) {
    (void)s;
    enum { CHUNK = 1024 };
#pragma omp parallel for schedule(static) if (n >= PARALLEL_MIN)
    for (int64_t i = 0; i < n; i += CHUNK) partial[i / CHUNK] = squares(MIN(CHUNK, n - i), x + i);
}
