/* The run folder and its checkpoints: damage is found and gone around, a full disk costs nothing
 * that was there, what does not belong to a run is refused, and numbers that go wrong are named.
 *
 *     COGSMITH_FLIPS=1000 test_checkpoint     100 flipped bits unless said */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/trainer/spoil.h"
#include "tests/trainer/train_model.h"

enum { STEPS = 6 };

#define LONG "train.steps=6"

/* A run of six steps to compare with, its checkpoints at 2, 4 and 6. */
static int setup(void **state) {
    train_setup(state);
    train_expect(TRAIN("whole", LONG, "train.checkpoint_every=2", "train.keep=3"), 0);
    CHECKPOINTS("whole", 0, 6, 4, 2);
    return 0;
}

/* The whole run as it was after step 4, under another name. */
static void half(const char *out) {
    clips_run(train_folder,
              "rm -rf '%s' && cp -r whole '%s' && cd '%s' && "
              "rm -r adapter checkpoints/step-000006 && ln -sfn checkpoints/step-000004 latest",
              out, out, out);
}

static void expect_latest(const char *out, const char *target) {
    char *path = xprintf("%s/%s/latest", train_folder, out), found[PATH_MAX] = "";
    if (readlink(path, found, sizeof found - 1) < 0) strcpy(found, "");
    assert_string_equal(found, target);
    free(path);
}

/* ---- damage -----------------------------------------------------------------------------------
 */

static void flip(const char *path, size_t bit) {
    size_t n;
    uint8_t *bytes = scratch_read(path, &n);
    assert_true(bit < 8 * n);
    bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    scratch_write(path, bytes, n);
    free(bytes);
}

static size_t size_of(const char *path) {
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    return (size_t)info.st_size;
}

/* Whether a checkpoint with this bit flipped is told from a whole one. */
static bool found_out(const char *checkpoint, const char *file, size_t bit) {
    char *path = xprintf("%s/%s", checkpoint, file);
    Position at;
    Error e = {0};
    flip(path, bit);
    bool whole = checkpoint_verify(checkpoint, &at, &e);
    flip(path, bit);
    if (!whole && (e.exit_code != EXIT_USER || !strstr(e.text, checkpoint))) fail_msg("%s", e.text);
    free(path);
    return !whole;
}

static void a_flipped_bit_is_found(void **state) {
    (void)state;
    static const char *const FILES[] = {"state-00001-of-00001.safetensors",
                                        "adapter/pytorch_lora_weights.safetensors", "config.yaml"};
    const char *count = getenv("COGSMITH_FLIPS");
    int flips = count ? atoi(count) : 100;
    char *at = xprintf("%s/whole/checkpoints/step-000004", train_folder);
    char *manifest = xprintf("%s/manifest.json", at);
    size_t bits = 8 * size_of(manifest);
    for (size_t i = 0; i < bits; i++)
        if (!found_out(at, "manifest.json", i)) fail_msg("manifest.json, bit %zu", i);
    for (int i = 0; i < flips; i++) {
        const char *file = FILES[i % (int)COUNT(FILES)];
        char *path = xprintf("%s/%s", at, file);
        float u;
        random_uniform((Draw){.seed = 5, .ordinal = (uint32_t)i}, 0, 1, &u);
        size_t bit = (size_t)((double)u * 8 * (double)size_of(path));
        if (!found_out(at, file, bit)) fail_msg("%s, bit %zu", file, bit);
        free(path);
    }
    free(manifest);
    free(at);
}

/* A file of another length, and one that is not there. */
static void a_lost_file_is_found(void **state) {
    (void)state;
    Position at;
    Error e;
    half("lost");
    clips_run(in_train("lost/checkpoints/step-000004"), "truncate -s -1 config.yaml");
    assert_false(checkpoint_verify(in_train("lost/checkpoints/step-000004"), &at, &e));
    clips_run(in_train("lost/checkpoints/step-000002"), "rm -r adapter");
    assert_false(checkpoint_verify(in_train("lost/checkpoints/step-000002"), &at, &e));
    clips_run(in_train("lost/checkpoints/step-000002"), "rm manifest.json");
    assert_false(checkpoint_verify(in_train("lost/checkpoints/step-000002"), &at, &e));
}

static void the_one_before_is_taken(void **state) {
    (void)state;
    half("hurt");
    flip(in_train("hurt/checkpoints/step-000004/state-00001-of-00001.safetensors"), 3333);
    const Run *r = TRAIN("hurt", LONG, "train.keep=9");
    train_expect(r, 0);
    assert_parts(r->err,
                 (const char *const[]){"step-000004/state-00001-of-00001.safetensors",
                                       "has not the bytes that were written", "damaged",
                                       "damaged-000004.1", "going on after step 2\n", NULL});
    expect_same_run("whole", "hurt", STEPS);
    CHECKPOINTS("hurt", 1, 6, 2);
    expect_latest("hurt", "checkpoints/step-000006");
}

