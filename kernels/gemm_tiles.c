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
    N_BLOCK = 2048,               /* columns of op(B) packed at a time */
    ROW_BLOCK = 16 * TILE_ROWS,   /* of one task: its part of A stays in the second-level cache */
    COL_BLOCK = 256,              /* of one task */
};

/* Where a block of the product begins, and how large it is. */
typedef struct {
    int64_t j, n, p, k;
} Block;

/* Columns [j, j + TILE_COLS) of the block as a panel [k][TILE_COLS]; beyond op(B) zeros. */
static void pack_panel(const GemmPart *g, const real *b, int64_t j, const Block *block, real *to) {
    int64_t n = MIN(TILE_COLS, block->j + block->n - j);
    if (n < TILE_COLS) memset(to, 0, (size_t)(block->k * TILE_COLS) * sizeof *to);
    if (!g->b_transposed) {
        for (int64_t p = 0; p < block->k; p++)
            memcpy(to + p * TILE_COLS, b + (block->p + p) * g->ldb + j, (size_t)n * sizeof *to);
        return;
    }
    for (int64_t i = 0; i < n; i += LANES)
        for (int64_t p = 0; p < block->k; p += LANES)
            transpose(b + (j + i) * g->ldb + block->p + p, g->ldb, MIN(LANES, n - i),
                      MIN(LANES, block->k - p), to + p * TILE_COLS + i, TILE_COLS);
}

/* Before the first block of k: C becomes the bias, where there is one. */
static void begin_task(const GemmPart *g, const real *bias, int64_t m, int64_t n, real *c) {
    for (int64_t i = 0; i < m; i++) memcpy(c + i * g->ldc, bias, (size_t)n * sizeof *c);
}

/* Rows [i, i + ROW_BLOCK) and columns [j, j + COL_BLOCK) of the block. */
static void run_task(const GemmPart *g, const Block *block, int64_t i, int64_t j, const real *a,
                     const real *panels, const real *bias, real *c) {
    real rows[K_BLOCK * ROW_BLOCK];
    TileProduct t = {.m = MIN(ROW_BLOCK, g->m - i), .n = MIN(COL_BLOCK, block->j + block->n - j)};
    t.k = block->k;
    t.panel = block->k * TILE_COLS;
    t.ldb = TILE_COLS;
    t.ldc = g->ldc;
    t.alpha = (real)g->alpha;
    t.add = block->p || g->has_bias || g->beta != 0;
    t.a_row = g->a_transposed ? 1 : g->lda;
    t.a_col = g->a_transposed ? ROW_BLOCK : 1;
    a += g->a_transposed ? block->p * g->lda + i : i * g->lda + block->p;
    /* Where A lies as [k,m], a tile would touch another page for each p. */
    for (int64_t p = 0; g->a_transposed && p < t.k; p++)
        memcpy(rows + p * ROW_BLOCK, a + p * g->lda, (size_t)t.m * sizeof *rows);
    c += i * g->ldc + j;
    if (g->has_bias && !block->p) begin_task(g, bias + j, t.m, t.n, c);
    multiply_tiles(&t, g->a_transposed ? rows : a, panels + (j - block->j) * block->k, c);
}

/* Inside a parallel region: all threads pack, then all multiply. */
static void run_block(const GemmPart *g, const Block *block, const real *a, const real *b,
                      const real *bias, real *c, real *panels) {
#pragma omp for schedule(static)
    for (int64_t j = 0; j < block->n; j += TILE_COLS)
        pack_panel(g, b, block->j + j, block, panels + j * block->k);
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
