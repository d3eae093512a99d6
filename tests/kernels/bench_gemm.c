/* Matrix products as the trainer computes them beside a bare loop over the library's primitive for
 * the whole shape, and beside our own tiles: GFLOP/s and the ratio to bare. Run by hand.
 *
 * usage: bench_gemm        OMP_NUM_THREADS sets the threads
 */
#include "kernels/gemm.h"
#include "tests/kernels/fixture.h"

#include <omp.h>
#include <stdio.h>

enum { WORKSPACE = 256 << 20, ROUNDS = 7 };

typedef struct {
    const char *name;
    Gemm g;
    GemmPart part;
    Product *bare;
    real *a, *b, *c;
} Case;

typedef enum { OURS, BARE, TILES, KINDS } Kind;

static double seconds_of(Stream *s, Library *l, const Case *c, Kind kind) {
    double begin = now_seconds();
    if (kind == OURS)
        cpu_gemm(s, &c->g, c->a, c->b, NULL, c->c);
    else if (kind == BARE)
        product_run(l, c->bare, c->a, c->b, NULL, c->c, s->workspace);
    else
        tiles_run(&c->part, c->a, c->b, NULL, c->c, s->workspace);
    return now_seconds() - begin;
}

static void run_case(Stream *s, Library *l, Case c) {
    Gemm *g = &c.g;
    double best[KINDS] = {1e9, 1e9, 1e9}, flops = 2.0 * (double)(g->m * g->n * g->k);
    c.a = numbers(g->m * g->k, 1);
    c.b = numbers(g->k * g->n, 2);
    c.c = numbers(g->m * g->n, 3);
    c.part = (GemmPart){g->m,
                        g->n,
                        g->k,
                        g->lda,
                        g->ldb,
                        g->ldc,
                        omp_get_max_threads(),
                        1,
                        0,
                        g->a_transposed,
                        g->b_transposed,
                        0,
                        0};
    c.bare = product_create(l, &c.part);
    assert_true(MAX(cpu_gemm_workspace(s, g), product_workspace(c.bare)) <= WORKSPACE);
    for (int round = 0; round < ROUNDS; round++)
        for (Kind kind = 0; kind < KINDS; kind++)
            best[kind] = MIN(best[kind], seconds_of(s, l, &c, kind));
    printf("%-9s %4lld x %4lld x %4lld  ours %6.1f  bare %6.1f  ratio %.2f  tiles %6.1f  %.2f\n",
           c.name, (long long)g->m, (long long)g->n, (long long)g->k, flops / best[OURS] * 1e-9,
           flops / best[BARE] * 1e-9, best[BARE] / best[OURS], flops / best[TILES] * 1e-9,
           best[BARE] / best[TILES]);
    product_free(c.bare);
    release(3, c.a, c.b, c.c);
}

/* y = x W^T; dx = dy W; dW = dy^T x. */
static Gemm forward(int64_t m, int64_t n, int64_t k) {
    return (Gemm){.type = DT_REAL,
                  .type_c = DT_REAL,
                  .m = m,
                  .n = n,
                  .k = k,
                  .batch = 1,
                  .lda = k,
                  .ldb = k,
                  .ldc = n,
                  .alpha = 1,
                  .b_transposed = true};
}

static Gemm input_gradient(int64_t m, int64_t n, int64_t k) {
    Gemm g = forward(m, n, k);
    g.ldb = n;
    g.b_transposed = false;
    return g;
}

static Gemm weight_gradient(int64_t m, int64_t n, int64_t k) {
    Gemm g = input_gradient(m, n, k);
    g.lda = m;
    g.a_transposed = g.k_is_rows = true;
    return g;
}

int main(void) {
    Stream *s = open_stream(WORKSPACE);
    Library *l = library_open();
    const Case cases[] = {
        {.name = "to_q", .g = forward(2026, 1920, 1920)},
        {.name = "ff in", .g = forward(2026, 7680, 1920)},
        {.name = "ff out", .g = forward(1800, 1920, 7680)},
        {.name = "lora A", .g = forward(2026, 128, 1920)},
        {.name = "lora B", .g = forward(2026, 1920, 128)},
        {.name = "adaln", .g = forward(2, 11520, 512)},
        {.name = "dx", .g = input_gradient(2026, 1920, 1920)},
        {.name = "dW", .g = weight_gradient(1920, 1920, 2026)},
        {.name = "dA", .g = weight_gradient(128, 1920, 2026)},
    };
    for (size_t i = 0; i < COUNT(cases); i++) run_case(s, l, cases[i]);
    library_close(l);
    return 0;
}
