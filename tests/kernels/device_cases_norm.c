/* LayerNorm with modulation, RMS norm, the gate, and the norm of q and k. */
#include "tests/kernels/device_cases.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Rows that use the modulation as a pack does (runs of text and video of each sample), or in an
 * order that no pack has. */
typedef enum { NO_MOD, RUNS, SCATTERED } Modulation;

typedef struct {
    int64_t rows, width, mod_rows;
    Modulation modulation;
} Shape;

/* From 513 rows on, CUDA's chunks have more than one. */
static const Shape SHAPES[] = {
    {1, 1, 0, NO_MOD},  {1, 64, 1, RUNS},        {3, 70, 2, RUNS},       {37, 129, 0, NO_MOD},
    {5, 1920, 2, RUNS}, {40, 48, 6, RUNS},       {2, 3072, 2, RUNS},     {2, 8192, 1, RUNS},
    {1, 8191, 1, RUNS}, {33, 40, 5, SCATTERED},  {70, 8, 66, SCATTERED}, {700, 24, 4, RUNS},
    {1300, 9, 3, RUNS}, {1540, 8, 3, SCATTERED},
};

/* One row after the other in blocks of more than one warp. */
static const Shape TWO_WARPS = {540, 520, 2, RUNS};

static Array *mod_rows_of(Trial *c, const Shape *s) {
    int32_t *row = xcalloc((size_t)s->rows, sizeof *row);
    for (int64_t i = 0; s->modulation != NO_MOD && i < s->rows; i++) {
        int64_t run = i * s->mod_rows / s->rows;
        row[i] = (int32_t)(s->modulation == RUNS ? run : i * 7 % s->mod_rows);
    }
    Array *a = indices(c, s->rows, row);
    free(row);
    return a;
}

static double magnitude(const Array *a, int64_t at) { return a ? fabs((double)values(a)[at]) : 0; }

static double largest(const Array *a) {
    double max = 0;
    for (int64_t i = 0; i < a->n; i++) max = fmax(max, magnitude(a, i));
    return max;
}

static double *new_sizes(const Array *a) { return xcalloc((size_t)MAX(a->n, 1), sizeof(double)); }

/* ---- LayerNorm -------------------------------------------------------------------------------*/

typedef struct {
    Norm cpu, device;
    Array *x, *gamma, *beta, *mod, *mod_row, *stats;
    int32_t *rows; /* mod_row on the host */
} NormScene;

/* The modulation has 5 or 16 columns behind shift and scale. */
static NormScene norm_scene(Trial *c, const Shape *s) {
    NormScene n = {0};
    int64_t mod_width = s->mod_rows ? 2 * s->width + (s->width % 2 ? 5 : 16) : 0;
    n.x = input(c, c->t, s->rows * s->width, 1, 2);
    n.gamma = input(c, c->t, s->width, 2, 1.5);
    n.beta = input(c, c->t, s->width, 3, 1);
    n.mod = s->mod_rows ? input(c, c->t, s->mod_rows * mod_width, 4, 1) : NULL;
    n.mod_row = mod_rows_of(c, s);
    n.stats = output(c, DT_F32, 2 * s->rows, 0, 0, 0);
    n.rows = n.mod_row->host;
    Norm all = {.rows = s->rows, .width = s->width, .eps = (real)1e-5};
    all.mod_rows = s->mod_rows;
    all.mod_width = mod_width;
    n.cpu = n.device = all;
    n.cpu.t = DT_F32;
    n.cpu.x = n.x->host, n.cpu.gamma = n.gamma->host, n.cpu.beta = n.beta->host;
    n.cpu.mod = n.mod ? n.mod->host : NULL;
    n.cpu.mod_row = n.mod_row->host, n.cpu.stats = n.stats->host;
    n.device.t = c->t;
    n.device.x = n.x->at, n.device.gamma = n.gamma->at, n.device.beta = n.beta->at;
    n.device.mod = n.mod ? n.mod->at : NULL;
    n.device.mod_row = n.mod_row->at, n.device.stats = n.stats->at;
    return n;
}

