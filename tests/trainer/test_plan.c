/* Plans as golden files: the steps of a tiny model, and memory and work of the published models on
 * an H200, for both methods and every recomputation. COGSMITH_UPDATE=1 writes the files anew; the
 * difference then shows in review. */
#define _POSIX_C_SOURCE 200809L
#include "tests/trainer/models.h"
#include "trainer/planner.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <unistd.h>

#include <cmocka.h>

#include "tests/trainer/ends.h"

static const char *const VARIANTS[] = {"2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v"};
static const char *const POLICIES[] = {"none", "selective", "block"};

static void compare_with_file(const char *text, const char *path) {
    if (getenv("COGSMITH_UPDATE")) {
        FILE *out = fopen(path, "w");
        assert_non_null(out);
        fputs(text, out);
        fclose(out);
    }
    FILE *in = fopen(path, "r");
    if (!in) fail_msg("%s is missing", path);
    char *want = xcalloc(1 << 20, 1);
    want[fread(want, 1, (1 << 20) - 1, in)] = 0;
    fclose(in);
    for (int line = 1; *text || *want; line++) {
        size_t a = strcspn(text, "\n"), b = strcspn(want, "\n");
        if (a != b || strncmp(text, want, a))
            fail_msg("%s:%d: expected\n  %.*s\nfound\n  %.*s", path, line, (int)b, want, (int)a,
                     text);
        text += a + (text[a] == '\n');
        want += b + (want[b] == '\n');
    }
}

static void describe(FILE *out, const char *variant, const char *method, const char *policy) {
    Config *c = published_config(variant);
    set(c, "method", method);
    set(c, "memory.recompute", policy);
    Model *m = model_open(c, model_training(c), MODEL_SHAPES, true);
    NativePack native = native_pack(c, &m->dit->config);
    Learner *l = learner_plan(m, c, &native.pack, 1, true, INT64_MAX);
    const Plan *p = l->shaped[0].plan;
    Cost cost = plan_cost(p, -1);
    fprintf(out,
            "%-10s %-4s %-9s parameters %lld trained %lld steps %d arena %lld alive %lld "
            "resident %lld tflop %.3f gb %.3f\n",
            variant, method, policy, (long long)params_total(m->params, false),
            (long long)params_total(m->params, true), p->n_steps, (long long)p->arena_bytes,
            (long long)p->live_bytes, (long long)learner_bytes(l).resident, cost.flops / 1e12,
            cost.bytes / 1e9);
    learner_close(l);
    model_close(m);
    native_pack_free(&native);
    config_free(c);
}

static void test_published(void **state) {
    (void)state;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    for (size_t v = 0; v < COUNT(VARIANTS); v++)
        for (int full = 0; full < 2; full++)
            for (size_t r = 0; r < COUNT(POLICIES); r++)
                describe(out, VARIANTS[v], full ? "full" : "lora", POLICIES[r]);
    fclose(out);
    compare_with_file(text, "tests/golden/plans/published.txt");
    free(text);
}

/* The planner's choices for budgets, and the least memory they promise. */
static const struct {
    const char *variant, *method, *device;
    int world, zero;
    double budget_gib;
} BUDGETS[] = {{"2b", "lora", "rtx4090", 1, 0, 4},      {"5b", "lora", "rtx4090", 1, 0, 6},
               {"1.5-5b", "lora", "rtx4090", 1, 0, 9},  {"5b", "full", "rtx4090", 1, 0, 12},
               {"5b", "lora", "rtx4090", 1, 0, 0},      {"5b", "full", "h100", 8, 1, 0},
               {"5b", "full", "h100", 16, 2, 0},        {"5b", "full", "h100", 64, 3, 0},
               {"1.5-5b-i2v", "full", "h100", 64, 3, 0}};

/* Planning takes under a second where nothing else runs; some machines are busy. */
static const double SLOW_SECONDS = 5;

static void set_number(Config *c, const char *key, double value) {
    char *text = xprintf("%.0f", value);
    set(c, key, text);
    free(text);
}

