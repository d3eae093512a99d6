/* Backward of the ops among ranks against central differences of their forward, in f64: the ranks
 * are threads of this program, with collectives over what each of them posts. */
#define _POSIX_C_SOURCE 200809L
#include "tests/autograd/scene.h"

#include <omp.h>
#include <pthread.h>

enum { MAX_RANKS = 3 };

/* ---- ranks ------------------------------------------------------------------------------------
 */

static struct {
    int size;
    pthread_barrier_t barrier;
    const void *posted[MAX_RANKS];
} group;

/* to[r] = block `block` of what rank r has posted. */
static void collect(const Comm *c, DType t, int64_t count, int block, const void *mine, void *to) {
    size_t bytes = (size_t)count * dtype_size(t);
    group.posted[c->rank] = mine;
    pthread_barrier_wait(&group.barrier);
    for (int r = 0; r < c->size; r++)
        memmove((char *)to + (size_t)r * bytes,
                (const char *)group.posted[r] + (size_t)block * bytes, bytes);
    pthread_barrier_wait(&group.barrier);
}

static void gather(Comm *c, Stream *s, DType t, int64_t count, const void *mine, void *all) {
    (void)s;
    char *copy = xcalloc((size_t)count, dtype_size(t)); /* mine may lie in all */
    memcpy(copy, mine, (size_t)count * dtype_size(t));
    collect(c, t, count, 0, copy, all);
    free(copy);
}

static void exchange(Comm *c, Stream *s, DType t, int64_t count, const void *from, void *to) {
    (void)s;
    collect(c, t, count, c->rank, from, to);
}

/* ---- one rank's graph -------------------------------------------------------------------------
 */

typedef struct {
    const char *name;
    bool whole; /* op_whole_rows; else there and back with op_rows_to_heads */
    int ranks;
    int64_t runs[4]; /* rows of each sample, on all ranks; 0 ends */
    int64_t groups, width;
} Case;

static const Case CASES[] = {
    {"rows and heads", false, 2, {5, 8}, 1, 6},
    {"rows and heads, 3 ranks", false, 3, {4, 3, 7}, 1, 9},
    {"rows and heads, slices", false, 2, {7, 3}, 2, 4},
    {"rows and heads, a row each", false, 3, {3}, 3, 3},
    {"whole rows", true, 2, {5, 8}, 1, 3},
    {"whole rows, 3 ranks", true, 3, {4, 3, 7}, 1, 5},
};

typedef struct {
    const Case *c;
    int rank;
    double step;  /* along the direction, of every input of every rank */
    double loss;  /* of this rank */
    double slope; /* the gradient of its input along the direction */
} Worker;

static Tensor *record(Scene *s, const Case *c, Tensor *x, Segments runs) {
    Graph *g = s->graph;
    if (c->whole) return op_gelu(g, op_whole_rows(g, op_silu(g, x), runs));
    Tensor *heads = op_gelu(g, op_rows_to_heads(g, op_silu(g, x), runs));
    return op_add(g, op_heads_to_rows(g, heads, runs), op_silu(g, x));
}

static void *work(void *arg) {
    Worker *w = arg;
    const Case *c = w->c;
    omp_set_num_threads(1);
    Comm comm = {.rank = w->rank,
                 .size = group.size,
                 .name = "threads",
                 .all_gather = gather,
                 .all_to_all = exchange};
    Scene s = scene_open(1000 + 100 * (uint32_t)w->rank, NULL);
    s.graph->sequence = &comm;
    Segments runs = scene_segments(&s, c->runs);
    int64_t rows = 0;
    for (int b = 0; b < runs.n; b++)
        rows += comm_part(&comm, w->rank, runs.cu[b + 1] - runs.cu[b]).count;
    Shape shape = c->groups > 1 ? SHAPE(c->groups, rows, c->width) : SHAPE(rows, c->width);
    Tensor *x = scene_input(&s, "x", shape, 0.7, true), *y = record(&s, c, x, runs);
    if (c->whole) s.seed = 77; /* all of them compute the same with all rows */
    Tensor *target = scene_input(&s, "target", y->shape, 0.7, false);
    Tensor *loss = op_mse(s.graph, y, target, scene_segments(&s, (int64_t[]){tensor_count(y), 0}));
    s.plan = plan_open(s.graph);
    plan_backward(s.plan, loss);
    scene_place(&s);
    real *direction = numbers(tensor_count(x), 5 + (uint32_t)w->rank);
    for (int64_t i = 0; i < tensor_count(x); i++)
        ((real *)s.value[0])[i] += (real)w->step * direction[i];
    scene_run(&s);
    real at;
    run_output(s.run, loss, &at);
    w->loss = (double)at * (double)s.args.loss_grad;
    real *grad = scene_read(&s, x->grad);
    for (int64_t i = 0; i < tensor_count(x); i++)
        w->slope += (double)grad[i] * (double)direction[i];
    release(2, grad, direction);
    scene_close(&s);
    return NULL;
}

/* ---- the check --------------------------------------------------------------------------------
 */

/* The loss of the whole group: of ranks that compute the same it is that of one. */
static double run_all(const Case *c, double step, double *slope) {
    Worker worker[MAX_RANKS];
    pthread_t thread[MAX_RANKS];
    double loss = 0;
    group.size = c->ranks;
    pthread_barrier_init(&group.barrier, NULL, (unsigned)c->ranks);
    for (int r = 0; r < c->ranks; r++) {
        worker[r] = (Worker){.c = c, .rank = r, .step = step};
        assert_int_equal(pthread_create(&thread[r], NULL, work, &worker[r]), 0);
    }
    *slope = 0;
    for (int r = 0; r < c->ranks; r++) {
        pthread_join(thread[r], NULL);
        *slope += worker[r].slope;
        if (c->whole) assert_true(worker[r].loss == worker[0].loss);
        loss += c->whole ? worker[r].loss / c->ranks : worker[r].loss;
    }
    pthread_barrier_destroy(&group.barrier);
    return loss;
}

static void every_op(void **state) {
    (void)state;
    const double step = 2e-4;
    for (size_t i = 0; i < COUNT(CASES); i++) {
        double slope, unused;
        run_all(&CASES[i], 0, &slope);
        double near = run_all(&CASES[i], step, &unused) - run_all(&CASES[i], -step, &unused);
        double far = run_all(&CASES[i], 2 * step, &unused) - run_all(&CASES[i], -2 * step, &unused);
        double want = (8 * near - far) / (12 * step);
        if (!(fabs(slope - want) <= 1e-6 * fabs(want)))
            fail_msg("%s: the gradient is %.12g, differences give %.12g", CASES[i].name, slope,
                     want);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_op)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