/* The magnitude of column `at` of the modulation of a row. */
static double mod_size(const NormScene *n, int64_t row, int64_t at) {
    return n->mod ? magnitude(n->mod, n->rows[row] * n->cpu.mod_width + at) : 0;
}

/* The mean errs by a sum of |x|; that reaches (x - mean) * rstd, and rstd itself, as many times
 * rstd. */
static void expect_norm(Trial *c, const NormScene *n, const Array *y) {
    int64_t width = n->cpu.width;
    double *sizes = new_sizes(y), *stats = new_sizes(n->stats), x = largest(n->x);
    double length = sum_depth(width) + 10;
    for (int64_t i = 0; i < n->cpu.rows; i++) {
        double rstd = (double)values(n->stats)[2 * i + 1];
        stats[2 * i] = x;
        stats[2 * i + 1] = rstd * (1 + x * rstd);
        for (int64_t j = 0; j < width; j++)
            sizes[i * width + j] = (2 * x * rstd * magnitude(n->gamma, j) + magnitude(n->beta, j)) *
                                       (1 + mod_size(n, i, width + j)) +
                                   mod_size(n, i, j);
    }
    expect_sizes(c, "y", y, length, sizes);
    expect_sizes(c, "stats", n->stats, length, stats);
    free(sizes);
    free(stats);
}

static void norm_case(Trial *c) {
    for (size_t i = 0; i < COUNT(SHAPES); i++) {
        NormScene n = norm_scene(c, &SHAPES[i]);
        Array *y = output(c, c->t, n.x->n, 0, 0, 0);
        c->device->norm(c->stream, &n.device, y->at);
        c->cpu->norm(c->cpu_stream, &n.cpu, y->host);
        expect_norm(c, &n, y);
    }
}

/* What a gradient wants, as bits; what is not wanted is NULL. KEEP adds to what there is. */
enum { DX = 1, DGAMMA = 2, DBETA = 4, DMOD = 8, KEEP = 16 };

typedef struct {
    Array *dy, *dx, *dgamma, *dbeta, *dmod;
    NormGrad cpu, device;
} NormGradScene;

static Array *wanted(Trial *c, int want, int bit, DType t, int64_t n, uint32_t seed) {
    return want & bit && n ? output(c, t, n, want & KEEP, seed, 2) : NULL;
}

static void *at(const Array *a) { return a ? a->at : NULL; }
static void *host(const Array *a) { return a ? a->host : NULL; }

static NormGradScene norm_grad_scene(Trial *c, const NormScene *n, int want) {
    int64_t width = n->cpu.width, mods = n->cpu.mod_rows * n->cpu.mod_width;
    NormGradScene g = {.dy = input(c, c->t, n->x->n, 5, 1)};
    g.dx = wanted(c, want, DX, c->t, n->x->n, 6);
    g.dgamma = wanted(c, want, DGAMMA, DT_F32, width, 7);
    g.dbeta = wanted(c, want, DBETA, DT_F32, width, 8);
    g.dmod = wanted(c, want, DMOD, c->t, mods, 9);
    real keep = want & KEEP ? 1 : 0;
    NormGrad all = {.keep_dx = keep, .keep_dgamma = keep, .keep_dbeta = keep, .keep_dmod = keep};
    g.cpu = g.device = all;
    g.cpu.dy = g.dy->host, g.cpu.dx = host(g.dx), g.cpu.dgamma = host(g.dgamma);
    g.cpu.dbeta = host(g.dbeta), g.cpu.dmod = host(g.dmod);
    g.device.dy = g.dy->at, g.device.dx = at(g.dx), g.device.dgamma = at(g.dgamma);
    g.device.dbeta = at(g.dbeta), g.device.dmod = at(g.dmod);
    return g;
}

/* Sums over rows, chunk by chunk: 64 rows on the CPU; 1/528 of them, in 32 groups, on CUDA. */
static double row_depth(int64_t rows) { return fmin((double)rows, 110 + (double)rows / 64) + 12; }

/* The absolute values that come together in dgamma, dbeta and dmod, and after them 2 for what was
 * there. */
