/* Owns the T5 encoder: its parameters in their file, the graph of a pass, and the passes. */
#include "data/t5.h"

#include "data/nearest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Captions of one pass: enough that computing outweighs gathering the weights, few enough that the
 * activations (30 MiB a caption of T5-XXL) stay small. */
enum { PASS_CAPTIONS = 8 };

typedef struct T5Pass {
    int64_t n, length;
    Graph *graph;
    T5Graph io;
    Plan *plan;
    Run *run;
} T5Pass;

/* ---- parameters -------------------------------------------------------------------------------
 */

static int add(T5 *t, int block, int layer, const char *name, Shape shape) {
    char *full =
        layer < 0 ? xprintf("encoder.%s", name) : xprintf("encoder.block.%d.layer.%s", layer, name);
    int param = params_add(t->params, full, shape, block, false);
    free(full);
    return param;
}

static void add_layer(T5 *t, int i) {
    const T5Config *c = &t->config;
    int64_t inner = c->heads * c->head_size, d = c->width;
    T5Layer *l = &t->layers[i];
    int attention = 2 * i, forward = 2 * i + 1;
    l->qkv = add(t, attention, i, "0.SelfAttention.q.weight", SHAPE(inner, d));
    add(t, attention, i, "0.SelfAttention.k.weight", SHAPE(inner, d));
    add(t, attention, i, "0.SelfAttention.v.weight", SHAPE(inner, d));
    l->out = add(t, attention, i, "0.SelfAttention.o.weight", SHAPE(d, inner));
    l->norm1 = add(t, attention, i, "0.layer_norm.weight", SHAPE(d));
    l->wi = add(t, forward, i, "1.DenseReluDense.wi_0.weight", SHAPE(c->hidden, d));
    add(t, forward, i, "1.DenseReluDense.wi_1.weight", SHAPE(c->hidden, d));
    l->wo = add(t, forward, i, "1.DenseReluDense.wo.weight", SHAPE(d, c->hidden));
    l->norm2 = add(t, forward, i, "1.layer_norm.weight", SHAPE(d));
}

/* Block 2i is the attention of layer i, 2i + 1 its feed-forward, the last the final norm. */
static void add_params(T5 *t) {
    int layers = (int)t->config.layers, blocks = 2 * layers + 1;
    char **names = xcalloc((size_t)blocks, sizeof *names);
    t->params = params_open();
    t->layers = xcalloc((size_t)layers, sizeof *t->layers);
    for (int i = 0; i < layers; i++) {
        add_layer(t, i);
        names[2 * i] = xprintf("t5.%d.attention", i);
        names[2 * i + 1] = xprintf("t5.%d.feed_forward", i);
    }
    names[blocks - 1] = xstrdup("t5.final");
    t->norm = add(t, blocks - 1, -1, "final_layer_norm.weight", SHAPE(t->config.width));
    params_layout(t->params, (const char *const *)names, 1);
    for (int i = 0; i < blocks; i++) free(names[i]);
    free(names);
}

/* ---- weights ----------------------------------------------------------------------------------
 */

static const char *const TABLES[] = {"shared.weight", "encoder.embed_tokens.weight"};
static const char BIAS[] = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";

static const SafetensorsTensor *tensor_of(const T5 *t, const char *name, Shape shape, Error *e) {
    const SafetensorsTensor *w = weights_expect(&t->weights, name, shape.rank, shape.dim, e);
    if (!w || w->dtype == DT_F32 || w->dtype == DT_BF16 || w->dtype == DT_F16) return w;
    error_set(e, EXIT_USER, "%.300s: tensor %s: expected F32, BF16 or F16, found %s",
              t->weights.path, name, w->dtype_name);
    return NULL;
}

/* The two tables, which are looked up and never gathered. The embedding's may be stored under
 * either name, or both. */
static bool find_tables(T5 *t, Error *e) {
    const T5Config *c = &t->config;
    const char *name = TABLES[weights_find(&t->weights, TABLES[0], NULL) ? 0 : 1];
    if (!weights_find(&t->weights, name, NULL)) name = TABLES[0];
    const SafetensorsTensor *rows = tensor_of(t, name, SHAPE(c->vocabulary, c->width), e);
    const SafetensorsTensor *bias =
        rows ? tensor_of(t, BIAS, SHAPE(c->buckets, c->heads), e) : NULL;
    if (!bias) return false;
    t->rows = *rows;
    t->bias = xcalloc((size_t)(c->buckets * c->heads), sizeof *t->bias);
    BACKEND_CPU.cast(NULL, bias->dtype, DT_F32, c->buckets * c->heads, bias->data, t->bias);
    return true;
}