/* Where all are damaged the run begins anew; before it has a checkpoint, `latest` is none. */
static void none_is_left(void **state) {
    (void)state;
    half("none");
    flip(in_train("none/checkpoints/step-000004/config.yaml"), 100);
    flip(in_train("none/checkpoints/step-000002/manifest.json"), 100);
    run_as.file_bytes = 10000; /* the first checkpoint fails */
    const Run *r = TRAIN("none", LONG, "train.checkpoint_every=2", "train.keep=3");
    run_as.file_bytes = 0;
    train_expect(r, EXIT_WORLD);
    assert_parts(r->err, (const char *const[]){"damaged-000004.1", "damaged-000002.1", NULL});
    expect_latest("none", "");
    train_expect(TRAIN("none", LONG), 0);
    expect_same_run("whole", "none", STEPS);
}

/* ---- a full disk ------------------------------------------------------------------------------
 */

static void full_disk(int64_t bytes, const char *file) {
    half("full");
    run_as.file_bytes = (rlim_t)bytes;
    const Run *r = TRAIN("full", LONG, "train.keep=3");
    run_as.file_bytes = 0;
    train_expect(r, EXIT_WORLD);
    assert_parts(r->err,
                 (const char *const[]){"cannot write the file", "File too large", file, NULL});
    assert_string_equal(r->out, "");
    CHECKPOINTS("full", 0, 4, 2);
    expect_latest("full", "checkpoints/step-000004");
    train_expect(TRAIN("full", LONG, "train.keep=3"), 0);
    expect_same_run("whole", "full", STEPS);
    CHECKPOINTS("full", 0, 6, 4, 2);
}

static void the_old_one_outlives_a_full_disk(void **state) {
    (void)state;
    full_disk(12000, "pytorch_lora_weights.safetensors");
    full_disk(30000, "state-00001-of-00001.safetensors");
}

/* ---- what is there after a run ----------------------------------------------------------------
 */

static void old_ones_are_removed(void **state) {
    (void)state;
    train_expect(TRAIN("keep", LONG, "train.checkpoint_every=1", "train.keep=2"), 0);
    CHECKPOINTS("keep", 0, 6, 5);
    expect_latest("keep", "checkpoints/step-000006");
    expect_same_run("whole", "keep", STEPS);
}

static void leftovers_are_swept(void **state) {
    (void)state;
    half("swept");
    clips_run(in_train("swept"),
              "mkdir samples checkpoints/.step-000006.writing checkpoints/.step-000001.removing && "
              "touch metrics.jsonl.tmp.12.0 samples/a.mp4.tmp.7.1 notes.tmp.txt "
              "checkpoints/.step-000006.writing/state-00001-of-00001.safetensors");
    train_expect(TRAIN("swept", LONG, "train.keep=3"), 0);
    CHECKPOINTS("swept", 0, 6, 4, 2);
    clips_run(in_train("swept"), "test -f notes.tmp.txt && test ! -e metrics.jsonl.tmp.12.0 && "
                                 "test ! -e samples/a.mp4.tmp.7.1");
    expect_same_run("whole", "swept", STEPS);
}

/* A finished run says where its result is, and does no work. */
static void a_finished_run(void **state) {
    (void)state;
    const Run *r = TRAIN("whole", LONG);
    train_expect(r, 0);
    char *line = xprintf("%s\n", in_train("whole/adapter"));
    assert_string_equal(r->out, line);
    assert_string_equal(r->err, "");
    free(line);
}

/* Back to an earlier step of the run: what came after it makes room. */
static void going_back(void **state) {
    (void)state;
    clips_run(train_folder, "rm -rf back && cp -r whole back");
    char *resume = xprintf("train.resume=%s/back/checkpoints/step-000002", train_folder);
    const Run *r = TRAIN("back", LONG, "train.checkpoint_every=2", "train.keep=3", resume);
    train_expect(r, 0);
    assert_parts(r->err, (const char *const[]){"goes back to step 2", "later-000006.1",
                                               "later-000004.1", "going on after step 2", NULL});
    CHECKPOINTS("back", 2, 6, 4, 2);
    expect_same_run("whole", "back", STEPS);
    free(resume);
    resume = xprintf("train.resume=%s/whole/checkpoints/step-000006", train_folder);
    train_expect(TRAIN("other", LONG, resume), 0); /* of another folder, finished already */
    expect_same_bytes("whole/adapter/pytorch_lora_weights.safetensors",
                      "other/adapter/pytorch_lora_weights.safetensors");
    free(resume);
}

