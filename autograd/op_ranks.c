/* Ops among the ranks that share the rows of each sample (Jacobs et al. 2023, "DeepSpeed Ulysses").
 *
 *   exchange   rows [G,S',D] <-> heads [G,S,D/n]: rank j gets columns [j D/n, (j+1) D/n) of every
 *              row, and gives every rank its own rows of its columns back     gradient: the inverse
 *   whole      rows [S',D] -> [S,D] on every rank. What they compute of it is the same, so
 *              dx = the rank's own rows of dy
 * S' = the rank's parts of all runs. Parts of a run differ by a row at most: messages are as long
 * as the longest rank's.
 */
#include "autograd/ops.h"

/* What the ranks of one node hold. */
typedef struct {
    Comm *comm;
    Segments runs;
    int64_t groups, width; /* G, D */
    int64_t mine, most;    /* rows of this rank, and of the rank that has most */
    size_t element;
} Layout;

static int64_t rows_of(const Comm *c, int rank, Segments runs) {
    int64_t rows = 0;
    for (int b = 0; b < runs.n; b++) rows += comm_part(c, rank, runs.cu[b + 1] - runs.cu[b]).count;
    return rows;
}

/* `local` holds a rank's own rows, all columns. */
static Layout layout_of(const Node *n, const Tensor *local) {
    Layout l = {.comm = n->attr.ranks.comm,
                .runs = n->attr.ranks.runs,
                .groups = local->shape.rank == 3 ? local->shape.dim[0] : 1,
                .width = local->shape.dim[local->shape.rank - 1],
                .element = dtype_size(local->dtype)};
    for (int r = 0; r < l.comm->size; r++) l.most = MAX(l.most, rows_of(l.comm, r, l.runs));
    l.mine = rows_of(l.comm, l.comm->rank, l.runs);
    return l;
}

/* Between rank r's rows, packed at `part` [rows][columns], and their places in `whole`
 * [S][columns]. */
static void move_part(const Layout *l, const Ctx *c, int r, size_t row_bytes, char *part,
                      char *whole, bool to_whole) {
    for (int b = 0; b < l->runs.n; b++) {
        Range rows = comm_part(l->comm, r, l->runs.cu[b + 1] - l->runs.cu[b]);
        size_t bytes = (size_t)rows.count * row_bytes;
        char *place = whole + (size_t)(l->runs.cu[b] + rows.from) * row_bytes;
        c->k->copy(c->stream, to_whole ? place : part, to_whole ? part : place, bytes);
        part += bytes;
    }
}

/* Columns of rank j of this rank's rows, between `rows` [mine,D] and `block` [mine,D/n]. */
static void move_columns(const Layout *l, const Ctx *c, int j, char *rows, char *block,
                         bool to_block) {
    size_t wide = (size_t)l->width * l->element, slim = wide / (size_t)l->comm->size;
    char *column = rows + (size_t)j * slim;
    if (to_block)
        c->k->copy_rows(c->stream, l->mine, slim, column, wide, block, slim);
    else
        c->k->copy_rows(c->stream, l->mine, slim, block, slim, column, wide);
}

/* ---- exchange ---------------------------------------------------------------------------------
 */

/* Elements of a message between two ranks. */
static int64_t message(const Layout *l) { return l->groups * l->most * l->width / l->comm->size; }

/* rows [G,mine,D], heads [G,S,D/n]; to_heads: from the one to the other, else back. */
static void exchange(const Layout *l, const Ctx *c, DType t, char *rows, char *heads,
                     bool to_heads) {
    int n = l->comm->size;
    size_t slim = (size_t)(l->width / n) * l->element, block = (size_t)message(l) * l->element;
    size_t rows_bytes = (size_t)(l->mine * l->width) * l->element;
    size_t heads_bytes = (size_t)l->runs.cu[l->runs.n] * slim;
    char *send = c->workspace, *receive = send + (size_t)n * block;
    for (int turn = 0; turn < 2; turn++) {
        bool leaving = turn == 0;
        for (int j = 0; j < n; j++)
            for (int64_t g = 0; g < l->groups; g++) {
                char *at =
                    (leaving ? send : receive) + (size_t)j * block + (size_t)(g * l->most) * slim;
                if (leaving == to_heads)
                    move_columns(l, c, j, rows + (size_t)g * rows_bytes, at, leaving);
                else
                    move_part(l, c, j, slim, at, heads + (size_t)g * heads_bytes, !leaving);
            }
        if (leaving) l->comm->all_to_all(l->comm, c->stream, t, message(l), send, receive);
    }
}

static const Tensor *local_of(const Node *n) {
    return n->attr.ranks.to_heads ? n->in[0] : n->out[0];
}

static void exchange_forward(const Node *n, const Ctx *c) {
    const Tensor *x = n->in[0], *y = n->out[0];
    Layout l = layout_of(n, local_of(n));
    bool to_heads = n->attr.ranks.to_heads;
    exchange(&l, c, x->dtype, tensor_data(to_heads ? x : y), tensor_data(to_heads ? y : x),
             to_heads);
}

