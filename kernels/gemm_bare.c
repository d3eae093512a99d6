/* Owns the bare product that gemm is compared with. */
#include "kernels/gemm_bare.h"
#include "kernels/gemm.h"

#include <omp.h>
#include <stdlib.h>

static GemmPart whole(const Gemm *g) {
    return (GemmPart){.m = g->m,
                      .n = g->n,
                      .k = g->k,
                      .lda = g->lda,
                      .ldb = g->ldb,
                      .ldc = g->ldc,
                      .threads = omp_get_max_threads(),
                      .alpha = (double)g->alpha,
                      .beta = (double)g->beta,
                      .a_transposed = g->a_transposed,
                      .b_transposed = g->b_transposed,
                      .has_bias = g->has_bias};
}

double gemm_bare_seconds(const Gemm *g, const void *a, const void *b, const void *bias, void *c) {
    GemmPart part = whole(g);
    Library *l = library_open();
    Product *p = product_create(l, &part);
    double took = 0;
    if (p) {
        void *workspace = xcalloc(1, MAX(product_workspace(p), 1));
        for (int run = 0; run < 2; run++) { /* the first warms up */
            double start = now_seconds();
            for (int64_t i = 0; i < g->batch; i++)
                product_run(l, p, (const real *)a + i * g->stride_a,
                            (const real *)b + i * g->stride_b,
                            bias ? (const real *)bias + i * g->stride_bias : NULL,
                            (real *)c + i * g->stride_c, workspace);
            took = now_seconds() - start;
        }
        free(workspace);
        product_free(p);
    }
    library_close(l);
    return took;
}
