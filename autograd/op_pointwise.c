/* Pointwise ops.
 *
 *   gelu     y = x/2 (1 + tanh(sqrt(2/pi)(x + 0.044715 x^3)))     dx = gelu'(x) dy
 *   silu     y = x / (1 + exp(-x))                                 dx = silu'(x) dy
 *   geglu    y = gelu(a) b                                         forward only (Shazeer 2020)
 *   add      y = a + b                                             da = db = dy
 *   dropout  y = x m / (1 - p), m drawn                            dx = dy m / (1 - p)
 */
#include "autograd/ops.h"

static unsigned needs_input(const Node *n) {
    (void)n;
    return IN(0);
}

static unsigned needs_nothing(const Node *n) {
    (void)n;
    return 0;
}

/* Ten flops an element, which no roofline feels. */
static Cost stream_cost(const Node *n, double passes) {
    return cost_of(10.0 * (double)tensor_count(n->out[0]),
                   passes * (double)tensor_bytes(n->out[0]));
}

static Cost cost_unary(const Node *n, Phase p) { return stream_cost(n, p == BACKWARD ? 3 : 2); }

static void gelu_forward(const Node *n, const Ctx *c) {
    const Tensor *x = n->in[0];
    c->k->gelu(c->stream, x->dtype, tensor_count(x), tensor_data(x), tensor_data(n->out[0]));
}

static void gelu_backward(const Node *n, const Ctx *c) {
    const Tensor *x = n->in[0];
    c->k->gelu_grad(c->stream, x->dtype, tensor_count(x), tensor_data(x),
                    tensor_data(n->out[0]->grad), ctx_keep(c, 0), tensor_data(x->grad));
}

static const Op GELU = {.name = "gelu",
                        .consumes = IN(0),
                        .passes = IN(0),
                        .forward = gelu_forward,
                        .backward = gelu_backward,
                        .needs = needs_input,
                        .cost = cost_unary};

static void silu_forward(const Node *n, const Ctx *c) {
    const Tensor *x = n->in[0];
    c->k->silu(c->stream, x->dtype, tensor_count(x), tensor_data(x), tensor_data(n->out[0]));
}

static void silu_backward(const Node *n, const Ctx *c) {
    const Tensor *x = n->in[0];
    c->k->silu_grad(c->stream, x->dtype, tensor_count(x), tensor_data(x),
                    tensor_data(n->out[0]->grad), ctx_keep(c, 0), tensor_data(x->grad));
}

static const Op SILU = {.name = "silu",
                        .consumes = IN(0),
                        .passes = IN(0),
                        .forward = silu_forward,
                        .backward = silu_backward,
                        .needs = needs_input,
                        .cost = cost_unary};

static void geglu_forward(const Node *n, const Ctx *c) {
    const Tensor *y = n->out[0];
    const char *gate = tensor_data(n->in[0]);
    c->k->geglu(c->stream, y->dtype, tensor_count(y), gate, gate + tensor_bytes(y), tensor_data(y));
}

static Cost geglu_cost(const Node *n, Phase p) {
    (void)p;
    return stream_cost(n, 3);
}

static const Op GEGLU = {.name = "geglu", .forward = geglu_forward, .cost = geglu_cost};

static void add_forward(const Node *n, const Ctx *c) {
    const Tensor *a = n->in[0], *b = n->in[1], *y = n->out[0];
    if (tensor_data(a) != tensor_data(y))
        c->k->copy(c->stream, tensor_data(y), tensor_data(a), tensor_bytes(a));
    c->k->axpy(c->stream, b->dtype, tensor_count(b), 1, tensor_data(b), 1, tensor_data(y));
}

static void add_backward(const Node *n, const Ctx *c) {
    const Tensor *dy = n->out[0]->grad;
    for (int i = 0; i < 2; i++) { /* in this order: b may be a, whose gradient comes first */
        void *dx = grad_data(n->in[i]);
        if (dx && dx != tensor_data(dy))
            c->k->axpy(c->stream, dy->dtype, tensor_count(dy), 1, tensor_data(dy), ctx_keep(c, i),
                       dx);
    }
}