static void size_sums(const NormScene *n, const NormGradScene *g, double *dgamma, double *dbeta,
                      double *dmod) {
    int64_t width = n->cpu.width, mod_width = n->cpu.mod_width;
    for (int64_t i = 0; i < n->cpu.rows; i++)
        for (int64_t j = 0; j < width; j++) {
            double mean = (double)values(n->stats)[2 * i],
                   rstd = (double)values(n->stats)[2 * i + 1];
            double x = (magnitude(n->x, i * width + j) + fabs(mean)) * rstd;
            double dy = magnitude(g->dy, i * width + j), scale = 1 + mod_size(n, i, width + j);
            dgamma[j] += scale * dy * x;
            dbeta[j] += scale * dy;
            if (!mod_width) continue;
            double *to = dmod + n->rows[i] * mod_width + j;
            to[0] += dy;
            to[width] += magnitude(n->gamma, j) * dy * x + magnitude(n->beta, j) * dy;
        }
}

static void expect_sums(Trial *c, const NormScene *n, const NormGradScene *g, int want) {
    int64_t width = n->cpu.width, mods = n->cpu.mod_rows * n->cpu.mod_width;
    double *dgamma = xcalloc((size_t)width, sizeof *dgamma), length = row_depth(n->cpu.rows);
    double *dbeta = xcalloc((size_t)width, sizeof *dbeta);
    double *dmod = xcalloc((size_t)MAX(mods, 1), sizeof *dmod);
    size_sums(n, g, dgamma, dbeta, dmod);
    for (int64_t j = 0; want & KEEP && j < MAX(width, mods); j++) {
        if (j < width) dgamma[j] += 2, dbeta[j] += 2;
        if (j < mods) dmod[j] += 2;
    }
    if (g->dgamma) expect_sizes(c, "dgamma", g->dgamma, length, dgamma);
    if (g->dbeta) expect_sizes(c, "dbeta", g->dbeta, length, dbeta);
    if (g->dmod) expect_sizes(c, "dmod", g->dmod, length, dmod);
    free(dgamma);
    free(dbeta);
    free(dmod);
}

static void expect_dx(Trial *c, const NormScene *n, const NormGradScene *g, int want) {
    int64_t width = n->cpu.width;
    double *sizes = new_sizes(g->dx), gamma = largest(n->gamma);
    for (int64_t i = 0; i < n->cpu.rows; i++) {
        double mean = (double)values(n->stats)[2 * i], rstd = (double)values(n->stats)[2 * i + 1];
        for (int64_t j = 0; j < width; j++) {
            double x = (magnitude(n->x, i * width + j) + fabs(mean)) * rstd;
            /* |g| <= gamma (1 + scale) with |dy| <= 1; the mean of g * xhat is at most that, too,
             * since that of xhat^2 is at most 1. */
            sizes[i * width + j] = rstd * gamma * 2 * (2 + x) * (1 + x) + (want & KEEP ? 2 : 0);
        }
    }
    expect_sizes(c, "dx", g->dx, sum_depth(width) + 10, sizes);
    free(sizes);
}

static void check_norm_grad(Trial *c, const Shape *s, int want) {
    NormScene n = norm_scene(c, s);
    Array *y = output(c, c->t, n.x->n, 0, 0, 0);
    c->cpu->norm(c->cpu_stream, &n.cpu, y->host);
    upload_again(c, n.stats);
    NormGradScene g = norm_grad_scene(c, &n, want);
    c->device->norm_grad(c->stream, &n.device, &g.device);
    c->cpu->norm_grad(c->cpu_stream, &n.cpu, &g.cpu);
    if (g.dx) expect_dx(c, &n, &g, want);
    expect_sums(c, &n, &g, want);
}

static void norm_dx_case(Trial *c) {
    for (size_t i = 0; i < COUNT(SHAPES) - 2; i++) {
        check_norm_grad(c, &SHAPES[i], DX);
        if (i < 4) check_norm_grad(c, &SHAPES[i], DX | KEEP);
    }
}

