/* The plan and its passes: bit-equal results whatever they insert, lives that never meet in one
 * place, and proof that a wrong life would show. */
#define _POSIX_C_SOURCE 200809L
#include "tests/autograd/passes.h"

#include <omp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

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

/* ---- bits -------------------------------------------------------------------------------------
 */

static void recomputation_keeps_the_bits(void **state) {
    (void)state;
    for (size_t k = 0; k < COUNT(KINDS); k++) {
        Result want = run_blocks(KINDS[k], NONE, 1);
        for (size_t i = 0; i < COUNT(POLICIES); i++)
            expect_result("recomputed", run_blocks(KINDS[k], POLICIES[i], 1), want);
        free(want.x);
    }
}

/* Steps of two nodes, in the phase named, that write so much; 0: all of them. */
static int count_fused(const Plan *p, Phase phase, unsigned wanted) {
    int n = 0;
    for (int i = 0; i < p->n_steps; i++) {
        const Step *s = &p->steps[i];
        n += s->then && s->phase == phase && (!wanted || s->wanted == wanted);
    }
    return n;
}

/* Every block's feed-forward is two steps, each way, whatever is computed again. */
static void fusion_keeps_the_bits(void **state) {
    (void)state;
    for (size_t k = 0; k < COUNT(KINDS); k++)
        for (size_t i = 0; i <= COUNT(POLICIES); i++) {
            const Recompute *policy = i ? POLICIES[i - 1] : NONE;
            BlocksKind apart = KINDS[k];
            apart.apart = true;
            Result want = run_blocks(apart, policy, 1);
            expect_result("fused", run_blocks(KINDS[k], policy, 1), want);
            free(want.x);
        }
}

static Plan *blocks_placed(Blocks *b, Scene *s, BlocksKind kind, const Recompute *policy) {
    *b = blocks_open(kind);
    *s = scene_open(31, b->params);
    blocks_plan(b, s, policy, 1);
    plan_place(s->plan, &(Ctx){.k = s->memory.k, .stream = s->stream});
    return s->plan;
}

static void fusion_takes_no_memory(void **state) {
    (void)state;
    for (size_t k = 0; k < COUNT(KINDS); k++)
        for (size_t i = 0; i <= COUNT(POLICIES); i++) {
            Blocks b[2];
            Scene s[2];
            Cost cost[2];
            for (int apart = 0; apart < 2; apart++) {
                BlocksKind kind = KINDS[k];
                kind.apart = apart;
                blocks_placed(&b[apart], &s[apart], kind, i ? POLICIES[i - 1] : NONE);
                cost[apart] = plan_cost(s[apart].plan, -1);
            }
            assert_true(s[0].plan->arena_bytes <= s[1].plan->arena_bytes);
            assert_true(s[0].plan->live_bytes <= s[1].plan->live_bytes);
            assert_true(cost[0].bytes < cost[1].bytes && cost[0].flops <= cost[1].flops);
            for (int apart = 0; apart < 2; apart++) {
                scene_close(&s[apart]);
                blocks_close(&b[apart]);
            }
        }
}

/* Which steps become one, and what they write: adapters need no h = gelu(u) again, full training
 * does, and u is not held where it is computed again. */
static void feed_forwards_are_fused(void **state) {
    (void)state;
    for (int full = 0; full < 2; full++)
        for (int again = 0; again < 2; again++) {
            enum { BOTH = WANTED_NODE | WANTED_THEN };
            BlocksKind kind = KINDS[full ? 2 : 0];
            Blocks b;
            Scene s;
            Plan *p = blocks_placed(&b, &s, kind, again ? POLICIES[1] : NONE);
            assert_int_equal(count_fused(p, FORWARD, again ? WANTED_THEN : BOTH), N_BLOCKS);
            assert_int_equal(count_fused(p, RECOMPUTE, full ? BOTH : WANTED_NODE),
                             again ? N_BLOCKS : 0);
            assert_int_equal(count_fused(p, BACKWARD, 0), N_BLOCKS);
            for (int i = 0; i < p->n_steps; i++)
                assert_true(!p->steps[i].node || !op_is_gelu(p->steps[i].node));
            scene_close(&s);
            blocks_close(&b);
        }
}

/* What else reads or adds to a value between two nodes: it is written, or they stay apart; as do
 * those of two segments, of which one may be computed again without the other. */
static void other_readers_are_served(void **state) {
    (void)state;
    enum { ROWS = 5, K = 4, N = 6 };
    for (int reader = 0; reader < 5; reader++) {
        real *results[2];
        for (int fused = 0; fused < 2; fused++) {
            Scene s = scene_open(3, NULL);
            Graph *g = s.graph;
            Tensor *x = scene_input(&s, "x", SHAPE(ROWS, K), 1, true);
            Tensor *w = scene_input(&s, "w", SHAPE(N, K), 1, true);
            Tensor *down = scene_input(&s, "down", SHAPE(N, N), 1, true);
            Tensor *u = op_linear(g, x, w, NULL);
            Tensor *other = scene_input(&s, "other", SHAPE(ROWS, N), 1, true);
            if (reader == 1) other = op_silu(g, other); /* stands between the two */
            Tensor *h = op_gelu(g, u);
            if (reader == 4) g->segment++;
            Tensor *y = op_linear(g, h, down, NULL);
            if (reader == 1) y = op_add(g, y, other);
            if (reader == 2) y = op_add(g, y, u);
            if (reader == 3) y = op_add(g, y, h);
            Tensor *target = scene_input(&s, "target", y->shape, 1, false);
            Tensor *loss = op_mse(g, y, target, scene_segments(&s, (int64_t[]){ROWS * N, 0}));
            s.plan = plan_open(g);
            plan_backward(s.plan, loss);
            if (fused) plan_fuse(s.plan);
            assert_int_equal(count_fused(s.plan, FORWARD, 0), fused && reader != 1);
            assert_int_equal(count_fused(s.plan, BACKWARD, 0), fused && reader < 2);
            scene_place(&s);
            check_plan(s.plan);
            scene_run(&s);
            results[fused] = scene_read(&s, x->grad);
            scene_close(&s);
        }
        expect_same("dx", results[1], results[0], ROWS * K * sizeof(real));
        release(2, results[0], results[1]);
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
        cmocka_unit_test(fusion_keeps_the_bits),
        cmocka_unit_test(fusion_takes_no_memory),
        cmocka_unit_test(feed_forwards_are_fused),
        cmocka_unit_test(other_readers_are_served),
        cmocka_unit_test(policies_recompute_what_they_say),
        cmocka_unit_test(repeated_runs_have_the_same_bits),
        cmocka_unit_test(threads_do_not_change_the_bits),
        cmocka_unit_test(accumulation_is_a_sum_in_order),
        cmocka_unit_test(sealed_memory_aborts),
        cmocka_unit_test(consumed_memory_changes_owner),
        cmocka_unit_test(views_are_the_same_bytes),
        cmocka_unit_test(inserted_steps_are_placed),
        cmocka_unit_test(shared_places_show),
        cmocka_unit_test(shortened_lives_show),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
