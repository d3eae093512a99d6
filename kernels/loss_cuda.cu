/* The mean squared error on CUDA. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/packs.cuh"

/* A block sums CHUNK elements, of each sample from its start. */
enum { THREADS = 256, CHUNK = 8192 };

/* partial[block] = the sum of (x - target)^2 over a chunk. */
template <class T, int V>
__global__ void squared_error(int64_t n, const T *x, const float *target, double *partial) {
    int64_t first = (int64_t)blockIdx.x * CHUNK, last = MIN(first + CHUNK, n);
    double sum = 0;
#pragma unroll 4
    for (int64_t i = first + threadIdx.x * V; i < last; i += THREADS * V) {
        float a[V], b[V];
        load<V>(x + i, a);
        load_reals<V>(target + i, b);
#pragma unroll
        for (int j = 0; j < V; j++) {
            double d = (double)a[j] - (double)b[j];
            sum += d * d;
        }
    }
    sum = block_sum_f64(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/* The samples' sums end here one after another; `total` carries the sum of their means. */
__global__ void finish_sample(int64_t chunks, const double *partial, int64_t n, int b, int samples,
                              double *total, float *loss, float *per_sample) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < chunks; i += THREADS) sum += partial[i];
    sum = block_sum_f64(sum);
    if (threadIdx.x != 0) return;
    double mean = sum / (double)n, means = b ? *total + mean : mean;
    *total = means;
    if (per_sample) per_sample[b] = (float)mean;
    if (loss && b == samples - 1) *loss = (float)(means / samples);
}

static bool wide_sample(DType t, const void *x, const real *target, const void *dx, int64_t n) {
    uintptr_t addresses = (uintptr_t)x | (uintptr_t)target | (uintptr_t)dx;
    return packable(t, addresses, n);
}

void cuda_mse(Stream *s, DType t, int samples, const int64_t *cu, const void *x, const real *target,
              real *loss, real *per_sample) {
    double *total = (double *)cuda_scratch(s), *partial = total + 1;
    for (int b = 0; b < samples; b++) {
        int64_t n = cu[b + 1] - cu[b], chunks = (n + CHUNK - 1) / CHUNK;
        const char *from = (const char *)x + cu[b] * (int64_t)dtype_size(t);
        const float *want = target + cu[b];
        CHECK(chunks < SCRATCH_BYTES / (int64_t)sizeof *partial,
              "mse: a sample of %lld elements is out of range", (long long)n);
        if (n > 0)
            WITH_PACKS(t, wide_sample(t, from, want, NULL, n), 1, "mse", T, V,
                       LAUNCH((squared_error<T, V>), blocks_for(n, CHUNK), THREADS, 0,
                              cuda_queue(s), n, (const T *)from, want, partial));
        LAUNCH(finish_sample, 1, THREADS, 0, cuda_queue(s), chunks, partial, n, b, samples, total,
               loss, per_sample);
        cuda_check_launch("mse");
    }
}

/* dx = keep * dx + dloss * factor * (x - target), one pack a thread. */
template <class T, int V>
__global__ void error_grad(int64_t n, const T *x, const float *target, const float *dloss,
                           double factor, float keep, T *dx) {
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V;
    if (i >= n) return;
    float scale = (float)((double)*dloss * factor), a[V], b[V];
    load<V>(x + i, a);
    load_reals<V>(target + i, b);
#pragma unroll
    for (int j = 0; j < V; j++) a[j] = scale * (a[j] - b[j]);
    store_kept<V>(dx + i, keep, a);
}

void cuda_mse_grad(Stream *s, DType t, int samples, const int64_t *cu, const void *x,
                   const real *target, const real *dloss, real keep, void *dx) {
    int64_t bytes = (int64_t)dtype_size(t);
    for (int b = 0; b < samples; b++) {
        int64_t n = cu[b + 1] - cu[b];
        if (n == 0) continue;
        const char *from = (const char *)x + cu[b] * bytes;
        char *to = (char *)dx + cu[b] * bytes;
        const float *want = target + cu[b];
        double factor = 2 / ((double)samples * (double)n);
        WITH_PACKS(t, wide_sample(t, from, want, to, n), 1, "mse_grad", T, V,
                   LAUNCH((error_grad<T, V>), blocks_for(n, THREADS * V), THREADS, 0, cuda_queue(s),
                          n, (const T *)from, want, dloss, factor, keep, (T *)to));
        cuda_check_launch("mse_grad");
    }
}
