/* Every op's backward against central differences of its forward, in f64, in a poisoned arena.
 *
 * A row of the table records one op over random inputs; its output meets a random target in op_mse.
 * Each row runs with gradients of all inputs, of each input alone, and (keep = 1) with the op
 * recorded twice over the same inputs. */
#include "tests/autograd/blocks.h"

#include <omp.h>

typedef struct Case Case;

struct Case {
    const char *name;
    Tensor *(*record)(Scene *s, const Case *c);
    int64_t rows[5]; /* of the segments; 0 ends */
    int64_t in, out; /* widths: K and O of a product, else D */
    int64_t n;       /* slices or heads */
    unsigned flags;
};

enum {
    BIAS = 1,      /* op_linear's */
    MODULATED = 2, /* op_norm's */
    ROPE = 4,
    TOGETHER = 8, /* the op wants the gradients of all its inputs */
    SAMPLES = 16, /* the loss has a sample per segment */
    FEW = 32,     /* the rows of a linear map are samples */
};

static int64_t total(const Case *c) {
    int64_t n = 0;
    for (int i = 0; c->rows[i]; i++) n += c->rows[i];
    return n;
}

/* mod_row: each segment's first third uses row 2b + 1, the rest 2b. */
static Tensor *mod_rows(Scene *s, const Case *c) {
    int32_t *row = xcalloc((size_t)total(c), sizeof *row), *at = row;
    for (int b = 0; c->rows[b]; b++)
        for (int64_t i = 0; i < c->rows[b]; i++) *at++ = 2 * b + (3 * i < c->rows[b]);
    Tensor *t = graph_const(s->graph, "mod_row", SHAPE(total(c)), DT_I32, row);
    free(row);
    return t;
}

static Tensor *mod_table(Scene *s, const Case *c) {
    int segments = 0;
    while (c->rows[segments]) segments++;
    return scene_input(s, "mod", SHAPE(2 * segments, 3 * c->in), 0.3, true);
}

/* A permutation of n indices that repeats: a stride that shares no factor with n. */
static int64_t shuffled(int64_t i, int64_t n) { return n % 7 ? (i * 7 + 3) % n : (i * 5 + 2) % n; }

/* ---- how each op is recorded ------------------------------------------------------------------
 */

static Tensor *linear(Scene *s, const Case *c) {
    Shape w = c->n ? SHAPE(c->n, c->out, c->in) : SHAPE(c->out, c->in);
    Shape b = c->n ? SHAPE(c->n, c->out) : SHAPE(c->out);
    Tensor *x = scene_input(s, "x", SHAPE(total(c), c->in), 0.5, true);
    Tensor *weight = scene_input(s, "w", w, 0.5, true);
    Tensor *bias = c->flags & BIAS ? scene_input(s, "b", b, 0.5, true) : NULL;
    Tensor *y = op_linear(s->graph, x, weight, bias);
    return c->flags & FEW ? op_linear_of_samples(y) : y;
}

/* One product on each slice, as LoRA has it. */
static Tensor *linear_add(Scene *s, const Case *c) {
    int64_t rows = total(c);
    Shape shape = c->n ? SHAPE(c->n, rows, c->out) : SHAPE(rows, c->out);
    Tensor *x = scene_input(s, "x", SHAPE(rows, c->in), 0.5, true);
    Tensor *y = scene_input(s, "residual", shape, 0.5, true);
    for (int i = 0; i < MAX(c->n, 1); i++) {
        Tensor *w = scene_input(s, "w", SHAPE(c->out, c->in), 0.5, true);
        y = op_linear_add(s->graph, x, w, y, (real)(0.5 + i), i);
        if (c->flags & FEW) y = op_linear_of_samples(y);
    }
    return y;
}

/* Whose products and gelu are steps of two nodes; with n, a sum of two, whose gradients are added
 * to. */
