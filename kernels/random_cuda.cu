/* Dropout on CUDA, by the draws of kernels/random.h. */
#include <Random123/philox.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda.cuh"
#include "kernels/random.h"

/* A thread takes the elements that one counter gives 16 bits each. */
enum { THREADS = 256, GROUP = 8 };

typedef struct {
    uint32_t purpose, threshold;
    float scale;
} Chance;

/* y = keep * y + (drawn ? x * scale : 0) over elements [first, first + n) of a sample, which lie at
 * x and y. Where V > 1, first is a multiple of GROUP. */
template <class T, int V>
__global__ void drop(Chance chance, const DropoutState *state, const uint32_t *ordinal,
                     int64_t first, int64_t n, const T *x, float keep, T *y) {
    int64_t group = first / GROUP + (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int64_t at = group * GROUP - first;
    if (at >= n) return;
    philox4x32_ctr_t counter = {{(uint32_t)group, *ordinal, state->step, chance.purpose}};
    philox4x32_key_t key = {{(uint32_t)state->seed, (uint32_t)(state->seed >> 32)}};
    philox4x32_ctr_t drawn = philox4x32(counter, key);
#pragma unroll
    for (int k = 0; k < GROUP; k += V) {
        float v[V];
        if (at + k >= n) return;
        if (at + k < 0) continue;
        load<V>(x + at + k, v);
#pragma unroll
        for (int j = 0; j < V; j++) {
            uint32_t half = drawn.v[(k + j) / 2] >> 16 * ((k + j) % 2) & 0xffffu;
            v[j] = half < chance.threshold ? 0 : v[j] * chance.scale;
        }
        store_kept<V>(y + at + k, keep, v);
    }
}

void cuda_dropout(Stream *s, const Dropout *d, const void *x, real keep, void *y) {
    Chance chance = {d->purpose, dropout_threshold(d->p), 0};
    chance.scale = 65536 / (float)(65536 - chance.threshold);
    int64_t bytes = (int64_t)dtype_size(d->t);
    for (int b = 0; b < d->segments; b++) {
        int64_t begin = d->cu_rows[b] * d->width, n = d->cu_rows[b + 1] * d->width - begin;
        if (n == 0) continue;
        int64_t first = d->first ? d->first[b] * d->width : 0;
        const uint32_t *ordinal = d->ordinals + (d->sample ? d->sample[b] : b);
        CHECK(first + n <= INT64_C(8) << 32, "dropout: a sample of %lld elements is out of range",
              (long long)(first + n));
        const char *from = (const char *)x + begin * bytes;
        char *to = (char *)y + begin * bytes;
        bool wide = first % GROUP == 0 && packable(d->t, (uintptr_t)from | (uintptr_t)to, n);
        WITH_PACKS(d->t, wide, 1, "dropout", T, V,
                   LAUNCH((drop<T, V>), blocks_for(n + first % GROUP, THREADS * GROUP), THREADS, 0,
                          cuda_queue(s), chance, d->state, ordinal, first, n, (const T *)from, keep,
                          (T *)to));
        cuda_check_launch("dropout");
    }
}