static bool no_surplus(const T5 *t, Error *e) {
    for (size_t i = 0; i < t->weights.n_tensors; i++) {
        const char *name = t->weights.tensors[i].name;
        if (!strcmp(name, TABLES[0]) || !strcmp(name, TABLES[1]) || !strcmp(name, BIAS) ||
            params_find(t->params, name) >= 0)
            continue;
        Nearest near = nearest_to(name);
        for (int p = 0; p < t->params->n_params; p++)
            nearest_offer(&near, t->params->param[p].name);
        return error_set(e, EXIT_USER,
                         "%.300s: tensor %.120s is not of a T5 encoder as config.json describes "
                         "it%s%.120s",
                         t->weights.path, name, near.best ? "; the nearest name is " : "",
                         near.best ? near.best : "");
    }
    return true;
}

static bool find_weights(T5 *t, Error *e) {
    if (!find_tables(t, e)) return false;
    params_rest(t->params, HOME_FILE, t->rows.dtype);
    for (int i = 0; i < t->params->n_params; i++) {
        const Param *p = &t->params->param[i];
        const SafetensorsTensor *w = tensor_of(t, p->name, p->shape, e);
        if (!w) return false;
        param_source(t->params, i, w->data, w->dtype);
    }
    return no_surplus(t, e);
}

/* A GATHER has read its file: the pages need not stay resident. */
static void release_pages(void *context, const void *data, size_t bytes) {
    const T5 *t = context;
    weights_release(&t->weights, data, bytes);
}

T5 *t5_open(const char *folder, const Backend *k, Error *e) {
    T5 *t = xcalloc(1, sizeof *t);
    char *config = xprintf("%s/config.json", folder);
    t->memory.k = k;
    t->stream = t->memory.k->stream_open();
    bool ok = t5_config_read(&t->config, config, e) && weights_open(&t->weights, folder, e);
    free(config);
    if (ok) {
        add_params(t);
        t->params->release = release_pages;
        t->params->release_context = t;
        ok = find_weights(t, e);
    }
    if (ok) return t;
    t5_close(t);
    return NULL;
}

static void drop_pass(T5 *t) {
    T5Pass *p = t->pass;
    if (!p) return;
    memory_seal(&t->memory, false);
    run_close(p->run);
    plan_close(p->plan);
    graph_close(p->graph);
    free(p);
    t->pass = NULL;
}

void t5_close(T5 *t) {
    if (!t) return;
    drop_pass(t);
    params_close(t->params, &t->memory);
    t->memory.k->stream_close(t->stream);
    weights_close(&t->weights);
    free(t->layers);
    free(t->bias);
    free(t);
}

/* ---- one pass ---------------------------------------------------------------------------------
 */

void t5_rows(const T5 *t, const int64_t *ids, int64_t count, float *rows) {
    int64_t width = t->config.width;
    size_t bytes = (size_t)width * dtype_size(t->rows.dtype);
    for (int64_t i = 0; i < count; i++)
        BACKEND_CPU.cast(NULL, t->rows.dtype, DT_F32, width,
                         (const char *)t->rows.data + (size_t)ids[i] * bytes, rows + i * width);
    weights_release(&t->weights, t->rows.data, t->rows.bytes);
}

void t5_bias(const T5 *t, int64_t length, float *bias) {
    int64_t heads = t->config.heads;
    for (int64_t query = 0; query < length; query++)
        for (int64_t key = 0; key < length; key++) {
            const float *row = t->bias + t5_bucket(&t->config, key - query) * heads;
            for (int64_t h = 0; h < heads; h++) bias[(h * length + query) * length + key] = row[h];
        }
}

static Tensor *attention(const T5 *t, const T5Layer *l, Graph *g, Tensor *x, Tensor *bias,
                         Segments rows) {
    const T5Config *c = &t->config;
    int64_t inner = c->heads * c->head_size, s = x->shape.dim[0], d = c->width;
    Tensor *y = op_rms_norm(g, x, graph_param(g, l->norm1, 1, SHAPE(d)), (real)c->eps);
    Tensor *qkv = op_linear(g, y, graph_param(g, l->qkv, 3, SHAPE(3, inner, d)), NULL);
    Tensor *qk = graph_view(g, qkv, 0, SHAPE(2, s, inner));
    Tensor *v = graph_view(g, qkv, 2 * s * inner, SHAPE(s, inner));
    y = op_attention_biased(g, qk, v, bias, c->heads, rows);
    return op_linear_add(g, y, graph_param(g, l->out, 1, SHAPE(d, inner)), x, 1, 0);
}

static Tensor *feed_forward(const T5 *t, const T5Layer *l, Graph *g, Tensor *x) {
    const T5Config *c = &t->config;
    int64_t d = c->width;
    Tensor *y = op_rms_norm(g, x, graph_param(g, l->norm2, 1, SHAPE(d)), (real)c->eps);
    y = op_linear(g, y, graph_param(g, l->wi, 2, SHAPE(2, c->hidden, d)), NULL);
    y = op_geglu(g, y);
    return op_linear_add(g, y, graph_param(g, l->wo, 1, SHAPE(d, c->hidden)), x, 1, 0);
}

