/* What nvcc gives every CUDA file by itself, for a C++ compiler: it is forced in with -include.
 *
 * A launch runs the kernel's blocks on the threads of the CPU. Every CUDA thread of a block is a
 * fiber (tests/shim/fibers.cpp). Stricter than a GPU: the dynamic shared memory of a block begins
 * as NaN, a barrier that a running thread never reaches ends the program, and so do sizes that no
 * GPU takes, and shuffles in which not all 32 lanes of a warp take part. Not here: inline PTX,
 * tensor cores, asynchronous copies, and the reordering of memory accesses between warps.
 */
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

struct uint2 {
    unsigned x, y;
};
struct uint3 {
    unsigned x, y, z;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}

namespace shim {

struct Place {
    uint3 thread, block;
    dim3 block_size, grid_size;
};
/* Where the running fiber is; compilers must read it again after every call into the shim. */
extern __thread Place here;

void wait_block();
void wait_warp(unsigned mask);
/* The value that lane `from` of this warp brought to the same call. */
uint64_t exchange(unsigned mask, uint64_t value, unsigned from);
unsigned ballot(unsigned mask, bool vote);
void *dynamic_shared();
void launch(const char *kernel, dim3 grid, dim3 block, size_t shared, const void *queue,
            const std::function<void()> &body);

static inline unsigned lane() {
    unsigned flat =
        here.thread.x + here.block_size.x * (here.thread.y + here.block_size.y * here.thread.z);
    return flat % 32;
}

template <class T> static inline T shuffle(unsigned mask, T value, unsigned from) {
    static_assert(sizeof(T) <= 8, "a shuffle carries at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = exchange(mask, bits, from);
    memcpy(&value, &bits, sizeof value);
    return value;
}

} // namespace shim

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static thread_local

#define threadIdx (shim::here.thread)
#define blockIdx (shim::here.block)
#define blockDim (shim::here.block_size)
#define gridDim (shim::here.grid_size)
#define warpSize 32

#define DYN_SHARED(T, name) T *name = (T *)shim::dynamic_shared()
/* Arguments are evaluated at the launch, which may be captured. */
#define LAUNCH(kernel, grid, block, shared, queue, ...)                                            \
    shim::launch(#kernel, grid, block, shared, queue, [values = std::make_tuple(__VA_ARGS__)] {    \
        std::apply([](const auto &...value) { kernel(value...); }, values);                        \
    })

static inline void __syncthreads() { shim::wait_block(); }
static inline void __syncwarp(unsigned mask = ~0u) { shim::wait_warp(mask); }
static inline unsigned __ballot_sync(unsigned mask, int vote) {
    return shim::ballot(mask, vote != 0);
}
static inline int __any_sync(unsigned mask, int vote) { return shim::ballot(mask, vote != 0) != 0; }
static inline int __all_sync(unsigned mask, int vote) { return shim::ballot(mask, vote == 0) == 0; }

/* Lanes that would read from outside their group of `width` lanes read their own value. */
template <class T> static inline T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
    unsigned w = (unsigned)width;
    return shim::shuffle(mask, value, shim::lane() / w * w + (unsigned)from % w);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    unsigned lane = shim::lane(), from = lane ^ (unsigned)bits, w = (unsigned)width;
    return shim::shuffle(mask, value, from / w > lane / w ? lane : from);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    unsigned lane = shim::lane(), w = (unsigned)width;
    return shim::shuffle(mask, value, lane % w + by < w ? lane + by : lane);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    unsigned lane = shim::lane(), w = (unsigned)width;
    return shim::shuffle(mask, value, lane % w >= by ? lane - by : lane);
}

template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T __ldcs(const T *p) { return *p; }
template <class T> static inline void __stcs(T *p, T value) { *p = value; }
template <class T> static inline T min(T a, T b) { return b < a ? b : a; }
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }

#define __expf expf /* the C library has a name __expf of its own */
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline unsigned __umulhi(unsigned x, unsigned y) {
    return (unsigned)((uint64_t)x * y >> 32);
}
static inline unsigned __float_as_uint(float x) {
    unsigned u;
    memcpy(&u, &x, sizeof u);
    return u;
}
static inline float __uint_as_float(unsigned u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}