static void norm_grad_case(Trial *c) {
    for (size_t i = 0; i < COUNT(SHAPES); i++)
        check_norm_grad(c, &SHAPES[i], DX | DGAMMA | DBETA | DMOD);
    check_norm_grad(c, &TWO_WARPS, DX | DGAMMA | DBETA | DMOD);
}

/* Some shape with some modulation, for each choice of outputs. */
static void norm_choice_case(Trial *c) {
    for (int want = 1; want < 32; want++) check_norm_grad(c, &SHAPES[want % 2 ? 2 : 9], want);
}

/* ---- RMS norm --------------------------------------------------------------------------------*/

static void rms_norm_case(Trial *c) {
    for (size_t i = 0; i < COUNT(SHAPES); i++) {
        int64_t rows = SHAPES[i].rows, width = SHAPES[i].width;
        Array *x = input(c, c->t, rows * width, 1, 2), *gamma = input(c, c->t, width, 2, 1.5);
        Array *y = output(c, c->t, rows * width, 0, 0, 0);
        RmsNorm n = {DT_F32, rows, width, (real)1e-6, x->host, gamma->host};
        RmsNorm d = {c->t, rows, width, (real)1e-6, x->at, gamma->at};
        double *sizes = new_sizes(y);
        c->cpu->rms_norm(c->cpu_stream, &n, y->host);
        c->device->rms_norm(c->stream, &d, y->at);
        for (int64_t k = 0; k < y->n; k++) sizes[k] = magnitude(y, k);
        expect_sizes(c, "y", y, sum_depth(width) + 8, sizes);
        c->device->rms_norm(c->stream, &d, x->at);
        memcpy(x->host, y->host, (size_t)x->n * sizeof(real));
        expect_sizes(c, "y in place", x, sum_depth(width) + 8, sizes);
        free(sizes);
    }
}

/* ---- the gate --------------------------------------------------------------------------------*/

typedef struct {
    Gate cpu, device;
    Array *a, *mod, *mod_row;
} GateScene;

/* The gate's columns lie in the middle of the modulation. */
static GateScene gate_scene(Trial *c, const Shape *s) {
    GateScene g = {0};
    int64_t offset = s->width % 8 ? 3 : 16, mods = MAX(s->mod_rows, 1);
    Gate all = {.rows = s->rows, .width = s->width, .mod_rows = mods, .offset = offset};
    all.mod_width = s->width + 2 * offset;
    g.a = input(c, c->t, s->rows * s->width, 1, 1);
    g.mod = input(c, c->t, mods * all.mod_width, 2, 1);
    g.mod_row = mod_rows_of(c, s);
    g.cpu = g.device = all;
    g.cpu.t = DT_F32, g.device.t = c->t;
    g.cpu.a = g.a->host, g.cpu.mod = g.mod->host, g.cpu.mod_row = g.mod_row->host;
    g.device.a = g.a->at, g.device.mod = g.mod->at, g.device.mod_row = g.mod_row->at;
    return g;
}

static void gate_case(Trial *c) {
    for (size_t i = 0; i < COUNT(SHAPES); i++) {
        GateScene g = gate_scene(c, &SHAPES[i]);
        Array *x = input(c, c->t, g.a->n, 3, 1), *y = output(c, c->t, g.a->n, 0, 0, 0);
        c->device->gate(c->stream, &g.device, x->at, y->at);
        c->cpu->gate(c->cpu_stream, &g.cpu, x->host, y->host);
        expect(c, "y", y, 2, 2);
        c->device->gate(c->stream, &g.device, x->at, x->at);
        memcpy(x->host, y->host, (size_t)x->n * sizeof(real));
        expect(c, "y in place", x, 2, 2);
    }
}

