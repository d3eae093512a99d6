/* The plan and its passes: bit-equal results whatever they insert, lives that never meet in one
 * place, and proof that a wrong life would show. */
#define _POSIX_C_SOURCE 200809L
#include "tests/autograd/blocks.h"

#include <omp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

typedef Recompute Policy[N_BLOCKS + 1];
static const Policy NONE = {0};
static const Policy POLICIES[] = {
    {0, RECOMPUTE_SELECTIVE, RECOMPUTE_SELECTIVE, RECOMPUTE_SELECTIVE},
    {0, RECOMPUTE_BLOCK, RECOMPUTE_BLOCK, RECOMPUTE_BLOCK},
    {0, RECOMPUTE_BLOCK, RECOMPUTE_NONE, RECOMPUTE_SELECTIVE},
};

/* Runs `body` in a child that must abort, as a CHECK does. */
static void expect_abort(const char *what, void (*body)(void *), void *arg) {
    fflush(NULL);
    pid_t child = fork();
    if (!child) {
        if (!freopen("/dev/null", "w", stderr)) _exit(3);
        signal(SIGABRT, SIG_DFL);
        omp_set_num_threads(1); /* the parent's threads are not here */
        body(arg);
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT) fail_msg("%s: no abort", what);
}

/* ---- results as numbers -----------------------------------------------------------------------
 */

/* Loss, losses per sample, prediction and all gradients, end to end. */
typedef struct {
    real *x;
    int64_t n;
} Result;

static void take(Result *r, const real *values, int64_t n) {
    r->x = xrealloc(r->x, (size_t)(r->n + n) * sizeof *r->x);
    memcpy(r->x + r->n, values, (size_t)n * sizeof *values);
    r->n += n;
}

static void take_tensor(Result *r, Scene *s, const Tensor *t) {
    real *values = scene_read(s, t);
    take(r, values, tensor_count(t));
    BACKEND_CPU.release(values);
}

static void take_grads(Result *r, const ParamSet *p) {
    for (int i = 0; i < p->n_params; i++)
        if (p->param[i].trained) take(r, param_grad(p, i), param_count(&p->param[i]));
}

static Result result_of(const Blocks *b, Scene *s) {
    Result r = {0};
    take_tensor(&r, s, s->plan->loss);
    take_tensor(&r, s, s->plan->loss->from->in[0]);
    take_grads(&r, b->params);
    return r;
}

static bool same(Result a, Result b) {
    return a.n == b.n && !memcmp(a.x, b.x, (size_t)a.n * sizeof *a.x);
}

static bool finite(Result r) {
    for (int64_t i = 0; i < r.n; i++)
        if (!isfinite(r.x[i])) return false;
    return true;
}

static void expect_result(const char *what, Result got, Result want) {
    assert_true(got.n > 1000 && finite(want));
    if (!same(got, want)) fail_msg("%s: the bits differ", what);
    free(got.x);
}

/* ---- what every plan must be ------------------------------------------------------------------
 */

static int64_t bytes_of(const Life *life) { return (int64_t)tensor_bytes(life->tensor); }

/* Lives that meet in time meet in memory only where one hands it to the other. */
static void check_places(const Plan *p) {
    for (int j = 0; j < p->n_lives; j++) {
        const Life *b = &p->lives[j];
        assert_true(b->from <= b->to && b->to <= p->n_steps && b->offset % 256 == 0);
        assert_true(b->offset >= 0 && b->offset + bytes_of(b) <= p->arena_bytes);
        for (int i = 0; i < j; i++) {
            const Life *a = &p->lives[i];
            bool time = a->from <= b->to && b->from <= a->to;
            bool place = a->offset < b->offset + bytes_of(b) && b->offset < a->offset + bytes_of(a);
            bool handed = b->taken_from == i && a->given && a->to == b->from &&
                          a->offset == b->offset && bytes_of(a) == bytes_of(b);
            if (time && place && !handed)
                fail_msg("%s [%d,%d] and %s [%d,%d] lie in one place", a->tensor->name, a->from,
                         a->to, b->tensor->name, b->from, b->to);
        }
    }
}

typedef struct {
    const Plan *plan;
    int step;
} At;

