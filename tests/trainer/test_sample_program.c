/* `cogsmith sample` as a user has it: the golden cases of the published pipelines, then the tiny
 * model with its seeds, adapters, lists and videos, and mistakes. */
#define _GNU_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/random.h"
#include "tests/data/folder.h"
#include "tests/trainer/pipelines.h"
#include "tests/trainer/program.h"

static double tensor_distance(const Safetensors *a, const Safetensors *b, const char *name) {
    const SafetensorsTensor *x = safetensors_find(a, name), *y = safetensors_find(b, name);
    if (!x || !y || x->bytes != y->bytes) fail_msg("%s: %s differs in size", a->path, name);
    return distance(x->data, y->data, (int64_t)(x->bytes / sizeof(float)));
}

/* A setting of the call, in memory that lives until the test ends. */
static const char *setting(const char *format, ...) __attribute__((format(printf, 1, 2)));
static const char *setting(const char *format, ...) {
    static char *kept[256];
    static size_t n;
    char text[1200];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    free(kept[n % COUNT(kept)]);
    return kept[n++ % COUNT(kept)] = xstrdup(text);
}

/* The case's noise as the program takes it. */
static void write_noise(const Safetensors *want, const char *path) {
    static const char *const NAMES[][2] = {
        {"latents_in", "latents"}, {"noise", "noise"}, {"posterior_noise", "posterior_noise"}};
    SafetensorsItem items[COUNT(NAMES)];
    SafetensorsFile file = {.items = items};
    Error e;
    for (size_t i = 0; i < COUNT(NAMES); i++) {
        const SafetensorsTensor *t = safetensors_find(want, NAMES[i][0]);
        if (!t) continue;
        SafetensorsItem *item = &items[file.n_items++];
        *item = (SafetensorsItem){NAMES[i][1], t->dtype, t->n_dims, {0}, t->data};
        memcpy(item->shape, t->shape, sizeof item->shape);
    }
    assert_true(safetensors_write(path, &file, &e));
}

static void run_case(const Case *k) {
    Safetensors want = open_case(k->name);
    const char *noise = setting("%s/noise.safetensors", folder);
    write_noise(&want, noise);
    const Run *r = RUN(
        "sample", setting("model.path=%s/%s", PIPELINE, k->model),
        "sample.prompt=A golden dog runs across the meadow, while a pale, misty cloud drifts "
        "nearby. The camera slowly pans to the left.",
        setting("sample.frames=%d", (int)k->frames), setting("sample.height=%d", HEIGHT),
        setting("sample.width=%d", WIDTH), setting("sample.steps=%d", STEPS),
        k->dpm ? "sample.scheduler=dpm" : "sample.scheduler=ddim",
        k->dynamic ? "sample.dynamic_guidance=true" : "sample.dynamic_guidance=false",
        setting("sample.noise=%s", noise), setting("sample.latents_out=%s/out.safetensors", folder),
        setting("sample.out=%s/out.mp4", folder),
        floats(&want, "image") ? setting("sample.image=%s/image.png", PIPELINE) : "sample.image=");
    if (r->code) fail_msg("%s: %s", k->name, r->err);
    assert_string_equal(r->out, setting("%s/out.mp4\n", folder));
    Safetensors got = open_tensors(setting("%s/out.safetensors", folder));
    double latents = tensor_distance(&got, &want, "latents");
    double frames = tensor_distance(&got, &want, "frames");
    print_message("%s: latents %.2g, frames %.2g\n", k->name, latents, frames);
    assert_true(latents <= STEP_BOUND && frames <= FRAME_BOUND);
    safetensors_close(&got);
    safetensors_close(&want);
}

static void the_program_agrees(void **state) {
    (void)state;
    if (!is_here(PIPELINE)) return;
    for (size_t i = 0; i < COUNT(CASES); i++) run_case(&CASES[i]);
}

/* ---- the tiny model ---------------------------------------------------
 */

/* 9 frames in 2 steps; `more` settings. */
static const Run *sample_tiny(const char *out, const char *a, const char *b) {
    return RUN("sample", setting("model.path=%s", TINY), "sample.prompt=a red ball",
               "sample.frames=9", "sample.steps=2", setting("sample.out=%s/%s", folder, out), a, b);
}

static void expect_done(const Run *r) {
    if (r->code) fail_msg("exit code %d: %s", r->code, r->err);
}

static bool same_files(const char *a, const char *b) {
    size_t n, m;
    uint8_t *x = scratch_read(setting("%s/%s", folder, a), &n);
    uint8_t *y = scratch_read(setting("%s/%s", folder, b), &m);
    bool same = n == m && !memcmp(x, y, n);
    free(x);
    free(y);
    return same;
}