static void check_gate_grad(Trial *c, const Shape *s, int want) {
    GateScene g = gate_scene(c, s);
    Array *dy = input(c, c->t, g.a->n, 3, 1);
    Array *da = wanted(c, want, DX, c->t, g.a->n, 4);
    Array *dmod = wanted(c, want, DMOD, c->t, g.mod->n, 5);
    real keep = want & KEEP ? 1 : 0;
    c->device->gate_grad(c->stream, &g.device, dy->at, keep, at(da), keep, at(dmod));
    c->cpu->gate_grad(c->cpu_stream, &g.cpu, dy->host, keep, host(da), keep, host(dmod));
    if (da) expect(c, "da", da, 2, 3);
    if (!dmod) return;
    double *sizes = new_sizes(dmod);
    const int32_t *rows = g.mod_row->host;
    for (int64_t i = 0; i < dmod->n; i++) sizes[i] = want & KEEP ? 2 : 0;
    for (int64_t i = 0; i < g.a->n; i++)
        sizes[rows[i / s->width] * g.cpu.mod_width + g.cpu.offset + i % s->width] +=
            magnitude(dy, i) * magnitude(g.a, i);
    expect_sizes(c, "dmod", dmod, row_depth(s->rows), sizes);
    free(sizes);
}

static void gate_grad_case(Trial *c) {
    for (size_t i = 0; i < COUNT(SHAPES); i++) {
        check_gate_grad(c, &SHAPES[i], DX | DMOD);
        if (i < 4) check_gate_grad(c, &SHAPES[i], DX);
        if (i < 4) check_gate_grad(c, &SHAPES[i], DX | KEEP);
        if (i < 4) check_gate_grad(c, &SHAPES[i], DX | DMOD | KEEP);
        if (i < 4) check_gate_grad(c, &SHAPES[i], DMOD | KEEP);
    }
}

/* ---- q and k ---------------------------------------------------------------------------------*/

typedef struct {
    int64_t rows, heads, size;
    bool rope;
} Heads;

static const Heads HEADS[] = {
    {1, 1, 2, true},    {3, 2, 64, true},   {2, 30, 64, true},
    {5, 3, 70, true},   {2, 2, 128, false}, {2, 17, 256, true},
    {7, 1, 254, false}, {4, 5, 6, true},    {1100, 1, 8, true},
};

typedef struct {
    QkNorm cpu, device;
    Array *x, *gamma[2], *beta[2], *rope;
} QkScene;

static QkScene qk_scene(Trial *c, const Heads *h) {
    QkScene q = {.x = input(c, c->t, 2 * h->rows * h->heads * h->size, 1, 2)};
    QkNorm all = {.rows = h->rows, .heads = h->heads, .head_size = h->size, .eps = (real)1e-6};
    q.cpu = q.device = all;
    q.cpu.t = DT_F32, q.device.t = c->t;
    q.cpu.x = q.x->host, q.device.x = q.x->at;
    for (uint32_t z = 0; z < 2; z++) {
        q.gamma[z] = input(c, c->t, h->size, 2 + z, 1.5);
        q.beta[z] = input(c, c->t, h->size, 4 + z, 1);
        q.cpu.gamma[z] = q.gamma[z]->host, q.device.gamma[z] = q.gamma[z]->at;
        q.cpu.beta[z] = q.beta[z]->host, q.device.beta[z] = q.beta[z]->at;
    }
    if (!h->rope) return q;
    q.rope = input(c, DT_F32, h->rows * h->size, 6, 1);
    q.cpu.rope = q.rope->host, q.device.rope = q.rope->at;
    return q;
}

/* 1 / sqrt(variance + eps) of a head, in double. */
static double head_rstd(const QkScene *q, int64_t head) {
    int64_t n = q->cpu.head_size;
    double sum = 0, square = 0;
    for (int64_t j = 0; j < n; j++) sum += (double)values(q->x)[head * n + j];
    for (int64_t j = 0; j < n; j++) {
        double d = (double)values(q->x)[head * n + j] - sum / (double)n;
        square += d * d;
    }
    return 1 / sqrt(square / (double)n + (double)q->cpu.eps);
}

static void qk_norm_case(Trial *c) {
    for (size_t i = 0; i < COUNT(HEADS); i++) {
        QkScene q = qk_scene(c, &HEADS[i]);
        Array *y = output(c, c->t, q.x->n, 0, 0, 0);
        double *sizes = new_sizes(y);
        c->device->qk_norm(c->stream, &q.device, y->at);
        c->cpu->qk_norm(c->cpu_stream, &q.cpu, y->host);
        /* Twice what a normalised channel may be: the angles' pairs are as long as 1.5. */
        for (int64_t k = 0; k < y->n; k++)
            sizes[k] = 2 * (2 * 2 * head_rstd(&q, k / HEADS[i].size) * 1.5 + 1);
        expect_sizes(c, "y", y, sum_depth(HEADS[i].size) + 12, sizes);
        free(sizes);
    }
}

