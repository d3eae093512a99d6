/* Norms.
 *
 *   norm     n = xhat gamma + beta, xhat = (x - mean) rstd;  y = n (1 + scale) + shift where
 * modulated dn = dy (1 + scale)     dshift = sum dy     dscale = sum dy n    (over the rows of mod)
 *            dgamma = sum dn xhat    dbeta = sum dn
 *            dx = rstd (h - mean(h) - xhat mean(h xhat)),  h = gamma dn
 *   rms_norm y = gamma x / sqrt(mean(x^2) + eps)      (forward only)
 *   qk_norm  the same over the E channels of each head without modulation, then channels (2i, 2i+1)
 *            turned by the row's angle i; backward turns back first.
 */
#include "autograd/ops.h"

enum { X, GAMMA, BETA, MOD, MOD_ROW };

static Norm norm_of(const Node *n) {
    const Tensor *x = n->in[X], *mod = n->in[MOD];
    return (Norm){.t = x->dtype,
                  .rows = x->shape.dim[0],
                  .width = x->shape.dim[1],
                  .eps = n->attr.norm.eps,
                  .mod_rows = mod ? mod->shape.dim[0] : 0,
                  .mod_width = mod ? mod->shape.dim[1] : 0,
                  .x = tensor_data(x),
                  .gamma = tensor_data(n->in[GAMMA]),
                  .beta = tensor_data(n->in[BETA]),
                  .mod = mod ? tensor_data(mod) : NULL,
                  .mod_row = mod ? tensor_data(n->in[MOD_ROW]) : NULL,
                  .stats = tensor_data(n->out[1])};
}

static void norm_forward(const Node *n, const Ctx *c) {
    Norm norm = norm_of(n);
    c->k->norm(c->stream, &norm, tensor_data(n->out[0]));
}

static void norm_backward(const Node *n, const Ctx *c) {
    Norm norm = norm_of(n);
    NormGrad grad = {.dy = tensor_data(n->out[0]->grad),
                     .dx = grad_data(n->in[X]),
                     .dgamma = grad_data(n->in[GAMMA]),
                     .dbeta = grad_data(n->in[BETA]),
                     .dmod = grad_data(n->in[MOD]),
                     .keep_dx = ctx_keep(c, X),
                     .keep_dgamma = ctx_keep(c, GAMMA),
                     .keep_dbeta = ctx_keep(c, BETA),
                     .keep_dmod = ctx_keep(c, MOD)};
    c->k->norm_grad(c->stream, &norm, &grad);
}

static unsigned norm_needs(const Node *n) {
    unsigned mod = n->in[MOD] ? IN(MOD) | IN(MOD_ROW) : 0;
    return IN(X) | IN(GAMMA) | IN(BETA) | mod | OUT(1);
}

static Cost norm_cost(const Node *n, Phase p) {
    double count = (double)tensor_count(n->in[X]), bytes = (double)tensor_bytes(n->in[X]);
    return p == BACKWARD ? cost_of(12 * count, 3 * bytes) : cost_of(8 * count, 2 * bytes);
}

static const Op NORM = {.name = "norm",
                        .cheap = true,
                        .forward = norm_forward,
                        .backward = norm_backward,
                        .needs = norm_needs,
                        .cost = norm_cost};

Tensor *op_norm(Graph *g, Tensor *x, Tensor *gamma, Tensor *beta, real eps, Tensor *mod,
                Tensor *mod_row) {
    int64_t rows = x->shape.dim[0], width = x->shape.dim[1];
    CHECK(x->shape.rank == 2 && tensor_count(gamma) == width && tensor_count(beta) == width,
          "norm %s", gamma->name);
    CHECK(!mod || (mod->shape.rank == 2 && mod->shape.dim[1] >= 2 * width &&
                   tensor_count(mod_row) == rows),
          "norm %s: modulation", gamma->name);
    Tensor *y = graph_tensor(g, "norm", x->shape, x->dtype, ROLE_VALUE);
    Tensor *stats = graph_tensor(g, "norm.stats", SHAPE(rows, 2), DT_REAL, ROLE_VALUE);
    Attr attr = {.norm = {.eps = eps}};
    return graph_record(g, &NORM, attr, 5, (Tensor *[]){x, gamma, beta, mod, mod_row}, 2,
                        (Tensor *[]){y, stats});
}

static void rms_norm_forward(const Node *n, const Ctx *c) {
    const Tensor *x = n->in[X];
    RmsNorm norm = {.t = x->dtype,
                    .rows = x->shape.dim[0],
                    .width = x->shape.dim[1],
                    .eps = n->attr.norm.eps,
                    .x = tensor_data(x),
                    .gamma = tensor_data(n->in[GAMMA])};
    c->k->rms_norm(c->stream, &norm, tensor_data(n->out[0]));
}