static Tensor *feed_forward(Scene *s, const Case *c) {
    Tensor *x = scene_input(s, "x", SHAPE(total(c), c->in), 0.5, true), *y[2];
    Tensor *b = c->flags & BIAS ? scene_input(s, "b", SHAPE(c->out), 0.5, true) : NULL;
    Tensor *up = scene_input(s, "up", SHAPE(c->out, c->in), 0.5, true);
    Tensor *down = scene_input(s, "down", SHAPE(c->in, c->out), 0.5, true);
    for (int i = 0; i < 2; i++) {
        y[i] = op_linear(s->graph, op_gelu(s->graph, op_linear(s->graph, x, up, b)), down, NULL);
        if (!c->n) return y[i];
    }
    return op_add(s->graph, y[0], y[1]);
}

static Tensor *one_input(Scene *s, const Case *c) {
    return scene_input(s, "x", SHAPE(total(c), c->in), 0.7, true);
}

static Tensor *gelu(Scene *s, const Case *c) { return op_gelu(s->graph, one_input(s, c)); }

static Tensor *silu(Scene *s, const Case *c) { return op_silu(s->graph, one_input(s, c)); }

static Tensor *add(Scene *s, const Case *c) {
    Tensor *a = one_input(s, c), *b = scene_input(s, "b", a->shape, 0.5, true);
    return op_add(s->graph, a, b);
}

static Tensor *add_itself(Scene *s, const Case *c) {
    Tensor *a = op_silu(s->graph, one_input(s, c));
    return op_add(s->graph, a, a);
}

static Tensor *dropout(Scene *s, const Case *c) {
    static const uint32_t ORDINALS[] = {7, 0, 123456, 3};
    Segments rows = scene_segments(s, c->rows);
    Tensor *ordinals = graph_const(s->graph, "ordinals", SHAPE(rows.n), DT_U32, ORDINALS);
    return op_dropout(s->graph, one_input(s, c), ordinals, rows, (real)0.4, PURPOSE_DROPOUT + 2);
}

static Tensor *norm(Scene *s, const Case *c) {
    Tensor *x = one_input(s, c);
    Tensor *gamma = scene_input(s, "gamma", SHAPE(c->in), 1, true);
    Tensor *beta = scene_input(s, "beta", SHAPE(c->in), 1, true);
    bool modulated = c->flags & MODULATED;
    return op_norm(s->graph, x, gamma, beta, (real)1e-5, modulated ? mod_table(s, c) : NULL,
                   modulated ? mod_rows(s, c) : NULL);
}

static Tensor *gate(Scene *s, const Case *c) {
    Tensor *x = one_input(s, c), *a = scene_input(s, "a", x->shape, 0.5, true);
    return op_gate(s->graph, x, a, mod_table(s, c), mod_rows(s, c), c->n * c->in);
}

static Tensor *gate_itself(Scene *s, const Case *c) {
    Tensor *x = op_silu(s->graph, one_input(s, c));
    return op_gate(s->graph, x, x, mod_table(s, c), mod_rows(s, c), c->in);
}

/* One table for a norm and two gates: its gradient is added to in each. */
static Tensor *shared_modulation(Scene *s, const Case *c) {
    Tensor *x = one_input(s, c), *mod = mod_table(s, c), *row = mod_rows(s, c);
    Tensor *gamma = scene_input(s, "gamma", SHAPE(c->in), 1, true);
    Tensor *beta = scene_input(s, "beta", SHAPE(c->in), 1, true);
    Tensor *a = op_norm(s->graph, x, gamma, beta, (real)1e-5, mod, row);
    x = op_gate(s->graph, x, a, mod, row, 2 * c->in);
    return op_gate(s->graph, x, op_gelu(s->graph, a), mod, row, c->in);
}

static Tensor *rope_table(Scene *s, int64_t rows, int64_t size) {
    real *table = numbers(rows * size, 77);
    for (int64_t i = 0; i < rows * size; i += 2) {
        double angle = 3 * (double)table[i];
        table[i] = (real)cos(angle);
        table[i + 1] = (real)sin(angle);
    }
    Tensor *t = graph_const(s->graph, "rope", SHAPE(rows, size), DT_REAL, table);
    BACKEND_CPU.release(table);
    return t;
}

