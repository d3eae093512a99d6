/* What the CUDA kernels share, and the manual of how they are written.
 *
 * A *_cuda.cu file begins with <cuda_bf16.h>, <cuda_fp16.h> and this header. Two compilers read it:
 * nvcc, and a C++ compiler over tests/shim, where every CUDA thread is a fiber. So
 *   - kernels are `template <class T, int V> __global__ void name(...)` or without the template,
 * and start by LAUNCH((name<T, V>), grid, block, shared bytes, queue, arguments ...), with
 *     parentheses around a name that has a comma. Arguments are scalars, pointers and structs;
 *   - after a launch stands cuda_check_launch("name");
 *   - shared memory is `__shared__ float x[N];` or, sized at the launch, DYN_SHARED(float, x);
 *   - shuffles take the mask FULL, and all 32 lanes of a warp take part: lanes without work bring
 * 0. Barriers are reached by all threads of the block;
 *   - a grid has 1 to 2^31 - 1 blocks in x (blocks_for checks) and at most 65,535 in y and z. There
 *     are no empty launches: entries return early where there is nothing to do.
 *
 * Types. T is float, __nv_bfloat16 or __half; arithmetic is in float, and each result is rounded
 * once, by store() or from_float(). WITH_TYPE picks T from a DType, WITH_PACKS also V.
 *
 * Memory. V elements are read and written together: 16 / sizeof(T) where all addresses and the
 * width allow it (packable() says so), which is one access of 16 bytes; with any other V they go
 * one by one. Sizes and indices of elements are int64_t.
 *
 * Sums have one order whatever the device does: over lanes warp_sum, over a block block_sum, over
 * many blocks each writes what it has to cuda_scratch, and a second kernel adds with sum_chunks.
 */
#pragma once

#include "kernels/cuda.h"
#include "kernels/math.h"

enum { WARP = 32, MAX_WARPS = 32, PACK_BYTES = 16 };
#define FULL 0xffffffffu

/* ---- numbers ---------------------------------------------------------------------------------*/

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
template <> __device__ __forceinline__ __half from_float<__half>(float x) {
    return __float2half_rn(x);
}

/* keep * old + fresh, without reading *old where keep is 0. */
template <class T> __device__ __forceinline__ float kept(float keep, const T *old, float fresh) {
    return keep != 0 ? keep * to_float(*old) + fresh : fresh;
}

/* ---- packs -----------------------------------------------------------------------------------*/

/* V elements as they lie in memory; kept in registers it is half as large as floats would be. */
template <class T, int V> struct Pack { T v[V]; };

template <int V, class T> __device__ __forceinline__ Pack<T, V> load_pack(const T *p) {
    Pack<T, V> pack;
    if (V * sizeof(T) == PACK_BYTES) {
        uint4 words = *(const uint4 *)p;
        memcpy(&pack, &words, sizeof pack);
    } else {
        for (int j = 0; j < V; j++) pack.v[j] = p[j];
    }
    return pack;
}

/* The same; zeros where there is nothing. */
template <int V, class T>
__device__ __forceinline__ Pack<T, V> load_pack_if(bool there, const T *p) {
    Pack<T, V> pack;
    if (V * sizeof(T) == PACK_BYTES) {
        uint4 words = make_uint4(0, 0, 0, 0);
        if (there) words = *(const uint4 *)p;
        memcpy(&pack, &words, sizeof pack);
    } else {
        for (int j = 0; j < V; j++) pack.v[j] = there ? p[j] : from_float<T>(0);
    }
    return pack;
}

/* Two neighbours as one word: one instruction rounds both. */
__device__ __forceinline__ uint32_t word_of(__nv_bfloat16, float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t word;
    memcpy(&word, &pair, sizeof word);
    return word;
}
__device__ __forceinline__ uint32_t word_of(__half, float low, float high) {
    __half2 pair = __floats2half2_rn(low, high);
    uint32_t word;
    memcpy(&word, &pair, sizeof word);
    return word;
}
__device__ __forceinline__ uint32_t word_of(float, float low, float) { return float_bits(low); }

