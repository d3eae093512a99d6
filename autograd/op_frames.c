/* Frames of video around convolutions, forward only.
 *
 *   take_frames  y = frames [first - 2, first + T) of planes [C,F,H,W] as rows; the first repeats
 *   pool_frames  y = means of pairs of frames, the first of an odd number alone
 *   group_norm   z = silu(GN(x) [* scale + shift]), y = the two frames before z, then z
 *                next = the last two frames of y: what stands before the next chunk's z
 * All are bound by memory: x and y once, group_norm x twice.
 */
#include "autograd/ops.h"

static unsigned needs_nothing(const Node *n) {
    (void)n;
    return 0;
}

static Cost move_cost(const Node *n, Phase p) {
    (void)p;
    return cost_of(0, 2 * (double)tensor_bytes(n->out[0]));
}

static void take_forward(const Node *n, const Ctx *c) {
    const Tensor *x = n->in[0], *y = n->out[0];
    TakeFrames take = {.t = x->dtype,
                       .channels = x->shape.dim[0],
                       .total = x->shape.dim[1],
                       .height = x->shape.dim[2],
                       .width = x->shape.dim[3],
                       .first = n->attr.frames.first,
                       .frames = y->shape.dim[0] - CONTEXT};
    c->k->take_frames(c->stream, &take, tensor_data(x), tensor_data(y));
}

static const Op TAKE_FRAMES = {
    .name = "take_frames", .forward = take_forward, .needs = needs_nothing, .cost = move_cost};

Tensor *op_take_frames(Graph *g, Tensor *planes, int64_t first, int64_t frames) {
    const int64_t *d = planes->shape.dim;
    CHECK(planes->shape.rank == 4 && first >= 0 && frames > 0 && first + frames <= d[1],
          "frames [%lld,+%lld) of %s", (long long)first, (long long)frames, planes->name);
    Shape shape = SHAPE(CONTEXT + frames, d[2], d[3], d[0]);
    Tensor *y = graph_tensor(g, "take_frames", shape, planes->dtype, ROLE_VALUE);
    return graph_record(g, &TAKE_FRAMES, (Attr){.frames = {first}}, 1, &planes, 1, &y);
}

static void pool_forward(const Node *n, const Ctx *c) {
    const Tensor *x = n->in[0];
    c->k->pool_frames(c->stream, x->dtype, x->shape.dim[0], tensor_count(x) / x->shape.dim[0],
                      tensor_data(x), tensor_data(n->out[0]));
}

static Cost pool_cost(const Node *n, Phase p) {
    (void)p;
    return cost_of(2 * (double)tensor_count(n->out[0]),
                   (double)tensor_bytes(n->in[0]) + (double)tensor_bytes(n->out[0]));
}

static const Op POOL_FRAMES = {
    .name = "pool_frames", .forward = pool_forward, .needs = needs_nothing, .cost = pool_cost};

Tensor *op_pool_frames(Graph *g, Tensor *x) {
    Shape shape = x->shape;
    CHECK(shape.rank == 4, "pool_frames of %s", x->name);
    shape.dim[0] = (shape.dim[0] + 1) / 2;
    Tensor *y = graph_tensor(g, "pool_frames", shape, x->dtype, ROLE_VALUE);
    return graph_record(g, &POOL_FRAMES, (Attr){0}, 1, &x, 1, &y);
}

enum { X, GAMMA, BETA, SCALE, SHIFT, PAST };

/* Without addresses, which have none while the plan is placed. */
static GroupNorm shape_of(const Node *n) {
    const Tensor *x = n->in[X], *scale = n->in[SCALE];
    GroupNorm norm = {.t = x->dtype,
                      .frames = x->shape.dim[0],
                      .height = x->shape.dim[1],
                      .width = x->shape.dim[2],
                      .channels = x->shape.dim[3],
                      .groups = n->attr.group_norm.groups,
                      .eps = n->attr.group_norm.eps};
    for (int i = 0; scale && i < 3; i++) norm.grid[i] = scale->shape.dim[i];
    return norm;
}

static const void *data_of(const Tensor *t) { return t ? tensor_data(t) : NULL; }

static void group_norm_forward(const Node *n, const Ctx *c) {
    GroupNorm norm = shape_of(n);
    norm.x = tensor_data(n->in[X]);
    norm.gamma = tensor_data(n->in[GAMMA]);
    norm.beta = tensor_data(n->in[BETA]);
    norm.scale = data_of(n->in[SCALE]);
    norm.shift = data_of(n->in[SHIFT]);
    norm.past = data_of(n->in[PAST]);
    norm.next = n->out[1] ? tensor_data(n->out[1]) : NULL;
    c->k->group_norm(c->stream, &norm, tensor_data(n->out[0]));
}

static Cost group_norm_cost(const Node *n, Phase p) {
    (void)p;
    return cost_of(12 * (double)tensor_count(n->in[X]),
                   2 * (double)tensor_bytes(n->in[X]) + (double)tensor_bytes(n->out[0]));
}

static size_t group_norm_workspace(const Node *n, Phase p, const Ctx *c) {
    (void)p;
    GroupNorm norm = shape_of(n);
    return c->k->group_norm_workspace(c->stream, &norm);
}

static const Op GROUP_NORM = {.name = "group_norm",
                              .forward = group_norm_forward,
                              .needs = needs_nothing,
                              .cost = group_norm_cost,
                              .workspace = group_norm_workspace};

Tensor *op_group_norm(Graph *g, Tensor *x, const GroupNormArgs *a) {
    Shape shape = x->shape;
    int64_t channels = shape.dim[3];
    CHECK(shape.rank == 4 && channels % a->groups == 0 && tensor_count(a->gamma) == channels &&
              tensor_count(a->beta) == channels,
          "group_norm %s", a->gamma->name);
    CHECK(!a->scale || (a->scale->shape.rank == 4 && a->scale->shape.dim[3] == channels &&
                        shape_equal(a->scale->shape, a->shift->shape)),
          "group_norm %s: scale and shift", a->gamma->name);
    Shape context = SHAPE(CONTEXT, shape.dim[1], shape.dim[2], channels);
    CHECK(!a->past || shape_equal(a->past->shape, context), "group_norm %s: past", a->gamma->name);
    shape.dim[0] += CONTEXT;
    Tensor *out[2] = {graph_tensor(g, a->gamma->name, shape, x->dtype, ROLE_VALUE)};
    if (a->next) *a->next = out[1] = graph_tensor(g, "past", context, x->dtype, ROLE_VALUE);
    Attr attr = {.group_norm = {a->groups, a->eps}};
    return graph_record(g, &GROUP_NORM, attr, 6,
                        (Tensor *[]){x, a->gamma, a->beta, a->scale, a->shift, a->past},
                        a->next ? 2 : 1, out);
}
