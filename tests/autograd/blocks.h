/* A small transformer over ops and parameter buckets, with everything that the passes must cope
 * with: segments of the graph, views of slices, a modulation table with many readers, adapters that
 * consume slices, dropout, packs of several samples. */
#pragma once

#include "kernels/random.h"
#include "tests/autograd/scene.h"

enum { N_BLOCKS = 3, WIDTH = 24, HEADS = 3, TIME = 5, CHANNELS = 7, RANK = 2 };

/* Rows of the samples of a pack. */
typedef int64_t BlocksRows[4]; /* 3, and 0 */
static const BlocksRows BLOCKS_ROWS = {9, 1, 5, 0};

typedef struct {
    bool full;           /* trains the base, else adapters on q, k, v and out */
    Home home;           /* of the base */
    DType form;          /* in which the base rests on the device */
    const DType *files;  /* [3] forms of the base's sources, in turn; NULL: DT_REAL */
    bool host_trained;   /* masters, gradients and moments rest in host memory */
    bool stash;          /* activations are parked there */
    bool prefetch, late; /* moves run beside the steps; and happen as late as they may */
    real dropout;        /* before the adapters */
    bool apart;          /* plan_fuse is left out */
    const int64_t *rows; /* a BlocksRows; NULL: BLOCKS_ROWS */
} BlocksKind;

typedef struct {
    int mod_w, mod_b, norm1[2], qkv_w, qkv_b, qk[4], out_w, out_b, norm2[2], ff1_w, ff1_b, ff2_w,
        ff2_b;
    int lora_a[4], lora_b[4]; /* of q, k, v, out; -1: none */
} BlockParams;

typedef struct {
    BlocksKind kind;
    Memory memory;
    ParamSet *params;
    int in_w, in_b, time_w, time_b, last_w, last_b;
    BlockParams block[N_BLOCKS];
    void **source; /* [n_params] where each parameter's first value lies, in its own form */
} Blocks;

static inline int blocks_add(Blocks *b, int block, const char *name, Shape shape, bool trained) {
    char *full = xprintf("%d.%s", block, name);
    int index = params_add(b->params, full, shape, block, trained);
    free(full);
    return index;
}

static inline void blocks_add_block(Blocks *b, int i) {
    BlockParams *p = &b->block[i];
    bool t = b->kind.full;
    int at = i + 1, D = WIDTH;
    p->mod_w = blocks_add(b, at, "mod.w", SHAPE(6 * D, TIME), t);
    p->mod_b = blocks_add(b, at, "mod.b", SHAPE(6 * D), t);
    for (int j = 0; j < 2; j++) p->norm1[j] = blocks_add(b, at, "norm1", SHAPE(D), t);
    p->qkv_w = blocks_add(b, at, "q.w", SHAPE(D, D), t);
    blocks_add(b, at, "k.w", SHAPE(D, D), t);
    blocks_add(b, at, "v.w", SHAPE(D, D), t);
    p->qkv_b = blocks_add(b, at, "qkv.b", SHAPE(3 * D), t);
    for (int j = 0; j < 4; j++) p->qk[j] = blocks_add(b, at, "qk", SHAPE(D / HEADS), t);
    p->out_w = blocks_add(b, at, "out.w", SHAPE(D, D), t);
    p->out_b = blocks_add(b, at, "out.b", SHAPE(D), t);
    for (int j = 0; j < 2; j++) p->norm2[j] = blocks_add(b, at, "norm2", SHAPE(D), t);
    p->ff1_w = blocks_add(b, at, "ff1.w", SHAPE(4 * D, D), t);
    p->ff1_b = blocks_add(b, at, "ff1.b", SHAPE(4 * D), t);
    p->ff2_w = blocks_add(b, at, "ff2.w", SHAPE(D, 4 * D), t);
    p->ff2_b = blocks_add(b, at, "ff2.b", SHAPE(D), t);
    for (int j = 0; j < 4; j++) {
        p->lora_a[j] = t ? -1 : blocks_add(b, at, "lora.a", SHAPE(RANK, D), true);
        p->lora_b[j] = t ? -1 : blocks_add(b, at, "lora.b", SHAPE(D, RANK), true);
    }
}

/* A parameter's first value, in its form: small in matrices, 0 to 2 in vectors. */
static inline void *blocks_value(const Param *q, int index, DType form) {
    int64_t n = param_count(q);
    real *drawn = numbers(n, 100 + (uint32_t)index);
    float *values = xcalloc((size_t)n, sizeof *values);
    for (int64_t i = 0; i < n; i++)
        values[i] = (float)(q->shape.rank > 1 ? drawn[i] / 4 : 1 + drawn[i] / 2);
    void *typed = BACKEND_CPU.alloc((size_t)n * dtype_size(form));
    BACKEND_CPU.cast(NULL, DT_F32, form, n, values, typed);
    BACKEND_CPU.release(drawn);
    free(values);
    return typed;
}