static void check_alive(Tensor *t, bool define, void *arg) {
    const At *at = arg;
    const Tensor *root = tensor_root(t);
    int lives = 0;
    (void)define;
    for (int i = 0; i < at->plan->n_lives; i++) {
        const Life *life = &at->plan->lives[i];
        lives += life->tensor == root && life->from <= at->step && at->step <= life->to;
    }
    int want = !root->resident && root->role != ROLE_CONST;
    if (lives != want) fail_msg("%s has %d lives at step %d", t->name, lives, at->step);
}

static void check_plan(const Plan *p) {
    check_places(p);
    for (int i = 0; i < p->n_steps; i++) {
        At at = {p, i};
        step_touch(p, &p->steps[i], check_alive, &at);
    }
    assert_true(p->live_bytes <= p->arena_bytes);
}

static int count_steps(const Plan *p, Phase phase) {
    int n = 0;
    for (int i = 0; i < p->n_steps; i++) n += p->steps[i].phase == phase;
    return n;
}

/* Opens, runs `times` times with the same numbers, and closes. */
static Result run_blocks(BlocksKind kind, const Recompute *policy, int times) {
    Blocks b = blocks_open(kind);
    Scene s = scene_open(31, b.params);
    blocks_plan(&b, &s, policy, 1);
    scene_place(&s);
    check_plan(s.plan);
    s.run->late = kind.late;
    int allocations = s.memory.allocations;
    for (int i = 0; i < times; i++) scene_run(&s);
    assert_int_equal(s.memory.allocations, allocations);
    assert_int_equal(s.run->high_water_bytes, s.plan->arena_bytes);
    Result r = result_of(&b, &s);
    scene_close(&s);
    blocks_close(&b);
    return r;
}

/* ---- bits -------------------------------------------------------------------------------------
 */

static const BlocksKind KINDS[] = {
    {.form = DT_REAL},
    {.form = DT_REAL, .dropout = (real)0.3},
    {.form = DT_REAL, .full = true},
};

static void recomputation_keeps_the_bits(void **state) {
    (void)state;
    for (size_t k = 0; k < COUNT(KINDS); k++) {
        Result want = run_blocks(KINDS[k], NONE, 1);
        for (size_t i = 0; i < COUNT(POLICIES); i++)
            expect_result("recomputed", run_blocks(KINDS[k], POLICIES[i], 1), want);
        free(want.x);
    }
}

/* What each policy runs again: nothing; all but attention; all. */
static void policies_recompute_what_they_say(void **state) {
    (void)state;
    const Recompute *policies[] = {NONE, POLICIES[0], POLICIES[1]};
    for (int i = 0; i < 3; i++) {
        Blocks b = blocks_open(KINDS[0]);
        Scene s = scene_open(1, b.params);
        blocks_plan(&b, &s, policies[i], 1);
        int attention = 0, all = count_steps(s.plan, RECOMPUTE);
        for (int j = 0; j < s.plan->n_steps; j++) {
            const Step *step = &s.plan->steps[j];
            if (step->phase == RECOMPUTE) attention += !strcmp(step->node->op->name, "attention");
        }
        assert_int_equal(all > 0, i > 0);
        assert_int_equal(attention, i == 2 ? N_BLOCKS : 0);
        scene_close(&s);
        blocks_close(&b);
    }
}

static void repeated_runs_have_the_same_bits(void **state) {
    (void)state;
    for (size_t k = 0; k < COUNT(KINDS); k++) {
        Result want = run_blocks(KINDS[k], POLICIES[0], 1);
        expect_result("opened again", run_blocks(KINDS[k], POLICIES[0], 1), want);
        expect_result("the third run", run_blocks(KINDS[k], POLICIES[0], 3), want);
        free(want.x);
    }
}

/* Rows enough that kernels do work in parallel. */
static void threads_do_not_change_the_bits(void **state) {
    (void)state;
    static const BlocksRows ROWS = {700, 3, 260, 0};
    for (size_t k = 0; k < COUNT(KINDS); k++) {
        BlocksKind kind = KINDS[k];
        kind.rows = ROWS;
        omp_set_num_threads(1);
        Result want = run_blocks(kind, POLICIES[2], 1);
        omp_set_num_threads(2);
        expect_result("2 threads", run_blocks(kind, POLICIES[2], 1), want);
        omp_set_num_threads(3);
        expect_result("3 threads", run_blocks(kind, POLICIES[2], 1), want);
        omp_set_num_threads(1);
        free(want.x);
    }
}

