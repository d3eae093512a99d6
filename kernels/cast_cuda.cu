/* Casts between number types on CUDA, from any address. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda.cuh"

enum { THREADS = 256, TAKEN = 8 }; /* elements that a thread takes: 16 bytes or more */

__device__ __forceinline__ float to_float(double x) { return (float)x; }

/* N elements at p, which is a multiple of 16 where they are 16 bytes or more. */
template <class From, int N> __device__ __forceinline__ Pack<From, N> load_aligned(const char *p) {
    Pack<From, N> pack;
    uint4 words[N * sizeof(From) / PACK_BYTES];
#pragma unroll
    for (int i = 0; i < (int)sizeof words / PACK_BYTES; i++) words[i] = ((const uint4 *)p)[i];
    memcpy(&pack, words, sizeof pack);
    return pack;
}

template <class From> __device__ __forceinline__ From load_bytes(const char *p) {
    char bytes[sizeof(From)];
#pragma unroll
    for (int i = 0; i < (int)sizeof bytes; i++) bytes[i] = p[i];
    From x;
    memcpy(&x, bytes, sizeof x);
    return x;
}

/* A thread has TAKEN elements: at once where all addresses allow it (`wide`), else one by one, and
 * byte by byte. */
template <class From, class To>
__global__ void __launch_bounds__(THREADS)
    cast_kernel(int64_t n, const char *src, To *dst, bool wide) {
    const int step = PACK_BYTES / (int)sizeof(To);
    int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * TAKEN;
    if (wide && at + TAKEN <= n) {
        Pack<From, TAKEN> pack = load_aligned<From, TAKEN>(src + at * (int64_t)sizeof(From));
        float x[TAKEN];
        to_floats(pack, x);
#pragma unroll
        for (int j = 0; j < TAKEN; j += step) store<step>(dst + at + j, x + j);
        return;
    }
    /* Neighbours in turn, so that the lanes of a warp read neighbouring elements. */
    int64_t first = (int64_t)blockIdx.x * THREADS * TAKEN;
    int64_t i = wide ? at : first + threadIdx.x, by = wide ? 1 : THREADS;
    for (int j = 0; j < TAKEN && i < n; j++, i += by)
        dst[i] = from_float<To>(to_float(load_bytes<From>(src + i * (int64_t)sizeof(From))));
}

template <class From, class To>
static void launch_cast(Stream *s, int64_t n, const void *src, void *dst) {
    bool wide = ((uintptr_t)src | (uintptr_t)dst) % PACK_BYTES == 0;
    LAUNCH((cast_kernel<From, To>), blocks_for(n, THREADS * TAKEN), THREADS, 0, cuda_queue(s), n,
           (const char *)src, (To *)dst, wide);
}

template <class From>
static void cast_from(Stream *s, DType to, int64_t n, const void *src, void *dst) {
    WITH_TYPE(to, "cast", To, launch_cast<From, To>(s, n, src, dst));
}

void cuda_cast(Stream *s, DType from, DType to, int64_t n, const void *src, void *dst) {
    if (!n) return;
    if (from == DT_F64)
        cast_from<double>(s, to, n, src, dst);
    else
        WITH_TYPE(from, "cast", From, cast_from<From>(s, to, n, src, dst));
    cuda_check_launch("cast");
}
