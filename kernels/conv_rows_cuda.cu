/* CUDA kernels around cuDNN's convolutions: channels in whole eights, enlarged frames, and what
 * follows the sums where cuDNN does not do it. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/conv_cuda.h"
#include "kernels/cuda.cuh"

/* A warp moves the channels of a pixel. */
enum { PIXELS = 8, PIXEL_THREADS = PIXELS * WARP };

__device__ __forceinline__ int64_t own_pixel() {
    return (int64_t)blockIdx.x * PIXELS + threadIdx.x / WARP;
}
__device__ __forceinline__ int own_lane() { return (int)threadIdx.x % WARP; }

template <class T>
__global__ void spread_weights(int64_t out, int64_t in, int64_t rows, int64_t padded, int64_t taps,
                               const T *w, T *packed) {
    int64_t row = own_pixel(), o = row / taps, tap = row % taps;
    if (row >= rows) return;
    for (int64_t i = own_lane(); i < padded; i += WARP)
        packed[row * padded + i] =
            o < out && i < in ? w[(o * in + i) * taps + tap] : from_float<T>(0);
}

/* height, width, pixels: of the result. */
template <class T, int V>
__global__ void spread_frames(int64_t height, int64_t width, int64_t enlarge, int64_t in,
                              int64_t pixels, int64_t padded, const T *x, T *to) {
    int64_t pixel = own_pixel();
    if (pixel >= pixels) return;
    int64_t frame = pixel / (height * width), h = pixel / width % height, w = pixel % width;
    int64_t from = (frame * (height / enlarge) + h / enlarge) * (width / enlarge) + w / enlarge;
    for (int64_t i = own_lane() * V; i < padded; i += WARP * V) {
        float value[V] = {};
        if (i < in) load<V>(x + from * in + i, value);
        store<V>(to + pixel * padded + i, value);
    }
}

/* X is float where there is a bias, else T. */
template <class X, class T>
__global__ void finish(Conv c, int64_t first, int64_t pixels, int64_t frame, int64_t padded,
                       const X *x, const T *bias, T *y) {
    int64_t pixel = own_pixel();
    if (pixel >= pixels) return;
    int64_t t = first + pixel / frame, at = conv_frame_at(&c, t), again = conv_frame_again(&c, t);
    T *row = y + (at * frame + pixel % frame) * c.out;
    T *copy = again < 0 ? NULL : y + (again * frame + pixel % frame) * c.out;
    for (int64_t o = own_lane(); o < c.out; o += WARP) {
        float value = to_float(x[pixel * padded + o]);
        if (bias) value = kept(c.add, row + o, value + to_float(bias[o]));
        row[o] = from_float<T>(value);
        if (copy) copy[o] = from_float<T>(value);
    }
}

void conv_spread_weights(Stream *s, DType t, const int64_t from[2], const int64_t to[2],
                         int64_t taps, const void *w, void *packed) {
    int64_t rows = to[0] * taps;
    WITH_TYPE(t, "conv_pack", T,
              LAUNCH((spread_weights<T>), blocks_for(rows, PIXELS), PIXEL_THREADS, 0, cuda_queue(s),
                     from[0], from[1], rows, to[1], taps, (const T *)w, (T *)packed));
    cuda_check_launch("conv_pack");
}

void conv_spread_frames(Stream *s, DType t, const int64_t size[4], int64_t enlarge, int64_t padded,
                        const void *x, void *to) {
    int64_t height = size[1] * enlarge, width = size[2] * enlarge, in = size[3];
    int64_t pixels = size[0] * height * width;
    bool wide = packable(t, (uintptr_t)x | (uintptr_t)to, in | padded);
    WITH_PACKS(t, wide, 1, "conv", T, V,
               LAUNCH((spread_frames<T, V>), blocks_for(pixels, PIXELS), PIXEL_THREADS, 0,
                      cuda_queue(s), height, width, enlarge, in, pixels, padded, (const T *)x,
                      (T *)to));
    cuda_check_launch("conv");
}

template <class X, class T>
static void start_finish(Stream *s, const Conv *c, int64_t first, int64_t n, int64_t padded,
                         const void *x, const void *bias, void *y) {
    int64_t frame = conv_size_out(c, c->height) * conv_size_out(c, c->width), pixels = n * frame;
    LAUNCH((finish<X, T>), blocks_for(pixels, PIXELS), PIXEL_THREADS, 0, cuda_queue(s), *c, first,
           pixels, frame, padded, (const X *)x, (const T *)bias, (T *)y);
    cuda_check_launch("conv");
}

void conv_finish(Stream *s, const Conv *c, int64_t first, int64_t n, int64_t padded, const void *x,
                 const void *bias, void *y) {
    WITH_TYPE(c->t, "conv", T, if (bias) start_finish<float, T>(s, c, first, n, padded, x, bias, y);
              else start_finish<T, T>(s, c, first, n, padded, x, bias, y));
}