static Tensor *qk_norm_of(Scene *s, const Case *c, Tensor *qk) {
    int64_t size = c->in / c->n;
    Tensor *p[4];
    for (int i = 0; i < 4; i++)
        p[i] = scene_input(s, i % 2 ? "beta" : "gamma", SHAPE(size), 1, true);
    Tensor *rope = c->flags & ROPE ? rope_table(s, total(c), size) : NULL;
    return op_qk_norm(s->graph, qk, p[0], p[1], p[2], p[3], rope, c->n, (real)1e-6);
}

static Tensor *qk_norm(Scene *s, const Case *c) {
    return qk_norm_of(s, c, scene_input(s, "qk", SHAPE(2, total(c), c->in), 0.7, true));
}

/* q, k and v have one reader each, so that what is recorded twice has copies of its own. */
static Tensor *attention(Scene *s, const Case *c) {
    int64_t rows = total(c);
    Tensor *qk = scene_input(s, "qk", SHAPE(2, rows, c->in), 0.7, true);
    Tensor *v = scene_input(s, "v", SHAPE(rows, c->in), 0.7, true);
    return op_attention(s->graph, op_gelu(s->graph, qk), op_silu(s->graph, v), c->n,
                        scene_segments(s, c->rows));
}

/* Slices of one product, as a block has them. */
static Tensor *attention_of_views(Scene *s, const Case *c) {
    int64_t rows = total(c), plane = rows * c->in;
    Tensor *x = one_input(s, c);
    Tensor *w = scene_input(s, "w", SHAPE(3, c->in, c->in), 0.4, true);
    Tensor *qkv = op_linear(s->graph, x, w, NULL);
    Tensor *qk = graph_view(s->graph, qkv, 0, SHAPE(2, rows, c->in));
    Tensor *v = graph_view(s->graph, qkv, 2 * plane, SHAPE(rows, c->in));
    return op_attention(s->graph, qk_norm_of(s, c, qk), v, c->n, scene_segments(s, c->rows));
}

static Tensor *views(Scene *s, const Case *c) {
    int64_t rows = total(c);
    Tensor *x = scene_input(s, "x", SHAPE(3, rows, c->in), 0.7, true), *part[3];
    for (int i = 0; i < 3; i++)
        part[i] = graph_view(s->graph, x, i * rows * c->in, SHAPE(rows, c->in));
    Tensor *y = op_add(s->graph, part[0], op_gelu(s->graph, part[1]));
    return op_add(s->graph, y, graph_reshape(s->graph, part[2], SHAPE(c->in, rows)));
}

/* A third of all rows, rounded up, is text. */
static Tensor *join(Scene *s, const Case *c) {
    int64_t rows = total(c), n_text = (rows + 2) / 3;
    int32_t *source = xcalloc((size_t)rows, sizeof *source);
    for (int64_t i = 0; i < rows; i++) {
        int64_t from = shuffled(i, rows);
        source[i] = (int32_t)(from < n_text ? from : -1 - (from - n_text));
    }
    Tensor *t = graph_const(s->graph, "source", SHAPE(rows), DT_I32, source);
    free(source);
    Tensor *text = scene_input(s, "text", SHAPE(n_text, c->in), 0.5, true);
    Tensor *video = scene_input(s, "video", SHAPE(rows - n_text, c->in), 0.5, true);
    return op_join(s->graph, text, video, t);
}

static Tensor *gather_rows(Scene *s, const Case *c) {
    int64_t rows = total(c), n = (2 * rows + 2) / 3;
    int32_t *index = xcalloc((size_t)n, sizeof *index);
    for (int64_t i = 0; i < n; i++) index[i] = (int32_t)shuffled(i, rows);
    Tensor *t = graph_const(s->graph, "index", SHAPE(n), DT_I32, index);
    free(index);
    return op_gather_rows(s->graph, one_input(s, c), t);
}