/* The absolute values that come together in one element of dgamma: |dy| <= 1, turned, and |xhat|.
 */
static double head_terms(const QkScene *q) {
    double sum = 0;
    for (int64_t h = 0; h < q->cpu.rows * q->cpu.heads; h++)
        sum +=
            2 * (1 + 2 * 2 * fmax(head_rstd(q, h), head_rstd(q, h + q->cpu.rows * q->cpu.heads)));
    return sum;
}

static void expect_qk_dx(Trial *c, const QkScene *q, const Array *dx, int want) {
    double *sizes = new_sizes(dx);
    for (int64_t k = 0; k < dx->n; k++) {
        double rstd = head_rstd(q, k / q->cpu.head_size), x = 2 * 2 * rstd;
        sizes[k] = rstd * 1.5 * 2 * (2 + x) * (1 + x) + (want & KEEP ? 2 : 0);
    }
    expect_sizes(c, "dx", dx, sum_depth(q->cpu.head_size) + 12, sizes);
    free(sizes);
}

static void check_qk_grad(Trial *c, const Heads *h, int want) {
    QkScene q = qk_scene(c, h);
    real keep = want & KEEP ? 1 : 0;
    Array *dy = input(c, c->t, q.x->n, 7, 1), *dx = wanted(c, want, DX, c->t, q.x->n, 8);
    QkNormGrad cpu = {.dy = dy->host, .dx = host(dx), .keep_dx = keep};
    QkNormGrad device = {.dy = dy->at, .dx = at(dx), .keep_dx = keep};
    Array *grads[4];
    for (int i = 0; i < 4; i++) { /* dgamma of q and of k, dbeta of q and of k */
        grads[i] = wanted(c, want, i < 2 ? DGAMMA : DBETA, DT_F32, h->size, 9 + (uint32_t)i);
        (i < 2 ? cpu.dgamma : cpu.dbeta)[i % 2] = host(grads[i]);
        (i < 2 ? device.dgamma : device.dbeta)[i % 2] = at(grads[i]);
        (i < 2 ? cpu.keep_dgamma : cpu.keep_dbeta)[i % 2] = keep;
        (i < 2 ? device.keep_dgamma : device.keep_dbeta)[i % 2] = keep;
    }
    c->device->qk_norm_grad(c->stream, &q.device, &device);
    c->cpu->qk_norm_grad(c->cpu_stream, &q.cpu, &cpu);
    if (dx) expect_qk_dx(c, &q, dx, want);
    double length = row_depth(h->rows * h->heads) + sum_depth(h->size);
    double size = head_terms(&q) + (want & KEEP ? 2 : 0);
    for (int i = 0; i < 4; i++)
        if (grads[i]) expect(c, i < 2 ? "dgamma" : "dbeta", grads[i], length, size);
}

static void qk_norm_grad_case(Trial *c) {
    for (size_t i = 0; i < COUNT(HEADS); i++) {
        check_qk_grad(c, &HEADS[i], DX | DGAMMA | DBETA);
        if (HEADS[i].rows < 1000) check_qk_grad(c, &HEADS[i], DX);
    }
    for (int want = 1; want < 32; want++)
        if (!(want & DMOD)) check_qk_grad(c, &HEADS[want % 2], want);
}

const DeviceCase NORM_CASES[] = {
    {"norm", norm_case},
    {"norm_grad, dx alone", norm_dx_case},
    {"norm_grad", norm_grad_case},
    {"norm_grad, parts of it", norm_choice_case},
    {"rms_norm", rms_norm_case},
    {"gate", gate_case},
    {"gate_grad", gate_grad_case},
    {"qk_norm", qk_norm_case},
    {"qk_norm_grad", qk_norm_grad_case},
    {NULL, NULL},
};
