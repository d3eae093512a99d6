/* No library: convolutions as plain loops. The f64 build's choice. */
#include "kernels/conv.h"

#include <stdlib.h>

struct FrameConv {
    FramePart part;
};

ConvLibrary *conv_library_open(void) { return NULL; }

void conv_library_close(ConvLibrary *l) { (void)l; }

FrameConv *frame_conv_create(ConvLibrary *l, const FramePart *part) {
    (void)l;
    FrameConv *f = xcalloc(1, sizeof *f);
    f->part = *part;
    return f;
}

void frame_conv_free(FrameConv *f) { free(f); }

size_t frame_conv_workspace(const FrameConv *f) {
    (void)f;
    return 0;
}

int64_t frame_conv_packed(const FrameConv *f) { return f->part.out * f->part.in * f->part.kt * 9; }

/* [kt,3,3,I,O]: outputs lie side by side. */
void frame_conv_pack(ConvLibrary *l, const FrameConv *f, const real *w, real *packed,
                     void *workspace) {
    (void)l, (void)workspace;
    const FramePart *p = &f->part;
    int64_t taps = 9 * p->kt;
    for (int64_t o = 0; o < p->out; o++)
        for (int64_t i = 0; i < p->in; i++)
            for (int64_t k = 0; k < taps; k++)
                packed[(k * p->in + i) * p->out + o] = w[(o * p->in + i) * taps + k];
}

/* Adds one tap at one pixel: y[o] += sum over i of x[i] w[i,o]. */
static void add_tap(const FramePart *p, const real *x, const real *w, real *restrict y) {
    for (int64_t i = 0; i < p->in; i++)
        for (int64_t o = 0; o < p->out; o++) y[o] += x[i] * w[i * p->out + o];
}

static void run_pixel(const FramePart *p, int64_t row, int64_t col, const real *x, const real *w,
                      real *y) {
    int64_t top = row * p->stride - (p->stride == 1), left = col * p->stride - (p->stride == 1);
    for (int64_t t = 0; t < p->kt; t++)
        for (int64_t k = 0; k < 9; k++) {
            int64_t h = top + k / 3, v = left + k % 3;
            if (h < 0 || v < 0 || h >= p->height || v >= p->width) continue;
            add_tap(p, x + ((t * p->height + h) * p->width + v) * p->in,
                    w + (9 * t + k) * p->in * p->out, y);
        }
}

void frame_conv_run(ConvLibrary *l, const FrameConv *f, const real *x, const real *packed,
                    const real *bias, real *y, void *workspace) {
    (void)l, (void)workspace;
    const FramePart *p = &f->part;
    int64_t rows = p->stride == 2 ? (p->height - 2) / 2 + 1 : p->height;
    int64_t cols = p->stride == 2 ? (p->width - 2) / 2 + 1 : p->width;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows * cols; i++) {
        real *to = y + i * p->out;
        for (int64_t o = 0; o < p->out; o++) to[o] = (p->add ? to[o] : 0) + bias[o];
        run_pixel(p, i / cols, i % cols, x, packed, to);
    }
}
