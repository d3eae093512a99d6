/* What a convolution on a GPU is made of; nothing outside conv_*cuda*, cuda*.c and tests includes
 * it.
 *
 * conv_cuda.c runs cuDNN over groups of frames; conv_rows_cuda.cu is cogsmith's own: what brings
 * numbers into the form that cuDNN reads, channels in whole eights, and back.
 */
#pragma once

#include "kernels/cudnn_plans.h"

C_BEGIN

/* Some frames of one convolution: what one graph computes. In 16 bits y = conv(x, w) (+ y) + bias;
 * in F32 y is the sums conv(x, w), and conv_finish does the rest. */
typedef struct {
    DType t;
    int64_t frames;        /* of y; x has kt - 1 more */
    int64_t height, width; /* of x, as cuDNN reads it: enlarged */
    int64_t in, out;       /* multiples of 8 */
    int64_t kt, stride;
    bool add;
} ConvPart;

/* The tensors that a graph stores, in order; BIAS in 16 bits, ADD with `add`. */
enum { CONV_X, CONV_W, CONV_Y, CONV_BIAS, CONV_ADD, CONV_TENSORS };

/* The group of frames that begins with frame `first` of c. */
ConvPart conv_part(const Conv *c, int64_t first);
DnnGraph *conv_graph(const ConvPart *p);
/* All that its plan depends on, as a name. */
void conv_key(const ConvPart *p, char key[DNN_KEY]);
/* What cuDNN may choose from: bytes of its workspace on every GPU, and F32 in f32. */
DnnRules conv_rules(const ConvPart *p);

/* Channels that cuDNN reads and writes are a multiple of these; bytes that its own workspace may
 * have. */
enum { CONV_CHANNELS = 8, CONV_LIBRARY_BYTES = 128 << 20 };
/* Whether x is read from the workspace, where it is spread, and y written there, to be brought to
 * its place by conv_finish; bytes that the two, and the bias, take there for so many frames; frames
 * of a group, but the last. */
bool conv_spreads(const Conv *c);
bool conv_finishes(const Conv *c);
int64_t conv_frame_out(const Conv *c); /* elements of a frame as cuDNN writes it */
int64_t conv_x_bytes(const Conv *c, int64_t frames);
int64_t conv_y_bytes(const Conv *c, int64_t frames);
int64_t conv_bias_bytes(const Conv *c);
int64_t conv_group_size(const Conv *c);
/* CHECKs that it is one. */
void conv_check_sizes(const Conv *c);

/* w [O,I,taps] as [O',taps,I'], zeros beyond O and I. */
void conv_spread_weights(Stream *s, DType t, const int64_t from[2], const int64_t to[2],
                         int64_t taps, const void *w, void *packed);
/* Frames x [n,H,W,C] as [n,eH,eW,C'], every pixel e x e times, zeros beyond C: size = {n,H,W,C}. */
void conv_spread_frames(Stream *s, DType t, const int64_t size[4], int64_t enlarge, int64_t padded,
                        const void *x, void *to);
/* Frames [first, first + n) of c's result, with those that `repeat` writes again, from x
 * [n,H',W',O']: the whole result, of type c->t; or with a bias sums in f32, to which bias and y are
 * added. */
void conv_finish(Stream *s, const Conv *c, int64_t first, int64_t n, int64_t padded, const void *x,
                 const void *bias, void *y);

/* Rows or columns of an output frame. */
static inline int64_t conv_size_out(const Conv *c, int64_t size) {
    return c->stride == 2 ? (size - 2) / 2 + 1 : size * c->enlarge;
}

/* Where frame t of the result is written, and once more: -1, nowhere. With `repeat`, an even number
 * of frames goes to 2t and 2t + 1, an odd one to 2t and, but for the first, to 2t - 1. */
HD static inline int64_t conv_frame_at(const Conv *c, int64_t t) {
    return c->repeat && c->frames > 1 ? 2 * t : t;
}
HD static inline int64_t conv_frame_again(const Conv *c, int64_t t) {
    if (!c->repeat || c->frames == 1) return -1;
    return c->frames % 2 == 0 ? 2 * t + 1 : t ? 2 * t - 1 : -1;
}

C_END