/* The elements of one word. One instruction each: bf16 is the upper half of an f32. */
__device__ __forceinline__ void from_word(__nv_bfloat16, uint32_t word, float *x) {
    x[0] = float_from_bits(word << 16);
    x[1] = float_from_bits(word & 0xffff0000u);
}
__device__ __forceinline__ void from_word(__half, uint32_t word, float *x) {
    __half pair[2];
    memcpy(pair, &word, sizeof pair);
    x[0] = __half2float(pair[0]);
    x[1] = __half2float(pair[1]);
}
__device__ __forceinline__ void from_word(float, uint32_t word, float *x) {
    x[0] = float_from_bits(word);
}

template <class T, int V> __device__ __forceinline__ void to_floats(Pack<T, V> pack, float *x) {
    if (V * sizeof(T) == PACK_BYTES) {
        uint32_t words[4];
        const int step = V / 4; /* elements in a word */
        memcpy(words, &pack, sizeof words);
#pragma unroll
        for (int j = 0; j < 4; j++) from_word(T(), words[j], x + step * j);
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) x[j] = to_float(pack.v[j]);
    }
}

/* x[0 .. V) = p[0 .. V), and back. With 16 bytes in V elements, p is a multiple of 16. */
template <int V, class T> __device__ __forceinline__ void load(const T *p, float *x) {
    to_floats(load_pack<V>(p), x);
}

template <int V, class T> __device__ __forceinline__ void store(T *p, const float *x) {
    if (V * sizeof(T) == PACK_BYTES) {
        uint32_t words[4];
        const int step = V / 4; /* elements in a word */
#pragma unroll
        for (int j = 0; j < 4; j++)
            words[j] = word_of(T(), x[step * j], x[(step * j + step - 1) % V]);
        *(uint4 *)p = make_uint4(words[0], words[1], words[2], words[3]);
    } else {
        for (int j = 0; j < V; j++) p[j] = from_float<T>(x[j]);
    }
}

/* p = keep * p + x, V elements. */
template <int V, class T>
__device__ __forceinline__ void store_kept(T *p, float keep, const float *x) {
    float y[V];
    if (keep != 0) load<V>(p, y);
#pragma unroll
    for (int j = 0; j < V; j++) y[j] = keep != 0 ? keep * y[j] + x[j] : x[j];
    store<V>(p, y);
}

/* ---- sums ------------------------------------------------------------------------------------*/

/* The sum over groups of `width` lanes (a power of two), in all of them. */
__device__ __forceinline__ float warp_sum(float x, int width = WARP) {
    for (int m = width / 2; m; m /= 2) x += __shfl_xor_sync(FULL, x, m);
    return x;
}

/* x[i] = the sum of x[i] over the block's threads, in all of them, i < N. The block is one row of
 * whole warps; all its threads call. */
