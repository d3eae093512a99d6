/* Frames of video: from planes to channels-last rows, and fewer of them. */
#include "kernels/cpu.h"

/* Row by row of a frame; the planes are read side by side. */
void cpu_take_frames(Stream *s, const TakeFrames *f, const void *planes, void *rows) {
    (void)s;
    check_type(f->t, "take_frames");
    int64_t area = f->height * f->width, plane = f->total * area;
    const real *from = planes;
    real *to = rows;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < (CONTEXT + f->frames) * f->height; i++) {
        int64_t frame = MAX(f->first - CONTEXT + i / f->height, 0), h = i % f->height;
        const real *line = from + frame * area + h * f->width;
        for (int64_t w = 0; w < f->width; w++)
            for (int64_t c = 0; c < f->channels; c++)
                to[(i * f->width + w) * f->channels + c] = line[c * plane + w];
    }
}

void cpu_pool_frames(Stream *s, DType t, int64_t frames, int64_t frame, const void *x, void *y) {
    (void)s;
    check_type(t, "pool_frames");
    enum { BLOCK = 4096 };
    int64_t single = frames % 2, out = single + frames / 2, blocks = (frame + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < out * blocks; i++) {
        int64_t at = i / blocks, j0 = i % blocks * BLOCK, n = MIN(BLOCK, frame - j0);
        bool kept_frame = single && at == 0;
        const real *a = (const real *)x + (single ? MAX(2 * at - 1, 0) : 2 * at) * frame + j0;
        const real *b = kept_frame ? a : a + frame;
        real *to = (real *)y + at * frame + j0;
#pragma omp simd
        for (int64_t j = 0; j < n; j++) to[j] = kept_frame ? a[j] : (a[j] + b[j]) / 2;
    }
}
