/* Convolutions over channels-last frames, forward only.
 *
 *   conv_weight  w [O,I,kt,3,3] -> the form that the device's convolution reads, once a run
 *   conv         y = conv(x, w) + b        y = residual + conv(x, w) + b
 * Work: 2 kt 9 I O flops for each output pixel, of frames that are not repeats; a device may need
 * fewer (Winograd). Bytes: x, w and y once.
 */
#include "autograd/ops.h"

enum { X, W, B, RESIDUAL };

static Conv conv_of(const Node *n) {
    Conv c = n->attr.conv;
    c.t = n->in[0]->dtype;
    return c;
}

static unsigned needs_nothing(const Node *n) {
    (void)n;
    return 0;
}

static size_t workspace(const Node *n, Phase p, const Ctx *c) {
    (void)p;
    Conv conv = conv_of(n);
    return c->k->conv_workspace(c->stream, &conv);
}

static void weight_forward(const Node *n, const Ctx *c) {
    Conv conv = conv_of(n);
    c->k->conv_pack(c->stream, &conv, tensor_data(n->in[0]), tensor_data(n->out[0]));
}

static Cost weight_cost(const Node *n, Phase p) {
    (void)p;
    return cost_of(0, (double)tensor_bytes(n->in[0]) + (double)tensor_bytes(n->out[0]));
}

static const Op CONV_WEIGHT = {.name = "conv_weight",
                               .forward = weight_forward,
                               .needs = needs_nothing,
                               .cost = weight_cost,
                               .workspace = workspace};

Tensor *op_conv_weight(Graph *g, Tensor *w, const Conv *shape, int64_t packed) {
    CHECK(tensor_count(w) == shape->out * shape->in * shape->kt * 9, "conv_weight %s", w->name);
    Tensor *y = graph_tensor(g, w->name, SHAPE(packed), g->dtype, ROLE_VALUE);
    return graph_record(g, &CONV_WEIGHT, (Attr){.conv = *shape}, 1, &w, 1, &y);
}

static void conv_forward(const Node *n, const Ctx *c) {
    Conv conv = conv_of(n);
    const Tensor *residual = n->in[RESIDUAL], *y = n->out[0];
    if (residual && tensor_data(residual) != tensor_data(y))
        c->k->copy(c->stream, tensor_data(y), tensor_data(residual), tensor_bytes(y));
    c->k->conv(c->stream, &conv, tensor_data(n->in[X]), tensor_data(n->in[W]),
               tensor_data(n->in[B]), tensor_data(y));
}

static Cost conv_cost(const Node *n, Phase p) {
    (void)p;
    const Conv *c = &n->attr.conv;
    const Shape y = n->out[0]->shape;
    double pixels = (double)(c->frames * y.dim[1] * y.dim[2]);
    double bytes = (double)tensor_bytes(n->in[X]) + (double)tensor_bytes(n->in[W]) +
                   (n->in[RESIDUAL] ? 2 : 1) * (double)tensor_bytes(n->out[0]);
    return cost_of(18 * pixels * (double)(c->kt * c->in * c->out), bytes);
}

static const Op CONV = {.name = "conv",
                        .consumes = IN(RESIDUAL),
                        .forward = conv_forward,
                        .needs = needs_nothing,
                        .cost = conv_cost,
                        .workspace = workspace};

/* Frames of the output. */
static int64_t frames_out(const Conv *c) {
    if (!c->repeat || c->frames == 1) return c->frames;
    return 2 * c->frames - c->frames % 2;
}

Tensor *op_conv(Graph *g, Tensor *x, Tensor *packed, Tensor *bias, const Conv *shape,
                Tensor *residual) {
    Conv c = *shape;
    char text[64];
    c.add = residual != NULL;
    CHECK(shape_equal(x->shape, SHAPE(c.frames + c.kt - 1, c.height, c.width, c.in)) &&
              tensor_count(bias) == c.out,
          "conv %s of %s", packed->name, shape_text(x->shape, text));
    int64_t height = c.stride == 2 ? c.height / 2 : c.height * c.enlarge;
    int64_t width = c.stride == 2 ? c.width / 2 : c.width * c.enlarge;
    Shape out = SHAPE(frames_out(&c), height, width, c.out);
    CHECK(!residual || tensor_count(residual) == shape_count(out), "conv %s: residual",
          packed->name);
    Tensor *y = graph_tensor(g, packed->name, out, g->dtype, ROLE_VALUE);
    return graph_record(g, &CONV, (Attr){.conv = c}, 4, (Tensor *[]){x, packed, bias, residual}, 1,
                        &y);
}