template <int N> __device__ __forceinline__ void block_sums(float *x) {
    __shared__ float part[N][MAX_WARPS];
    int warps = (int)blockDim.x / WARP, warp = (int)threadIdx.x / WARP;
    int lane = (int)threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = warp_sum(x[i]);
    if (warps == 1) return;
    __syncthreads(); /* `part` may still be read by an earlier call */
    for (int i = 0; i < N && lane == 0; i++) part[i][warp] = x[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = warp_sum(lane < warps ? part[i][lane] : 0);
}

__device__ __forceinline__ float block_sum(float x) {
    block_sums<1>(&x);
    return x;
}

/* Sums of partial results, N at once, `apart` from one to the next. The block is SUM_COLUMNS x
 * SUM_GROUPS; thread (x, y) reads chunks [y * per, (y + 1) * per), per = ceil(chunks / SUM_GROUPS),
 * of its column at partial[chunk * stride], SUM_AHEAD of them before it adds one; chunks where
 * `used` (unless it is NULL) is 0 at used[chunk * used_stride] are not read. All lie in the
 * scratch, which 32 bits reach over. The threads with y = 0 get the sums. All threads of the block
 * call; `active` is false where there is no column. */
enum { SUM_COLUMNS = 32, SUM_GROUPS = 32, SUM_AHEAD = 8 };
template <int N>
__device__ __forceinline__ void sum_chunks(const float *partial, int chunks, int stride, int apart,
                                           const int32_t *used, int used_stride, bool active,
                                           float *sum) {
    __shared__ float part[N][SUM_GROUPS][SUM_COLUMNS];
    int per = (chunks + SUM_GROUPS - 1) / SUM_GROUPS, first = (int)threadIdx.y * per;
    int last = active ? MIN(first + per, chunks) : first;
    for (int i = 0; i < N; i++) sum[i] = 0;
    for (int c = first; c < last; c += SUM_AHEAD) {
        bool there[SUM_AHEAD];
        float x[SUM_AHEAD][N] = {};
#pragma unroll
        for (int k = 0; k < SUM_AHEAD; k++)
            there[k] = c + k < last && (!used || used[(c + k) * used_stride]);
#pragma unroll
        for (int k = 0; k < SUM_AHEAD; k++)
            for (int i = 0; i < N && there[k]; i++) x[k][i] = partial[(c + k) * stride + i * apart];
#pragma unroll
        for (int k = 0; k < SUM_AHEAD; k++)
            for (int i = 0; i < N; i++) sum[i] += x[k][i];
    }
    __syncthreads(); /* `part` may still be read by an earlier call */
    for (int i = 0; i < N; i++) part[i][threadIdx.y][threadIdx.x] = sum[i];
    __syncthreads();
    for (int y = 1; y < SUM_GROUPS && threadIdx.y == 0; y++)
        for (int i = 0; i < N; i++) sum[i] += part[i][y][threadIdx.x];
}

/* ---- launches --------------------------------------------------------------------------------*/

/* ceil(n / per_block), which must be a legal number of blocks. */
static inline unsigned blocks_for(int64_t n, int64_t per_block) {
    int64_t blocks = (n + per_block - 1) / per_block;
    CHECK(blocks > 0 && blocks <= INT32_MAX, "a grid of %lld blocks", (long long)blocks);
    return (unsigned)blocks;
}

/* Whether elements of type t may go in packs of 16 bytes: `addresses` is the bitwise or of all
 * pointers ((uintptr_t)x | (uintptr_t)y, NULL is no hindrance), `steps` that of all distances in
 * elements between where packs may begin (widths, offsets). */
static inline bool packable(DType t, uintptr_t addresses, int64_t steps) {
    return addresses % PACK_BYTES == 0 && steps * (int64_t)dtype_size(t) % PACK_BYTES == 0;
}

NORETURN static inline void no_such_type(DType t, const char *entry) {
    check_failed(__FILE__, __LINE__, entry, "CUDA computes in F32, BF16 and F16, not %s",
                 dtype_name(t));
}

/* Runs the statement with T as the type that `t` names. */
#define WITH_TYPE(t, entry, T, ...)                                                                \
    do {                                                                                           \
        if ((t) == DT_F32) {                                                                       \
            typedef float T;                                                                       \
            __VA_ARGS__;                                                                           \
        } else if ((t) == DT_BF16) {                                                               \
            typedef __nv_bfloat16 T;                                                               \
            __VA_ARGS__;                                                                           \
        } else if ((t) == DT_F16) {                                                                \
            typedef __half T;                                                                      \
            __VA_ARGS__;                                                                           \
        } else {                                                                                   \
            no_such_type(t, entry);                                                                \
        }                                                                                          \
    } while (0)

/* Also with V: 16 bytes of elements where `wide`, else NARROW. */
#define WITH_PACKS(t, wide, narrow, entry, T, V, ...)                                              \
    WITH_TYPE(                                                                                     \
        t, entry, T,                                                                               \
        if (wide) {                                                                                \
            constexpr int V = PACK_BYTES / (int)sizeof(T);                                         \
            __VA_ARGS__;                                                                           \
        } else {                                                                                   \
            constexpr int V = narrow;                                                              \
            __VA_ARGS__;                                                                           \
        })
