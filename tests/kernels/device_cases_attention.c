/* Attention, forward and backward. Devices round the shares p = softmax(scores), the gradients of
 * the scores and the output to the case's type before they multiply with them: the bounds follow
 * these roundings, and the error of a score in the exponent, element by element. */
#include "tests/kernels/device_cases.h"

#include <math.h>
#include <stdlib.h>

enum { MOST_SEGMENTS = 3, OUT = 0, DQ, DK, DV, RESULTS };

typedef struct {
    int64_t heads, size;
    int segments;
    int64_t cu[MOST_SEGMENTS + 1];
} Shape;

/* Of one row, of an empty segment, beyond a tile of 128 rows; sizes that cuDNN takes and does not.
 */
static const Shape SHAPES[] = {
    {2, 64, 1, {0, 1}},       {3, 64, 3, {0, 9, 9, 86}}, {2, 64, 1, {0, 257}},
    {2, 128, 2, {0, 5, 134}}, {2, 16, 1, {0, 77}},       {2, 12, 2, {0, 31, 50}},
};

typedef struct {
    Array *q, *k, *v, *dout, *lse, *result[RESULTS];
    double *sizes[RESULTS], *lse_sizes;
} Operands;

/* ---- bounds ----------------------------------------------------------------------------------
 */

/* The sum of x y, and of its terms' absolute values, over n elements. */
static double dot(int64_t n, const real *x, const real *y, double *sizes) {
    double sum = 0;
    *sizes = 0;
    for (int64_t e = 0; e < n; e++) {
        sum += (double)x[e] * (double)y[e];
        *sizes += fabs((double)x[e] * (double)y[e]);
    }
    return sum;
}

/* to += |x| factor. */
static void add_sizes(int64_t n, double factor, const real *x, double *to) {
    for (int64_t e = 0; e < n; e++) to[e] += factor * fabs((double)x[e]);
}

/* What row i and key j, of one head, add to the sizes: multiples of 2^-24 in f32's terms. */
static void add_pair(const Trial *c, const Operands *o, const Attention *a, int64_t length,
                     int64_t head, int64_t i, int64_t j) {
    int64_t n = a->head_size, at = head * n, width = a->heads * n;
    int64_t row = i * width + at, key = j * width + at;
    double score_size, dp_size, delta_size, ratio = type_unit(c->t) * 0x1p24;
    double tiny = c->t == DT_F16 ? 1 : 0; /* 2^-24: the step below which f16 rounds to */
    double score = (double)a->scale * dot(n, values(o->q) + row, values(o->k) + key, &score_size);
    double dp = dot(n, values(o->dout) + row, values(o->v) + key, &dp_size);
    double delta = dot(n, values(o->dout) + row, values(o->result[OUT]) + row, &delta_size);
    double p = exp(score - (double)values(o->lse)[head * a->rows + i]);
    double sum = (double)(n + length + 32) * (1 + (double)a->scale * score_size);
    double share = p * (sum + ratio) + tiny;
    double grad = p * (sum * (dp_size + delta_size) + ratio * (fabs(dp - delta) + delta_size));
    add_sizes(n, share, values(o->v) + key, o->sizes[OUT] + row);
    add_sizes(n, share, values(o->dout) + row, o->sizes[DV] + key);
    add_sizes(n, (double)a->scale * (grad + tiny), values(o->k) + key, o->sizes[DQ] + row);
    add_sizes(n, (double)a->scale * (grad + tiny), values(o->q) + row, o->sizes[DK] + key);
    double *lse = &o->lse_sizes[head * a->rows + i];
    *lse = fmax(*lse, sum + fabs((double)values(o->lse)[head * a->rows + i]) * 32);
}

static void add_all_sizes(const Trial *c, const Operands *o, const Attention *a) {
    for (int b = 0; b < a->segments; b++)
        for (int64_t head = 0; head < a->heads; head++)
            for (int64_t i = a->cu_rows[b]; i < a->cu_rows[b + 1]; i++)
                for (int64_t j = a->cu_rows[b]; j < a->cu_rows[b + 1]; j++)
                    add_pair(c, o, a, a->cu_rows[b + 1] - a->cu_rows[b], head, i, j);
}

/* ---- the cases -------------------------------------------------------------------------------
 */

/* Activations lie at multiples of 16 bytes, as in an arena; lse wherever rows and heads put it. */
static Operands operands(Trial *c, int64_t n, int64_t lse) {
    int shift = c->shift;
    Operands o = {.lse = output(c, DT_F32, lse, 0, 1, 1)};
    c->shift = 0;
    o.q = input(c, c->t, n, 2, 1.5);
    o.k = input(c, c->t, n, 3, 1.5);
    o.v = input(c, c->t, n, 4, 1);
    o.dout = input(c, c->t, n, 5, 1);
    for (int i = 0; i < RESULTS; i++) {
        o.result[i] = output(c, c->t, n, 0, 6, 1);
        o.sizes[i] = xcalloc((size_t)n, sizeof(double));
    }
    o.lse_sizes = xcalloc((size_t)lse, sizeof(double));
    c->shift = shift;
    return o;
}

static void compute(Trial *c, const Operands *o, const Attention *a) {
    Array *const *r = o->result;
    Attention f = *a, d = *a;
    f.t = DT_F32;
    f.q = o->q->host, f.k = o->k->host, f.v = o->v->host;
    d.q = o->q->at, d.k = o->k->at, d.v = o->v->at;
    c->cpu->attention(c->cpu_stream, &f, r[OUT]->host, o->lse->host);
    c->cpu->attention_grad(c->cpu_stream, &f, r[OUT]->host, o->lse->host, o->dout->host,
                           r[DQ]->host, r[DK]->host, r[DV]->host);
    c->device->attention(c->stream, &d, r[OUT]->at, o->lse->at);
    c->device->attention_grad(c->stream, &d, r[OUT]->at, o->lse->at, o->dout->at, r[DQ]->at,
                              r[DK]->at, r[DV]->at);
}

static void attend(Trial *c, bool repeats) {
    static const char *const NAMES[] = {"out", "dq", "dk", "dv"};
    for (size_t i = 0; i < COUNT(SHAPES); i++) {
        const Shape *s = &SHAPES[i];
        int64_t rows = s->cu[s->segments];
        Attention a = {.t = c->t, .rows = rows, .heads = s->heads, .head_size = s->size};
        a.scale = (real)(1 / sqrt((double)s->size));
        a.segments = s->segments;
        a.cu_rows = s->cu;
        Operands o = operands(c, rows * s->heads * s->size, s->heads * rows);
        cuda_deterministic(repeats);
        compute(c, &o, &a);
        cuda_deterministic(false);
        add_all_sizes(c, &o, &a);
        expect_sizes(c, "lse", o.lse, 1, o.lse_sizes);
        for (int r = 0; r < RESULTS; r++) {
            uint64_t hash = c->hash;
            expect_sizes(c, NAMES[r], o.result[r], 1, o.sizes[r]);
            if (r == DQ && !repeats) c->hash = hash; /* its sums may come in any order */
            free(o.sizes[r]);
        }
        free(o.lse_sizes);
    }
}

static void attention_case(Trial *c) { attend(c, false); }
static void repeating_case(Trial *c) { attend(c, true); }

const DeviceCase ATTENTION_CASES[] = {
    {"attention", attention_case},
    {"attention, repeating", repeating_case},
    {NULL, NULL},
};
