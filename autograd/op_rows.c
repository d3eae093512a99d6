/* Ops that move rows and patches; their gradients move them back.
 *
 *   join         X[s] = text or video row of source[s]      dtext, dvideo: the rows of dX
 *   gather_rows  y[i] = x[index[i]]                          dx[index[i]] += dy[i], others nothing
 *   patchify     latents [F,C,H,W] -> rows (f',h',w') x (c,a,i,j)      (inputs: no gradient)
 *   unpatchify   the inverse                                 its gradient is patchify
 *   add_axes     y row (f,h,w) = x + [tf[f] | tw[w] | th[h]]           dx = dy
 */
#include "autograd/ops.h"

static unsigned needs_index(const Node *n) {
    (void)n;
    return IN(2);
}

static Cost move_cost(const Node *n, Phase p) {
    (void)p;
    return cost_of(0, 2 * (double)tensor_bytes(n->out[0]));
}

static void join_forward(const Node *n, const Ctx *c) {
    const Tensor *y = n->out[0];
    c->k->join(c->stream, y->dtype, y->shape.dim[0], y->shape.dim[1], tensor_data(n->in[2]),
               tensor_data(n->in[0]), tensor_data(n->in[1]), tensor_data(y));
}

static void join_backward(const Node *n, const Ctx *c) {
    const Tensor *dy = n->out[0]->grad;
    c->k->split(c->stream, dy->dtype, dy->shape.dim[0], dy->shape.dim[1], tensor_data(n->in[2]),
                tensor_data(dy), ctx_keep(c, 0), grad_data(n->in[0]), ctx_keep(c, 1),
                grad_data(n->in[1]));
}

static const Op JOIN = {.name = "join",
                        .forward = join_forward,
                        .backward = join_backward,
                        .needs = needs_index,
                        .cost = move_cost};

Tensor *op_join(Graph *g, Tensor *text, Tensor *video, Tensor *source) {
    int64_t rows = text->shape.dim[0] + video->shape.dim[0], width = text->shape.dim[1];
    CHECK(video->shape.dim[1] == width && tensor_count(source) == rows, "join of %s and %s",
          text->name, video->name);
    Tensor *y = graph_tensor(g, "join", SHAPE(rows, width), text->dtype, ROLE_VALUE);
    return graph_record(g, &JOIN, (Attr){0}, 3, (Tensor *[]){text, video, source}, 1, &y);
}

static void gather_forward(const Node *n, const Ctx *c) {
    const Tensor *y = n->out[0];
    c->k->gather_rows(c->stream, y->dtype, y->shape.dim[0], y->shape.dim[1], tensor_data(n->in[1]),
                      tensor_data(n->in[0]), tensor_data(y));
}

static void gather_backward(const Node *n, const Ctx *c) {
    const Tensor *dy = n->out[0]->grad, *x = n->in[0];
    c->k->scatter_rows(c->stream, dy->dtype, dy->shape.dim[0], x->shape.dim[0], dy->shape.dim[1],
                       tensor_data(n->in[1]), tensor_data(dy), ctx_keep(c, 0),
                       tensor_data(x->grad));
}

static unsigned gather_needs(const Node *n) {
    (void)n;
    return IN(1);
}

static const Op GATHER_ROWS = {.name = "gather_rows",
                               .cheap = true,
                               .forward = gather_forward,
                               .backward = gather_backward,
                               .needs = gather_needs,
                               .cost = move_cost};

Tensor *op_gather_rows(Graph *g, Tensor *x, Tensor *index) {
    int64_t rows = tensor_count(index);
    CHECK(x->shape.rank == 2 && (rows <= x->shape.dim[0] || !x->needs_grad), "gather_rows of %s",
          x->name);
    Tensor *y = graph_tensor(g, "gather_rows", SHAPE(rows, x->shape.dim[1]), x->dtype, ROLE_VALUE);
    return graph_record(g, &GATHER_ROWS, (Attr){0}, 2, (Tensor *[]){x, index}, 1, &y);
}

