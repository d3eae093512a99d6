/* Gated residual.   y = x + gate a     dx = dy     da = gate dy     dgate = sum of dy a over the
 * rows that use a row of mod (its other columns get nothing from here). */
#include "autograd/ops.h"

enum { X, A, MOD, MOD_ROW };

static Gate gate_of(const Node *n, bool with_a) {
    const Tensor *mod = n->in[MOD];
    return (Gate){.t = n->in[X]->dtype,
                  .rows = n->in[X]->shape.dim[0],
                  .width = n->in[X]->shape.dim[1],
                  .mod_rows = mod->shape.dim[0],
                  .mod_width = mod->shape.dim[1],
                  .offset = n->attr.gate.offset,
                  .a = with_a ? tensor_data(n->in[A]) : NULL,
                  .mod = tensor_data(mod),
                  .mod_row = tensor_data(n->in[MOD_ROW])};
}

static void forward(const Node *n, const Ctx *c) {
    Gate gate = gate_of(n, true);
    c->k->gate(c->stream, &gate, tensor_data(n->in[X]), tensor_data(n->out[0]));
}

static void backward(const Node *n, const Ctx *c) {
    Gate gate = gate_of(n, wants_grad(n->in[MOD]));
    const Tensor *dy = n->out[0]->grad;
    void *dx = grad_data(n->in[X]);
    if (dx && dx != tensor_data(dy)) /* before da: a may be x, whose gradient comes first */
        c->k->axpy(c->stream, dy->dtype, tensor_count(dy), 1, tensor_data(dy), ctx_keep(c, X), dx);
    if (n->in[A]->grad || n->in[MOD]->grad)
        c->k->gate_grad(c->stream, &gate, tensor_data(dy), ctx_keep(c, A), grad_data(n->in[A]),
                        ctx_keep(c, MOD), grad_data(n->in[MOD]));
}

static unsigned needs(const Node *n) {
    return IN(MOD) | IN(MOD_ROW) | (wants_grad(n->in[MOD]) ? IN(A) : 0);
}

static Cost cost(const Node *n, Phase p) {
    double count = (double)tensor_count(n->in[X]), bytes = (double)tensor_bytes(n->in[X]);
    if (p != BACKWARD) return cost_of(2 * count, 3 * bytes);
    return cost_of(3 * count, (wants_grad(n->in[MOD]) ? 3 : 2) * bytes);
}

static const Op GATE = {.name = "gate",
                        .consumes = IN(X),
                        .passes = IN(X),
                        .forward = forward,
                        .backward = backward,
                        .needs = needs,
                        .cost = cost};

Tensor *op_gate(Graph *g, Tensor *x, Tensor *a, Tensor *mod, Tensor *mod_row, int64_t offset) {
    CHECK(x->shape.rank == 2 && shape_equal(x->shape, a->shape), "gate of %s and %s", x->name,
          a->name);
    CHECK(offset + x->shape.dim[1] <= mod->shape.dim[1] && tensor_count(mod_row) == x->shape.dim[0],
          "gate: modulation of %s", x->name);
    Tensor *y = graph_tensor(g, "gate", x->shape, x->dtype, ROLE_VALUE);
    Attr attr = {.gate = {.offset = offset}};
    return graph_record(g, &GATE, attr, 4, (Tensor *[]){x, a, mod, mod_row}, 1, &y);
}
