/* `train`: runs that learn, and leave what they promise. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/trainer/train_model.h"

static char *data_setting; /* of the clips that the tiny model's runs take */

/* ---- the tiny model ---------------------------------------------------------------------------
 */

static int setup(void **state) {
    train_windows = 2;
    train_setup(state);
    clips_run(train_folder, "mkdir style");
    for (int i = 0; i < 6; i++) {
        char from[40], to[40];
        snprintf(from, sizeof from, "configs/tiny/style/%03d.mp4", i);
        snprintf(to, sizeof to, "style/%03d.mp4", i);
        copy_files(from, in_train(to));
        memcpy(strrchr(from, '.'), ".txt", 5);
        memcpy(strrchr(to, '.'), ".txt", 5);
        copy_files(from, in_train(to));
    }
    data_setting = xprintf("data.path=%s", in_train("style"));
    const Run *r = RUN("prepare", "model.path=configs/tiny/model", data_setting);
    if (r->code) fail_msg("%s", r->err);
    return 0;
}

static int teardown(void **state) {
    free(data_setting);
    return train_teardown(state);
}

/* Of 20 steps with held-out losses every five: the last one is below `held_out` of the first, and
 * the mean loss of the last six steps below `trained` of that of the first six. */
static void expect_learnt(const char *out, double held_out, double trained) {
    json_t *m = train_metrics(out);
    double first = 0, last = 0;
    assert_int_equal(json_array_size(m), 20);
    for (int i = 0; i < 6; i++)
        first += train_metric(m, i, "loss"), last += train_metric(m, -1 - i, "loss");
    double early = train_metric(m, 4, "holdout_loss"), late = train_metric(m, -1, "holdout_loss");
    print_message("%s: held out %.4f, then %.4f; trained on %.4f, then %.4f\n", out, early, late,
                  first / 6, last / 6);
    if (late > held_out * early) fail_msg("held-out loss %g, then %g", early, late);
    if (last > trained * first) fail_msg("mean loss %g, then %g", first / 6, last / 6);
    assert_null(json_object_get(json_array_get(m, 3), "holdout_loss"));
    json_decref(m);
}

#define TINY(out, ...)                                                                             \
    RUN("train", "model.path=configs/tiny/model", data_setting, "train.steps=20", "train.batch=2", \
        "train.warmup_steps=0", "data.holdout=1", "train.validate_every=5",                        \
        "train.checkpoint_every=5", "data.caption_dropout=0", out, __VA_ARGS__)

static void a_lora_learns(void **state) {
    (void)state;
    char *out = xprintf("train.out=%s", in_train("lora"));
    const Run *r = TINY(out, "lora.rank=8", "train.learning_rate=3e-3");
    train_expect(r, 0);
    assert_parts(r->err, (const char *const[]){"a LoRA of rank 8 on 20 layers", "61440 parameters",
                                               "5 of 17 frames of 64 x 96; 1 held out",
                                               "20 of 2 samples", "GiB on the device", NULL});
    char *result = xprintf("%s/lora/adapter\n", train_folder);
    assert_string_equal(r->out, result);
    expect_learnt("lora", 0.95, 0.7);
    Error e;
    Adapter *a = adapter_open(in_train("lora/adapter"), &e);
    if (!a) fail_msg("%s", e.text);
    assert_int_equal(adapter_count(a), 20);
    AdapterLayer l = adapter_layer(a, 0);
    assert_true(l.rank == 8 && l.alpha == 64 && l.a->dtype == DT_F32);
    adapter_close(a);
    free(result);
    free(out);
}