static Cost add_cost(const Node *n, Phase p) { return stream_cost(n, p == BACKWARD ? 2 : 3); }

static const Op ADD = {.name = "add",
                       .consumes = IN(0),
                       .passes = IN(0),
                       .forward = add_forward,
                       .backward = add_backward,
                       .needs = needs_nothing,
                       .cost = add_cost};

static Dropout dropout_of(const Node *n) {
    const Tensor *x = n->in[0];
    return (Dropout){.t = x->dtype,
                     .width = x->shape.dim[1],
                     .segments = n->attr.dropout.rows.n,
                     .cu_rows = n->attr.dropout.rows.cu,
                     .first = n->attr.dropout.rows.first,
                     .sample = n->attr.dropout.rows.sample,
                     .ordinals = tensor_data(n->in[1]),
                     .p = n->attr.dropout.p,
                     .state = tensor_data(n->in[2]),
                     .purpose = n->attr.dropout.purpose};
}

static void dropout_forward(const Node *n, const Ctx *c) {
    Dropout d = dropout_of(n);
    c->k->dropout(c->stream, &d, tensor_data(n->in[0]), 0, tensor_data(n->out[0]));
}

static void dropout_backward(const Node *n, const Ctx *c) {
    Dropout d = dropout_of(n);
    c->k->dropout(c->stream, &d, tensor_data(n->out[0]->grad), ctx_keep(c, 0),
                  tensor_data(n->in[0]->grad));
}

static unsigned dropout_needs(const Node *n) {
    (void)n;
    return IN(1) | IN(2); /* the mask is drawn again */
}

static const Op DROPOUT = {.name = "dropout",
                           .forward = dropout_forward,
                           .backward = dropout_backward,
                           .needs = dropout_needs,
                           .cost = cost_unary};

static Tensor *unary(Graph *g, const Op *op, Tensor *x) {
    Tensor *y = graph_tensor(g, op->name, x->shape, x->dtype, ROLE_VALUE);
    return graph_record(g, op, (Attr){0}, 1, &x, 1, &y);
}

Tensor *op_gelu(Graph *g, Tensor *x) { return unary(g, &GELU, x); }

bool op_is_gelu(const Node *n) { return n->op == &GELU; }

Tensor *op_silu(Graph *g, Tensor *x) { return unary(g, &SILU, x); }

Tensor *op_geglu(Graph *g, Tensor *x) {
    CHECK(x->shape.rank == 3 && x->shape.dim[0] == 2, "geglu of %s", x->name);
    Shape shape = SHAPE(x->shape.dim[1], x->shape.dim[2]);
    Tensor *y = graph_tensor(g, "geglu", shape, x->dtype, ROLE_VALUE);
    return graph_record(g, &GEGLU, (Attr){0}, 1, &x, 1, &y);
}

Tensor *op_add(Graph *g, Tensor *a, Tensor *b) {
    CHECK(tensor_count(a) == tensor_count(b), "add %s and %s", a->name, b->name);
    Tensor *y = graph_tensor(g, "add", a->shape, a->dtype, ROLE_VALUE);
    return graph_record(g, &ADD, (Attr){0}, 2, (Tensor *[]){a, b}, 1, &y);
}

Tensor *op_dropout(Graph *g, Tensor *x, Tensor *ordinals, Segments rows, real p, uint32_t purpose) {
    CHECK(x->shape.rank == 2 && rows.cu[rows.n] == x->shape.dim[0], "dropout of %s", x->name);
    Tensor *y = graph_tensor(g, "dropout", x->shape, x->dtype, ROLE_VALUE);
    Attr attr = {.dropout = {.p = p, .purpose = purpose, .rows = rows}};
    return graph_record(g, &DROPOUT, attr, 3, (Tensor *[]){x, ordinals, graph_draws(g)}, 1, &y);
}
