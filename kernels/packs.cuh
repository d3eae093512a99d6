/* What some CUDA kernels share besides kernels/cuda.cuh: packs that keep their bits, packs of f32
 * beside those of another type, and sums in f64. */
#pragma once

#include "kernels/cuda.cuh"

/* Sixteen bytes as one number: nvcc may split a store of four words where the address is a sum of
 * products, and never one of these. */
typedef unsigned __int128 PackBits;

/* What load_pack reads, put elsewhere: no bit changes. */
template <class T, int V> __device__ __forceinline__ void store_pack(T *p, Pack<T, V> pack) {
    if (V * sizeof(T) == PACK_BYTES) {
        PackBits bits;
        memcpy(&bits, &pack, sizeof bits);
        *(PackBits *)p = bits;
    } else {
        for (int j = 0; j < V; j++) p[j] = pack.v[j];
    }
}

/* The rounded numbers as a pack, for store_pack. */
template <class T, int V> __device__ __forceinline__ Pack<T, V> pack_of(const float *x) {
    Pack<T, V> pack;
    if (V * sizeof(T) == PACK_BYTES) {
        uint32_t words[4];
        const int step = V / 4; /* elements in a word */
#pragma unroll
        for (int j = 0; j < 4; j++)
            words[j] = word_of(T(), x[step * j], x[(step * j + step - 1) % V]);
        memcpy(&pack, words, sizeof words);
    } else {
        for (int j = 0; j < V; j++) pack.v[j] = from_float<T>(x[j]);
    }
    return pack;
}

/* The sum over a warp, in all of its lanes. */
__device__ __forceinline__ double warp_sum_f64(double x) {
    for (int m = WARP / 2; m; m /= 2) x += __shfl_xor_sync(FULL, x, m);
    return x;
}

/* The sum over the block's threads, in all of them. The block is one row of whole warps; all its
 * threads call. */
__device__ __forceinline__ double block_sum_f64(double x) {
    __shared__ double part[MAX_WARPS];
    int warps = (int)blockDim.x / WARP, warp = (int)threadIdx.x / WARP;
    int lane = (int)threadIdx.x % WARP;
    x = warp_sum_f64(x);
    __syncthreads(); /* `part` may still be read by an earlier call */
    if (lane == 0) part[warp] = x;
    __syncthreads();
    return warp_sum_f64(lane < warps ? part[lane] : 0);
}

/* x[0 .. V) = p[0 .. V) of f32 beside packs of V elements of another type: 16 bytes at a time where
 * V is a multiple of four, and p then one of 16. */
template <int V> __device__ __forceinline__ void load_reals(const float *p, float *x) {
    const int step = V % 4 ? 1 : 4;
#pragma unroll
    for (int j = 0; j < V; j += step) load<step>(p + j, x + j);
}