/* Samples of 1x1x1, 2x3x1 and 1x2x4 cells. */
static const int64_t GRID[3][3] = {{1, 1, 1}, {2, 3, 1}, {1, 2, 4}};
enum { GRID_ROWS = 1 + 6 + 8 };

/* in: patch, out: patch_t, n: channels */
static Tensor *unpatchify(Scene *s, const Case *c) {
    int64_t(*size)[3] = graph_alloc(s->graph, sizeof GRID);
    for (int b = 0; b < 3; b++)
        for (int i = 0; i < 3; i++) size[b][i] = GRID[b][i] * (i ? c->in : c->out);
    Shape shape = SHAPE(GRID_ROWS, c->n * c->out * c->in * c->in);
    return op_unpatchify(s->graph, scene_input(s, "rows", shape, 0.5, true),
                         (LatentSizes){3, (const int64_t(*)[3])size}, c->n, c->in, c->out);
}

static Tensor *add_axes(Scene *s, const Case *c) {
    static const int64_t WIDTHS[3] = {2, 3, 1}, COUNTS[3] = {2, 4, 3}; /* frames, width, height */
    Tensor *table[3];
    for (int i = 0; i < 3; i++) {
        real *values = numbers(COUNTS[i] * WIDTHS[i], (uint32_t)i);
        table[i] = graph_const(s->graph, "table", SHAPE(COUNTS[i], WIDTHS[i]), DT_REAL, values);
        BACKEND_CPU.release(values);
    }
    int64_t rows[4] = {0};
    for (int b = 0; b < 3; b++) rows[b] = GRID[b][0] * GRID[b][1] * GRID[b][2];
    return op_add_axes(s->graph, one_input(s, c), (LatentSizes){3, GRID}, scene_segments(s, rows),
                       table[0], table[1], table[2]);
}

