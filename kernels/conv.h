/* What a convolution on the CPU is made of; nothing outside conv_*.c includes it.
 *
 * conv_cpu.c computes frame after frame. A frame is computed directly by the library
 * (conv_onednn2.c, conv_onednn3.c, or conv_none.c where there is none: CMake chooses), or, where
 * it is large enough, by conv_winograd.c through matrix products.
 */
#pragma once

#include "kernels/cpu.h"

/* One output frame: x [kt,H,W,I] -> y [H',W',O], 3 x 3 in space. All that a compiled convolution
 * depends on; compared byte by byte, so it has no padding and starts zeroed. */
typedef struct {
    int64_t height, width, in, out; /* H, W, I, O */
    int64_t kt, stride, add;        /* add: y holds what the result is added to */
    int64_t threads;
} FramePart;

/* A library's engine, and one convolution that it compiled. */
typedef struct ConvLibrary ConvLibrary;
typedef struct FrameConv FrameConv;

ConvLibrary *conv_library_open(void);
void conv_library_close(ConvLibrary *l);
FrameConv *frame_conv_create(ConvLibrary *l, const FramePart *part);
void frame_conv_free(FrameConv *f);
size_t frame_conv_workspace(const FrameConv *f); /* bytes, of run and of pack */
int64_t frame_conv_packed(const FrameConv *f);   /* elements of the packed weights */
/* w [O,I,kt,3,3] to the form that frame_conv_run reads. */
void frame_conv_pack(ConvLibrary *l, const FrameConv *f, const real *w, real *packed,
                     void *workspace);
void frame_conv_run(ConvLibrary *l, const FrameConv *f, const real *x, const real *packed,
                    const real *bias, real *y, void *workspace);

/* Streams for products alone, each of one thread: at least n. */
Stream *conv_lanes(Stream *s, int n);

/* Rows and columns of an output frame of c. */
static inline int64_t conv_out_size(const Conv *c, int64_t size) {
    return c->stride == 2 ? (size - 2) / 2 + 1 : size * c->enlarge;
}

/* How many times the output's frame t is written: c->repeat writes twice, all but the first of an
 * odd number. */
static inline int conv_copies(const Conv *c, int64_t t) {
    return c->repeat && c->frames > 1 && (c->frames % 2 == 0 || t) ? 2 : 1;
}

/* Winograd's F(2x2,3x3), frames in time summed directly (conv_winograd.c). */
bool winograd_suits(const Conv *c);
int64_t winograd_packed(const Conv *c); /* elements */
void winograd_pack(const Conv *c, const real *w, real *packed);
size_t winograd_workspace(Stream *s, const Conv *c);
void winograd_run(Stream *s, const Conv *c, const real *x, const real *packed, const real *bias,
                  real *y);
