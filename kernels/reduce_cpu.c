/* Sums over the rows of a matrix, in an order that depends neither on threads nor on columns. */
#include "kernels/cpu.h"

#include <omp.h>

enum { COLUMN_BLOCK = 1024 };

/* Columns of a block, <= COLUMN_BLOCK, so that every thread has one. */
static int64_t column_block(int64_t cols) {
    int64_t share = align_up((cols + omp_get_max_threads() - 1) / omp_get_max_threads(), 64);
    return MAX(MIN(share, COLUMN_BLOCK), 1);
}

int64_t run_end(const int32_t *mod_row, int64_t first, int64_t rows) {
    int64_t end = first + 1;
    while (end < rows && mod_row && mod_row[end] == mod_row[first]) end++;
    return mod_row ? end : rows;
}

/* sum += x. */
static inline void add(const real *restrict x, int64_t n, real *restrict sum) {
    for (int64_t j = 0; j < n; j++) sum[j] += x[j];
}

/* sum[j] += sum over rows of x[i*ld + j], four rows at a time to keep more of the memory busy; each
 * sum still takes them in order. */
static void add_rows(const real *x, int64_t rows, int64_t n, int64_t ld, real *restrict sum) {
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) {
        const real *x0 = x + i * ld, *x1 = x0 + ld, *x2 = x1 + ld, *x3 = x2 + ld;
#pragma omp simd
        for (int64_t j = 0; j < n; j++) sum[j] = sum[j] + x0[j] + x1[j] + x2[j] + x3[j];
    }
    for (; i < rows; i++) add(x + i * ld, n, sum);
}

void cpu_column_sum(Stream *s, DType t, int64_t rows, int64_t cols, int64_t ld, const void *x,
                    real keep, real *y) {
    (void)s;
    check_type(t, "column_sum");
    int64_t block = column_block(cols);
#pragma omp parallel for schedule(static) if (rows * cols >= PARALLEL_MIN)
    for (int64_t j0 = 0; j0 < cols; j0 += block) {
        real sum[COLUMN_BLOCK] = {0};
        int64_t n = MIN(block, cols - j0);
        for (int64_t i = 0; i < rows; i += ROW_CHUNK) {
            real chunk[COLUMN_BLOCK] = {0};
            add_rows((const real *)x + i * ld + j0, MIN(ROW_CHUNK, rows - i), n, ld, chunk);
            add(chunk, n, sum);
        }
        for (int64_t j = 0; j < n; j++) y[j0 + j] = kept(keep, y + j0 + j, sum[j]);
    }
}
