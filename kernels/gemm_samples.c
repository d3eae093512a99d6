/* Matrix products whose rows are samples: so few that reading or writing the weights is the work,
 * which is done once for all of them, in the order they lie in. The memory is kept busiest by a
 * plain walk through it.
 *
 *   y = alpha x w^T + bias + beta y     dx = alpha dy w + beta dx     dw = alpha dy^T x + beta dw
 *
 * A row's bits depend neither on the other rows nor on the threads.
 */
#include "kernels/gemm.h"

#include <string.h>

static real dot(const real *x, const real *w, int64_t n) {
    enum { VECS = 4 };
    Vec sum[VECS] = {{0}};
    int64_t j = 0;
    for (; j + VECS * LANES <= n; j += VECS * LANES)
        for (int v = 0; v < VECS; v++)
            sum[v] += vec_load(x + j + v * LANES) * vec_load(w + j + v * LANES);
    real y = vec_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    for (; j < n; j++) y += x[j] * w[j];
    return y;
}

/* A [m,k], B [n,k]. */
static void run_forward(const Gemm *g, const real *a, const real *b, const real *bias, real *c) {
#pragma omp parallel for schedule(static) if (g->n * g->k >= PARALLEL_MIN)
    for (int64_t j = 0; j < g->n; j++)
        for (int64_t i = 0; i < g->m; i++) {
            real *y = c + i * g->ldc + j;
            real product = g->alpha * dot(a + i * g->lda, b + j * g->ldb, g->k);
            *y = kept(g->beta, y, bias ? product + bias[j] : product);
        }
}

/* The sum over k is cut into at most PARTS parts of at least PART_ROWS rows of B. */
enum { PARTS = 64, PART_ROWS = 64, BLOCK = 256 };

static int64_t part_rows(int64_t k) { return MAX((k + PARTS - 1) / PARTS, PART_ROWS); }

static int64_t parts_of(int64_t k) { return (k + part_rows(k) - 1) / part_rows(k); }

/* y += alpha x */
static void add(real alpha, const real *restrict x, int64_t n, real *restrict y) {
    for (int64_t j = 0; j < n; j++) y[j] += alpha * x[j];
}

/* sum [m,n], of rows [from, end) of B. */
static void sum_part(const Gemm *g, const real *a, const real *b, int64_t from, int64_t end,
                     real *sum) {
    memset(sum, 0, (size_t)(g->m * g->n) * sizeof *sum);
    for (int64_t p = from; p < end; p++)
        for (int64_t i = 0; i < g->m; i++)
            add(a[i * g->lda + p], b + p * g->ldb, g->n, sum + i * g->n);
}

/* A [m,k], B [k,n]; sums [parts,m,n]. */
static void run_input_grad(const Gemm *g, const real *a, const real *b, real *c, real *sums) {
    int64_t parts = parts_of(g->k), rows = part_rows(g->k), count = g->m * g->n;
#pragma omp parallel if (g->n * g->k >= PARALLEL_MIN)
    {
#pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; part++)
            sum_part(g, a, b, part * rows, MIN((part + 1) * rows, g->k), sums + part * count);
#pragma omp for collapse(2) schedule(static)
        for (int64_t i = 0; i < g->m; i++)
            for (int64_t j0 = 0; j0 < g->n; j0 += BLOCK) {
                int64_t n = MIN(BLOCK, g->n - j0);
                real *sum = sums + i * g->n + j0, *to = c + i * g->ldc + j0;
                for (int64_t part = 1; part < parts; part++) add(1, sum + part * count, n, sum);
                for (int64_t j = 0; j < n; j++) to[j] = kept(g->beta, to + j, g->alpha * sum[j]);
            }
    }
}

/* A [k,m], B [k,n]. */
static void run_weight_grad(const Gemm *g, const real *a, const real *b, real *c) {
    bool streamed = g->beta == 0 && is_streamed(g->m, g->ldc, c);
#pragma omp parallel for schedule(static) if (g->m * g->n >= PARALLEL_MIN)
    for (int64_t i = 0; i < g->m; i++) {
        real *to = c + i * g->ldc;
        int64_t j = 0;
        for (; j + LANES <= g->n; j += LANES) {
            Vec sum = {0};
            for (int64_t p = 0; p < g->k; p++)
                sum += g->alpha * a[p * g->lda + i] * vec_load(b + p * g->ldb + j);
            vec_put(streamed, to + j, g->beta != 0 ? vec_load(to + j) + sum : sum);
        }
        for (; j < g->n; j++) {
            real sum = 0;
            for (int64_t p = 0; p < g->k; p++)
                sum += g->alpha * a[p * g->lda + i] * b[p * g->ldb + j];
            to[j] = kept(g->beta, to + j, sum);
        }
    }
}

size_t samples_workspace(const Gemm *g) {
    if (g->a_transposed || g->b_transposed) return 0;
    return (size_t)(parts_of(g->k) * g->m * g->n) * sizeof(real);
}

void samples_run(const Gemm *g, const real *a, const real *b, const real *bias, real *c,
                 void *workspace) {
    if (g->a_transposed) return run_weight_grad(g, a, b, c);
    if (g->b_transposed) return run_forward(g, a, b, bias, c);
    run_input_grad(g, a, b, c, workspace);
}
