/* Matrix products by plain loops, for any `real`: the f64 build's, where exactness is all. */
#include "kernels/cpu.h"
#include "kernels/math.h"

enum { BLOCK = 16 };

GemmCache *gemm_cache_open(void) { return NULL; }

void gemm_cache_close(GemmCache *c) { (void)c; }

size_t cpu_gemm_workspace(Stream *s, const Gemm *g) {
    (void)s, (void)g;
    return 0;
}

/* sum[j] = row i of op(A) times column j0 + j of op(B), j < n. */
static void dot_block(const Gemm *g, const real *a, const real *b, int64_t i, int64_t j0, int64_t n,
                      real *sum) {
    int64_t a_row = g->a_transposed ? 1 : g->lda, a_col = g->a_transposed ? g->lda : 1;
    int64_t b_row = g->b_transposed ? 1 : g->ldb, b_col = g->b_transposed ? g->ldb : 1;
    int64_t chunk = g->k_is_rows ? ROW_CHUNK : MAX(g->k, 1);
    for (int64_t j = 0; j < n; j++) sum[j] = 0;
    for (int64_t first = 0; first < g->k; first += chunk) {
        real part[BLOCK] = {0};
        for (int64_t p = first; p < MIN(first + chunk, g->k); p++)
            for (int64_t j = 0; j < n; j++)
                part[j] =
                    fma_real(a[i * a_row + p * a_col], b[p * b_row + (j0 + j) * b_col], part[j]);
        for (int64_t j = 0; j < n; j++) sum[j] += part[j];
    }
}

static void multiply_row(const Gemm *g, const real *a, const real *b, const real *bias, int64_t i,
                         real *c) {
    for (int64_t j0 = 0; j0 < g->n; j0 += BLOCK) {
        real sum[BLOCK];
        int64_t n = MIN(BLOCK, g->n - j0);
        dot_block(g, a, b, i, j0, n, sum);
        for (int64_t j = 0; j < n; j++) {
            real value = g->alpha * sum[j] + (g->has_bias ? bias[j0 + j] : 0);
            real *out = c + i * g->ldc + j0 + j;
            *out = kept(g->beta, out, value);
        }
    }
}

void cpu_gemm(Stream *s, const Gemm *g, const void *a, const void *b, const void *bias, void *c) {
    (void)s;
    check_type(g->type, "gemm");
    check_type(g->type_c, "gemm");
#pragma omp parallel for schedule(static) if (g->batch * g->m * g->n * g->k >= PARALLEL_MIN)
    for (int64_t row = 0; row < g->batch * g->m; row++) {
        int64_t member = row / g->m;
        multiply_row(g, (const real *)a + member * g->stride_a,
                     (const real *)b + member * g->stride_b,
                     g->has_bias ? (const real *)bias + member * g->stride_bias : NULL, row % g->m,
                     (real *)c + member * g->stride_c);
    }
}