static void exchange_backward(const Node *n, const Ctx *c) {
    const Tensor *dx = n->in[0]->grad, *dy = n->out[0]->grad;
    Layout l = layout_of(n, local_of(n));
    bool to_heads = n->attr.ranks.to_heads;
    CHECK(c->first & IN(0), "exchange: %s must have one reader", n->in[0]->name);
    exchange(&l, c, dx->dtype, tensor_data(to_heads ? dx : dy), tensor_data(to_heads ? dy : dx),
             !to_heads);
}

static unsigned needs_nothing(const Node *n) {
    (void)n;
    return 0;
}

static Cost exchange_cost(const Node *n, Phase p) {
    (void)p;
    Layout l = layout_of(n, local_of(n));
    double block = (double)message(&l) * (double)l.element;
    Cost c = cost_of(0, 4 * block * l.comm->size);
    c.sent = block * (l.comm->size - 1);
    return c;
}

static size_t exchange_workspace(const Node *n, Phase p, const Ctx *c) {
    (void)p, (void)c;
    Layout l = layout_of(n, local_of(n));
    return 2 * (size_t)l.comm->size * (size_t)message(&l) * l.element;
}

static const Op EXCHANGE = {.name = "exchange",
                            .forward = exchange_forward,
                            .backward = exchange_backward,
                            .needs = needs_nothing,
                            .cost = exchange_cost,
                            .workspace = exchange_workspace};

static Tensor *record_exchange(Graph *g, Tensor *x, Segments runs, bool to_heads) {
    int n = g->sequence ? g->sequence->size : 1;
    if (n == 1) return x;
    Shape shape = x->shape;
    int64_t *rows = &shape.dim[shape.rank - 2], *width = &shape.dim[shape.rank - 1];
    int64_t all = runs.cu[runs.n], mine = rows_of(g->sequence, g->sequence->rank, runs);
    CHECK(*rows == (to_heads ? mine : all) && (!to_heads || *width % n == 0), "exchange of %s",
          x->name);
    *rows = to_heads ? all : mine;
    *width = to_heads ? *width / n : *width * n;
    Tensor *y = graph_tensor(g, x->name, shape, x->dtype, ROLE_VALUE);
    Attr attr = {.ranks = {g->sequence, runs, to_heads}};
    return graph_record(g, &EXCHANGE, attr, 1, &x, 1, &y);
}

Tensor *op_rows_to_heads(Graph *g, Tensor *x, Segments runs) {
    return record_exchange(g, x, runs, true);
}

Tensor *op_heads_to_rows(Graph *g, Tensor *x, Segments runs) {
    return record_exchange(g, x, runs, false);
}

/* ---- whole ------------------------------------------------------------------------------------
 */

static void whole_forward(const Node *n, const Ctx *c) {
    const Tensor *x = n->in[0];
    Layout l = layout_of(n, x);
    size_t row = (size_t)l.width * l.element, block = (size_t)l.most * row;
    char *all = c->workspace, *mine = all + (size_t)l.comm->rank * block;
    c->k->copy(c->stream, mine, tensor_data(x), (size_t)l.mine * row);
    l.comm->all_gather(l.comm, c->stream, x->dtype, l.most * l.width, mine, all);
    for (int r = 0; r < l.comm->size; r++)
        move_part(&l, c, r, row, all + (size_t)r * block, tensor_data(n->out[0]), true);
}

static void whole_backward(const Node *n, const Ctx *c) {
    Layout l = layout_of(n, n->in[0]);
    CHECK(c->first & IN(0), "whole: %s must have one reader", n->in[0]->name);
    move_part(&l, c, l.comm->rank, (size_t)l.width * l.element, tensor_data(n->in[0]->grad),
              tensor_data(n->out[0]->grad), false);
}

static size_t whole_workspace(const Node *n, Phase p, const Ctx *c) {
    (void)c;
    Layout l = layout_of(n, n->in[0]);
    return p == BACKWARD ? 0 : (size_t)(l.comm->size * l.most * l.width) * l.element;
}

static Cost whole_cost(const Node *n, Phase p) {
    Layout l = layout_of(n, n->in[0]);
    double block = (double)(l.most * l.width) * (double)l.element;
    Cost c = cost_of(0, 2 * block * (p == BACKWARD ? 1 : l.comm->size));
    if (p != BACKWARD) c.sent = block * (l.comm->size - 1);
    return c;
}

static const Op WHOLE = {.name = "whole",
                         .forward = whole_forward,
                         .backward = whole_backward,
                         .needs = needs_nothing,
                         .cost = whole_cost,
                         .workspace = whole_workspace};

Tensor *op_whole_rows(Graph *g, Tensor *x, Segments runs) {
    if (!g->sequence || g->sequence->size == 1) return x;
    CHECK(x->shape.rank == 2 && x->shape.dim[0] == rows_of(g->sequence, g->sequence->rank, runs),
          "whole rows of %s", x->name);
    Shape shape = SHAPE(runs.cu[runs.n], x->shape.dim[1]);
    Tensor *y = graph_tensor(g, x->name, shape, x->dtype, ROLE_VALUE);
    Attr attr = {.ranks = {g->sequence, runs, false}};
    return graph_record(g, &WHOLE, attr, 1, &x, 1, &y);
}