static Patch patch_of(const Node *n, DType t, int sample, int64_t row_width, int64_t offset) {
    const int64_t *fhw = n->attr.patch.sizes.fhw[sample];
    return (Patch){.t = t,
                   .frames = fhw[0],
                   .channels = n->attr.patch.channels,
                   .height = fhw[1],
                   .width = fhw[2],
                   .patch = n->attr.patch.patch,
                   .patch_t = n->attr.patch.patch_t,
                   .row_width = row_width,
                   .offset = offset};
}

static int64_t patch_width(const Node *n) {
    return n->attr.patch.channels * n->attr.patch.patch * n->attr.patch.patch *
           n->attr.patch.patch_t;
}

/* Walks the samples: `latents` [.., F,C,H,W] end to end against `rows`, either way. */
static void move_patches(const Node *n, const Ctx *c, bool to_rows, char *latents, char *rows,
                         DType t, int64_t row_width, int64_t offset, real keep) {
    int64_t size = (int64_t)dtype_size(t);
    for (int b = 0; b < n->attr.patch.sizes.n; b++) {
        Patch p = patch_of(n, t, b, row_width, offset);
        if (to_rows)
            c->k->patchify(c->stream, &p, latents, keep, rows);
        else
            c->k->unpatchify(c->stream, &p, rows, keep, latents);
        int64_t elements = p.frames * p.channels * p.height * p.width;
        latents += elements * size;
        rows += elements / patch_width(n) * row_width * size;
    }
}

static void patchify_forward(const Node *n, const Ctx *c) {
    const Tensor *y = n->out[0];
    for (int i = 0; i < 2; i++)
        if (n->in[i])
            move_patches(n, c, true, tensor_data(n->in[i]), tensor_data(y), y->dtype,
                         y->shape.dim[1], i * patch_width(n), 0);
}

static unsigned needs_nothing(const Node *n) {
    (void)n;
    return 0;
}

static const Op PATCHIFY = {
    .name = "patchify", .forward = patchify_forward, .needs = needs_nothing, .cost = move_cost};

static void check_sizes(const char *op, LatentSizes sizes, int64_t channels, int64_t patch,
                        int64_t patch_t, int64_t elements) {
    int64_t sum = 0;
    for (int b = 0; b < sizes.n; b++) {
        const int64_t *s = sizes.fhw[b];
        CHECK(s[0] % patch_t == 0 && s[1] % patch == 0 && s[2] % patch == 0,
              "%s: sample %d of %lldx%lldx%lld", op, b, (long long)s[0], (long long)s[1],
              (long long)s[2]);
        sum += s[0] * channels * s[1] * s[2];
    }
    CHECK(sum == elements, "%s: %lld elements, sizes say %lld", op, (long long)elements,
          (long long)sum);
}

Tensor *op_patchify(Graph *g, Tensor *latents, Tensor *image, LatentSizes sizes, int64_t channels,
                    int64_t patch, int64_t patch_t) {
    check_sizes("patchify", sizes, channels, patch, patch_t, tensor_count(latents));
    CHECK(!image || tensor_count(image) == tensor_count(latents), "patchify: image latents");
    int64_t width = channels * patch * patch * patch_t;
    Shape shape = SHAPE(tensor_count(latents) / width, width * (image ? 2 : 1));
    Tensor *y = graph_tensor(g, "patchify", shape, latents->dtype, ROLE_VALUE);
    Attr attr = {.patch = {sizes, channels, patch, patch_t}};
    return graph_record(g, &PATCHIFY, attr, 2, (Tensor *[]){latents, image}, 1, &y);
}

static void unpatchify_forward(const Node *n, const Ctx *c) {
    const Tensor *x = n->in[0];
    move_patches(n, c, false, tensor_data(n->out[0]), tensor_data(x), x->dtype, x->shape.dim[1], 0,
                 0);
}

