/* Sums over the rows of a matrix, in an order that depends neither on threads nor on columns. */
#include "kernels/cpu.h"

#include <omp.h>

int64_t column_block(int64_t cols) {
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

/* Four rows at a time keep more of the memory busy; each sum still takes them in order. */
static void add_rows(const RowSums *r, int64_t first, int64_t last, int64_t n, real *restrict sum) {
    int64_t i = first;
    for (; i + 4 <= last; i += 4) {
        const real *x0 = r->x + i * r->ld, *x1 = x0 + r->ld, *x2 = x1 + r->ld, *x3 = x2 + r->ld;
#pragma omp simd
        for (int64_t j = 0; j < n; j++) sum[j] = sum[j] + x0[j] + x1[j] + x2[j] + x3[j];
    }
    for (; i < last; i++) add(r->x + i * r->ld, n, sum);
}

typedef struct {
    const real *x, *y;
    real mean, rstd;
} Row;

static inline Row row_of(const RowSums *r, int64_t i) {
    return (Row){r->x + i * r->ld, r->y + i * r->ld, r->stats ? r->stats[2 * i] : 0,
                 r->stats ? r->stats[2 * i + 1] : 1};
}

static inline real term(const Row *r, int64_t j) {
    return r->x[j] * ((r->y[j] - r->mean) * r->rstd);
}

static void add_products(const RowSums *r, int64_t first, int64_t last, int64_t n,
                         real *restrict sum) {
    int64_t i = first;
    for (; i + 4 <= last; i += 4) {
        Row a = row_of(r, i), b = row_of(r, i + 1), c = row_of(r, i + 2), d = row_of(r, i + 3);
#pragma omp simd
        for (int64_t j = 0; j < n; j++)
            sum[j] = sum[j] + term(&a, j) + term(&b, j) + term(&c, j) + term(&d, j);
    }
    for (; i < last; i++) {
        Row a = row_of(r, i);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) sum[j] += term(&a, j);
    }
}

/* Sums both in one walk: what add_rows and add_products would, bit for bit. */
static void add_both(const RowSums *r, int64_t first, int64_t last, int64_t n, real *restrict sum,
                     real *restrict product) {
    for (int64_t i = first; i < last; i += 4) {
        int64_t end = MIN(i + 4, last);
        add_rows(r, i, end, n, sum);
        add_products(r, i, end, n, product);
    }
}

void sum_rows(const RowSums *r, int64_t first, int64_t last, int64_t n, real *sum, real *product) {
    for (int64_t j = 0; sum && j < n; j++) sum[j] = 0;
    for (int64_t j = 0; product && j < n; j++) product[j] = 0;
    for (int64_t chunk = first; chunk < last; chunk += ROW_CHUNK) {
        real sums[COLUMN_BLOCK] = {0}, products[COLUMN_BLOCK] = {0};
        int64_t end = MIN(chunk + ROW_CHUNK, last);
        if (sum && product)
            add_both(r, chunk, end, n, sums, products);
        else if (sum)
            add_rows(r, chunk, end, n, sums);
        else
            add_products(r, chunk, end, n, products);
        if (sum) add(sums, n, sum);
        if (product) add(products, n, product);
    }
}

void cpu_column_sum(Stream *s, DType t, int64_t rows, int64_t cols, int64_t ld, const void *x,
                    real keep, real *y) {
    (void)s;
    check_type(t, "column_sum");
    int64_t block = column_block(cols);
#pragma omp parallel for schedule(static) if (rows * cols >= PARALLEL_MIN)
    for (int64_t j0 = 0; j0 < cols; j0 += block) {
        real sum[COLUMN_BLOCK];
        int64_t n = MIN(block, cols - j0);
        sum_rows(&(RowSums){.x = (const real *)x + j0, .ld = ld}, 0, rows, n, sum, NULL);
        for (int64_t j = 0; j < n; j++) y[j0 + j] = kept(keep, y + j0 + j, sum[j]);
    }
}
