/* What a run chooses before it begins: for a GPU that is not here, by its figures, with and without
 * memory.budget; alike on every rank; and what it says where nothing fits.
 *
 * The program is its own worker: `test_planner worker` is a rank whose GPU is another than rank
 * 0's.
 */
#define _GNU_SOURCE
#include "tests/trainer/models.h"
#include "tests/trainer/ranks.h"
#include "trainer/planner.h"
#include "trainer/prompts.h"
#include "trainer/tiling.h"

#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/trainer/ends.h"

#define GIB(n) ((int64_t)((n)*1073741824.0))

static Config *config_for(const char *variant, const char *method) {
    Config *c = published_config(variant);
    set(c, "method", method);
    return c;
}

/* Chooses for one rank on a named device that has so much, context apart. */
static void choose(Config *c, const char *device, int64_t available, int64_t host) {
    Comm *alone = comm_self();
    Profile p = *profile_find(device);
    if (host) p.host_bytes = host;
    planner_choose(c, model_training(c), alone, &p, available);
    comm_close(alone);
}

static void expect_homes(const Config *c, PlaceChoice base, PlaceChoice optimizer,
                         PlaceChoice activations, PrefetchChoice prefetch) {
    assert_int_equal(c->memory.base.home, base);
    assert_int_equal(c->memory.optimizer.home, optimizer);
    assert_int_equal(c->memory.activations.home, activations);
    assert_int_equal(c->memory.prefetch, prefetch);
}

/* What the device has free is a limit like memory.budget. */
static void what_is_free_is_the_limit(void **state) {
    (void)state;
    int64_t available = GIB(6) - profile_find("rtx4090")->context_bytes;
    Config *c = config_for("5b", "lora"), *budget = config_for("5b", "lora");
    choose(c, "rtx4090", available, 0);
    set(budget, "memory.budget", "6GiB");
    choose(budget, "rtx4090", available, 0);
    expect_homes(c, PLACE_HOST, PLACE_AUTO, PLACE_HOST, PREFETCH_ON);
    expect_homes(budget, PLACE_HOST, PLACE_AUTO, PLACE_HOST, PREFETCH_ON);
    assert_int_equal(c->plan.world, 1);
    config_free(c);
    config_free(budget);
}

/* What was chosen fits when it is planned as the run plans it. */
static void what_is_chosen_fits(void **state) {
    (void)state;
    static const struct {
        const char *variant, *method;
        double gib;
    } CASES[] = {{"2b", "lora", 3.5}, {"5b", "lora", 5.5}, {"5b", "full", 12}, {"5b", "lora", 100}};
    for (size_t i = 0; i < COUNT(CASES); i++) {
        Config *c = config_for(CASES[i].variant, CASES[i].method);
        int64_t available = GIB(CASES[i].gib);
        choose(c, "rtx4090", available, 0);
        Model *m = model_open(c, model_training(c), MODEL_SHAPES, true);
        m->host_limit = profile_find("rtx4090")->host_bytes;
        NativePack native = native_pack(c, &m->dit->config);
        Learner *l = learner_try(m, c, &native.pack, 1, true, available);
        assert_true(learner_bytes(l).total <= available);
        assert_true(learner_bytes(l).host <= m->host_limit);
        learner_close(l);
        native_pack_free(&native);
        model_close(m);
        config_free(c);
    }
}

/* Held-out losses have a plan beside the training one, which must fit too. */
static void held_out_losses_count(void **state) {
    (void)state;
    Config *c = config_for("2b", "lora");
    Planning without =
        planner_try(c, TRAIN_LORA, profile_find("h200"), true, profile_find("h200")->memory_bytes);
    set(c, "data.holdout", "1");
    set(c, "train.validate_every", "5");
    Planning with =
        planner_try(c, TRAIN_LORA, profile_find("h200"), true, profile_find("h200")->memory_bytes);
    assert_int_equal(without.tried[0].holdout_bytes, 0);
    assert_true(with.tried[0].holdout_bytes > 0);
    assert_int_equal(with.tried[0].bytes.total,
                     without.tried[0].bytes.total + with.tried[0].holdout_bytes);
    planner_close(&without);
    planner_close(&with);
    config_free(c);
}

/* Previews are sampled and then decoded beside what training holds, which leaves them their room.
 */