static void all_weights_learn(void **state) {
    (void)state;
    char *out = xprintf("train.out=%s", in_train("full"));
    train_expect(TINY(out, "method=full", "train.learning_rate=1e-3"), 0);
    expect_learnt("full", 0.95, 0.7);
    const Run *r = RUN("inspect", in_train("full/transformer"),
                       in_train("full/checkpoints/step-000020/transformer"));
    train_expect(r, 0);
    assert_parts(r->out, (const char *const[]){"digest verified", NULL});
    free(out);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Milliseconds of a typical step that no part of it accounts for. */
static double unaccounted(const char *out) {
    static const char *const PARTS[] = {"wait_ms", "compute_ms", "update_ms", "holdout_ms",
                                        "copy_ms"};
    json_t *m = train_metrics(out);
    int n = (int)json_array_size(m);
    double *rest = xcalloc((size_t)n, sizeof *rest);
    for (int i = 0; i < n; i++) {
        rest[i] = train_metric(m, i, "step_ms");
        for (size_t k = 0; k < COUNT(PARTS); k++) rest[i] -= train_metric(m, i, PARTS[k]);
        if (rest[i] < 0) fail_msg("step %d: its parts take longer than the whole", i + 1);
    }
    qsort(rest, (size_t)n, sizeof *rest, by_value);
    double median = rest[n / 2];
    free(rest);
    json_decref(m);
    return median;
}

static void a_step_takes_no_more_than_there_is(void **state) {
    (void)state;
    REFUSED(TRAIN("more", "train.steps=1", "train.batch=11"), EXIT_USER,
            "data.path: 10 samples are fewer than the 11 that one step takes: train.batch 11 x "
            "train.accumulate 1 x 1 ranks",
            "Give more clips");
    REFUSED(TRAIN("more", "train.batch=2", "train.accumulate=5", "data.holdout=1"), EXIT_USER,
            "8 samples are fewer than the 10");
    train_expect(TRAIN("more", "train.steps=1", "train.batch=2", "train.accumulate=5"), 0);
}

/* What a checkpoint keeps a step waiting, at the least: the first one touches its memory first. */
static double least_copy(const char *out) {
    json_t *m = train_metrics(out);
    double least = INFINITY;
    for (int i = 9; i < 20; i += 5) least = MIN(least, train_metric(m, i, "copy_ms"));
    json_decref(m);
    return least;
}

/* One adapter has 61,440 parameters, the other run trains 3,852,800: what is beside compute and
 * update stays, and a checkpoint costs a few times what copying its numbers does. */
static void a_step_does_little_else(void **state) {
    (void)state;
    enum { TRAINED = 3852800 };
    double small = unaccounted("lora"), large = unaccounted("full");
    float *from = xcalloc(3 * TRAINED, sizeof *from), *to = xcalloc(3 * TRAINED, sizeof *to);
    double copy = INFINITY;
    for (int i = 0; i < 4; i++) {
        double start = now_seconds();
        memcpy(to, from, 3 * TRAINED * sizeof *to);
        copy = MIN(copy, 1e3 * (now_seconds() - start));
        from[i] = to[TRAINED];
    }
    print_message("beside its parts a step takes %.4f and %.4f ms; a checkpoint %.2f and %.2f ms, "
                  "a copy %.2f ms\n",
                  small, large, least_copy("lora"), least_copy("full"), copy);
    assert_true(small < 0.5 && large < 0.5);
    assert_true(least_copy("full") < 5 * copy + 5);
    free(from);
    free(to);
}

/* ---- records ----------------------------------------------------------------------------------
 */

static void every_step_is_recorded(void **state) {
    (void)state;
    train_expect(TRAIN("records", "train.steps=6", "train.warmup_steps=4", "train.batch=2",
                       "train.accumulate=3"),
                 0);
    static const char *const KEYS[] = {"loss",    "grad_norm",  "step_ms",   "peak_bytes",
                                       "wait_ms", "compute_ms", "update_ms", "copy_ms"};
    json_t *m = train_metrics("records");
    assert_int_equal(json_array_size(m), 6);
    for (int i = 0; i < 6; i++) {
        assert_true(train_metric(m, i, "step") == i + 1);
        assert_true(train_metric(m, i, "samples") == 6 * (i + 1));
        assert_true(train_metric(m, i, "learning_rate") == 1e-3 * MIN(i / 4.0, 1));
        assert_true(train_metric(m, i, "peak_bytes") == train_metric(m, 0, "peak_bytes"));
        for (size_t k = 0; k < COUNT(KEYS); k++) assert_true(train_metric(m, i, KEYS[k]) >= 0);
        assert_true(train_metric(m, i, "loss") > 0 && train_metric(m, i, "grad_norm") > 0);
    }
    json_decref(m);
    Config *c = config_new();
    Error e;
    if (!config_read_file(c, in_train("records/config.yaml"), &e)) fail_msg("%s", e.text);
    assert_true(c->train.accumulate == 3 && c->lora.rank == 4 && c->train.steps == 6);
    config_free(c);
}

/* Previews and held-out losses leave every bit of the run as it is. */
static void looking_changes_nothing(void **state) {
    (void)state;
    train_expect(TRAIN("plain", "train.steps=6", "data.holdout=1", "lora.dropout=0.2"), 0);
    const Run *r = TRAIN("looked", "train.steps=6", "data.holdout=1", "lora.dropout=0.2",
                         "train.validate_every=2", "train.sample_every=3", "sample.steps=2",
                         "sample.prompt=a clip named b");
    train_expect(r, 0);
    assert_parts(r->err,
                 (const char *const[]){"looked/samples/step-000003-0.mp4: a clip named b", NULL});
    expect_same_run("plain", "looked", 6);
    clips_run(in_train("looked/samples"), "for f in step-00000[36]-0.mp4 step-00000[36]-0.png; do "
                                          "ffprobe -v error $f; done");
    assert_int_equal(scratch_count(in_train("looked/samples")), 4);
}

/* Previews are decoded beside what training holds: where memory.budget has no room for both that is
 * known before the first step. */
static void previews_are_within_the_budget(void **state) {
    (void)state;
    const char *budget = "memory.budget=42000KiB";
    train_expect(TRAIN("tight", "train.steps=1", budget), 0);
    const Run *r = TRAIN("tighter", "train.steps=1", "train.sample_every=1", "sample.steps=1",
                         "sample.prompt=a", budget);
    assert_int_equal(r->code, EXIT_USER);
    assert_parts(r->err, (const char *const[]){"is too little: the least possible is ",
                                               " of it for previews and held-out losses, ", NULL});
    assert_int_equal(steps_so_far("tighter"), 0);
}

/* ---- image to video ---------------------------------------------------------------------------
 */

static void an_image_model_learns(void **state) {
    (void)state;
    clips_run(train_folder, "cp -r model image-model");
    char *text = xprintf("%s/transformer/config.json", in_train("image-model"));
    write_text(text, "{\"num_attention_heads\": 1, \"num_layers\": 2, \"text_embed_dim\": 48, "
                     "\"time_embed_dim\": 32, \"max_text_seq_length\": 8, \"sample_frames\": 5, "
                     "\"sample_height\": 4, \"sample_width\": 6, \"patch_size_t\": 2, "
                     "\"patch_bias\": false, "
                     "\"use_rotary_positional_embeddings\": true, \"in_channels\": 32}");
    train_weights(in_train("image-model"));
    char *model = xprintf("model.path=%s", in_train("image-model"));
    char *cache = xprintf("data.cache=%s", in_train("image-cache"));
    train_expect(RUN("prepare", in_train("t.yaml"), model, cache), 0);
    train_expect(TRAIN("image", model, cache, "method=full", "train.learning_rate=3e-3",
                       "train.batch=2", "train.steps=20", "data.holdout=1",
                       "train.validate_every=5", "data.image_dropout=0.3"),
                 0);
    expect_learnt("image", 0.9, 0.9);
    free(text);
    free(model);
    free(cache);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lora_learns),
        cmocka_unit_test(all_weights_learn),
        cmocka_unit_test(a_step_takes_no_more_than_there_is),
        cmocka_unit_test(a_step_does_little_else),
        cmocka_unit_test(every_step_is_recorded),
        cmocka_unit_test(looking_changes_nothing),
        cmocka_unit_test(previews_are_within_the_budget),
        cmocka_unit_test(an_image_model_learns),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
