/* Matrix products of our own, blocked as Goto and van de Geijn 2008: op(B) is packed into panels
 * that all threads share, op(A) is read where it lies.
 *
 * k is summed in blocks of K_BLOCK, in order; blocks of rows and columns only say who computes
 * what. So a row's bits depend neither on the other rows nor on the threads.
 */
#include "kernels/gemm.h"
#include "kernels/tile.h"

#include <string.h>

enum {
    K_BLOCK = 512,
    K_SLICE = 64,               /* packed by one thread at a time */
    N_BLOCK = 1024,             /* columns of op(B) packed at a time */
    ROW_BLOCK = 16 * TILE_ROWS, /* of one task: its part of A stays in the second-level cache */
    COL_BLOCK = 256,            /* of one task */
};

/* Where a block of the product begins, and how large it is. */
typedef struct {
    int64_t j, n, p, k;
} Block;

/* Rows [p, p + K_SLICE) and columns [j, j + COL_BLOCK) of the block into panels [k][TILE_COLS], of
 * which the first begins at `to`; columns beyond op(B) become zeros. */
static void pack_slice(const GemmPart *g, const Block *block, int64_t p, int64_t j, const real *b,
                       real *to) {
    int64_t n = MIN(COL_BLOCK, block->n - j), end = MIN(p + K_SLICE, block->k);
    int64_t rest = n % TILE_COLS, across = g->b_transposed ? 1 : g->ldb;
    b += block->p * across + (block->j + j) * (g->b_transposed ? g->ldb : 1);
    for (int64_t q = p; rest && q < end; q++)
        memset(to + (n - rest) * block->k + q * TILE_COLS, 0, TILE_COLS * sizeof *to);
    for (int64_t q = p; !g->b_transposed && q < end; q++)
        for (int64_t i = 0; i < n; i += TILE_COLS)
            memcpy(to + i * block->k + q * TILE_COLS, b + q * g->ldb + i,
                   (size_t)MIN(TILE_COLS, n - i) * sizeof *to);
    for (int64_t i = 0; g->b_transposed && i < n; i += LANES)
        for (int64_t q = p; q < end; q += LANES)
            transpose(b + i * g->ldb + q, g->ldb, MIN(LANES, n - i), MIN(LANES, end - q),
                      to + i / TILE_COLS * TILE_COLS * block->k + q * TILE_COLS + i % TILE_COLS,
                      TILE_COLS);
}

/* A[k,m] as rows [m][K_BLOCK]: a tile would touch a page of A for each p. */
static void pack_rows(const real *a, int64_t lda, int64_t m, int64_t k, real *to) {
    for (int64_t p = 0; p < k; p += LANES)
        for (int64_t i = 0; i < m; i += LANES)
            transpose(a + p * lda + i, lda, MIN(LANES, k - p), MIN(LANES, m - i),
                      to + i * K_BLOCK + p, K_BLOCK);
}

/* Before the first block of k: C becomes the bias, where there is one. */
static void begin_task(const GemmPart *g, const real *bias, int64_t m, int64_t n, real *c) {
    for (int64_t i = 0; i < m; i++) memcpy(c + i * g->ldc, bias, (size_t)n * sizeof *c);
}

/* Rows [i, i + ROW_BLOCK) and columns [j, j + COL_BLOCK) of the block. */
static void run_task(const GemmPart *g, const Block *block, int64_t i, int64_t j, const real *a,
                     const real *panels, const real *bias, real *c) {
    real rows[ROW_BLOCK * K_BLOCK];
    TileProduct t = {.m = MIN(ROW_BLOCK, g->m - i), .n = MIN(COL_BLOCK, block->j + block->n - j)};
    t.k = block->k;
    t.panel = block->k * TILE_COLS;
    t.ldb = TILE_COLS;
    t.ldc = g->ldc;
    t.alpha = (real)g->alpha;
    t.add = block->p || g->has_bias || g->beta != 0;
    t.a_row = g->a_transposed ? K_BLOCK : g->lda;
    t.a_col = 1;
    a += g->a_transposed ? block->p * g->lda + i : i * g->lda + block->p;
    if (g->a_transposed) pack_rows(a, g->lda, t.m, t.k, rows);
    c += i * g->ldc + j;
    if (g->has_bias && !block->p) begin_task(g, bias + j, t.m, t.n, c);
    multiply_tiles(&t, g->a_transposed ? rows : a, panels + (j - block->j) * block->k, c);
}

/* Inside a parallel region: all threads pack, then all multiply. */
static void run_block(const GemmPart *g, const Block *block, const real *a, const real *b,
                      const real *bias, real *c, real *panels) {
#pragma omp for collapse(2) schedule(static)
    for (int64_t j = 0; j < block->n; j += COL_BLOCK)
        for (int64_t p = 0; p < block->k; p += K_SLICE)
            pack_slice(g, block, p, j, b, panels + j * block->k);
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t i = 0; i < g->m; i += ROW_BLOCK)
        for (int64_t j = 0; j < block->n; j += COL_BLOCK)
            run_task(g, block, i, block->j + j, a, panels, bias, c);
}

size_t tiles_workspace(const GemmPart *g) {
    int64_t cols = align_up(MIN(g->n, N_BLOCK), TILE_COLS);
    return (size_t)(cols * MIN(g->k, K_BLOCK)) * sizeof(real);
}

void tiles_run(const GemmPart *g, const real *a, const real *b, const real *bias, real *c,
               void *workspace) {
#pragma omp parallel if (g->m * g->n * g->k >= PARALLEL_MIN)
    for (int64_t j = 0; j < g->n; j += N_BLOCK)
        for (int64_t p = 0; p < g->k; p += K_BLOCK) {
            Block block = {j, MIN(N_BLOCK, g->n - j), p, MIN(K_BLOCK, g->k - p)};
            run_block(g, &block, a, b, bias, c, workspace);
        }
}