static void previews_get_their_room(void **state) {
    (void)state;
    Config *c = config_for("5b", "lora");
    const Profile *profile = profile_find("rtx4090");
    int64_t available = GIB(6) - profile->context_bytes;
    Planning without = planner_try(c, TRAIN_LORA, profile, true, available);
    set(c, "train.sample_every", "100");
    Planning with = planner_try(c, TRAIN_LORA, profile, true, available);
    const MemoryChoice *a = &without.tried[without.chosen], *b = &with.tried[with.chosen];
    VaeTiling tiles = {.choice = VAE_TILE_ON,
                       .overlap_height = VAE_TILING_DEFAULT.overlap_height,
                       .overlap_width = VAE_TILING_DEFAULT.overlap_width};
    int64_t decoder = vae_least_bytes(&VAE_PUBLISHED, (Device){cuda_table(), DT_BF16}, VAE_DECODER,
                                      13, 60, 90, &tiles);
    assert_int_equal(without.decoder_bytes, 0);
    assert_int_equal(with.decoder_bytes, decoder);
    assert_true(decoder > GIB(0.5) && decoder < GIB(4));
    assert_true(a->fits && a->bytes.total + decoder > available);
    assert_true(b->fits && b->holdout_bytes >= decoder);
    planner_close(&without);
    planner_close(&with);
    config_free(c);
}

/* Where the usual homes fit without recomputation, nothing else is tried. */
static void the_best_ends_the_search(void **state) {
    (void)state;
    static const char *const DEVICES[] = {"cpu", "h200"};
    for (size_t i = 0; i < COUNT(DEVICES); i++) {
        const Profile *p = profile_find(DEVICES[i]);
        Config *c = tiny_config("5b");
        set(c, "data.frames", "9"), set(c, "data.height", "32"), set(c, "data.width", "64");
        Planning found = planner_try(c, TRAIN_LORA, p, p->cuda, GIB(4));
        assert_int_equal(found.n, 1);
        assert_true(found.tried[0].fits && found.next < 0);
        assert_true(found.unlimited_seconds == found.tried[0].seconds);
        assert_string_equal(found.tried[0].base_home, p->cuda ? "device" : "file");
        assert_string_equal(found.tried[0].optimizer_home, "device");
        planner_close(&found);
        config_free(c);
    }
}

/* ---- what does not fit ------------------------------------------------------------------------
 */

/* A run on one rtx4090 that has so much. */
typedef struct {
    Config *config;
    int64_t available, host;
} Little;

static void choose_within(void *context) {
    const Little *l = context;
    choose(l->config, "rtx4090", l->available, l->host);
}

#define REFUSES(c, available, host, ...)                                                           \
    ENDS(choose_within, (&(Little){c, available, host}), EXIT_USER, __VA_ARGS__)

static void too_little_of_everything(void **state) {
    (void)state;
    Config *c = config_for("5b", "full"), *lora = config_for("5b", "lora");
    REFUSES(c, GIB(2), 0, "the 2.000 GiB of device memory that are free are too little",
            "the least possible is ", "GiB, with the optimizer at host", "every block recomputed",
            "a smaller size");
    REFUSES(lora, GIB(1), 0, "with base weights at host, the optimizer at host");
    set(c, "memory.budget", "2560MiB");
    REFUSES(c, GIB(2), 0, "memory.budget: 2.500 GiB is too little: the least possible is ");
    config_free(c);
    config_free(lora);
}

/* The device would do if the host had more: that is said, with both figures. With the optimizer on
 * the device it is what a checkpoint copies that lacks room. */
static void too_little_host_memory(void **state) {
    (void)state;
    Config *c = config_for("5b", "full");
    REFUSES(c, GIB(12), GIB(10), "GiB of host memory are needed", "the least possible is ",
            "it would do with ", "GiB of host memory, of which 10.000 GiB are free");
    set(c, "memory.optimizer.home", "host");
    REFUSES(c, GIB(12), GIB(10), "GiB of host memory are needed", "10.000 GiB are free");
    config_free(c);
}

/* Four ranks that share a host need four times the memory, and it is rank 0 that keeps the masters
 * whole for checkpoints: a byte less than their sum is too little. */