static inline void blocks_fill(Blocks *b) {
    ParamSet *p = b->params;
    b->source = xcalloc((size_t)p->n_params, sizeof *b->source);
    for (int i = 0; i < p->n_params; i++) {
        const Param *q = &p->param[i];
        DType form = q->trained || !b->kind.files ? DT_F32 : b->kind.files[i % 3];
        b->source[i] = blocks_value(q, i, form);
        if (!q->trained) param_source(p, i, b->source[i], form);
    }
    params_allocate(p, &b->memory);
    params_settle(p, &b->memory, NULL);
    for (int i = 0; i < p->n_params; i++)
        if (p->param[i].trained)
            BACKEND_CPU.cast(NULL, DT_F32, DT_REAL, param_count(&p->param[i]), b->source[i],
                             param_master(p, i));
}

static inline Blocks blocks_open(BlocksKind kind) {
    static const char *const NAMES[] = {"embed", "block.0", "block.1", "block.2", "final"};
    Blocks b = {.kind = kind, .memory = {.k = &BACKEND_CPU}, .params = params_open()};
    b.in_w = blocks_add(&b, 0, "in.w", SHAPE(WIDTH, CHANNELS), kind.full);
    b.in_b = blocks_add(&b, 0, "in.b", SHAPE(WIDTH), kind.full);
    b.time_w = blocks_add(&b, 0, "time.w", SHAPE(TIME, 4), kind.full);
    b.time_b = blocks_add(&b, 0, "time.b", SHAPE(TIME), kind.full);
    for (int i = 0; i < N_BLOCKS; i++) blocks_add_block(&b, i);
    b.last_w = blocks_add(&b, N_BLOCKS + 1, "last.w", SHAPE(CHANNELS, WIDTH), kind.full);
    b.last_b = blocks_add(&b, N_BLOCKS + 1, "last.b", SHAPE(CHANNELS), kind.full);
    params_layout(b.params, NAMES, 1);
    params_rest(b.params, kind.home, kind.form);
    if (kind.host_trained) params_rest_trained_on_host(b.params);
    blocks_fill(&b);
    return b;
}

static inline void blocks_close(Blocks *b) {
    for (int i = 0; i < b->params->n_params; i++) BACKEND_CPU.release(b->source[i]);
    free(b->source);
    params_close(b->params, &b->memory);
}

/* ---- the graph --------------------------------------------------------------------------------
 */

typedef struct {
    const Blocks *b;
    Scene *s;
    Segments rows;
    Tensor *c, *mod_row, *rope, *ordinals;
} BlocksGraph;

static inline Tensor *blocks_param(const BlocksGraph *r, int index) {
    return graph_param(r->s->graph, index, 1, r->b->params->param[index].shape);
}

static inline Tensor *blocks_linear(const BlocksGraph *r, Tensor *x, int w, int b) {
    return op_linear(r->s->graph, x, blocks_param(r, w), blocks_param(r, b));
}

static inline Tensor *blocks_adapter(const BlocksGraph *r, const BlockParams *p, int which,
                                     Tensor *x, Tensor *y, int slice) {
    if (p->lora_a[which] < 0) return y;
    Graph *g = r->s->graph;
    if (r->b->kind.dropout > 0)
        x = op_dropout(g, x, r->ordinals, r->rows, r->b->kind.dropout,
                       PURPOSE_DROPOUT + (uint32_t)p->lora_a[which]);
    Tensor *low = op_linear(g, x, blocks_param(r, p->lora_a[which]), NULL);
    return op_linear_add(g, low, blocks_param(r, p->lora_b[which]), y, (real)0.5, slice);
}

static inline Tensor *blocks_attend(const BlocksGraph *r, const BlockParams *p, Tensor *x) {
    Graph *g = r->s->graph;
    int64_t rows = x->shape.dim[0];
    Tensor *w = graph_param(g, p->qkv_w, 3, SHAPE(3, WIDTH, WIDTH));
    Tensor *qkv = op_linear(g, x, w, graph_param(g, p->qkv_b, 1, SHAPE(3, WIDTH)));
    for (int i = 0; i < 3; i++) qkv = blocks_adapter(r, p, i, x, qkv, i);
    Tensor *qk = graph_view(g, qkv, 0, SHAPE(2, rows, WIDTH));
    Tensor *v = graph_view(g, qkv, 2 * rows * WIDTH, SHAPE(rows, WIDTH)), *norm[4];
    for (int i = 0; i < 4; i++) norm[i] = blocks_param(r, p->qk[i]);
    qk = op_qk_norm(g, qk, norm[0], norm[1], norm[2], norm[3], r->rope, HEADS, (real)1e-6);
    Tensor *a = op_attention(g, qk, v, HEADS, r->rows);
    return blocks_adapter(r, p, 3, a, blocks_linear(r, a, p->out_w, p->out_b), 0);
}