/* Every micro-step has numbers of its own. */
static void give_micro(Scene *s, int micro) {
    for (int i = 0; i < s->n_inputs; i++) {
        int64_t n = tensor_count(s->input[i]);
        BACKEND_CPU.release(s->value[i]);
        s->value[i] = numbers(n, 1000 * (uint32_t)(micro + 1) + (uint32_t)i);
    }
    s->args.micro = micro;
}

static Result accumulate(BlocksKind kind, int micros, bool by_plan) {
    Blocks b = blocks_open(kind);
    Scene s = scene_open(31, b.params);
    blocks_plan(&b, &s, POLICIES[0], by_plan ? micros : 1);
    scene_place(&s);
    check_plan(s.plan);
    s.args.loss_grad = 1 / (real)micros;
    assert_int_equal(count_steps(s.plan, REDUCE) > 0, by_plan);
    Result sum = {0};
    for (int micro = 0; micro < micros; micro++) {
        give_micro(&s, micro);
        if (!by_plan) s.args.micro = 0;
        scene_run(&s);
        Result r = {0};
        take_grads(&r, b.params);
        if (!micro || by_plan) {
            free(sum.x);
            sum = r;
            continue;
        }
        for (int64_t i = 0; i < r.n; i++) sum.x[i] += r.x[i];
        free(r.x);
    }
    scene_close(&s);
    blocks_close(&b);
    return sum;
}

static void accumulation_is_a_sum_in_order(void **state) {
    (void)state;
    for (size_t k = 0; k < COUNT(KINDS); k++)
        for (int micros = 2; micros <= 3; micros++) {
            Result want = accumulate(KINDS[k], micros, false);
            expect_result("accumulated", accumulate(KINDS[k], micros, true), want);
            free(want.x);
        }
}

static void gathered_weights_keep_the_bits(void **state) {
    (void)state;
    static const DType MIXED[] = {DT_BF16, DT_F16, DT_F32}, BF16[] = {DT_BF16, DT_BF16, DT_BF16};
    const Recompute *policies[] = {NONE, POLICIES[0], POLICIES[1]};
    for (int i = 0; i < 3; i++) {
        BlocksKind file = {.home = HOME_FILE, .files = MIXED};
        BlocksKind resident = {.form = DT_REAL, .files = MIXED};
        Result want = run_blocks(resident, NONE, 1);
        expect_result("from files", run_blocks(file, policies[i], 2), want);
        free(want.x);
        BlocksKind half = {.form = DT_BF16, .files = BF16};
        resident.files = BF16;
        want = run_blocks(resident, NONE, 1);
        expect_result("from bf16 on the device", run_blocks(half, policies[i], 2), want);
        free(want.x);
    }
}

/* Base, masters and activations in host memory, alone and together. */
static void host_homes_keep_the_bits(void **state) {
    (void)state;
    const Recompute *policies[] = {NONE, POLICIES[0], POLICIES[1]};
    for (size_t k = 0; k < COUNT(KINDS); k++) {
        Result want = run_blocks(KINDS[k], NONE, 1);
        for (int where = 1; where < 8; where++)
            for (int i = 0; i < 3; i++) {
                BlocksKind kind = KINDS[k];
                if (where & 1) kind.home = HOME_HOST;
                kind.host_trained = where & 2;
                kind.stash = where & 4;
                expect_result("from the host", run_blocks(kind, policies[i], 2), want);
            }
        free(want.x);
    }
}

/* Whether what moves beside the steps comes and goes as early or as late as it may: the same bits.
 */
static void moves_beside_the_steps_keep_the_bits(void **state) {
    (void)state;
    const Recompute *policies[] = {NONE, POLICIES[0], POLICIES[1]};
    for (size_t k = 0; k < COUNT(KINDS); k++) {
        Result want = run_blocks(KINDS[k], NONE, 1);
        for (int how = 0; how < 8 * 2; how++)
            for (int i = 0; i < 3; i++) {
                BlocksKind kind = KINDS[k];
                kind.home = how & 1 ? HOME_HOST : HOME_FILE;
                kind.host_trained = how & 2;
                kind.stash = how & 4;
                kind.late = how & 8;
                kind.prefetch = true;
                expect_result("beside the steps", run_blocks(kind, policies[i], 2), want);
            }
        free(want.x);
    }
}

/* Every move is waited for once; what comes sets out while the segment before is at work, and is
 * waited for before its first use. */