static void ranks_of_a_host_add_up(void **state) {
    (void)state;
    Profile p = *profile_find("rtx4090");
    Config *c = config_for("5b", "full");
    set(c, "memory.optimizer.home", "host");
    set(c, "memory.recompute", "block");
    set(c, "ranks.zero", "3");
    set(c, "plan.world", "8");
    p.host_bytes = GIB(1000);
    for (int ranks = 1; ranks <= 4; ranks *= 4) {
        p.host_ranks = ranks;
        Planning all = planner_try(c, TRAIN_FULL, &p, true, GIB(22));
        MemoryChoice m = all.tried[all.chosen];
        assert_int_equal(all.host_ranks, ranks);
        assert_true(m.fits && m.bytes.host > GIB(8));
        int64_t others = m.host_together - m.host_bytes;
        assert_true(others >= (ranks - 1) * (m.bytes.host + GPU_HOST_BYTES));
        assert_true(others <= (ranks - 1) * m.host_bytes);
        planner_close(&all);
        Profile less = p;
        less.host_bytes = m.host_together - 1;
        set(c, "memory.activations.home", m.activations == PLACE_HOST ? "host" : "device");
        set(c, "memory.prefetch", m.prefetch == PREFETCH_ON ? "on" : "off");
        Planning none = planner_try(c, TRAIN_FULL, &less, true, GIB(22));
        assert_false(none.tried[none.chosen].fits);
        planner_close(&none);
        set(c, "memory.activations.home", "auto");
        set(c, "memory.prefetch", "auto");
    }
    config_free(c);
}

/* Where a CPU's one memory holds none of them, what is left is the least of both together. */
static void the_least_of_one_memory(void **state) {
    (void)state;
    Profile p = *profile_find("cpu");
    Config *c = config_for("5b", "lora");
    p.host_bytes = GIB(8);
    Planning none = planner_try(c, TRAIN_LORA, &p, false, GIB(8) - p.context_bytes);
    const MemoryChoice *chosen = &none.tried[none.chosen];
    assert_true(none.one_memory && !chosen->fits);
    for (int i = 0; i < none.n; i++) {
        assert_true(chosen->host_together <= none.tried[i].host_together);
        assert_true(none.tried[i].host_together >= none.tried[i].bytes.total);
    }
    p.host_bytes = chosen->host_together + p.context_bytes;
    Planning enough = planner_try(c, TRAIN_LORA, &p, false, p.host_bytes - p.context_bytes);
    assert_true(enough.tried[enough.chosen].fits);
    planner_close(&none);
    planner_close(&enough);
    config_free(c);
}

/* Checkpoints' copies, batches read ahead, previews and the program lie on the host, too. */
static void what_lies_beside_plans_counts(void **state) {
    (void)state;
    Config *c = config_for("1.5-5b", "lora");
    Model *m = model_open(c, TRAIN_LORA, MODEL_SHAPES, true);
    NativePack native = native_pack(c, &m->dit->config);
    HostNeeds without = host_needs(c, m, &native.pack, true);
    int64_t latents = 16 * 22 * 96 * 170, text = 226 * 4096;
    assert_int_equal(without.batches, 3 * (2 * latents + text) * 4);
    assert_int_equal(without.copies, 3 * 4 * params_total(m->params, true));
    assert_int_equal(without.previews, 0);
    set(c, "train.sample_every", "100");
    HostNeeds first = host_needs(c, m, &native.pack, true);
    HostNeeds other = host_needs(c, m, &native.pack, false);
    int64_t frames = 81 * 768 * 1360 * 3;
    assert_true(first.previews > (2 * 4 + 1) * frames && first.previews < 10 * frames);
    assert_true(other.previews > 8 * latents * 4 && other.previews < first.previews / 2);
    int64_t limit = m->host_limit = GIB(64);
    host_needs_reserve(c, m, &native.pack);
    assert_int_equal(limit - m->host_limit, host_needs_total(&first));
    native_pack_free(&native);
    model_close(m);
    config_free(c);
}

typedef struct {
    Model *model;
    const Config *config;
} Shared;

static void plan_one_row(void *context) {
    const Shared *s = context;
    Pack pack = {1, (const int64_t[][3]){{3, 4, 8}}, (const int64_t[]){1}};
    learner_plan(s->model, s->config, &pack, 1, true, INT64_MAX);
}

