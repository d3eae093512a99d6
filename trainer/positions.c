/* Owns the position tables. */
#include "trainer/positions.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void timestep_sinusoid(double value, int64_t dim, bool cos_first, double shift, float *out) {
    int64_t half = dim / 2;
    for (int64_t i = 0; i < half; i++) {
        float exponent = (float)-log(10000.0) * (float)i / (float)((double)half - shift);
        float omega = (float)exp((double)exponent);
        float angle = (float)value * omega;
        out[cos_first ? i : half + i] = (float)cos((double)angle);
        out[cos_first ? half + i : i] = (float)sin((double)angle);
    }
    if (dim % 2) out[dim - 1] = 0;
}

/* Python's round() on a double: half to even. */
static double round_even(double x) { return nearbyint(x); }

/* torch.linspace in f32: from both ends, one rounding a value. */
static float linspace(double start, double end, int64_t n, int64_t i) {
    float a = (float)start, b = (float)end;
    if (n == 1) return a;
    float step = (b - a) / (float)(n - 1);
    return i < n / 2 ? fmaf((float)i, step, a) : fmaf(-(float)(n - 1 - i), step, b);
}

/* Where a grid of h x w patches lies on the native grid: diffusers'
 * get_resize_crop_region_for_grid. */
typedef struct {
    double start[2], stop[2]; /* h, w */
} Region;

static Region resize_crop(int64_t h, int64_t w, int64_t base_h, int64_t base_w) {
    double bh = (double)base_h, bw = (double)base_w, gh = (double)h, gw = (double)w;
    double rh = bh, rw = bw;
    if (gh / gw > bh / bw)
        rw = round_even(bh / gh * gw);
    else
        rh = round_even(bw / gw * gh);
    double top = round_even((bh - rh) / 2), left = round_even((bw - rw) / 2);
    return (Region){{top, left}, {top + rh, left + rw}};
}

/* Pairs (cos, sin) of position * 10000^(-2k/n), k < n/2, at out[2k]. */
static void rotary_axis(float position, int64_t n, float *out) {
    for (int64_t k = 0; k < n / 2; k++) {
        float power = (float)pow(10000.0, (double)((float)(2 * k) / (float)n));
        float angle = position * (1.0f / power);
        out[2 * k] = (float)cos((double)angle);
        out[2 * k + 1] = (float)sin((double)angle);
    }
}

/* Positions 0 .. n-1 of an axis, turned into angles: [n, dim]. */
static float *axis_table(int64_t n, int64_t dim, double start, double stop, bool integers) {
    float *table = xcalloc((size_t)(n * dim), sizeof *table);
    double last = stop * (double)(n - 1) / (double)n;
    for (int64_t i = 0; i < n; i++)
        rotary_axis(integers ? (float)i : linspace(start, last, n, i), dim, table + i * dim);
    return table;
}

void rotary_table(const DitConfig *c, int64_t f, int64_t h, int64_t w, float *out) {
    int64_t nf = f / c->patch_t, nh = h / c->patch, nw = w / c->patch;
    int64_t e = c->head_size, dim_t = e / 4, dim_s = e / 8 * 3;
    Region r = resize_crop(nh, nw, c->sample_height / c->patch, c->sample_width / c->patch);
    float *ts = axis_table(nf, dim_t, 0, 0, true);
    float *ys = axis_table(nh, dim_s, r.start[0], r.stop[0], c->temporal_patch);
    float *xs = axis_table(nw, dim_s, r.start[1], r.stop[1], c->temporal_patch);
    for (int64_t row = 0; row < nf * nh * nw; row++) {
        int64_t t = row / (nh * nw), y = row / nw % nh, x = row % nw;
        float *to = out + row * e;
        memcpy(to, ts + t * dim_t, (size_t)dim_t * sizeof *to);
        memcpy(to + dim_t, ys + y * dim_s, (size_t)dim_s * sizeof *to);
        memcpy(to + dim_t + dim_s, xs + x * dim_s, (size_t)dim_s * sizeof *to);
    }
    free(ts);
    free(ys);
    free(xs);
}

void rotary_identity(int64_t rows, int64_t head_size, float *out) {
    for (int64_t i = 0; i < rows * head_size; i++) out[i] = i % 2 ? 0 : 1;
}

void sincos_axis(int64_t count, int64_t dim, double scale, double *out) {
    int64_t half = dim / 2;
    for (int64_t i = 0; i < count; i++) {
        double position = (double)((float)i / (float)scale);
        for (int64_t k = 0; k < half; k++) {
            double omega = pow(10000.0, -(double)k / (double)half);
            out[i * dim + k] = sin(position * omega);
            out[i * dim + half + k] = cos(position * omega);
        }
    }
}
