/* CUDA kernels that treat each element by itself. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda.cuh"

enum { THREADS = 256 };
enum Formula { GELU, GELU_GRAD, SILU, SILU_GRAD, GEGLU, AXPY };

/* Where results are rounded to 16 bits, the GPU's own exponential and division are exact enough:
 * their relative error at an argument x, about (2 + 1.2 |x|) 2^-23, is below 2^-15 wherever the
 * result is not lost in the type's smallest step. */
template <class T> __device__ __forceinline__ float sigmoid_for(float x) {
    return sizeof(T) == sizeof(float) ? sigmoid(x) : __fdividef(1, 1 + __expf(-x));
}

/* The formulas of kernels/math.h over sigmoid_for. */
template <class T> __device__ __forceinline__ float gelu_for(float x) {
    const float two_root = 1.5957691216057308f;
    return x * sigmoid_for<T>(two_root * x * (1 + 0.044715f * x * x));
}

template <class T> __device__ __forceinline__ float gelu_grad_for(float x) {
    const float two_root = 1.5957691216057308f;
    float s = sigmoid_for<T>(two_root * x * (1 + 0.044715f * x * x));
    return s + x * s * (1 - s) * two_root * (1 + 0.134145f * x * x);
}

template <class T> __device__ __forceinline__ float silu_grad_for(float x) {
    float s = sigmoid_for<T>(x);
    return s * (1 + x * (1 - s));
}

template <class T, int F> __device__ __forceinline__ float formula(float alpha, float a, float b) {
    if (F == GELU) return gelu_for<T>(a);
    if (F == GELU_GRAD) return gelu_grad_for<T>(a) * b;
    if (F == SILU) return a * sigmoid_for<T>(a);
    if (F == SILU_GRAD) return silu_grad_for<T>(a) * b;
    if (F == GEGLU) return gelu_for<T>(a) * b;
    return alpha * a;
}

typedef struct {
    int64_t n;
    float alpha, keep;
    const void *a, *b; /* b: NULL if the formula has none */
    void *y;
} Operands;

/* Elements [at, at + V). */
template <class T, int V, int F>
__device__ __forceinline__ void apply(const Operands &o, int64_t at) {
    float a[V], b[V] = {}, y[V];
    load<V>((const T *)o.a + at, a);
    if (F == GELU_GRAD || F == SILU_GRAD || F == GEGLU) load<V>((const T *)o.b + at, b);
#pragma unroll
    for (int j = 0; j < V; j++) y[j] = formula<T, F>(o.alpha, a[j], b[j]);
    store_kept<V>((T *)o.y + at, o.keep, y);
}

/* y = keep * y + F(a, b); a thread has one pack, or what is left at the end. */
template <class T, int V, int F>
__global__ void __launch_bounds__(THREADS) pointwise_kernel(Operands o) {
    int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V;
    if (at + V <= o.n)
        apply<T, V, F>(o, at);
    else
        for (; at < o.n; at++) apply<T, 1, F>(o, at);
}

template <class T, int V, int F> static void launch_pointwise(Stream *s, const Operands *o) {
    LAUNCH((pointwise_kernel<T, V, F>), blocks_for(o->n, (int64_t)THREADS * V), THREADS, 0,
           cuda_queue(s), *o);
}

template <int F> static void pointwise(Stream *s, DType t, const char *entry, const Operands *o) {
    if (!o->n) return;
    bool wide = packable(t, (uintptr_t)o->a | (uintptr_t)o->b | (uintptr_t)o->y, 0);
    WITH_PACKS(t, wide, 1, entry, T, V, launch_pointwise<T, V, F>(s, o));
    cuda_check_launch(entry);
}

void cuda_gelu(Stream *s, DType t, int64_t n, const void *x, void *y) {
    Operands o = {n, 0, 0, x, NULL, y};
    pointwise<GELU>(s, t, "gelu", &o);
}

void cuda_gelu_grad(Stream *s, DType t, int64_t n, const void *x, const void *dy, real keep,
                    void *dx) {
    Operands o = {n, 0, keep, x, dy, dx};
    pointwise<GELU_GRAD>(s, t, "gelu_grad", &o);
}

void cuda_silu(Stream *s, DType t, int64_t n, const void *x, void *y) {
    Operands o = {n, 0, 0, x, NULL, y};
    pointwise<SILU>(s, t, "silu", &o);
}

void cuda_silu_grad(Stream *s, DType t, int64_t n, const void *x, const void *dy, real keep,
                    void *dx) {
    Operands o = {n, 0, keep, x, dy, dx};
    pointwise<SILU_GRAD>(s, t, "silu_grad", &o);
}

void cuda_geglu(Stream *s, DType t, int64_t n, const void *gate, const void *x, void *y) {
    Operands o = {n, 0, 0, gate, x, y};
    pointwise<GEGLU>(s, t, "geglu", &o);
}

void cuda_axpy(Stream *s, DType t, int64_t n, real alpha, const void *x, real keep, void *y) {
    Operands o = {n, alpha, keep, x, NULL, y};
    pointwise<AXPY>(s, t, "axpy", &o);
}