/* clang-format off */
static const Case CASES[] = {
    /* name, record, rows, in, out, n, flags */
    {"linear, 1 row",                  linear, {1}, 3, 5, 0, BIAS},
    {"linear, 1 column",               linear, {5}, 7, 1, 0, BIAS},
    {"linear, no bias",                linear, {37}, 13, 19, 0, 0},
    {"linear, bias",                   linear, {67}, 17, 33, 0, BIAS},
    {"linear, of samples",             linear, {3}, 67, 35, 0, BIAS | FEW},
    {"linear, of samples, 2 slices",   linear, {1}, 5, 131, 2, FEW},
    {"linear_add, of samples",         linear_add, {2}, 70, 9, 0, FEW},
    {"linear, rows over a chunk",      linear, {1031}, 3, 2, 0, BIAS},
    {"linear, 3 slices",               linear, {9}, 5, 7, 3, 0},
    {"linear, 3 slices, bias",         linear, {1}, 6, 5, 3, BIAS},
    {"linear, 2 slices over a chunk",  linear, {1025}, 2, 3, 2, BIAS},
    {"linear_add",                     linear_add, {11}, 3, 7, 0, 0},
    {"linear_add, 1 row",              linear_add, {1}, 4, 3, 0, 0},
    {"linear_add on 3 slices",         linear_add, {13}, 2, 5, 3, 0},
    {"linear_add over a chunk",        linear_add, {1027}, 2, 3, 3, 0},
    {"feed forward",                   feed_forward, {7}, 5, 11, 0, BIAS},
    {"feed forward, no bias",          feed_forward, {1}, 3, 4, 0, 0},
    {"feed forward, over a chunk",     feed_forward, {1027}, 2, 3, 0, BIAS},
    {"feed forward, twice",            feed_forward, {9}, 4, 8, 1, BIAS},
    {"gelu",                           gelu, {7}, 5, 0, 0, 0},
    {"gelu, 1",                        gelu, {1}, 1, 0, 0, 0},
    {"silu",                           silu, {9}, 11, 0, 0, 0},
    {"silu, 1",                        silu, {1}, 1, 0, 0, 0},
    {"add",                            add, {5}, 7, 0, 0, 0},
    {"add itself",                     add_itself, {3}, 5, 0, 0, 0},
    {"dropout",                        dropout, {3, 1, 7}, 5, 0, 0, 0},
    {"dropout, 1 row",                 dropout, {1}, 9, 0, 0, 0},
    {"norm",                           norm, {7}, 13, 0, 0, 0},
    {"norm, 1 row",                    norm, {1}, 5, 0, 0, 0},
    {"norm, 2 channels",               norm, {6}, 2, 0, 0, 0},
    {"norm, rows over a chunk",        norm, {1030}, 7, 0, 0, 0},
    {"norm, modulated",                norm, {4, 1, 6}, 9, 0, 0, MODULATED},
    {"norm, modulated, 1 row",         norm, {1}, 7, 0, 0, MODULATED},
    {"norm, modulated, over a chunk",  norm, {3, 1029}, 7, 0, 0, MODULATED},
    {"gate",                           gate, {4, 1, 6}, 7, 0, 2, 0},
    {"gate, first columns",            gate, {5}, 3, 0, 0, 0},
    {"gate, 1 row",                    gate, {1}, 5, 0, 2, 0},
    {"gate, rows over a chunk",        gate, {1029, 2}, 3, 0, 1, 0},
    {"gate of itself",                 gate_itself, {4, 3}, 5, 0, 0, 0},
    {"norm and gates, one table",      shared_modulation, {5, 1, 3}, 7, 0, 0, 0},
    {"qk_norm",                        qk_norm, {7}, 6, 0, 1, 0},
    {"qk_norm, 2 channels",            qk_norm, {5}, 6, 0, 3, 0},
    {"qk_norm, rope",                  qk_norm, {9}, 12, 0, 2, ROPE},
    {"qk_norm, rope, 1 row",           qk_norm, {1}, 64, 0, 1, ROPE},
    {"qk_norm, rope, 64",              qk_norm, {3, 2}, 192, 0, 3, ROPE},
    {"qk_norm, rope, over a chunk",    qk_norm, {1027}, 4, 0, 1, ROPE},
    {"attention, 1 row",               attention, {1}, 4, 0, 2, TOGETHER},
    {"attention, head size 2",         attention, {5, 1, 9}, 6, 0, 3, TOGETHER},
    {"attention, head size 16",        attention, {3, 17, 1}, 32, 0, 2, TOGETHER},
    {"attention, head size 64",        attention, {11, 2}, 128, 0, 2, TOGETHER},
    {"attention, over a tile",         attention, {1, 67, 66}, 16, 0, 1, TOGETHER},
    {"attention, over a key block",    attention, {259, 5}, 4, 0, 2, TOGETHER},
    {"attention of views",             attention_of_views, {7, 1, 5}, 12, 0, 2, ROPE | TOGETHER},
    {"views",                          views, {5}, 3, 0, 0, 0},
    {"join",                           join, {13}, 5, 0, 0, 0},
    {"join, one of each",              join, {2}, 3, 0, 0, 0},
    {"gather_rows",                    gather_rows, {13}, 5, 0, 0, 0},
    {"gather_rows, 1 row",             gather_rows, {1}, 3, 0, 0, 0},
    {"unpatchify",                     unpatchify, {GRID_ROWS}, 2, 1, 3, 0},
    {"unpatchify, patches in time",    unpatchify, {GRID_ROWS}, 2, 2, 5, 0},
    {"unpatchify, 1x1",                unpatchify, {GRID_ROWS}, 1, 1, 1, 0},
    {"add_axes",                       add_axes, {GRID_ROWS}, 6, 0, 0, 0},
    {"mse, one sample",                one_input, {1}, 1, 0, 0, 0},
    {"mse, samples",                   one_input, {3, 1, 7}, 5, 0, 0, SAMPLES},
};
/* clang-format on */

