/* Linear maps.
 *
 *   y_g  = x w_g^T + b_g              (op_linear; g < G slices of w [G,O,K], G = 1 for w [O,K])
 *   y    = residual, y_s += a x w^T   (op_linear_add on slice s)
 *   dx   = a sum_g dy_g w_g     dw_g = a dy_g^T x     db_g = sum of the rows of dy_g
 *   dres = dy                         (the same memory, where the plan can)
 *
 * A step of op_linear's may do that of a gelu next to it, as an epilogue of the product:
 *   y = gelu(u), u = x w^T + b         du = gelu'(u) dx, where x = gelu(u)
 */
#include "autograd/ops.h"

typedef struct {
    int64_t rows, out, in, groups;
} Dims;

static Dims dims_of(const Node *n) {
    const Shape w = n->in[1]->shape;
    int64_t in = w.dim[w.rank - 1];
    return (Dims){tensor_count(n->in[0]) / in, w.dim[w.rank - 2], in, w.rank == 3 ? w.dim[0] : 1};
}

static Gemm product(const Node *n, Dims d) {
    const Tensor *b = n->in[2], *residual = n->in[3];
    return (Gemm){.type = n->in[0]->dtype,
                  .type_c = n->out[0]->dtype,
                  .m = d.rows,
                  .n = d.out,
                  .k = d.in,
                  .batch = d.groups,
                  .b_transposed = true,
                  .lda = d.in,
                  .ldb = d.in,
                  .ldc = d.out,
                  .stride_b = d.out * d.in,
                  .stride_c = d.rows * d.out,
                  .stride_bias = d.out,
                  .alpha = n->attr.linear.alpha,
                  .beta = residual ? 1 : 0,
                  .has_bias = b != NULL,
                  .of_samples = n->attr.linear.of_samples};
}

/* dx += alpha dy_g w_g, one slice. */
static Gemm product_dx(const Node *n, Dims d, real keep) {
    return (Gemm){.type = n->in[0]->dtype,
                  .type_c = n->in[0]->dtype,
                  .m = d.rows,
                  .n = d.in,
                  .k = d.out,
                  .batch = 1,
                  .lda = d.out,
                  .ldb = d.in,
                  .ldc = d.in,
                  .alpha = n->attr.linear.alpha,
                  .beta = keep,
                  .of_samples = n->attr.linear.of_samples};
}

static Gemm product_dw(const Node *n, Dims d, real keep) {
    return (Gemm){.type = n->in[0]->dtype,
                  .type_c = DT_REAL,
                  .m = d.out,
                  .n = d.in,
                  .k = d.rows,
                  .batch = d.groups,
                  .a_transposed = true,
                  .lda = d.out,
                  .ldb = d.in,
                  .ldc = d.in,
                  .stride_a = d.rows * d.out,
                  .stride_c = d.out * d.in,
                  .alpha = n->attr.linear.alpha,
                  .beta = keep,
                  .k_is_rows = true,
                  .of_samples = n->attr.linear.of_samples};
}

/* The slice that the products read or write of a tensor shaped like the output. */
static char *slice_of(const Node *n, const Tensor *t, Dims d) {
    int64_t elements = n->attr.linear.slice * d.rows * d.out;
    return (char *)tensor_data(t) + elements * (int64_t)dtype_size(t->dtype);
}

/* Answers where the product's result goes. */
static void *epilogue_gelu(const Node *n, const Ctx *c, Gemm *p) {
    p->epilogue = EPILOGUE_GELU;
    if (c->wanted & WANTED_NODE) p->aux = tensor_data(n->out[0]);
    return c->wanted & WANTED_THEN ? tensor_data(c->then->out[0]) : NULL;
}

static void *epilogue_gelu_grad(const Ctx *c, Gemm *p) {
    const Tensor *u = c->then->in[0];
    p->epilogue = EPILOGUE_GELU_GRAD;
    p->aux = tensor_data(u);
    return tensor_data(u->grad);
}

static void forward(const Node *n, const Ctx *c) {
    const Tensor *x = n->in[0], *w = n->in[1], *b = n->in[2], *residual = n->in[3];
    Dims d = dims_of(n);
    Gemm p = product(n, d);
    if (residual && tensor_data(residual) != tensor_data(n->out[0]))
        c->k->copy(c->stream, tensor_data(n->out[0]), tensor_data(residual),
                   tensor_bytes(residual));
    void *y = c->then ? epilogue_gelu(n, c, &p) : slice_of(n, n->out[0], d);
    c->k->gemm(c->stream, &p, tensor_data(x), tensor_data(w), b ? tensor_data(b) : NULL, y);
}

static void backward_weight(const Node *n, const Ctx *c, Dims d) {
    const Tensor *x = n->in[0], *w = n->in[1], *b = n->in[2], *dy = n->out[0]->grad;
    real *db = grad_data(b);
    if (w->grad) {
        Gemm p = product_dw(n, d, ctx_keep(c, 1));
        p.sums = db;
        p.keep_sums = ctx_keep(c, 2);
        c->k->gemm(c->stream, &p, slice_of(n, dy, d), tensor_data(x), NULL, tensor_data(w->grad));
    }
    if (!db || w->grad) return;
    for (int64_t g = 0; g < d.groups; g++)
        c->k->column_sum(c->stream, dy->dtype, d.rows, d.out, d.out,
                         slice_of(n, dy, d) + g * d.rows * d.out * (int64_t)dtype_size(dy->dtype),
                         ctx_keep(c, 2), db + g * d.out);
}