static inline Tensor *blocks_block(const BlocksGraph *r, const BlockParams *p, Tensor *x) {
    Graph *g = r->s->graph;
    Tensor *both = blocks_linear(r, r->c, p->mod_w, p->mod_b);
    Tensor *mod = graph_reshape(g, both, SHAPE(2 * r->rows.n, 3 * WIDTH));
    Tensor *n = op_norm(g, x, blocks_param(r, p->norm1[0]), blocks_param(r, p->norm1[1]),
                        (real)1e-5, mod, r->mod_row);
    x = op_gate(g, x, blocks_attend(r, p, n), mod, r->mod_row, 2 * WIDTH);
    n = op_norm(g, x, blocks_param(r, p->norm2[0]), blocks_param(r, p->norm2[1]), (real)1e-5, mod,
                r->mod_row);
    Tensor *h = op_gelu(g, blocks_linear(r, n, p->ff1_w, p->ff1_b));
    return op_gate(g, x, blocks_linear(r, h, p->ff2_w, p->ff2_b), mod, r->mod_row, 2 * WIDTH);
}

static inline void blocks_tables(BlocksGraph *r) {
    static const uint32_t ORDINALS[] = {4, 9, 2};
    int64_t rows = r->rows.cu[r->rows.n], size = WIDTH / HEADS;
    int32_t *mod_row = xcalloc((size_t)rows, sizeof *mod_row);
    real *rope = xcalloc((size_t)(rows * size), sizeof *rope);
    for (int b = 0; b < r->rows.n; b++)
        for (int64_t i = r->rows.cu[b]; i < r->rows.cu[b + 1]; i++)
            mod_row[i] = 2 * b + (i < r->rows.cu[b] + 2);
    for (int64_t i = 0; i < rows * size; i++)
        rope[i] = (real)(i % 2 ? sin((double)(i / 2)) : cos((double)(i / 2)));
    r->mod_row = graph_const(r->s->graph, "mod_row", SHAPE(rows), DT_I32, mod_row);
    r->rope = graph_const(r->s->graph, "rope", SHAPE(rows, size), DT_REAL, rope);
    r->ordinals = graph_const(r->s->graph, "ordinals", SHAPE(r->rows.n), DT_U32, ORDINALS);
    free(mod_row);
    free(rope);
}

/* Returns the loss; its node's first input is the prediction. */
static inline Tensor *blocks_record(const Blocks *b, Scene *s) {
    const int64_t *length = b->kind.rows ? b->kind.rows : BLOCKS_ROWS;
    BlocksGraph r = {.b = b, .s = s, .rows = scene_segments(s, length)};
    int64_t rows = r.rows.cu[r.rows.n], elements[4] = {0};
    for (int i = 0; i < r.rows.n; i++) elements[i] = length[i] * CHANNELS;
    blocks_tables(&r);
    Tensor *time = scene_input(s, "time", SHAPE(r.rows.n, 4), 1, false);
    r.c = op_silu(s->graph, blocks_linear(&r, time, b->time_w, b->time_b));
    Tensor *x = scene_input(s, "x", SHAPE(rows, CHANNELS), 1, false);
    Tensor *target = scene_input(s, "target", SHAPE(rows, CHANNELS), 1, false);
    x = blocks_linear(&r, x, b->in_w, b->in_b);
    for (int i = 0; i < N_BLOCKS; i++) {
        s->graph->segment = i + 1;
        x = blocks_block(&r, &b->block[i], x);
    }
    s->graph->segment = 0;
    Tensor *y = blocks_linear(&r, x, b->last_w, b->last_b);
    y->output = true;
    return op_mse(s->graph, y, target, scene_segments(s, elements));
}

/* All passes but the placing; policy[1 .. N_BLOCKS]. */
static inline void blocks_plan(const Blocks *b, Scene *s, const Recompute *policy, int accumulate) {
    Tensor *loss = blocks_record(b, s);
    s->plan = plan_open(s->graph);
    plan_backward(s->plan, loss);
    plan_recompute(s->plan, policy, N_BLOCKS);
    if (!b->kind.apart) plan_fuse(s->plan);
    plan_homes(s->plan, accumulate);
    if (b->kind.stash) plan_stash(s->plan);
    if (b->kind.prefetch) plan_prefetch(s->plan);
}