/* ---- the check --------------------------------------------------------------------------------
 */

static const double STEP = 2e-4, TOLERANCE = 1e-6;
enum { MOST_ELEMENTS = 9 };

static double worst_error;

static Segments loss_segments(Scene *s, const Case *c, int64_t elements) {
    if (!(c->flags & SAMPLES)) return scene_segments(s, (int64_t[]){elements, 0});
    int64_t length[5] = {0};
    for (int i = 0; c->rows[i]; i++) length[i] = c->rows[i] * c->in;
    return scene_segments(s, length);
}

/* The op's output meets a target; with `twice` a sum of two of its outputs does. */
static Tensor *record_loss(Scene *s, const Case *c, bool twice) {
    Tensor *y = c->record(s, c);
    if (twice) {
        int n = s->next;
        s->next = 0;
        y = op_add(s->graph, y, op_silu(s->graph, c->record(s, c)));
        s->next = n;
    }
    Tensor *target = scene_input(s, "target", y->shape, 0.7, false);
    return op_mse(s->graph, y, target, loss_segments(s, c, tensor_count(y)));
}

static double loss_now(Scene *s) {
    scene_run(s);
    real loss;
    run_output(s->run, s->plan->loss, &loss);
    return (double)loss * (double)s->args.loss_grad;
}

/* The loss where every input i has gone `step` along direction[i]. */
static double loss_along(Scene *s, real *const *direction, double step) {
    for (int i = 0; i < s->n_inputs; i++)
        for (int64_t j = 0; direction[i] && j < tensor_count(s->input[i]); j++)
            ((real *)s->value[i])[j] += (real)step * direction[i][j];
    double loss = loss_now(s);
    for (int i = 0; i < s->n_inputs; i++)
        for (int64_t j = 0; direction[i] && j < tensor_count(s->input[i]); j++)
            ((real *)s->value[i])[j] -= (real)step * direction[i][j];
    return loss;
}

static double slope_along(Scene *s, real *const *direction) {
    double near = loss_along(s, direction, STEP) - loss_along(s, direction, -STEP);
    double far = loss_along(s, direction, 2 * STEP) - loss_along(s, direction, -2 * STEP);
    return (8 * near - far) / (12 * STEP);
}

/* `floor`: what counts as small beside the other gradients. */
static void compare(const char *name, const char *tensor, double got, double want, double floor) {
    double error = fabs(got - want) / fmax(fabs(want), floor);
    if (!(error <= TOLERANCE))
        fail_msg("%s: the gradient of %s is %.12g, differences give %.12g", name, tensor, got,
                 want);
    worst_error = fmax(worst_error, error);
}

/* Elements spread over input i, the first and the last among them, one by one. */
static void check_elements(Scene *s, const Case *c, int i, const real *grad, double loss) {
    int64_t n = tensor_count(s->input[i]), tests = MIN(n, MOST_ELEMENTS);
    real *direction[SCENE_INPUTS] = {0}, *one = xcalloc((size_t)n, sizeof *one);
    double most = 0;
    for (int64_t j = 0; j < n; j++) most = fmax(most, fabs((double)grad[j]));
    direction[i] = one;
    for (int64_t k = 0; k < tests; k++) {
        int64_t j = tests > 1 ? k * (n - 1) / (tests - 1) : 0;
        one[j] = 1;
        compare(c->name, s->input[i]->name, (double)grad[j], slope_along(s, direction),
                fmax(1e-2 * most, 1e-5 * loss));
        one[j] = 0;
    }
    free(one);
}

