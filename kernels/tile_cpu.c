/* The inner loop of the CPU's own matrix products: a tile of C stays in registers.
 *
 * This file alone is compiled with -ffp-contract=fast, so that x * b + sum is one fused operation:
 * C11 has no other way to say so of vectors. An element of C is the sum over k in order, whatever
 * tile it lies in.
 */
#include "kernels/tile.h"

#include <string.h>

typedef __typeof__((Vec){0} < (Vec){0}) Lanes;

/* Swaps the off-diagonal quarters of each 2 step x 2 step square of v. */
static inline __attribute__((always_inline)) void swap_quarters(int step, Vec v[LANES]) {
    Lanes upper, lower;
    for (int l = 0; l < LANES; l++) {
        upper[l] = l & step ? LANES + l - step : l;
        lower[l] = l & step ? LANES + l : l + step;
    }
    for (int i = 0; i < LANES; i++) {
        if (i & step) continue;
        Vec x = v[i], y = v[i + step];
        v[i] = __builtin_shuffle(x, y, upper);
        v[i + step] = __builtin_shuffle(x, y, lower);
    }
}

static void transpose_square(const real *x, int64_t ldx, real *y, int64_t ldy) {
    Vec v[LANES];
    for (int i = 0; i < LANES; i++) v[i] = vec_load(x + i * ldx);
    swap_quarters(1, v);
    swap_quarters(2, v);
    if (LANES > 4) swap_quarters(4, v);
    if (LANES > 8) swap_quarters(8, v);
    for (int i = 0; i < LANES; i++) vec_store(y + i * ldy, v[i]);
}

void transpose(const real *x, int64_t ldx, int64_t rows, int64_t cols, real *y, int64_t ldy) {
    if (rows == LANES && cols == LANES) return transpose_square(x, ldx, y, ldy);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) y[j * ldy + i] = x[i * ldx + j];
}

/* One tile; `rows` is a constant wherever this is expanded. */
static inline __attribute__((always_inline)) void tile(int rows, const TileProduct *t,
                                                       const real *a, const real *restrict b,
                                                       real *restrict c, int64_t ldc) {
    Vec sum[TILE_ROWS][TILE_VECS] = {{{0}}};
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < TILE_VECS; j++) __builtin_prefetch(c + i * ldc + j * LANES, 1);
    for (int64_t p = 0; p < t->k; p++)
        for (int i = 0; i < rows; i++) {
            real x = a[i * t->a_row + p * t->a_col];
            for (int j = 0; j < TILE_VECS; j++)
                sum[i][j] += x * vec_load(b + p * t->ldb + j * LANES);
        }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < TILE_VECS; j++) {
            real *to = c + i * ldc + j * LANES;
            Vec old = t->add ? vec_load(to) : (Vec){0};
            vec_store(to, old + t->alpha * sum[i][j]);
        }
}

static void tile_of_rows(int64_t rows, const TileProduct *t, const real *a, const real *b, real *c,
                         int64_t ldc) {
    switch (rows) {
    case 1:
        return tile(1, t, a, b, c, ldc);
    case 2:
        return tile(2, t, a, b, c, ldc);
    case 3:
        return tile(3, t, a, b, c, ldc);
    case 4:
        return tile(4, t, a, b, c, ldc);
    case 5:
        return tile(5, t, a, b, c, ldc);
    default:
        return tile(TILE_ROWS, t, a, b, c, ldc);
    }
}

/* A tile at C's right edge goes through a whole one. */
static void edge_tile(int64_t rows, int64_t cols, const TileProduct *t, const real *a,
                      const real *b, real *c) {
    real whole[TILE_ROWS * TILE_COLS] = {0};
    size_t bytes = (size_t)cols * sizeof *c;
    for (int64_t i = 0; t->add && i < rows; i++)
        memcpy(whole + i * TILE_COLS, c + i * t->ldc, bytes);
    tile_of_rows(rows, t, a, b, whole, TILE_COLS);
    for (int64_t i = 0; i < rows; i++) memcpy(c + i * t->ldc, whole + i * TILE_COLS, bytes);
}

void multiply_tiles(const TileProduct *t, const real *a, const real *b, real *c) {
    for (int64_t j = 0; j < t->n; j += TILE_COLS, b += t->panel)
        for (int64_t i = 0; i < t->m; i += TILE_ROWS) {
            int64_t rows = MIN(TILE_ROWS, t->m - i), cols = MIN(TILE_COLS, t->n - j);
            if (cols == TILE_COLS)
                tile_of_rows(rows, t, a + i * t->a_row, b, c + i * t->ldc + j, t->ldc);
            else
                edge_tile(rows, cols, t, a + i * t->a_row, b, c + i * t->ldc + j);
        }
}