static void moves_set_out_a_segment_ahead(void **state) {
    (void)state;
    BlocksKind kind = {.home = HOME_FILE, .full = true, .host_trained = true, .stash = true};
    kind.prefetch = true;
    Blocks b = blocks_open(kind);
    Scene s = scene_open(31, b.params);
    blocks_plan(&b, &s, POLICIES[0], 1);
    const Plan *p = s.plan;
    int ahead = 0, moves = 0;
    for (int i = 0; i < p->n_steps; i++) {
        const Step *m = &p->steps[i];
        if (m->node || m->phase == WAIT) continue;
        int j = i + 1, segments = 0, segment = -1;
        for (; j < p->n_steps; j++) {
            const Step *w = &p->steps[j];
            if (w->phase == WAIT && w->of == m->phase && w->bucket == m->bucket &&
                w->parked == m->parked)
                break;
            if (!w->node || w->node->segment == segment) continue;
            segments++;
            segment = w->node->segment;
        }
        if (j == p->n_steps) fail_msg("nobody waits for move %d", i);
        assert_true(m->waited);
        moves++;
        ahead += segments > 0;
    }
    assert_int_equal(moves, count_steps(p, WAIT));
    assert_true(ahead >= moves - 4); /* what the first segment needs cannot set out before */
    scene_close(&s);
    blocks_close(&b);
}

/* Every value that crosses into the backward half is parked once and comes back once, and is not
 * in the arena meanwhile; recomputed ones and the last segment's are not parked. */
static void what_crosses_is_parked(void **state) {
    (void)state;
    BlocksKind kind = KINDS[0];
    int64_t arena[2];
    for (int stash = 0; stash < 2; stash++) {
        kind.stash = stash;
        Blocks b = blocks_open(kind);
        Scene s = scene_open(31, b.params);
        blocks_plan(&b, &s, NONE, 1);
        assert_int_equal(count_steps(s.plan, STASH), count_steps(s.plan, FETCH));
        assert_int_equal(count_steps(s.plan, STASH) > 0, stash);
        int64_t parked = 0;
        for (int i = 0; i < s.plan->n_steps; i++) {
            const Step *step = &s.plan->steps[i];
            if (step->phase != STASH) continue;
            assert_true(step->host_offset % 256 == 0 && step->host_offset < s.plan->host_bytes);
            parked += align_up((int64_t)tensor_bytes(step->parked), 256);
            assert_true(step->parked->from->segment < N_BLOCKS);
        }
        assert_int_equal(s.plan->host_bytes, parked);
        scene_place(&s);
        check_plan(s.plan);
        arena[stash] = s.plan->arena_bytes;
        scene_close(&s);
        blocks_close(&b);
    }
    assert_true(arena[1] < arena[0] * 7 / 10);
}

/* Each base bucket is gathered for the forward half and, but for the last that was used, again. */
static void gathers_come_where_needed(void **state) {
    (void)state;
    Blocks b = blocks_open((BlocksKind){.home = HOME_FILE});
    Scene s = scene_open(1, b.params);
    blocks_plan(&b, &s, NONE, 1);
    int gathers[2 * N_BLOCKS + 4] = {0};
    for (int i = 0; i < s.plan->n_steps; i++) {
        if (s.plan->steps[i].phase != GATHER) continue;
        const Bucket *bucket = &b.params->bucket[s.plan->steps[i].bucket];
        assert_false(bucket->trained);
        gathers[bucket->block]++;
    }
    assert_int_equal(gathers[0], 1); /* the backward half needs nothing of the first bucket */
    for (int i = 1; i <= N_BLOCKS; i++) assert_int_equal(gathers[i], 2);
    assert_int_equal(gathers[N_BLOCKS + 1], 1); /* still there */
    scene_place(&s);
    check_plan(s.plan);
    scene_close(&s);
    blocks_close(&b);
}

/* ---- the seal ---------------------------------------------------------------------------------
 */

static void allocate(void *memory) { memory_alloc(memory, 16, "one too many"); }

static void sealed_memory_aborts(void **state) {
    (void)state;
    Memory m = {.k = &BACKEND_CPU};
    void *p = memory_alloc(&m, 16, "first");
    memory_seal(&m, true);
    expect_abort("sealed", allocate, &m);
    memory_seal(&m, false);
    void *q = memory_alloc(&m, 32, "second");
    assert_int_equal(m.allocations, 2);
    assert_int_equal(m.bytes, 48);
    memory_release(&m, p, 16);
    memory_release(&m, q, 32);
    assert_int_equal(m.bytes, 0);
    assert_int_equal(m.peak_bytes, 48);
}