T5Graph t5_record(const T5 *t, Graph *g, int64_t n, int64_t length) {
    const T5Config *c = &t->config;
    int64_t *cu = graph_alloc(g, (size_t)(n + 1) * sizeof *cu);
    for (int64_t i = 0; i < n; i++) cu[i + 1] = cu[i] + length;
    Segments rows = {.n = (int)n, .cu = cu};
    T5Graph io = {.x = graph_input(g, "rows", SHAPE(n * length, c->width), g->dtype),
                  .bias = graph_input(g, "bias", SHAPE(c->heads, length, length), DT_REAL),
                  .streams = graph_alloc(g, (size_t)(2 * c->layers) * sizeof *io.streams)};
    Tensor *x = io.x;
    for (int64_t i = 0; i < c->layers; i++) {
        g->segment = (int)i + 1;
        io.streams[2 * i] = x = attention(t, &t->layers[i], g, x, io.bias, rows);
        io.streams[2 * i + 1] = x = feed_forward(t, &t->layers[i], g, x);
    }
    g->segment = 0;
    io.out = op_rms_norm(g, x, graph_param(g, t->norm, 1, SHAPE(c->width)), (real)c->eps);
    io.out->output = true;
    return io;
}

/* The pass over n captions of one length, planned unless it is the last one's shape. */
static T5Pass *pass_of(T5 *t, int64_t n, int64_t length) {
    if (t->pass && t->pass->n == n && t->pass->length == length) return t->pass;
    drop_pass(t);
    T5Pass *p = t->pass = xcalloc(1, sizeof *p);
    *p = (T5Pass){.n = n, .length = length, .graph = graph_open(DT_REAL, t->params)};
    p->io = t5_record(t, p->graph, n, length);
    p->plan = plan_open(p->graph);
    plan_homes(p->plan, 1);
    plan_place(p->plan, &(Ctx){.k = t->memory.k, .stream = t->stream});
    p->run = run_open(p->plan, &t->memory, t->stream, NULL);
    p->run->poison = t->poison;
    memory_seal(&t->memory, true);
    return p;
}

int64_t t5_bytes(const T5 *t, int64_t n, int64_t length) {
    Graph *graph = graph_open(DT_REAL, t->params);
    t5_record(t, graph, MIN(n, PASS_CAPTIONS), length);
    Plan *plan = plan_open(graph);
    plan_homes(plan, 1);
    plan_place(plan, &(Ctx){.k = t->memory.k, .stream = t->stream});
    int64_t bytes = plan->arena_bytes + plan->workspace_bytes + plan->const_bytes;
    plan_close(plan);
    graph_close(graph);
    return bytes + params_device_bytes(t->params);
}

static void run_pass(T5 *t, const int64_t *ids, int64_t n, int64_t length, float *out) {
    T5Pass *p = pass_of(t, n, length);
    float *rows = xcalloc((size_t)tensor_count(p->io.x), sizeof *rows);
    float *bias = xcalloc((size_t)tensor_count(p->io.bias), sizeof *bias);
    t5_rows(t, ids, n * length, rows);
    t5_bias(t, length, bias);
    run_input(p->run, p->io.x, rows);
    run_input(p->run, p->io.bias, bias);
    free(rows);
    free(bias);
    run_plan(p->run, &(RunArgs){0});
    run_output(p->run, p->io.out, out);
}

bool t5_encode(T5 *t, const int64_t *ids, int64_t n, int64_t length, float *embeddings, Error *e) {
    int64_t width = t->config.width;
    CHECK(length >= 1 && length <= T5_MAX_LENGTH, "%lld tokens", (long long)length);
    for (int64_t i = 0; i < n * length; i++)
        if (ids[i] < 0 || ids[i] >= t->config.vocabulary)
            return error_set(e, EXIT_USER,
                             "input_ids: caption %lld, token %lld: expected 0 to %lld, got %lld. "
                             "Check that tokenizer and text encoder are of one model",
                             (long long)(i / length), (long long)(i % length),
                             (long long)t->config.vocabulary - 1, (long long)ids[i]);
    for (int64_t first = 0; first < n; first += PASS_CAPTIONS)
        run_pass(t, ids + first * length, MIN(PASS_CAPTIONS, n - first), length,
                 embeddings + first * length * width);
    for (int64_t i = 0; i < n * length * width; i++)
        if (!isfinite(embeddings[i]))
            return error_set(e, EXIT_USER,
                             "%.300s: the embedding of caption %lld is not finite: the weights are "
                             "damaged. Download the folder again",
                             t->weights.path, (long long)(i / length / width));
    return true;
}
