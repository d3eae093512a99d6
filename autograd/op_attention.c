/* Attention inside segments, per head.
 *
 *   P = softmax(s q k^T + bias)   o = P v   lse_i = log sum_j exp(s q_i k_j + bias_ij)
 *   dv = P^T do   dP = do v^T   dS = P (dP - rowsum(do o))   dq = s dS k   dk = s dS^T q
 * P is formed tile by tile, forward and backward (Dao et al. 2022). With a bias: forward only.
 */
#include "autograd/ops.h"

#include <math.h>

enum { QK, V, BIAS };

static Attention attention_shape(const Node *n) {
    const Tensor *v = n->in[V];
    int64_t heads = n->attr.attention.heads;
    return (Attention){.t = v->dtype,
                       .rows = v->shape.dim[0],
                       .heads = heads,
                       .head_size = v->shape.dim[1] / heads,
                       .scale = n->attr.attention.scale,
                       .segments = n->attr.attention.rows.n,
                       .cu_rows = n->attr.attention.rows.cu};
}

static char *second_half(const Tensor *qk) {
    return (char *)tensor_data(qk) + tensor_bytes(qk) / 2;
}

static Attention attention_of(const Node *n) {
    Attention a = attention_shape(n);
    a.q = tensor_data(n->in[QK]);
    a.k = second_half(n->in[QK]);
    a.v = tensor_data(n->in[V]);
    if (n->in[BIAS]) {
        a.bias = tensor_data(n->in[BIAS]);
        a.bias_rows = n->in[BIAS]->shape.dim[1];
    }
    return a;
}

static void forward(const Node *n, const Ctx *c) {
    Attention a = attention_of(n);
    c->k->attention(c->stream, &a, tensor_data(n->out[0]), tensor_data(n->out[1]));
}

static void backward(const Node *n, const Ctx *c) {
    Attention a = attention_of(n);
    const Tensor *dqk = n->in[QK]->grad, *dv = n->in[V]->grad;
    CHECK(dqk && dv && (c->first & (IN(QK) | IN(V))) == (IN(QK) | IN(V)),
          "attention: q, k, v must have one reader");
    c->k->attention_grad(c->stream, &a, tensor_data(n->out[0]), tensor_data(n->out[1]),
                         tensor_data(n->out[0]->grad), tensor_data(dqk), second_half(dqk),
                         tensor_data(dv));
}

static unsigned needs(const Node *n) {
    (void)n;
    return IN(QK) | IN(V) | OUT(0) | OUT(1);
}

static Cost cost(const Node *n, Phase p) {
    Attention a = attention_shape(n);
    double pairs = 0, bytes = (double)tensor_bytes(n->out[0]);
    for (int i = 0; i < a.segments; i++) {
        double rows = (double)(a.cu_rows[i + 1] - a.cu_rows[i]);
        pairs += rows * rows;
    }
    double products = p == BACKWARD ? 5 : 2;
    return cost_of(2 * products * pairs * (double)(a.heads * a.head_size),
                   (p == BACKWARD ? 8 : 4) * bytes);
}

static size_t workspace(const Node *n, Phase p, const Ctx *c) {
    Attention a = attention_shape(n);
    return c->k->attention_workspace(c->stream, &a, p == BACKWARD);
}

static const Op ATTENTION = {.name = "attention",
                             .expensive = true,
                             .forward = forward,
                             .backward = backward,
                             .needs = needs,
                             .cost = cost,
                             .workspace = workspace};

static const Op BIASED = {
    .name = "attention_biased", .forward = forward, .cost = cost, .workspace = workspace};

static Tensor *record(Graph *g, const Op *op, Tensor *qk, Tensor *v, Tensor *bias, real scale,
                      int64_t heads, Segments rows) {
    int64_t s = v->shape.dim[0], width = v->shape.dim[1];
    CHECK(v->shape.rank == 2 && shape_equal(qk->shape, SHAPE(2, s, width)) && width % heads == 0 &&
              rows.cu[rows.n] == s,
          "attention of %s with %lld heads", v->name, (long long)heads);
    Tensor *y = graph_tensor(g, "attention", v->shape, v->dtype, ROLE_VALUE);
    Tensor *lse = graph_tensor(g, "attention.lse", SHAPE(heads, s), DT_REAL, ROLE_VALUE);
    Attr attr = {.attention = {.heads = heads, .scale = scale, .rows = rows}};
    return graph_record(g, op, attr, 3, (Tensor *[]){qk, v, bias}, 2, (Tensor *[]){y, lse});
}

Tensor *op_attention(Graph *g, Tensor *qk, Tensor *v, int64_t heads, Segments rows) {
    double size = (double)v->shape.dim[1] / (double)heads;
    return record(g, &ATTENTION, qk, v, NULL, (real)(1 / sqrt(size)), heads, rows);
}

Tensor *op_attention_biased(Graph *g, Tensor *qk, Tensor *v, Tensor *bias, int64_t heads,
                            Segments rows) {
    int64_t longest = bias->shape.dim[1];
    CHECK(shape_equal(bias->shape, SHAPE(heads, longest, longest)) && bias->dtype == DT_REAL,
          "attention: bias %s", bias->name);
    for (int b = 0; b < rows.n; b++)
        CHECK(rows.cu[b + 1] - rows.cu[b] <= longest, "attention: segment %d is longer than %s", b,
              bias->name);
    return record(g, &BIASED, qk, v, bias, 1, heads, rows);
}
