/* Frames of video on CUDA: from planes to channels-last rows, and fewer of them. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/packs.cuh"

enum { THREADS = 256, TILE = 4 * THREADS };

/* A block writes TILE elements of a frame: the planes' lines that it reads stay in the first cache
 * for the other channels. */
template <class T> __global__ void take(TakeFrames f, int64_t tiles, const T *planes, T *rows) {
    int64_t area = f.height * f.width, frame = area * f.channels;
    int64_t at = blockIdx.x / tiles, first = blockIdx.x % tiles * TILE;
    int64_t source = MAX(f.first - CONTEXT + at, 0), pixel = first / f.channels;
    uint32_t channels = (uint32_t)f.channels, ahead = (uint32_t)(first % f.channels);
    for (int e = (int)threadIdx.x; e < TILE && first + e < frame; e += THREADS) {
        uint32_t place = ahead + (uint32_t)e;
        int64_t from = (place % channels * f.total + source) * area + pixel + place / channels;
        rows[at * frame + first + e] = planes[from];
    }
}

void cuda_take_frames(Stream *s, const TakeFrames *f, const void *planes, void *rows) {
    int64_t frame = f->height * f->width * f->channels, tiles = (frame + TILE - 1) / TILE;
    if (frame == 0) return;
    unsigned blocks = blocks_for((CONTEXT + f->frames) * tiles, 1);
    WITH_TYPE(f->t, "take_frames", T,
              LAUNCH((take<T>), blocks, THREADS, 0, cuda_queue(s), *f, tiles, (const T *)planes,
                     (T *)rows));
    cuda_check_launch("take_frames");
}

/* A frame of y is one frame of x, where that stays single, or the mean of two. */
template <class T, int V>
__global__ void pool(int64_t single, int64_t frame, int64_t tiles, const T *x, T *y) {
    int64_t at = blockIdx.x / tiles, j = (blockIdx.x % tiles * THREADS + threadIdx.x) * V;
    if (j >= frame) return;
    const T *a = x + (at < single ? 0 : 2 * at - single) * frame + j;
    float mean[V], b[V];
    load<V>(a, mean);
    if (at >= single) {
        load<V>(a + frame, b);
#pragma unroll
        for (int k = 0; k < V; k++) mean[k] = (mean[k] + b[k]) / 2;
    }
    store_pack(y + at * frame + j, pack_of<T, V>(mean));
}

void cuda_pool_frames(Stream *s, DType t, int64_t frames, int64_t frame, const void *x, void *y) {
    if (frames == 0 || frame == 0) return;
    int64_t single = frames % 2, out = single + frames / 2;
    bool wide = packable(t, (uintptr_t)x | (uintptr_t)y, frame);
    WITH_PACKS(t, wide, 1, "pool_frames", T, V, {
        int64_t tiles = (frame + THREADS * V - 1) / (THREADS * V);
        LAUNCH((pool<T, V>), blocks_for(out * tiles, 1), THREADS, 0, cuda_queue(s), single, frame,
               tiles, (const T *)x, (T *)y);
    });
    cuda_check_launch("pool_frames");
}