static void seeds_repeat(void **state) {
    (void)state;
    if (!is_here(TINY)) return;
    expect_done(sample_tiny("one.mp4", "sample.seed=1", "sample.scheduler=dpm"));
    expect_done(sample_tiny("two.mp4", "sample.seed=1", "sample.scheduler=dpm"));
    expect_done(sample_tiny("three.mp4", "sample.seed=2", "sample.scheduler=dpm"));
    assert_true(same_files("one.mp4", "two.mp4"));
    assert_false(same_files("one.mp4", "three.mp4"));
}

/* An adapter of rank 2 on two layers of the tiny model. */
static const char *write_adapter(void) {
    enum { WIDTH_OF_TINY = 192, RANK = 2, N = WIDTH_OF_TINY * RANK };
    static float values[2][N];
    static const char *const NAMES[] = {
        "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "transformer.transformer_blocks.0.attn1.to_q.lora_B.weight",
        "transformer.transformer_blocks.3.attn1.to_v.lora_A.weight",
        "transformer.transformer_blocks.3.attn1.to_v.lora_B.weight"};
    SafetensorsItem items[4];
    const char *path = setting("%s/adapter.safetensors", folder);
    Error e;
    for (int i = 0; i < 2; i++)
        random_normal((Draw){.seed = (uint64_t)i, .purpose = PURPOSE_INIT}, 0, N, values[i]);
    for (int i = 0; i < 4; i++) {
        items[i] = (SafetensorsItem){NAMES[i], DT_F32, 2, {RANK, WIDTH_OF_TINY}, values[i % 2]};
        if (i % 2) items[i].shape[0] = WIDTH_OF_TINY, items[i].shape[1] = RANK;
    }
    SafetensorsFile file = {.items = items, .n_items = 4};
    assert_true(safetensors_write(path, &file, &e));
    return path;
}

static void adapters_count_by_their_scale(void **state) {
    (void)state;
    if (!is_here(TINY)) return;
    const char *adapter = setting("sample.adapter=%s", write_adapter());
    expect_done(sample_tiny("plain.png", "sample.seed=5", "sample.steps=2"));
    expect_done(sample_tiny("zero.png", adapter, "sample.adapter_scale=0"));
    expect_done(sample_tiny("whole.png", adapter, "sample.adapter_scale=1"));
    expect_done(sample_tiny("zero5.png", adapter, "sample.adapter_scale=-0.5"));
    expect_done(sample_tiny("plain42.png", "sample.seed=42", "sample.steps=2"));
    assert_true(same_files("zero.png", "plain42.png"));
    assert_false(same_files("whole.png", "plain42.png"));
    assert_false(same_files("whole.png", "zero5.png"));
    assert_false(same_files("plain.png", "plain42.png"));
}

static void prompts_fill_a_folder(void **state) {
    (void)state;
    if (!is_here(TINY)) return;
    const char *list = setting("%s/prompts.txt", folder), *out = setting("%s/new/videos", folder);
    write_text(list, "a red ball\r\na blue star\n");
    const Run *r = RUN("sample", setting("model.path=%s", TINY), setting("sample.prompts=%s", list),
                       "sample.frames=9", "sample.steps=1", setting("sample.out=%s", out));
    expect_done(r);
    assert_string_equal(r->out, setting("%s/000.mp4\n%s/001.mp4\n", out, out));
    assert_int_equal(scratch_count(out), 2);
    assert_false(same_files("new/videos/000.mp4", "new/videos/001.mp4"));
    /* the first of them is what its prompt gives alone */
    expect_done(sample_tiny("alone.mp4", "sample.steps=1", "sample.seed=42"));
    assert_true(same_files("new/videos/000.mp4", "alone.mp4"));
}

static void a_video_begins_anew_from_a_video(void **state) {
    (void)state;
    const char *clip = "../shared/tiny/base/000.mp4";
    if (!is_here(clip)) return;
    const char *video = setting("sample.video=%s", clip);
    expect_done(sample_tiny("near.png", video, "sample.strength=0.5"));
    expect_done(sample_tiny("far.png", video, "sample.strength=1"));
    assert_false(same_files("near.png", "far.png"));
    REFUSED(sample_tiny("none.png", video, "sample.strength=0.1"), EXIT_USER, "sample.strength");
    REFUSED(sample_tiny("none.png", "sample.video=/nowhere.mp4", "sample.strength=1"), EXIT_DATA,
            "/nowhere.mp4");
}

/* ---- mistakes ---------------------------------------------------------------------------------
 */

