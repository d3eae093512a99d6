/* Sums over the rows of a matrix on CUDA: over parts of a fixed number of rows, then over parts. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda.cuh"

/* A block's warps take every eighth row of a part, its lanes V columns each. */
enum { PART_ROWS = 128, WARPS = 8, THREADS = WARPS * WARP };

template <class T, int V>
__global__ void sum_part(int64_t rows, int64_t cols, int64_t ld, const T *x, float *partial) {
    __shared__ float sums[WARPS][WARP * V];
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    int64_t j0 = (int64_t)blockIdx.y * WARP * V, j = j0 + lane * V;
    int64_t first = (int64_t)blockIdx.x * PART_ROWS, last = MIN(first + PART_ROWS, rows);
    float sum[V] = {};
#pragma unroll 4
    for (int64_t i = first + warp; i < last && j < cols; i += WARPS) {
        float v[V];
        load<V>(x + i * ld + j, v);
#pragma unroll
        for (int k = 0; k < V; k++) sum[k] += v[k];
    }
#pragma unroll
    for (int k = 0; k < V; k++) sums[warp][lane * V + k] = sum[k];
    __syncthreads();
    for (int c = (int)threadIdx.x; c < WARP * V && j0 + c < cols; c += THREADS) {
        float total = sums[0][c];
        for (int w = 1; w < WARPS; w++) total += sums[w][c];
        partial[blockIdx.x * cols + j0 + c] = total;
    }
}

__global__ void add_parts(int64_t parts, int64_t cols, const float *partial, float keep, float *y) {
    int64_t j = (int64_t)blockIdx.x * SUM_COLUMNS + threadIdx.x;
    bool active = j < cols;
    float sum;
    sum_chunks<1>(partial + j, (int)parts, (int)cols, 0, NULL, 0, active, &sum);
    if (active && threadIdx.y == 0) y[j] = kept(keep, y + j, sum);
}

__global__ void keep_columns(int64_t cols, float keep, float *y) {
    int64_t j = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (j < cols) y[j] = kept(keep, y + j, 0);
}

/* As many columns as the scratch has room for, and a grid in y. */
static int64_t panel_of(int64_t parts, int64_t cols) {
    int64_t room = SCRATCH_BYTES / (int64_t)sizeof(float) / parts / (WARP * 8) * (WARP * 8);
    CHECK(room > 0, "column_sum: %lld parts are too many", (long long)parts);
    return MIN(MIN(room, 65535 * WARP), cols);
}

void cuda_column_sum(Stream *s, DType t, int64_t rows, int64_t cols, int64_t ld, const void *x,
                     real keep, real *y) {
    if (cols == 0) return;
    if (rows == 0) {
        LAUNCH(keep_columns, blocks_for(cols, THREADS), THREADS, 0, cuda_queue(s), cols, keep, y);
        cuda_check_launch("column_sum");
        return;
    }
    float *partial = (float *)cuda_scratch(s);
    unsigned parts = blocks_for(rows, PART_ROWS);
    int64_t panel = panel_of(parts, cols);
    bool wide = packable(t, (uintptr_t)x, ld | cols);
    for (int64_t j = 0; j < cols; j += panel) {
        int64_t n = MIN(panel, cols - j);
        const char *from = (const char *)x + j * (int64_t)dtype_size(t);
        WITH_PACKS(t, wide, 1, "column_sum", T, V,
                   LAUNCH((sum_part<T, V>), dim3(parts, blocks_for(n, WARP * V)), THREADS, 0,
                          cuda_queue(s), rows, n, ld, (const T *)from, partial));
        LAUNCH(add_parts, blocks_for(n, SUM_COLUMNS), dim3(SUM_COLUMNS, SUM_GROUPS), 0,
               cuda_queue(s), (int64_t)parts, n, partial, keep, y + j);
        cuda_check_launch("column_sum");
    }
}