static void expect_number(const json_t *j, const char *key, json_int_t value) {
    if (json_integer_value(json_object_get(j, key)) != value) fail_msg("%s", key);
}

static void inspect_tells_the_state(void **state) {
    (void)state;
    char *one = xprintf("%s/whole/checkpoints/step-000004", train_folder);
    const Run *r = RUN("inspect", "--json", one, in_train("whole"));
    train_expect(r, 0);
    json_t *list = json_loads(r->out, JSON_REJECT_DUPLICATES, NULL);
    json_t *checkpoint = json_array_get(list, 0), *run = json_array_get(list, 1);
    expect_number(checkpoint, "step", 4);
    expect_number(checkpoint, "samples", 4);
    expect_number(checkpoint, "global_batch", 1);
    expect_number(checkpoint, "world", 1);
    expect_number(checkpoint, "zero", 0);
    json_t *of_run = json_object_get(run, "checkpoints");
    assert_int_equal(json_array_size(of_run), 3);
    expect_number(json_array_get(of_run, 0), "step", 6);
    json_decref(list);
    r = RUN("inspect", one, in_train("whole"));
    assert_parts(r->out,
                 (const char *const[]){"checkpoint after step 4, 4 samples", "every file verified",
                                       "run, 3 checkpoints", "step 6", NULL});
    flip(in_train("whole/checkpoints/step-000004/state-00001-of-00001.safetensors"), 999);
    REFUSED(RUN("inspect", one), EXIT_USER, one, "has not the bytes that were written");
    flip(in_train("whole/checkpoints/step-000004/state-00001-of-00001.safetensors"), 999);
    free(one);
}

/* ---- refused ----------------------------------------------------------------------------------
 */

static void one_process_a_folder(void **state) {
    (void)state;
    pid_t child = START("held", "train.steps=100000");
    wait_for_step(child, "held", 1);
    char *holder = xprintf("process %d on ", (int)child);
    REFUSED(TRAIN("held", LONG), EXIT_USER, in_train("held"), holder, "trains in this folder");
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    free(holder);
}

static void folders_of_others(void **state) {
    (void)state;
    clips_run(train_folder, "mkdir -p notes empty && touch notes/mine.txt");
    REFUSED(TRAIN("notes", LONG), EXIT_USER, "train.out", in_train("notes"), "empty folder",
            "Choose another");
    clips_run(in_train("notes"), "test \"$(ls -A)\" = mine.txt");
    REFUSED(TRAIN("whole", LONG, "train.resume=never"), EXIT_USER, "train.resume", "holds a run");
    REFUSED(TRAIN("none", LONG, "train.resume=/none"), EXIT_USER, "train.resume: /none: expected a",
            "checkpoints/step-");
    train_expect(TRAIN("empty", "train.steps=1"), 0);
}

static void refused_change(const char *const *settings, const char *const *parts) {
    const Run *r = train_args("whole", settings);
    train_expect(r, EXIT_USER);
    assert_parts(r->err, parts);
    assert_string_equal(r->out, "");
}

static void changes(void **state) {
    (void)state;
    refused_change((const char *const[]){LONG, "train.learning_rate=2e-3", "train.seed=7",
                                         "lora.rank=8", "data.caption_dropout=0.25", NULL},
                   (const char *const[]){"train.learning_rate: was 0.001, is 0.002",
                                         "train.seed: was 42, is 7", "lora.rank: was 4, is 8",
                                         "data.caption_dropout: was 0.1, is 0.25", NULL});
    refused_change((const char *const[]){LONG, "method=full", NULL},
                   (const char *const[]){"method: was lora, is full", NULL});
    refused_change(
        (const char *const[]){LONG, "train.batch=2", NULL},
        (const char *const[]){"train.batch x train.accumulate x ranks: was 1, is 2", NULL});
    half("free");
    train_expect(TRAIN("free", LONG, "train.checkpoint_every=1", "train.keep=1", "device=cpu",
                       "memory.recompute=block", "memory.base.home=device", "ranks.zero=3",
                       "ranks.timeout=50"),
                 0);
    expect_same_run("whole", "free", STEPS);
    CHECKPOINTS("free", 0, 6);
}

static void schedules(void **state) {
    (void)state;
    train_expect(TRAIN("linear", "train.schedule=linear", "train.steps=2"), 0);
    const Run *r = TRAIN("linear", "train.schedule=linear", "train.steps=3");
    train_expect(r, EXIT_USER);
    assert_parts(r->err, (const char *const[]){"train.steps: was 2, is 3", "linear", NULL});
}