/* All elements of all gradients at once, along a random direction. */
static void check_direction(Scene *s, const Case *c, real *const *grad, double loss) {
    real *direction[SCENE_INPUTS] = {0};
    double want = 0, size = 0;
    for (int i = 0; i < s->n_inputs; i++) {
        if (!grad[i]) continue;
        direction[i] = numbers(tensor_count(s->input[i]), 991 + (uint32_t)i);
        for (int64_t j = 0; j < tensor_count(s->input[i]); j++) {
            double product = (double)grad[i][j] * (double)direction[i][j];
            want += product;
            size += product * product;
        }
    }
    compare(c->name, "all", want, slope_along(s, direction), fmax(sqrt(size), 1e-5 * loss));
    for (int i = 0; i < s->n_inputs; i++) BACKEND_CPU.release(direction[i]);
}

/* Returns false where input `only` is none that has a gradient. */
static bool check_case(const Case *c, int only, bool twice) {
    Scene s = scene_open(17, NULL);
    s.only = only;
    Tensor *loss = record_loss(&s, c, twice);
    bool any = loss->needs_grad;
    if (any) {
        s.plan = plan_open(s.graph);
        plan_backward(s.plan, loss);
        plan_fuse(s.plan);
        scene_place(&s);
        double at = loss_now(&s);
        real *grad[SCENE_INPUTS] = {0};
        for (int i = 0; i < s.n_inputs; i++)
            if (s.input[i]->grad) grad[i] = scene_read(&s, s.input[i]->grad);
        for (int i = 0; i < s.n_inputs; i++)
            if (grad[i]) check_elements(&s, c, i, grad[i], at);
        check_direction(&s, c, grad, at);
        for (int i = 0; i < s.n_inputs; i++) BACKEND_CPU.release(grad[i]);
    }
    scene_close(&s);
    return any;
}

static void every_op(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(CASES); i++) {
        const Case *c = &CASES[i];
        for (int twice = 0; twice < 2; twice++) {
            assert_true(check_case(c, -1, twice));
            for (int only = 0; !(c->flags & TOGETHER) && check_case(c, only, twice); only++) {
            }
        }
    }
    print_message("worst error of a gradient: %.1e\n", worst_error);
    worst_error = 0;
}

/* One parameter's first, middle and last elements, against its accumulated gradient. */
static void check_param(Scene *s, const ParamSet *p, int i, const real *grad, double loss) {
    int64_t n = param_count(&p->param[i]);
    real *master = param_master(p, i);
    for (int64_t k = 0; k < 3; k++) {
        int64_t j = k * (n - 1) / 2;
        double at[5];
        real was = master[j];
        for (int step = -2; step <= 2; step++) {
            master[j] = was + (real)(step * STEP);
            at[step + 2] = step ? loss_now(s) : 0;
        }
        master[j] = was;
        compare("blocks", p->param[i].name, (double)grad[j],
                (8 * (at[3] - at[1]) - (at[4] - at[0])) / (12 * STEP), 1e-4 * loss);
    }
}

/* Every parameter of a small transformer, with recomputation. */
static void blocks(void **state) {
    (void)state;
    static const Recompute POLICY[] = {0, RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_BLOCK};
    for (int full = 0; full < 2; full++) {
        Blocks b = blocks_open((BlocksKind){.full = full, .form = DT_REAL, .dropout = (real)0.3});
        Scene s = scene_open(23, b.params);
        blocks_plan(&b, &s, POLICY, 1);
        scene_place(&s);
        double loss = loss_now(&s);
        const ParamSet *p = b.params;
        real **grad = xcalloc((size_t)p->n_params, sizeof *grad);
        for (int i = 0; i < p->n_params; i++)
            if (p->param[i].trained) grad[i] = copy_of(param_grad(p, i), param_count(&p->param[i]));
        for (int i = 0; i < p->n_params; i++)
            if (grad[i]) check_param(&s, p, i, grad[i], loss);
        for (int i = 0; i < p->n_params; i++) BACKEND_CPU.release(grad[i]);
        free(grad);
        scene_close(&s);
        blocks_close(&b);
    }
    print_message("worst error of a gradient: %.1e\n", worst_error);
}

int main(void) {
    omp_set_num_threads(1); /* these sizes are too small for more */
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_op), cmocka_unit_test(blocks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