/* ---- memory that changes owners, and views ----------------------------------------------------
 */

static const Life *life_of(const Plan *p, const Tensor *t) {
    for (int i = 0; i < p->n_lives; i++)
        if (p->lives[i].tensor == t) return &p->lives[i];
    fail_msg("%s never lives", t->name);
    return NULL;
}

/* y = gelu(h) goes on in h's memory unless h is read later. */
static void consumed_memory_changes_owner(void **state) {
    (void)state;
    real *values[2];
    for (int later = 0; later < 2; later++) {
        Scene s = scene_open(3, NULL);
        Tensor *h = op_silu(s.graph, scene_input(&s, "x", SHAPE(7, 9), 1, false));
        Tensor *y = op_gelu(s.graph, h);
        Tensor *z = op_add(s.graph, y, later ? h : scene_input(&s, "w", SHAPE(7, 9), 1, false));
        z->output = true;
        s.plan = plan_open(s.graph);
        scene_place(&s);
        check_plan(s.plan);
        const Life *from = life_of(s.plan, h), *to = life_of(s.plan, y);
        assert_int_equal(to->taken_from >= 0, !later);
        assert_int_equal(from->given, !later);
        assert_int_equal(from->offset == to->offset, !later);
        scene_run(&s);
        values[later] = scene_read(&s, z);
        if (later) { /* the same by kernels */
            real *want = copy_of(s.value[0], 63), *silu = output(63, 0, 1);
            BACKEND_CPU.silu(NULL, DT_REAL, 63, want, silu);
            BACKEND_CPU.gelu(NULL, DT_REAL, 63, silu, want);
            for (int i = 0; i < 63; i++) want[i] += silu[i];
            expect_same("gelu(h) + h", values[1], want, 63 * sizeof *want);
            release(2, want, silu);
        }
        scene_close(&s);
    }
    release(2, values[0], values[1]);
}

static void view_past_the_end(void *tensor) {
    Graph *g = graph_open(DT_REAL, NULL);
    graph_view(g, tensor, 60, SHAPE(4, 1));
}

static void views_are_the_same_bytes(void **state) {
    (void)state;
    Scene s = scene_open(3, NULL);
    Tensor *x = scene_input(&s, "x", SHAPE(3, 3, 7), 1, false);
    Tensor *middle = graph_view(s.graph, x, 21, SHAPE(3, 7));
    Tensor *row = graph_view(s.graph, middle, 7, SHAPE(1, 7)); /* of a view */
    Tensor *y = op_silu(s.graph, row);
    y->output = true;
    assert_ptr_equal(row->base, x);
    assert_int_equal(row->offset, 28);
    s.plan = plan_open(s.graph);
    scene_place(&s);
    assert_int_equal(life_of(s.plan, y)->taken_from, -1); /* a part cannot be handed over */
    scene_run(&s);
    real *got = scene_read(&s, y), *want = output(7, 0, 1);
    BACKEND_CPU.silu(NULL, DT_REAL, 7, (real *)s.value[0] + 28, want);
    expect_same("row 1 of slice 1", got, want, 7 * sizeof *want);
    expect_abort("a view past the end", view_past_the_end, x);
    release(2, got, want);
    scene_close(&s);
}

/* ---- steps inserted by hand -------------------------------------------------------------------
 */

static void inserted_steps_are_placed(void **state) {
    (void)state;
    Result want = run_blocks(KINDS[0], NONE, 1);
    Blocks b = blocks_open(KINDS[0]);
    Scene s = scene_open(31, b.params);
    blocks_plan(&b, &s, NONE, 1);
    int inserted = 0, before = s.plan->n_steps;
    for (int i = before - 1; i >= 0; i--) { /* every norm once more, just before its backward */
        Step step = s.plan->steps[i];
        if (step.phase != BACKWARD || strcmp(step.node->op->name, "norm")) continue;
        plan_insert(s.plan, i, (Step){.phase = RECOMPUTE, .node = step.node, .bucket = -1});
        assert_ptr_equal(s.plan->steps[i + 1].node, step.node);
        assert_int_equal(s.plan->steps[i + 1].phase, BACKWARD);
        inserted++;
    }
    assert_int_equal(inserted, 2 * N_BLOCKS - 1); /* nothing trains before the first */
    assert_int_equal(s.plan->n_steps, before + inserted);
    scene_place(&s);
    check_plan(s.plan);
    scene_run(&s);
    expect_result("inserted", result_of(&b, &s), want);
    free(want.x);
    scene_close(&s);
    blocks_close(&b);
}

