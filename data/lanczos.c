/* Owns Lanczos resampling in Pillow's fixed-point arithmetic. */
#define _XOPEN_SOURCE 700
#include "data/lanczos.h"

#include <math.h>
#include <stdlib.h>

static const double LOBES = 3;
enum { FRACTION_BITS = 32 - 8 - 2 }; /* 8 bits of a value, 2 for overshoot */

/* What one output value is made of: n inputs from `first` on. */
typedef struct {
    int64_t first, n;
    int32_t *weights;
} Taps;

static double sinc(double x) { return x == 0 ? 1 : sin(M_PI * x) / (M_PI * x); }

static double lanczos(double x) { return x >= -LOBES && x < LOBES ? sinc(x) * sinc(x / LOBES) : 0; }

static Taps taps_of(int64_t from, int64_t to, int64_t at) {
    double scale = (double)from / (double)to, spread = MAX(scale, 1.0);
    double centre = ((double)at + 0.5) * scale, reach = LOBES * spread, sum = 0;
    int64_t first = MAX((int64_t)(centre - reach + 0.5), 0);
    int64_t end = MIN((int64_t)(centre + reach + 0.5), from);
    Taps t = {first, end - first, xcalloc((size_t)(end - first), sizeof *t.weights)};
    double *weights = xcalloc((size_t)t.n, sizeof *weights);
    for (int64_t i = 0; i < t.n; i++) {
        weights[i] = lanczos(((double)(i + first) - centre + 0.5) * (1.0 / spread));
        sum += weights[i];
    }
    for (int64_t i = 0; i < t.n; i++) {
        double w = (sum != 0 ? weights[i] / sum : weights[i]) * (1 << FRACTION_BITS);
        t.weights[i] = (int32_t)(w < 0 ? w - 0.5 : w + 0.5);
    }
    free(weights);
    return t;
}

/* in: values `stride` apart. */
static uint8_t apply(const Taps *t, const uint8_t *in, int64_t stride) {
    int64_t sum = 1 << (FRACTION_BITS - 1);
    for (int64_t i = 0; i < t->n; i++) sum += in[(t->first + i) * stride] * (int64_t)t->weights[i];
    int64_t value = sum >> FRACTION_BITS;
    return (uint8_t)MIN(MAX(value, 0), 255);
}

/* [H,W] -> [H,w] */
static void resize_rows(const uint8_t *in, int64_t H, int64_t W, uint8_t *out, int64_t w) {
    for (int64_t x = 0; x < w; x++) {
        Taps t = taps_of(W, w, x);
        for (int64_t y = 0; y < H; y++) out[y * w + x] = apply(&t, in + y * W, 1);
        free(t.weights);
    }
}

/* [H,W] -> [h,W] */
static void resize_columns(const uint8_t *in, int64_t H, int64_t W, uint8_t *out, int64_t h) {
    for (int64_t y = 0; y < h; y++) {
        Taps t = taps_of(H, h, y);
        for (int64_t x = 0; x < W; x++) out[y * W + x] = apply(&t, in + x, W);
        free(t.weights);
    }
}

void lanczos_resize(const uint8_t *in, int64_t H, int64_t W, uint8_t *out, int64_t h, int64_t w) {
    uint8_t *between = xcalloc((size_t)(H * w), 1);
    resize_rows(in, H, W, between, w);
    resize_columns(between, H, w, out, h);
    free(between);
}
