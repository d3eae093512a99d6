/* Moves between homes: base, masters and activations that rest elsewhere, come in time, and change
 * no bit. */
#include "tests/autograd/passes.h"

#include <omp.h>

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

int main(void) {
    omp_set_num_threads(1); /* these sizes are too small for more */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gathered_weights_keep_the_bits),
        cmocka_unit_test(host_homes_keep_the_bits),
        cmocka_unit_test(moves_beside_the_steps_keep_the_bits),
        cmocka_unit_test(moves_set_out_a_segment_ahead),
        cmocka_unit_test(what_crosses_is_parked),
        cmocka_unit_test(gathers_come_where_needed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
