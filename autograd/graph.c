/* Owns recording: tensors, views and nodes, in the memory of one graph. */
#include "autograd/graph.h"

#include <stdlib.h>
#include <string.h>

Graph *graph_open(DType dtype, ParamSet *params) {
    Graph *g = xcalloc(1, sizeof *g);
    g->dtype = dtype;
    g->params = params;
    if (params) {
        g->bucket = graph_alloc(g, (size_t)params->n_buckets * sizeof *g->bucket);
        g->bucket_grad = graph_alloc(g, (size_t)params->n_buckets * sizeof *g->bucket_grad);
    }
    return g;
}

void graph_close(Graph *g) {
    if (!g) return;
    for (int i = 0; i < g->n_owned; i++) free(g->owned[i]);
    free(g->owned);
    free(g->tensors);
    free(g->nodes);
    free(g);
}

/* Room for one more element of a growing array whose capacity is the next power of two. */
static void *grown(void *array, int n, size_t size) {
    if (n & (n - 1)) return array;
    return xrealloc(array, (n ? (size_t)n * 2 : 1) * size);
}

void *graph_alloc(Graph *g, size_t bytes) {
    g->owned = grown(g->owned, g->n_owned, sizeof *g->owned);
    return g->owned[g->n_owned++] = xcalloc(1, bytes);
}

Tensor *graph_tensor(Graph *g, const char *name, Shape shape, DType dtype, Role role) {
    Tensor *t = graph_alloc(g, sizeof *t);
    *t = (Tensor){.name = name, .shape = shape, .dtype = dtype, .role = role, .id = g->n_tensors};
    g->tensors = grown(g->tensors, g->n_tensors, sizeof *g->tensors);
    return g->tensors[g->n_tensors++] = t;
}

Tensor *graph_input(Graph *g, const char *name, Shape shape, DType dtype) {
    return graph_tensor(g, name, shape, dtype, ROLE_INPUT);
}

Tensor *graph_draws(Graph *g) {
    if (!g->draws)
        g->draws = graph_input(g, "draws", SHAPE(sizeof(DropoutState) / sizeof(uint32_t)), DT_U32);
    return g->draws;
}

Tensor *graph_const(Graph *g, const char *name, Shape shape, DType dtype, const void *contents) {
    Tensor *t = graph_tensor(g, name, shape, dtype, ROLE_CONST);
    t->host = memcpy(graph_alloc(g, tensor_bytes(t)), contents, tensor_bytes(t));
    return t;
}

Tensor *graph_view(Graph *g, Tensor *t, int64_t offset, Shape shape) {
    Tensor *root = tensor_root(t);
    int64_t end = offset + shape_count(shape);
    CHECK(offset >= 0 && end <= tensor_count(t), "view [%lld, %lld) of %s with %lld elements",
          (long long)offset, (long long)end, t->name, (long long)tensor_count(t));
    Tensor *view = graph_tensor(g, t->name, shape, t->dtype, t->role);
    view->base = root;
    view->offset = t->offset + offset;
    view->from = t->from;
    view->needs_grad = t->needs_grad;
    return view;
}

Tensor *graph_reshape(Graph *g, Tensor *t, Shape shape) {
    CHECK(shape_count(shape) == tensor_count(t), "%s with %lld elements reshaped to %lld", t->name,
          (long long)tensor_count(t), (long long)shape_count(shape));
    return graph_view(g, t, 0, shape);
}

static Tensor *bucket_tensor(Graph *g, int b) {
    if (g->bucket[b]) return g->bucket[b];
    const Bucket *bucket = &g->params->bucket[b];
    Tensor *t = graph_tensor(g, bucket->name, SHAPE(bucket->count), g->dtype, ROLE_BUCKET);
    t->resident = bucket->home == HOME_DEVICE && bucket->form == g->dtype;
    t->needs_grad = bucket->trained;
    return g->bucket[b] = t;
}

Tensor *graph_param(Graph *g, int first, int n, Shape shape) {
    const Param *p = &g->params->param[first];
    int64_t end = p->offset;
    for (int i = first; i < first + n; i++) {
        const Param *q = &g->params->param[i];
        CHECK(q->bucket == p->bucket && q->offset == end, "%s does not lie beside %s", q->name,
              p->name);
        end += param_count(q);
    }
    CHECK(shape_count(shape) == end - p->offset, "%s and %d others under another shape", p->name,
          n - 1);
    Tensor *t = graph_view(g, bucket_tensor(g, p->bucket), p->offset, shape);
    t->role = ROLE_PARAM;
    t->name = p->name;
    return t;
}

Range graph_part(const Graph *g, int64_t rows) {
    return g->sequence ? comm_part(g->sequence, g->sequence->rank, rows) : (Range){0, rows};
}

Tensor *graph_record(Graph *g, const Op *op, Attr attr, int n_in, Tensor *const *in, int n_out,
                     Tensor *const *out) {
    Node *n = graph_alloc(g, sizeof *n);
    n->op = op;
    n->attr = attr;
    n->segment = g->segment;
    n->id = g->n_nodes;
    bool needs_grad = false;
    for (int i = 0; i < n_in; i++) {
        n->in[i] = in[i];
        if (in[i]) needs_grad |= in[i]->needs_grad;
    }
    for (int i = 0; i < n_out; i++) {
        n->out[i] = out[i];
        out[i]->from = n;
    }
    out[0]->needs_grad = needs_grad;
    g->nodes = grown(g->nodes, g->n_nodes, sizeof *g->nodes);
    g->nodes[g->n_nodes++] = n;
    return out[0];
}