static void backward(const Node *n, const Ctx *c) {
    const Tensor *x = n->in[0], *w = n->in[1], *residual = n->in[3], *dy = n->out[0]->grad;
    Dims d = dims_of(n);
    for (int64_t g = 0; x->grad && g < d.groups; g++) {
        Gemm p = product_dx(n, d, g ? 1 : ctx_keep(c, 0));
        int64_t size = (int64_t)dtype_size(x->dtype);
        void *dx = c->then ? epilogue_gelu_grad(c, &p) : tensor_data(x->grad);
        c->k->gemm(c->stream, &p, slice_of(n, dy, d) + g * d.rows * d.out * size,
                   (char *)tensor_data(w) + g * d.out * d.in * size, NULL, dx);
    }
    backward_weight(n, c, d);
    void *dres = grad_data(residual);
    if (dres && dres != tensor_data(dy))
        c->k->axpy(c->stream, dy->dtype, tensor_count(dy), 1, tensor_data(dy), ctx_keep(c, 3),
                   dres);
}

static bool fuses(const Node *n, const Node *then, Phase p) {
    if (!op_is_gelu(then) || dims_of(n).groups != 1) return false;
    if (p == BACKWARD) return n->in[0] == then->out[0];
    return n->out[0] == then->in[0] && !n->in[3];
}

static unsigned needs(const Node *n) {
    return (wants_grad(n->in[1]) ? IN(0) : 0) | (wants_grad(n->in[0]) ? IN(1) : 0);
}

static Cost cost(const Node *n, Phase p) {
    Dims d = dims_of(n);
    double size = (double)dtype_size(n->in[0]->dtype);
    double flops = 2.0 * (double)d.groups * (double)d.rows * (double)d.out * (double)d.in;
    double x = size * (double)(d.rows * d.in), w = size * (double)tensor_count(n->in[1]);
    double y = size * (double)(d.groups * d.rows * d.out);
    if (p != BACKWARD) return cost_of(flops, x + w + (n->in[3] ? 2 : 1) * y);
    Cost sum = {0};
    if (wants_grad(n->in[0])) sum = cost_of(flops, x + w + y);
    if (wants_grad(n->in[1])) sum = cost_of(sum.flops + flops, sum.bytes + x + w + y);
    return sum;
}

static size_t workspace(const Node *n, Phase p, const Ctx *c) {
    Dims d = dims_of(n);
    if (p != BACKWARD) {
        Gemm y = product(n, d);
        return c->k->gemm_workspace(c->stream, &y);
    }
    size_t bytes = 0;
    for (int keep = 0; keep < 2; keep++) { /* both, for slices after the first add */
        Gemm dx = product_dx(n, d, (real)keep), dw = product_dw(n, d, (real)keep);
        if (wants_grad(n->in[0])) bytes = MAX(bytes, c->k->gemm_workspace(c->stream, &dx));
        if (wants_grad(n->in[1])) bytes = MAX(bytes, c->k->gemm_workspace(c->stream, &dw));
    }
    return bytes;
}

static const Op LINEAR = {.name = "linear",
                          .consumes = IN(3),
                          .passes = IN(3),
                          .forward = forward,
                          .backward = backward,
                          .needs = needs,
                          .cost = cost,
                          .fuses = fuses,
                          .workspace = workspace};

static void check_shapes(const Tensor *x, const Tensor *w) {
    char a[64], b[64];
    CHECK(x->shape.rank == 2 && (w->shape.rank == 2 || w->shape.rank == 3) &&
              x->shape.dim[1] == w->shape.dim[w->shape.rank - 1],
          "linear %s: x %s, w %s", w->name, shape_text(x->shape, a), shape_text(w->shape, b));
}

Tensor *op_linear(Graph *g, Tensor *x, Tensor *w, Tensor *b) {
    check_shapes(x, w);
    int64_t rows = x->shape.dim[0], out = w->shape.dim[w->shape.rank - 2];
    int64_t groups = w->shape.rank == 3 ? w->shape.dim[0] : 1;
    CHECK(!b || tensor_count(b) == groups * out, "linear %s: bias of %lld", w->name,
          (long long)tensor_count(b));
    Shape shape = w->shape.rank == 3 ? SHAPE(groups, rows, out) : SHAPE(rows, out);
    Tensor *y = graph_tensor(g, w->name, shape, g->dtype, ROLE_VALUE);
    Attr attr = {.linear = {.alpha = 1}};
    return graph_record(g, &LINEAR, attr, 3, (Tensor *[]){x, w, b}, 1, &y);
}

Tensor *op_linear_add(Graph *g, Tensor *x, Tensor *w, Tensor *residual, real alpha, int slice) {
    check_shapes(x, w);
    int64_t plane = x->shape.dim[0] * w->shape.dim[0];
    CHECK(w->shape.rank == 2 && tensor_count(residual) % plane == 0 &&
              slice < tensor_count(residual) / plane,
          "linear_add %s: slice %d of %lld elements", w->name, slice,
          (long long)tensor_count(residual));
    Tensor *y = graph_tensor(g, w->name, residual->shape, g->dtype, ROLE_VALUE);
    Attr attr = {.linear = {.alpha = alpha, .slice = slice}};
    return graph_record(g, &LINEAR, attr, 4, (Tensor *[]){x, w, NULL, residual}, 1, &y);
}

Tensor *op_linear_of_samples(Tensor *y) {
    CHECK(y->from && y->from->op == &LINEAR, "linear_of_samples: %s is of no linear map", y->name);
    y->from->attr.linear.of_samples = true;
    return y;
}