static void describe_budget(FILE *out, size_t i) {
    static const char *const HOMES[] = {"usual", "device", "host", "ranks", "file"};
    const Profile *device = profile_find(BUDGETS[i].device);
    Config *c = published_config(BUDGETS[i].variant);
    set(c, "method", BUDGETS[i].method);
    set_number(c, "plan.world", BUDGETS[i].world);
    set_number(c, "ranks.zero", BUDGETS[i].zero);
    if (BUDGETS[i].budget_gib) set_number(c, "memory.budget", BUDGETS[i].budget_gib * (1 << 30));
    int64_t available = available_bytes(c->memory.budget, device);
    clock_t start = clock();
    Planning p = planner_try(c, model_training(c), device, true, available);
    double took = (double)(clock() - start) / CLOCKS_PER_SEC; /* of all threads */
    const MemoryChoice *m = &p.tried[p.chosen];
    if (BUDGETS[i].world == 64) print_message("planned for 64 ranks in %.2f s\n", took);
    assert_true(took < SLOW_SECONDS);
    int64_t device_bytes = m->bytes.total + device->context_bytes;
    assert_true(m->fits);
    assert_true(device_bytes <= (c->memory.budget ? c->memory.budget : device->memory_bytes));
    fprintf(out,
            "%-10s %-4s %-7s world %d zero %d budget %g GiB: recompute %d in %lld blocks, base %s, "
            "optimizer %s, activations %s%s; device %lld B, host %lld B, %lld B for its %d ranks, "
            "%.3f s, without a limit %.3f s (%+.1f %%)\n",
            BUDGETS[i].variant, BUDGETS[i].method, BUDGETS[i].device, BUDGETS[i].world,
            BUDGETS[i].zero, BUDGETS[i].budget_gib, m->recompute, (long long)m->hard_blocks,
            HOMES[m->base], HOMES[m->optimizer], HOMES[m->activations], m->ahead ? ", ahead" : "",
            (long long)device_bytes, (long long)m->host_bytes, (long long)m->host_together,
            p.host_ranks, m->seconds, p.unlimited_seconds,
            100 * (m->seconds / p.unlimited_seconds - 1));
    planner_close(&p);
    config_free(c);
}

static void test_budgets(void **state) {
    (void)state;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    for (size_t i = 0; i < COUNT(BUDGETS); i++) describe_budget(out, i);
    fclose(out);
    compare_with_file(text, "tests/golden/plans/budgets.txt");
    free(text);
}

/* First fit wastes little: the arena is at most a few per cent above what is alive at once. */
static void test_arena_is_tight(void **state) {
    (void)state;
    for (size_t v = 0; v < COUNT(VARIANTS); v++) {
        Config *c = published_config(VARIANTS[v]);
        Model *m = model_open(c, TRAIN_LORA, MODEL_SHAPES, true);
        NativePack native = native_pack(c, &m->dit->config);
        Learner *l = learner_plan(m, c, &native.pack, 1, true, 0);
        const Plan *p = l->shaped[0].plan;
        assert_true((double)p->arena_bytes <= 1.05 * (double)p->live_bytes);
        learner_close(l);
        model_close(m);
        native_pack_free(&native);
        config_free(c);
    }
}

static void test_steps(void **state) {
    (void)state;
    Config *c = tiny_config("5b");
    set(c, "memory.recompute", "selective");
    Model *m = model_open(c, TRAIN_LORA, MODEL_SHAPES, true);
    Pack pack = {2, (const int64_t[][3]){{3, 4, 8}, {2, 6, 6}}, (const int64_t[]){10, 10}};
    Learner *l = learner_plan(m, c, &pack, 1, true, INT64_MAX);
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    plan_print(l->shaped[0].plan, out);
    fclose(out);
    compare_with_file(text, "tests/golden/plans/tiny-5b-lora-selective.txt");
    free(text);
    learner_close(l);
    model_close(m);
    config_free(c);
}

typedef struct {
    Model *model;
    const Config *config;
    const Pack *pack;
} Tight;

static void plan_tight(void *context) {
    const Tight *t = context;
    learner_plan(t->model, t->config, t->pack, 1, true, INT64_MAX);
}

/* What a plan needs of the host is known, and refused, before anything is allocated: a CPU's steps
 * are in the same memory, also where nothing else is. */
static void check_host_memory(const char *activations) {
    Config *c = tiny_config("5b");
    set(c, "memory.activations.home", activations);
    set(c, "memory.recompute", "none");
    Model *m = model_open(c, TRAIN_LORA, MODEL_SHAPES, false);
    Pack pack = {1, (const int64_t[][3]){{3, 4, 8}}, (const int64_t[]){10}};
    Learner *l = learner_plan(m, c, &pack, 1, true, INT64_MAX);
    LearnerBytes b = learner_bytes(l);
    Tight tight = {m, c, &pack};
    learner_close(l);
    assert_true((b.host > 0) == !strcmp(activations, "host"));
    m->host_limit = b.host + b.total;
    char *said;
    assert_int_equal(ends(plan_tight, &tight, &said), 0);
    free(said);
    m->host_limit--;
    ENDS(plan_tight, &tight, EXIT_USER, "GiB of host memory are needed for what rests or waits",
         "and for the steps, which this CPU takes in the same memory");
    model_close(m);
    config_free(c);
}

static void test_too_little_host_memory(void **state) {
    (void)state;
    check_host_memory("host");
    check_host_memory("device");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published),
        cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_arena_is_tight),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_too_little_host_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