static const Op RMS_NORM = {
    .name = "rms_norm", .consumes = IN(X), .forward = rms_norm_forward, .cost = norm_cost};

Tensor *op_rms_norm(Graph *g, Tensor *x, Tensor *gamma, real eps) {
    CHECK(x->shape.rank == 2 && tensor_count(gamma) == x->shape.dim[1], "rms_norm %s", gamma->name);
    Tensor *y = graph_tensor(g, "rms_norm", x->shape, x->dtype, ROLE_VALUE);
    Attr attr = {.norm = {.eps = eps}};
    return graph_record(g, &RMS_NORM, attr, 2, (Tensor *[]){x, gamma}, 1, &y);
}

enum { QK, GAMMA_Q, BETA_Q, GAMMA_K, BETA_K, ROPE };

static QkNorm qk_norm_of(const Node *n) {
    const Tensor *x = n->in[QK];
    int64_t heads = n->attr.qk_norm.heads;
    return (QkNorm){.t = x->dtype,
                    .rows = x->shape.dim[1],
                    .heads = heads,
                    .head_size = x->shape.dim[2] / heads,
                    .eps = n->attr.qk_norm.eps,
                    .x = tensor_data(x),
                    .gamma = {tensor_data(n->in[GAMMA_Q]), tensor_data(n->in[GAMMA_K])},
                    .beta = {tensor_data(n->in[BETA_Q]), tensor_data(n->in[BETA_K])},
                    .rope = n->in[ROPE] ? tensor_data(n->in[ROPE]) : NULL};
}

static void qk_norm_forward(const Node *n, const Ctx *c) {
    QkNorm q = qk_norm_of(n);
    c->k->qk_norm(c->stream, &q, tensor_data(n->out[0]));
}

static void qk_norm_backward(const Node *n, const Ctx *c) {
    QkNorm q = qk_norm_of(n);
    QkNormGrad grad = {.dy = tensor_data(n->out[0]->grad),
                       .dx = grad_data(n->in[QK]),
                       .dgamma = {grad_data(n->in[GAMMA_Q]), grad_data(n->in[GAMMA_K])},
                       .dbeta = {grad_data(n->in[BETA_Q]), grad_data(n->in[BETA_K])},
                       .keep_dx = ctx_keep(c, QK),
                       .keep_dgamma = {ctx_keep(c, GAMMA_Q), ctx_keep(c, GAMMA_K)},
                       .keep_dbeta = {ctx_keep(c, BETA_Q), ctx_keep(c, BETA_K)}};
    c->k->qk_norm_grad(c->stream, &q, &grad);
}

static unsigned qk_norm_needs(const Node *n) {
    return IN(QK) | IN(GAMMA_Q) | IN(BETA_Q) | IN(GAMMA_K) | IN(BETA_K) |
           (n->in[ROPE] ? IN(ROPE) : 0);
}

static Cost qk_norm_cost(const Node *n, Phase p) {
    double count = (double)tensor_count(n->in[QK]), bytes = (double)tensor_bytes(n->in[QK]);
    return p == BACKWARD ? cost_of(16 * count, 3 * bytes) : cost_of(12 * count, 2 * bytes);
}

static const Op QK_NORM = {.name = "qk_norm",
                           .cheap = true,
                           .forward = qk_norm_forward,
                           .backward = qk_norm_backward,
                           .needs = qk_norm_needs,
                           .cost = qk_norm_cost};

Tensor *op_qk_norm(Graph *g, Tensor *qk, Tensor *gamma_q, Tensor *beta_q, Tensor *gamma_k,
                   Tensor *beta_k, Tensor *rope, int64_t heads, real eps) {
    char text[64];
    CHECK(qk->shape.rank == 3 && qk->shape.dim[0] == 2 && qk->shape.dim[2] % (2 * heads) == 0,
          "qk_norm of %s with %lld heads", shape_text(qk->shape, text), (long long)heads);
    CHECK(!rope || tensor_count(rope) == qk->shape.dim[1] * qk->shape.dim[2] / heads,
          "qk_norm: rotary table of %lld values", (long long)tensor_count(rope));
    Tensor *y = graph_tensor(g, "qk_norm", qk->shape, qk->dtype, ROLE_VALUE);
    Attr attr = {.qk_norm = {.heads = heads, .eps = eps}};
    return graph_record(g, &QK_NORM, attr, 6,
                        (Tensor *[]){qk, gamma_q, beta_q, gamma_k, beta_k, rope}, 1, &y);
}
