/* Times every matrix product of a micro-step where it works, beside the library's own for the same
 * operands. */
#include "trainer/bench.h"

#include "kernels/gemm_bare.h"

#include <stdio.h>
#include <stdlib.h>

/* The backend's table has no place for what a function of it belongs to. */
static struct {
    Bench *bench;
    const Backend *k;
    int turn;
    void *c; /* where products go that are only timed */
    size_t bytes;
} timing;

/* "product 1920x128x2026 dW +": m, n and k; of y = x W^T, dx = dy W or dW = dy^T x; added to C. */
static void product_name(const Gemm *g, char name[96]) {
    snprintf(name, 96, "product %lldx%lldx%lld%s%s", (long long)g->m, (long long)g->n,
             (long long)g->k,
             g->a_transposed   ? " dW"
             : g->b_transposed ? ""
                               : " dx",
             g->beta != 0 ? " +" : "");
}

static void *room_for(const Gemm *g) {
    int64_t last = (g->batch - 1) * g->stride_c + g->m * g->ldc;
    size_t bytes = (size_t)last * sizeof(real);
    if (bytes <= timing.bytes) return timing.c;
    timing.k->release(timing.c);
    timing.c = timing.k->alloc(timing.bytes = bytes);
    CHECK(timing.c, "bench: no %zu bytes for a product", bytes);
    timing.k->zero(NULL, timing.c, bytes);
    return timing.c;
}

static void timed_gemm(Stream *s, const Gemm *g, const void *a, const void *b, const void *bias,
                       void *c) {
    char name[96];
    Gemm plain = *g;
    product_name(g, name);
    timing.k->gemm(s, g, a, b, bias, c);
    BenchRow *row = bench_row(timing.bench, name);
    if (row->seconds[timing.turn] != 0) return;
    plain.epilogue = EPILOGUE_NONE;
    plain.aux = plain.sums = NULL;
    void *aside = room_for(g);
    double start = now_seconds();
    timing.k->gemm(s, &plain, a, b, bias, aside);
    row->seconds[timing.turn] = now_seconds() - start;
    row->compared[timing.turn] = gemm_bare_seconds(&plain, a, b, bias, aside);
    row->cost.flops = 2.0 * (double)g->batch * (double)g->m * (double)g->n * (double)g->k;
}

void bench_products(Bench *b, Memory *memory, void (*micro)(void *of), void *of) {
    const Backend *k = memory->k;
    Backend table = *k;
    if (k != &BACKEND_CPU) return;
    table.gemm = timed_gemm;
    timing.bench = b;
    timing.k = k;
    memory->k = &table;
    for (timing.turn = 0; timing.turn < b->repeat; timing.turn++) micro(of);
    memory->k = k;
    k->release(timing.c);
    timing.c = NULL;
    timing.bytes = 0;
}