/* Every rank of a group takes rows of the text and of the video. */
static void too_few_rows_for_the_ranks(void **state) {
    (void)state;
    Config *c = tiny_config("5b");
    set(c, "plan.world", "2"), set(c, "ranks.sequence", "2");
    Model *m = model_open(c, TRAIN_LORA, MODEL_SHAPES, false);
    ENDS(plan_one_row, (&(Shared){m, c}), EXIT_USER, "ranks.sequence: 2 ranks cannot share",
         "1 text rows", "at most 1");
    model_close(m);
    config_free(c);
}

enum { LENGTH = 226 };

typedef struct {
    const Config *config;
    const T5 *t5;
} Captions;

static void encode_captions(void *context) {
    const Captions *c = context;
    captions_together(c->config, c->t5, LENGTH, 8);
}

static void the_text_encoder_keeps_to_the_budget(void **state) {
    (void)state;
    Error e;
    Config *c = config_new();
    T5 *t = t5_open("configs/tiny/model/text_encoder", &BACKEND_CPU, &e);
    if (!t) fail_msg("%s", e.text);
    assert_int_equal(captions_together(c, t, LENGTH, 8), 8);
    for (int n = 3; n >= 0; n -= 3) {
        int64_t bytes = n ? t5_bytes(t, n, LENGTH) : t5_bytes(t, 1, LENGTH) - 1;
        char *budget = xprintf("%lld", (long long)(CPU_CONTEXT_BYTES + bytes));
        set(c, "memory.budget", budget);
        if (n) assert_int_equal(captions_together(c, t, LENGTH, 8), n);
        free(budget);
    }
    ENDS(encode_captions, (&(Captions){c, t}), EXIT_USER,
         "memory.budget: ", "the text encoder needs");
    t5_close(t);
    config_free(c);
}

/* ---- ranks ------------------------------------------------------------------------------------
 */

/* Rank 1 has the faster GPU, with less memory and less of the host's. */
static int worker(void) {
    Comm *ranks = comm_world(60);
    Config *c = config_for("5b", "lora");
    Profile p = *profile_find(ranks->rank ? "h200" : "rtx4090");
    if (ranks->rank) p.host_bytes = GIB(64);
    planner_choose(c, TRAIN_LORA, ranks, &p, ranks->rank ? GIB(5.5) : GIB(60));
    printf("%d: %d %d %d %d\n", ranks->rank, c->memory.base.home, c->memory.optimizer.home,
           c->memory.activations.home, c->memory.prefetch);
    comm_close(ranks);
    config_free(c);
    return 0;
}

static void ranks_choose_alike(void **state) {
    (void)state;
    char path[] = "/tmp/cogsmith-planner-XXXXXX", line[2][80] = {0};
    int file = mkstemp(path);
    assert_true(file >= 0);
    char *what = xprintf("/proc/%d/exe worker", getpid()), *to = xprintf(">%s 2>&1", path);
    int code = run_ranks(2, what, to);
    char *text = text_of(path);
    if (code) fail_msg("exit code %d: %s", code, text);
    for (int i = 0; i < 2; i++) {
        char name[] = "0: ";
        name[0] = (char)('0' + i);
        const char *said = strstr(text, name);
        if (!said) fail_msg("rank %d said nothing: %s", i, text);
        assert_int_equal(sscanf(said, "%*d: %79[0-9 ]", line[i]), 1);
    }
    assert_string_equal(line[0], line[1]);
    if (line[0][0] - '0' == PLACE_AUTO) fail_msg("the least memory was not asked: %s", text);
    close(file);
    unlink(path);
    free(what);
    free(to);
    free(text);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_free_is_the_limit),
        cmocka_unit_test(what_is_chosen_fits),
        cmocka_unit_test(held_out_losses_count),
        cmocka_unit_test(previews_get_their_room),
        cmocka_unit_test(the_best_ends_the_search),
        cmocka_unit_test(too_little_of_everything),
        cmocka_unit_test(too_little_host_memory),
        cmocka_unit_test(ranks_of_a_host_add_up),
        cmocka_unit_test(the_least_of_one_memory),
        cmocka_unit_test(what_lies_beside_plans_counts),
        cmocka_unit_test(too_few_rows_for_the_ranks),
        cmocka_unit_test(the_text_encoder_keeps_to_the_budget),
        cmocka_unit_test(ranks_choose_alike),
    };
    if (argc > 1 && !strcmp(argv[1], "worker")) return worker();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
