/* Small matrix products in registers: what attention and the own gemm of the CPU are made of. */
#pragma once

#include "kernels/cpu.h"

/* 6 x 2 vectors of sums, with what is multiplied, just fit the sixteen registers of AVX2. */
enum { TILE_ROWS = 6, TILE_VECS = 2, TILE_COLS = TILE_VECS * LANES };

/* C[m,n] = alpha * A[m,k] B[k,n] (+ C). A's element (i,p) is a[i*a_row + p*a_col]. B's columns come
 * in panels of TILE_COLS: element (p,j) is b[j/TILE_COLS*panel + p*ldb + j%TILE_COLS]. The last
 * panel is whole in memory, even where n ends within it. */
typedef struct {
    int64_t m, n, k;
    int64_t a_row, a_col, panel, ldb, ldc;
    real alpha;
    bool add;
} TileProduct;

/* y[j*ldy + i] = x[i*ldx + j], i < rows <= LANES, j < cols <= LANES. */
void transpose(const real *x, int64_t ldx, int64_t rows, int64_t cols, real *y, int64_t ldy);

/* On this thread. A row or column of C has the same bits whatever else is in C. */
void multiply_tiles(const TileProduct *t, const real *a, const real *b, real *c);