static void unpatchify_backward(const Node *n, const Ctx *c) {
    const Tensor *x = n->in[0];
    move_patches(n, c, true, tensor_data(n->out[0]->grad), tensor_data(x->grad), x->dtype,
                 x->shape.dim[1], 0, ctx_keep(c, 0));
}

static const Op UNPATCHIFY = {.name = "unpatchify",
                              .forward = unpatchify_forward,
                              .backward = unpatchify_backward,
                              .needs = needs_nothing,
                              .cost = move_cost};

Tensor *op_unpatchify(Graph *g, Tensor *rows, LatentSizes sizes, int64_t channels, int64_t patch,
                      int64_t patch_t) {
    check_sizes("unpatchify", sizes, channels, patch, patch_t, tensor_count(rows));
    CHECK(rows->shape.dim[1] == channels * patch * patch * patch_t, "unpatchify of %s", rows->name);
    Tensor *y = graph_tensor(g, "unpatchify", SHAPE(tensor_count(rows)), rows->dtype, ROLE_VALUE);
    Attr attr = {.patch = {sizes, channels, patch, patch_t}};
    return graph_record(g, &UNPATCHIFY, attr, 1, &rows, 1, &y);
}

static void axes_forward(const Node *n, const Ctx *c) {
    const Tensor *x = n->in[0], *y = n->out[0];
    int64_t widths[3];
    for (int i = 0; i < 3; i++) widths[i] = n->in[1 + i]->shape.dim[1];
    Segments rows = n->attr.axes.rows;
    for (int b = 0; b < rows.n; b++) {
        const int64_t *size = n->attr.axes.grid.fhw[b];
        int64_t bytes = rows.cu[b] * x->shape.dim[1] * (int64_t)dtype_size(x->dtype);
        c->k->add_axes(c->stream, x->dtype, size, widths, tensor_data(n->in[1]),
                       tensor_data(n->in[2]), tensor_data(n->in[3]), rows.first ? rows.first[b] : 0,
                       rows.cu[b + 1] - rows.cu[b], (char *)tensor_data(x) + bytes,
                       (char *)tensor_data(y) + bytes);
    }
}

static void axes_backward(const Node *n, const Ctx *c) {
    const Tensor *dy = n->out[0]->grad;
    void *dx = tensor_data(n->in[0]->grad);
    if (dx != tensor_data(dy))
        c->k->axpy(c->stream, dy->dtype, tensor_count(dy), 1, tensor_data(dy), ctx_keep(c, 0), dx);
}

static const Op ADD_AXES = {.name = "add_axes",
                            .consumes = IN(0),
                            .passes = IN(0),
                            .forward = axes_forward,
                            .backward = axes_backward,
                            .needs = needs_nothing,
                            .cost = move_cost};

Tensor *op_add_axes(Graph *g, Tensor *x, LatentSizes grid, Segments rows, Tensor *tf, Tensor *tw,
                    Tensor *th) {
    for (int b = 0; b < grid.n; b++) {
        const int64_t *s = grid.fhw[b];
        CHECK(s[0] <= tf->shape.dim[0] && s[1] <= th->shape.dim[0] && s[2] <= tw->shape.dim[0],
              "add_axes: sample %d is larger than the tables", b);
    }
    CHECK(rows.n == grid.n && rows.cu[rows.n] == x->shape.dim[0] &&
              tf->shape.dim[1] + tw->shape.dim[1] + th->shape.dim[1] == x->shape.dim[1],
          "add_axes to %s", x->name);
    Tensor *y = graph_tensor(g, "add_axes", x->shape, x->dtype, ROLE_VALUE);
    Attr attr = {.axes = {grid, rows}};
    return graph_record(g, &ADD_AXES, attr, 4, (Tensor *[]){x, tf, tw, th}, 1, &y);
}
