/* Mean squared error.
 *
 *   l_b = mean over the sample's elements of (x - target)^2     loss = mean_b l_b
 *   dx  = dloss 2 / (B n_b) (x - target)
 */
#include "autograd/ops.h"

static void forward(const Node *n, const Ctx *c) {
    const Tensor *x = n->in[0];
    c->k->mse(c->stream, x->dtype, n->attr.mse.samples.n, n->attr.mse.samples.cu, tensor_data(x),
              tensor_data(n->in[1]), tensor_data(n->out[0]), tensor_data(n->out[1]));
}

static void backward(const Node *n, const Ctx *c) {
    const Tensor *x = n->in[0];
    c->k->mse_grad(c->stream, x->dtype, n->attr.mse.samples.n, n->attr.mse.samples.cu,
                   tensor_data(x), tensor_data(n->in[1]), tensor_data(n->out[0]->grad),
                   ctx_keep(c, 0), tensor_data(x->grad));
}

static unsigned needs(const Node *n) {
    (void)n;
    return IN(0) | IN(1);
}

static Cost cost(const Node *n, Phase p) {
    double bytes = (double)tensor_bytes(n->in[0]) + (double)tensor_bytes(n->in[1]);
    return cost_of(3 * (double)tensor_count(n->in[0]), p == BACKWARD ? 1.5 * bytes : bytes);
}

static const Op MSE = {
    .name = "mse", .forward = forward, .backward = backward, .needs = needs, .cost = cost};

Tensor *op_mse(Graph *g, Tensor *x, Tensor *target, Segments samples) {
    CHECK(tensor_count(x) == tensor_count(target) && target->dtype == DT_REAL &&
              samples.cu[samples.n] == tensor_count(x),
          "mse of %s", x->name);
    Tensor *loss = graph_tensor(g, "loss", SHAPE(1), DT_REAL, ROLE_VALUE);
    Tensor *each = graph_tensor(g, "loss.per_sample", SHAPE(samples.n), DT_REAL, ROLE_VALUE);
    Attr attr = {.mse = {.samples = samples}};
    return graph_record(g, &MSE, attr, 2, (Tensor *[]){x, target}, 2, (Tensor *[]){loss, each});
}