/* ---- wrong lives show -------------------------------------------------------------------------
 */

/* A life inside life i, in time, that has room at its place; -1: there is none. */
static int life_inside(const Plan *p, int i) {
    const Life *a = &p->lives[i];
    for (int j = 0; j < p->n_lives; j++) {
        const Life *b = &p->lives[j];
        bool room = a->offset + bytes_of(b) <= p->arena_bytes;
        if (room && b->from > a->from && b->to < a->to && b->taken_from < 0 && !b->given) return j;
    }
    return -1;
}

/* Two lives in one place: the second's poison is in the results. */
static void shared_places_show(void **state) {
    (void)state;
    Blocks b = blocks_open(KINDS[0]);
    Scene s = scene_open(31, b.params);
    blocks_plan(&b, &s, NONE, 1);
    scene_place(&s);
    Plan *p = s.plan;
    int tried = 0;
    for (int i = 0; i < p->n_lives; i++) {
        int j = life_inside(p, i);
        if (p->lives[i].tensor->role != ROLE_VALUE || j < 0) continue;
        int64_t was = p->lives[j].offset;
        p->lives[j].offset = p->lives[i].offset;
        scene_run(&s);
        p->lives[j].offset = was;
        Result r = result_of(&b, &s);
        if (finite(r)) fail_msg("%s was overwritten, and nothing shows", p->lives[i].tensor->name);
        free(r.x);
        tried++;
    }
    assert_true(tried > 30);
    scene_run(&s); /* and right again */
    Result want = run_blocks(KINDS[0], NONE, 1);
    expect_result("mended", result_of(&b, &s), want);
    free(want.x);
    scene_close(&s);
    blocks_close(&b);
}

static void run_scene(void *scene) { scene_run(scene); }

/* Moves life i's entry among the ends to where its earlier end belongs. */
static void end_earlier(Plan *p, int i) {
    int at = 0;
    while (p->ends[at] != i) at++;
    p->lives[i].to--;
    for (; at > 0 && p->lives[p->ends[at - 1]].to > p->lives[i].to; at--) {
        p->ends[at] = p->ends[at - 1];
        p->ends[at - 1] = i;
    }
}

static void shortened_lives_show(void **state) {
    (void)state;
    int tried = 0;
    for (int k = 0; k < 40; k++) {
        Blocks b = blocks_open(KINDS[0]);
        Scene s = scene_open(31, b.params);
        blocks_plan(&b, &s, NONE, 1);
        scene_place(&s);
        int i = k * (s.plan->n_lives - 1) / 39;
        const Life *life = &s.plan->lives[i];
        if (life->to > life->from && life->to < s.plan->n_steps &&
            life->tensor->role != ROLE_INPUT) {
            end_earlier(s.plan, i);
            expect_abort(life->tensor->name, run_scene, &s);
            tried++;
        }
        scene_close(&s);
        blocks_close(&b);
    }
    assert_true(tried > 20);
}

int main(void) {
    omp_set_num_threads(1); /* these sizes are too small for more */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recomputation_keeps_the_bits),
        cmocka_unit_test(policies_recompute_what_they_say),
        cmocka_unit_test(repeated_runs_have_the_same_bits),
        cmocka_unit_test(threads_do_not_change_the_bits),
        cmocka_unit_test(accumulation_is_a_sum_in_order),
        cmocka_unit_test(gathered_weights_keep_the_bits),
        cmocka_unit_test(host_homes_keep_the_bits),
        cmocka_unit_test(moves_beside_the_steps_keep_the_bits),
        cmocka_unit_test(moves_set_out_a_segment_ahead),
        cmocka_unit_test(what_crosses_is_parked),
        cmocka_unit_test(gathers_come_where_needed),
        cmocka_unit_test(sealed_memory_aborts),
        cmocka_unit_test(consumed_memory_changes_owner),
        cmocka_unit_test(views_are_the_same_bytes),
        cmocka_unit_test(inserted_steps_are_placed),
        cmocka_unit_test(shared_places_show),
        cmocka_unit_test(shortened_lives_show),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
