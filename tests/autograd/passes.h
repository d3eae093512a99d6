/* What the tests of passes share: policies, results as numbers, what every plan must be, and a run
 * of the blocks of blocks.h. */
#pragma once

#include "tests/autograd/blocks.h"

typedef Recompute Policy[N_BLOCKS + 1];
static const Policy NONE = {0};
static const Policy POLICIES[] = {
    {0, RECOMPUTE_SELECTIVE, RECOMPUTE_SELECTIVE, RECOMPUTE_SELECTIVE},
    {0, RECOMPUTE_BLOCK, RECOMPUTE_BLOCK, RECOMPUTE_BLOCK},
    {0, RECOMPUTE_BLOCK, RECOMPUTE_NONE, RECOMPUTE_SELECTIVE},
};

/* ---- results as numbers -----------------------------------------------------------------------
 */

/* Loss, losses per sample, prediction and all gradients, end to end. */
typedef struct {
    real *x;
    int64_t n;
} Result;

static inline void take(Result *r, const real *values, int64_t n) {
    r->x = xrealloc(r->x, (size_t)(r->n + n) * sizeof *r->x);
    memcpy(r->x + r->n, values, (size_t)n * sizeof *values);
    r->n += n;
}

static inline void take_tensor(Result *r, Scene *s, const Tensor *t) {
    real *values = scene_read(s, t);
    take(r, values, tensor_count(t));
    BACKEND_CPU.release(values);
}

static inline void take_grads(Result *r, const ParamSet *p) {
    for (int i = 0; i < p->n_params; i++)
        if (p->param[i].trained) take(r, param_grad(p, i), param_count(&p->param[i]));
}

static inline Result result_of(const Blocks *b, Scene *s) {
    Result r = {0};
    take_tensor(&r, s, s->plan->loss);
    take_tensor(&r, s, s->plan->loss->from->in[0]);
    take_grads(&r, b->params);
    return r;
}

static inline bool same(Result a, Result b) {
    return a.n == b.n && !memcmp(a.x, b.x, (size_t)a.n * sizeof *a.x);
}

static inline bool finite(Result r) {
    for (int64_t i = 0; i < r.n; i++)
        if (!isfinite(r.x[i])) return false;
    return true;
}

static inline void expect_result(const char *what, Result got, Result want) {
    assert_true(got.n > 1000 && finite(want));
    if (!same(got, want)) fail_msg("%s: the bits differ", what);
    free(got.x);
}

/* ---- what every plan must be ------------------------------------------------------------------
 */

static inline int64_t bytes_of(const Life *life) { return (int64_t)tensor_bytes(life->tensor); }

/* Lives that meet in time meet in memory only where one hands it to the other. */
static inline void check_places(const Plan *p) {
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

static inline void check_alive(Tensor *t, bool define, void *arg) {
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

static inline void check_plan(const Plan *p) {
    check_places(p);
    for (int i = 0; i < p->n_steps; i++) {
        At at = {p, i};
        step_touch(p, &p->steps[i], check_alive, &at);
    }
    assert_true(p->live_bytes <= p->arena_bytes);
}

static inline int count_steps(const Plan *p, Phase phase) {
    int n = 0;
    for (int i = 0; i < p->n_steps; i++) n += p->steps[i].phase == phase;
    return n;
}

/* Opens, runs `times` times with the same numbers, and closes. */
static inline Result run_blocks(BlocksKind kind, const Recompute *policy, int times) {
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

static const BlocksKind KINDS[] = {
    {.form = DT_REAL},
    {.form = DT_REAL, .dropout = (real)0.3},
    {.form = DT_REAL, .full = true},
};