static void caches(void **state) {
    (void)state;
    char *cache = xprintf("data.cache=%s/nothing", train_folder);
    REFUSED(TRAIN("cache", LONG, cache), EXIT_DATA, in_train("nothing"),
            "5 of 5 samples are not in", "cogsmith prepare");
    clips_run(train_folder, "cp -r model other-model");
    char *vae = xstrdup(in_train("other-model/vae/diffusion_pytorch_model.safetensors"));
    spoil(vae, (Spoil)WITH_LAST("decoder.conv_out.conv.bias", 0x3f800000));
    char *model = xprintf("model.path=%s/other-model", train_folder);
    REFUSED(TRAIN("cache-2", LONG, model), EXIT_DATA, in_train("data/.cogsmith-cache"),
            "5 of 5 samples are not in the cache", "cogsmith prepare");
    free(cache);
    free(vae);
    free(model);
}

static void other_clips(void **state) {
    (void)state;
    half("clips");
    clips_run(in_train("data"), "cp a.mp4 z.mp4 && echo another >z.txt");
    train_expect(RUN("prepare", in_train("t.yaml")), 0);
    const Run *r = TRAIN("clips", LONG);
    train_expect(r, EXIT_USER);
    assert_parts(r->err, (const char *const[]){"data.path", "not those that the run began with",
                                               "train.out", NULL});
    clips_run(in_train("data"), "rm z.mp4 z.txt");
    train_expect(TRAIN("clips", LONG), 0);
    expect_same_run("whole", "clips", STEPS);
}

/* ---- numbers that go wrong --------------------------------------------------------------------
 */

static void an_adapter_of_another_shape(void **state) {
    (void)state;
    char *start = train_start_from("shape.safetensors", 1, 1, 32);
    REFUSED(TRAIN("shape", LONG, start), EXIT_USER, "proj_out", "shape.safetensors");
    free(start);
}

/* Finite at step 1, whose update makes A grow from nothing to 1: step 2 overflows. */
static void a_loss_that_is_not_finite(void **state) {
    (void)state;
    char *start = train_start_from("loss.safetensors", 1e-25f, 1e25f, 64);
    const Run *r = TRAIN("loss", LONG, start, "train.learning_rate=1", "train.batch=2");
    train_expect(r, EXIT_WORLD);
    assert_parts(r->err, (const char *const[]){"step 2: the loss is not finite", "the tensor \"",
                                               ".mp4 at timestep ", "The weights are those before",
                                               "the state after step 1 is kept", NULL});
    assert_string_equal(r->out, "");
    CHECKPOINTS("loss", 0, 1);
    Error e;
    Adapter *a = adapter_open(in_train("loss/checkpoints/step-000001/adapter"), &e);
    if (!a) fail_msg("%s", e.text);
    adapter_close(a);
    assert_int_equal(steps_so_far("loss"), 1);
    free(start);
}

/* dA = B^T dY x overflows where B A x does not. */
static void a_gradient_that_is_not_finite(void **state) {
    (void)state;
    char *start = train_start_from("gradient.safetensors", 1e-32f, 1e38f, 64);
    const Run *r = TRAIN("gradient", LONG, start, "train.batch=2");
    train_expect(r, EXIT_WORLD);
    assert_parts(r->err,
                 (const char *const[]){"step 1: the gradient of \"", "proj_out.lora_A",
                                       "is not finite, for ", ".mp4, ", "The weights are", NULL});
    assert_int_equal(scratch_count(in_train("gradient/checkpoints")), 0);
    free(start);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_finished_run),
        cmocka_unit_test(a_flipped_bit_is_found),
        cmocka_unit_test(a_lost_file_is_found),
        cmocka_unit_test(the_one_before_is_taken),
        cmocka_unit_test(none_is_left),
        cmocka_unit_test(the_old_one_outlives_a_full_disk),
        cmocka_unit_test(old_ones_are_removed),
        cmocka_unit_test(leftovers_are_swept),
        cmocka_unit_test(going_back),
        cmocka_unit_test(inspect_tells_the_state),
        cmocka_unit_test(one_process_a_folder),
        cmocka_unit_test(folders_of_others),
        cmocka_unit_test(changes),
        cmocka_unit_test(schedules),
        cmocka_unit_test(caches),
        cmocka_unit_test(an_adapter_of_another_shape),
        cmocka_unit_test(a_loss_that_is_not_finite),
        cmocka_unit_test(a_gradient_that_is_not_finite),
        cmocka_unit_test(other_clips),
    };
    return cmocka_run_group_tests(tests, setup, train_teardown);
}
