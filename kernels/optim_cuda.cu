/* The optimizer's CUDA kernels, over flat ranges of parameters. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/packs.cuh"

enum { THREADS = 256, CHUNK = 1024, LANE = 4 };

template <int V>
__device__ __forceinline__ void update(const AdamW *a, const float *grad, float *master, float *m,
                                       float *v) {
    float g[V], w[V], m1[V], v1[V];
    load<V>(grad, g);
    load<V>(master, w);
    load<V>(m, m1);
    load<V>(v, v1);
#pragma unroll
    for (int j = 0; j < V; j++) adamw_update(a, g[j], w + j, m1 + j, v1 + j);
    store<V>(master, w);
    store<V>(m, m1);
    store<V>(v, v1);
}

/* V elements a thread; the last thread may have fewer. */
template <int V>
__global__ void adamw_range(AdamW a, int64_t n, const float *grad, float *master, float *m,
                            float *v) {
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V;
    if (i + V <= n)
        update<V>(&a, grad + i, master + i, m + i, v + i);
    else
        for (; i < n; i++) update<1>(&a, grad + i, master + i, m + i, v + i);
}

void cuda_adamw(Stream *s, const AdamW *a, int64_t n, const real *grad, real *master, real *m,
                real *v) {
    if (n == 0) return;
    uintptr_t addresses = (uintptr_t)grad | (uintptr_t)master | (uintptr_t)m | (uintptr_t)v;
    if (packable(DT_F32, addresses, 0))
        LAUNCH(adamw_range<4>, blocks_for(n, THREADS * 4), THREADS, 0, cuda_queue(s), *a, n, grad,
               master, m, v);
    else
        LAUNCH(adamw_range<1>, blocks_for(n, THREADS), THREADS, 0, cuda_queue(s), *a, n, grad,
               master, m, v);
    cuda_check_launch("adamw");
}

/* A warp sums the squares of a chunk; a lane reads LANE elements at a time, V together. */
template <int V> __global__ void chunk_squares(int64_t n, const float *x, double *partial) {
    int64_t chunk = (int64_t)blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    int64_t first = chunk * CHUNK, last = MIN(first + CHUNK, n);
    double sums[LANE] = {};
#pragma unroll
    for (int k = 0; k < CHUNK; k += WARP * LANE) {
        int64_t i = first + k + threadIdx.x % WARP * LANE;
        float v[LANE] = {};
        if (V == LANE && i + LANE <= last)
            load<V>(x + i, v);
        else
            for (int j = 0; j < LANE && i + j < last; j++) v[j] = x[i + j];
#pragma unroll
        for (int j = 0; j < LANE; j++) sums[j] += (double)v[j] * v[j];
    }
    double sum = warp_sum_f64((sums[0] + sums[1]) + (sums[2] + sums[3]));
    if (first < n && threadIdx.x % WARP == 0) partial[chunk] = sum;
}

void cuda_sum_squares(Stream *s, int64_t n, const real *x, double *partial) {
    if (n == 0) return;
    unsigned blocks = blocks_for(n, CHUNK * (THREADS / WARP));
    if (packable(DT_F32, (uintptr_t)x, 0))
        LAUNCH(chunk_squares<4>, blocks, THREADS, 0, cuda_queue(s), n, x, partial);
    else
        LAUNCH(chunk_squares<1>, blocks, THREADS, 0, cuda_queue(s), n, x, partial);
    cuda_check_launch("sum_squares");
}