static void mistakes_are_said(void **state) {
    (void)state;
    if (!is_here(TINY)) return;
    static const struct {
        const char *a, *b, *part;
    } WRONG[] = {
        {"sample.steps=61", "sample.seed=1", "expected 60 or 62"},
        {"sample.frames=8", "sample.seed=1", "sample.frames"},
        {"sample.height=60", "sample.seed=1", "sample.height"},
        {"sample.width=100", "sample.seed=1", "sample.width"},
        {"sample.image=x.png", "sample.seed=1", "sample.image"},
        {"sample.prompts=x.txt", "sample.seed=1", "sample.prompts"},
        {"sample.adapter=/nowhere", "sample.seed=1", "sample.adapter"},
        {"sample.noise=/nowhere", "sample.seed=1", "/nowhere"},
        {"sample.out=x.avi", "sample.seed=1", "x.avi"},
        {"sample.out=/nowhere/x.mp4", "sample.seed=1", "/nowhere/"},
        {"sample.latents_out=/nowhere/x", "sample.seed=1", "sample.latents_out"},
        {"model.path=/nowhere", "sample.seed=1", "/nowhere"},
        {"device=cuda", "sample.seed=1", "device"},
        {"memory.budget=41MiB", "vae.tiling=off", "memory.budget"},
    };
    int before = scratch_count(folder);
    for (size_t i = 0; i < COUNT(WRONG); i++) {
        const Run *r = sample_tiny("wrong.mp4", WRONG[i].a, WRONG[i].b);
        if (r->code != EXIT_USER || !strstr(r->err, WRONG[i].part))
            fail_msg("%s: exit code %d: %s", WRONG[i].a, r->code, r->err);
        assert_string_equal(r->out, "");
    }
    assert_int_equal(scratch_count(folder), before);
    REFUSED(RUN("sample", setting("model.path=%s", TINY)), EXIT_USER, "sample.prompt");
    const char *list = setting("%s/list.txt", folder);
    write_text(list, "one\n\ntwo\n");
    REFUSED(RUN("sample", setting("model.path=%s", TINY), setting("sample.prompts=%s", list)),
            EXIT_USER, "line 2", "empty");
}

static void images_are_asked_for(void **state) {
    (void)state;
    if (!is_here(PIPELINE)) return;
    const char *model = setting("model.path=%s/i2v", PIPELINE);
    REFUSED(RUN("sample", model, "sample.prompt=x", "sample.height=32", "sample.width=48"),
            EXIT_USER, "sample.image", "missing");
    REFUSED(RUN("sample", model, "sample.prompt=x", "sample.video=x.mp4"), EXIT_USER,
            "sample.video");
    REFUSED(RUN("sample", model, "sample.prompt=x", "sample.frames=9", "sample.height=32",
                "sample.width=48", setting("sample.out=%s/x.mp4", folder),
                "sample.image=/nowhere.png"),
            EXIT_DATA, "/nowhere.png");
}

/* Nothing of what could not be finished stays. */
static void a_full_disk_leaves_nothing(void **state) {
    (void)state;
    if (!is_here(TINY)) return;
    int before = scratch_count(folder);
    run_as.file_bytes = 4096;
    const Run *r = sample_tiny("full.mp4", "sample.seed=1", "sample.steps=1");
    run_as.file_bytes = 0;
    assert_int_equal(r->code, EXIT_WORLD);
    assert_non_null(strstr(r->err, "full.mp4"));
    assert_int_equal(scratch_count(folder), before);
}

static void an_interrupt_leaves_nothing(void **state) {
    (void)state;
    if (!is_here(TINY)) return;
    int before = scratch_count(folder), status;
    char *model = xprintf("model.path=%s", TINY), *out = xprintf("sample.out=%s/cut.mp4", folder);
    pid_t child = fork();
    if (!child) {
        if (!freopen("/dev/null", "w", stderr)) _exit(126);
        execl(getenv("COGSMITH"), "cogsmith", "sample", model, out, "sample.prompt=a red ball",
              "sample.steps=1000", (char *)NULL);
        _exit(126);
    }
    usleep(1500000);
    kill(child, SIGINT);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_STOPPED);
    assert_int_equal(scratch_count(folder), before);
    free(model);
    free(out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_program_agrees),
        cmocka_unit_test(seeds_repeat),
        cmocka_unit_test(adapters_count_by_their_scale),
        cmocka_unit_test(prompts_fill_a_folder),
        cmocka_unit_test(a_video_begins_anew_from_a_video),
        cmocka_unit_test(mistakes_are_said),
        cmocka_unit_test(images_are_asked_for),
        cmocka_unit_test(a_full_disk_leaves_nothing),
        cmocka_unit_test(an_interrupt_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
