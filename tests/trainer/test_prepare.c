/* `prepare`: what is in the cache is what the parts compute; exactly what a change affects is made
 * anew; what cannot be used is named. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "data/cache.h"
#include "tests/trainer/prepare_model.h"

#include <signal.h>

static char *folder, *model, *data, *cache; /* of the group: all tests use the clips a, b, c */
static char *setting_model, *setting_data;

#define PREPARE() RUN("prepare", setting_model, setting_data)
#define PREPARE_WITH(...) RUN("prepare", setting_model, setting_data, __VA_ARGS__)

/* In the dataset's folder. */
#define SHELL(...) clips_run(data, __VA_ARGS__)

static void expect_work(const Run *r, int64_t encoded, int64_t images, int64_t embedded) {
    int64_t got[] = {count_of(r, "encoded"), count_of(r, "images"), count_of(r, "embedded")};
    if (got[0] != encoded || got[1] != images || got[2] != embedded)
        fail_msg("expected %d clips, %d images, %d captions to be made, got %d, %d, %d: %s",
                 (int)encoded, (int)images, (int)embedded, (int)got[0], (int)got[1], (int)got[2],
                 r->err);
}

static int fresh(void **state) {
    (void)state;
    data = xprintf("%s/data", folder);
    cache = xprintf("%s/.cogsmith-cache", data);
    setting_data = xprintf("data.path=%s", data);
    clips_run(folder, "rm -rf data && cp -r clips data");
    model_transformer(model, false);
    return 0;
}

static int fresh_end(void **state) {
    (void)state;
    free(data);
    free(cache);
    free(setting_data);
    return 0;
}

/* ---- what is in it ----------------------------------------------------------------------------
 */

static void nothing_is_done_twice(void **state) {
    (void)state;
    const Run *r = PREPARE();
    expect_work(r, 3, 0, 4);
    assert_int_equal(count_of(r, "clips"), 3);
    assert_int_equal(count_of(r, "skipped"), 0);
    assert_parts(r->err, (const char *const[]){"a.mp4 with a.txt", "3 samples and 4 captions",
                                               "MiB for the autoencoder", "disk", "time", NULL});
    expect_work(PREPARE(), 0, 0, 0);
    SHELL("touch a.mp4 b.txt");
    expect_work(PREPARE(), 0, 0, 0);
    SHELL("mv a.mp4 z.mp4 && mv a.txt z.txt");
    expect_work(PREPARE(), 0, 0, 0); /* a name is not in the key */
    r = PREPARE_WITH("--verify");
    assert_int_equal(count_of(r, "entries"), 7);
    assert_int_equal(count_of(r, "damaged"), 0);
}

/* The moments [2,16,F,H,W] that `probe` computes of pixels. */
static void probe_moments(const float *pixels, float *moments) {
    char *in = xprintf("%s/in.safetensors", folder), *out = xprintf("%s/out.safetensors", folder);
    char *in_set = xprintf("probe.inputs=%s", in), *out_set = xprintf("probe.out=%s", out);
    SafetensorsItem item = {"video", DT_F32, 5, {1, 3, 5, 32, 48}, pixels};
    Error e;
    Safetensors s;
    if (!safetensors_write(in, &(SafetensorsFile){.items = &item, .n_items = 1}, &e))
        fail_msg("%s", e.text);
    const Run *r = RUN("probe", setting_model, in_set, out_set);
    if (r->code || !safetensors_open(&s, out, &e)) fail_msg("%s", r->err);
    const SafetensorsTensor *t = safetensors_find(&s, "moments");
    assert_true(t && t->bytes == 2 * MODEL_LATENTS * sizeof(float));
    memcpy(moments, t->data, t->bytes);
    safetensors_close(&s);
    free(in);
    free(out);
    free(in_set);
    free(out_set);
}

static void inspect_lists_it(void **state) {
    (void)state;
    PREPARE();
    const Run *r = RUN("inspect", cache);
    assert_parts(r->out,
                 (const char *const[]){"cache", "latents", "3 of [2, 16, 4, 6]", "4 of [226, 48]",
                                       "frames 9+5", "a clip named b", NULL});
    r = RUN("inspect", "--json", cache);
    json_t *list = json_loads(r->out, 0, NULL), *one = json_array_get(list, 0);
    assert_string_equal(json_string_value(json_object_get(one, "kind")), "cache");
    assert_int_equal(json_array_size(json_object_get(one, "entry_list")), 7);
    json_decref(list);
}

/* got [2][F,16,H,W] in bf16's precision. */
static void expect_moments(const float *got, const float *moments) {
    for (int k = 0; k < 2 * MODEL_LATENTS; k++) {
        int half = k / MODEL_LATENTS, at = k % MODEL_LATENTS, area = MODEL_H * MODEL_W;
        int f = at / (16 * area), channel = at / area % 16;
        float exact = moments[((half * 16 + channel) * MODEL_F + f) * area + at % area];
        assert_true(fabsf(got[k] - exact) <= fabsf(exact) * 0x1p-8f);
    }
}

static void values_are_the_encoders(void **state) {
    (void)state;
    Error e;
    expect_work(PREPARE_WITH("data.windows=2"), 6, 0, 4);
    char *clip = xprintf("%s/b.mp4", data);
    VideoReader *reader = video_reader_open(NULL, &e);
    Cache *c = cache_open(cache, false, &e);
    assert_true(reader && c);
    VideoWant want = {5, 32, 48, 8, 2};
    static float pixels[3 * 5 * 32 * 48], moments[2 * MODEL_LATENTS], got[2 * MODEL_LATENTS];
    int found = 0;
    for (int i = 0; i < cache_count(c); i++) {
        const CacheEntry *n = cache_entry(c, i);
        if (n->kind != CACHE_LATENTS || strcmp(n->source, clip)) continue;
        assert_string_equal(n->caption, "a clip named b");
        assert_int_equal(n->frames, 5);
        assert_int_equal(n->first_frame, found ? 19 : 0); /* of 24 frames the first and last 5 */
        assert_true(video_read(reader, clip, &want, found++, pixels, NULL, &e));
        probe_moments(pixels, moments);
        if (!cache_read(c, i, got, got + MODEL_LATENTS, &e)) fail_msg("%s", e.text);
        expect_moments(got, moments);
    }
    assert_int_equal(found, 2);
    cache_close(c, &e);
    video_reader_close(reader);
    free(clip);
}

/* How many entries of a kind there are, and whether no two of them have the same values. */
static int count_distinct(CacheKind kind) {
    enum { MOST = 64, N = 16 * MODEL_H * MODEL_W };
    static float mean[MOST][N], logvar[N];
    Error e;
    int n = 0;
    Cache *c = cache_open(cache, false, &e);
    assert_non_null(c);
    for (int i = 0; i < cache_count(c); i++) {
        if (cache_entry(c, i)->kind != kind) continue;
        assert_true(n < MOST && cache_elements(cache_entry(c, i)) == N);
        if (!cache_read(c, i, mean[n], logvar, &e)) fail_msg("%s", e.text);
        for (int k = 0; k < n; k++) assert_memory_not_equal(mean[k], mean[n], sizeof *mean);
        n++;
    }
    cache_close(c, &e);
    return n;
}

static void images_have_variants(void **state) {
    (void)state;
    model_transformer(model, true);
    const Run *r = PREPARE_WITH("data.fps=8");
    expect_work(r, 3, 24, 4);
    assert_int_equal(count_distinct(CACHE_IMAGE), 24);
    expect_work(PREPARE_WITH("data.fps=8"), 0, 0, 0);
    /* Pictures of its own: the clips stay, the conditions are others. */
    SHELL(FFMPEG "-f lavfi -i mandelbrot=s=96x64 -frames:v 3 p%%d.png");
    SHELL("ls *.mp4 >videos.txt; ls *.png >images.txt; cat a.txt b.txt c.txt >/dev/null; "
          "for t in a b c; do cat $t.txt; echo; done >prompts.txt; rm [abc].txt");
    expect_work(PREPARE_WITH("data.fps=8"), 0, 24, 0);
    SHELL("cp p1.png p2.png"); /* a picture is known by its bytes */
    expect_work(PREPARE_WITH("data.fps=8"), 0, 0, 0);
    SHELL(FFMPEG "-i p3.png -vf negate p4.png && mv p4.png p2.png");
    expect_work(PREPARE_WITH("data.fps=8"), 0, 8, 0);
    /* The rate of models with two frames to a token is 16. */
    r = PREPARE_WITH("data.on_bad=skip");
    assert_parts(r->err, (const char *const[]){"16 a second", "8 frames a second, fewer", NULL});
    expect_work(r, 3, 0, 0);
}

/* The distribution's python3 comes first: launch/setup gives it h5py. */
static void python_reads_it(void **state) {
    (void)state;
    if (system("PATH=/usr/bin:$PATH python3 -c 'import h5py' 2>/dev/null")) {
        print_message("python_reads_it: SKIPPED: python3 has no h5py\n");
        skip();
    }
    PREPARE();
    char *command =
        xprintf("PATH=/usr/bin:$PATH python3 tests/data/read_cache.py '%s' >'%s/read.txt' && "
                "test $(wc -l <'%s/read.txt') = 10",
                cache, folder, folder);
    assert_int_equal(system(command), 0);
    free(command);
}

/* ---- what a change costs ----------------------------------------------------------------------
 */

/* Changes one byte of a file: of the first `what` in it, or the last byte. */
static void change_byte(const char *path, const char *what) {
    size_t n;
    uint8_t *bytes = scratch_read(path, &n), *at = bytes + n - 1;
    if (what) at = memmem(bytes, n, what, strlen(what));
    assert_non_null(at);
    *at ^= 1;
    scratch_write(path, bytes, n);
    free(bytes);
}

static void change(const char *in, const char *name, const char *what) {
    char *path = xprintf("%s/%s", in, name);
    change_byte(path, what);
    free(path);
}

#define TILES "vae.tile_height=16", "vae.tile_width=16", "vae.overlap_height=0.5"

static void exactly_what_changed_is_made(void **state) {
    (void)state;
    expect_work(PREPARE(), 3, 0, 4);
    change(data, "b.mp4", "Lavf"); /* who wrote the file: no pixel */
    expect_work(PREPARE(), 1, 0, 0);
    change(data, "a.txt", NULL);
    expect_work(PREPARE(), 0, 0, 1);
    expect_work(PREPARE_WITH("data.windows=2"), 6, 0, 0);
    expect_work(PREPARE_WITH("data.windows=2", "data.fps=6"), 6, 0, 0); /* also those from 0 on */
    expect_work(PREPARE_WITH("data.fps=6"), 3, 0, 0);
    expect_work(PREPARE_WITH("data.fps=6", "data.frames=9"), 3, 0, 0);
    expect_work(PREPARE_WITH("data.height=48"), 3, 0, 0);
    expect_work(PREPARE_WITH("data.windows=3"), 0, 0, 0); /* the same as 1 and as 2 took */
    expect_work(PREPARE_WITH("data.trigger=blue"), 0, 0, 3);
    expect_work(PREPARE_WITH("vae.tiling=on", TILES, "vae.overlap_width=0.5"), 3, 0, 0);
    expect_work(PREPARE_WITH("vae.tiling=on", TILES, "vae.overlap_width=0"), 3, 0, 0);
    expect_work(PREPARE_WITH("vae.tiling=off"), 0, 0, 0);
    char *vae = xprintf("%s/vae", model), *t5 = xprintf("%s/text_encoder", model);
    change(vae, "diffusion_pytorch_model.safetensors", NULL);
    expect_work(PREPARE(), 3, 0, 0);
    change(vae, "diffusion_pytorch_model.safetensors", NULL);
    expect_work(PREPARE(), 0, 0, 0);
    change(t5, "model-00002-of-00002.safetensors", NULL);
    expect_work(PREPARE(), 0, 0, 4);
    change(t5, "model-00002-of-00002.safetensors", NULL);
    expect_work(PREPARE(), 0, 0, 0);
    free(vae);
    free(t5);
}

#define LARGE(...)                                                                                 \
    PREPARE_WITH("data.height=64", "data.width=96", TILES, "vae.overlap_width=0.5", __VA_ARGS__)

static void a_budget_decides(void **state) {
    (void)state;
    const Run *r = LARGE("memory.budget=42496KiB");
    expect_work(r, 3, 0, 4);
    assert_non_null(strstr(r->err, "works in tiles"));
    /* With room for the whole, what tiles gave is still what the settings ask for. */
    expect_work(LARGE("vae.tiling=auto"), 0, 0, 0);
    expect_work(LARGE("vae.tiling=off"), 3, 0, 0);
    REFUSED(LARGE("vae.tiling=off", "memory.budget=41MiB"), EXIT_USER, "memory.budget", "MiB",
            "leave vae.tiling out");
    /* What is refused leaves no cache behind. */
    char *none = xprintf("%s-none", cache), *setting = xprintf("data.cache=%s", none);
    REFUSED(LARGE("memory.budget=41943050", setting), EXIT_USER, "memory.budget", "in tiles");
    assert_int_equal(access(none, F_OK), -1);
    free(none);
    free(setting);
}

/* ---- damage -----------------------------------------------------------------------------------
 */

static void damage_is_named_and_mended(void **state) {
    (void)state;
    expect_work(PREPARE(), 3, 0, 4);
    char *part = xprintf("%s/part-000002.h5", cache);
    change_byte(part, NULL);
    const Run *r = PREPARE_WITH("--verify");
    assert_int_equal(r->code, EXIT_DATA);
    assert_parts(r->err, (const char *const[]){part, "lost: the latents of", "a.mp4", "b.mp4",
                                               "c.mp4", NULL});
    assert_non_null(strstr(r->out, "damaged 3\n"));
    unlink(part);
    expect_work(PREPARE(), 3, 0, 0);
    assert_int_equal(PREPARE_WITH("--verify")->code, 0);
    free(part);
    char *memory = xprintf("%s/files.jsonl", cache);
    change_byte(memory, "digest");
    expect_work(PREPARE(), 0, 0, 0);
    free(memory);
}

static void one_writes_at_a_time(void **state) {
    (void)state;
    Error e;
    Cache *c = cache_open(cache, true, &e);
    assert_non_null(c);
    char *who = xprintf("process %d", (int)getpid());
    const Run *r = PREPARE();
    REFUSED(r, EXIT_USER, who, cache, "writes this cache");
    free(who);
    cache_close(c, &e);
    expect_work(PREPARE(), 3, 0, 4);
}

static void a_full_disk_is_an_error(void **state) {
    (void)state;
    run_as.file_bytes = 20000;
    const Run *r = PREPARE();
    run_as.file_bytes = 0;
    assert_int_equal(r->code, EXIT_WORLD);
    assert_parts(r->err, (const char *const[]){"cogsmith: ", cache, "part-", NULL});
    assert_int_equal(PREPARE_WITH("--verify")->code, 0);
    expect_work(PREPARE(), 3, 0, 4);
    SHELL("test -z \"$(ls .cogsmith-cache | grep tmp)\"");
}

/* ---- what cannot be used ----------------------------------------------------------------------
 */

/* With stop, the file and the reason end the run; with skip, the others are used. */
static void expect_bad(const char *name, const char *reason) {
    const Run *r = PREPARE();
    assert_int_equal(r->code, EXIT_DATA);
    const char *line = strstr(r->err, "cogsmith: ");
    if (!line || !strstr(line, name) || !strstr(line, reason) ||
        strchr(line, '\n') != line + strlen(line) - 1)
        fail_msg("expected one line with %s and %s: %s", name, reason, r->err);
    assert_string_equal(r->out, "");
    r = PREPARE_WITH("data.on_bad=skip");
    assert_int_equal(count_of(r, "clips"), 3);
    assert_int_equal(count_of(r, "skipped"), 1);
    assert_parts(r->err, (const char *const[]){"skipped   1", name, reason, NULL});
    r = PREPARE_WITH("data.on_bad=skip");
    assert_int_equal(count_of(r, "encoded"), 0);
    assert_int_equal(count_of(r, "skipped"), 1);
    assert_int_equal(PREPARE()->code, EXIT_DATA); /* what was skipped once is not forgiven */
    SHELL("rm -f bad.*");
}

static void bad_clips_are_named(void **state) {
    (void)state;
    expect_work(PREPARE(), 3, 0, 4);
    SHELL("echo bad >bad.txt && echo not a video >bad.mp4");
    expect_bad("bad.mp4", "");
    SHELL("echo bad >bad.txt && : >bad.mp4");
    expect_bad("bad.mp4", "is empty");
    SHELL("echo bad >bad.txt && head -c 3000 a.mp4 >bad.mp4");
    expect_bad("bad.mp4", "");
    SHELL("echo bad >bad.txt && " FFMPEG "-f lavfi -i sine=d=2 bad.mp4");
    expect_bad("bad.mp4", "no video");
    SHELL("echo bad >bad.txt && " FFMPEG "-i a.mp4 -frames:v 3 bad.mp4");
    expect_bad("bad.mp4", "is too short");
    /* Whole in its index, broken inside: only decoding can tell. */
    SHELL("echo bad >bad.txt && " FFMPEG "-f lavfi -i testsrc2=s=96x64:r=8:d=3 -c:v libx264 "
          "-movflags +faststart bad.mp4 && truncate -s -9000 bad.mp4");
    expect_bad("bad.mp4", "");
}

static void bad_captions_are_named(void **state) {
    (void)state;
    expect_work(PREPARE(), 3, 0, 4);
    SHELL("cp a.mp4 bad.mp4");
    expect_bad("bad.mp4", "caption");
    SHELL("cp a.mp4 bad.mp4 && printf 'a \\377 b' >bad.txt");
    expect_bad("bad.txt", "UTF-8");
    SHELL("cp a.mp4 bad.mp4 && cp a.mp4 bad.mkv && echo bad >bad.txt");
    const Run *r = PREPARE();
    assert_int_equal(r->code, EXIT_DATA);
    assert_parts(r->err, (const char *const[]){"bad.m", NULL});
    SHELL("rm bad.mkv && yes word | head -10000 >bad.txt");
    r = PREPARE();
    expect_work(r, 0, 0, 1); /* the clip is a's */
    assert_int_equal(count_of(r, "cut"), 1);
    assert_parts(r->err, (const char *const[]){"bad.txt", "more than 226 tokens", NULL});
}

static void mistakes_are_said(void **state) {
    (void)state;
    REFUSED(PREPARE_WITH("data.frames=6"), EXIT_USER, "data.frames", "4 n + 1");
    REFUSED(PREPARE_WITH("data.height=40"), EXIT_USER, "data.height", "16 pixels");
    REFUSED(RUN("prepare", setting_model), EXIT_USER, "data.path");
    REFUSED(RUN("prepare", setting_data), EXIT_USER, "model.path");
    REFUSED(RUN("prepare", setting_model, "data.path=/nowhere"), EXIT_USER, "/nowhere");
    REFUSED(RUN("prepare", setting_data, "--verify"), EXIT_USER, cache, "no cache");
    SHELL("rm [abc].mp4");
    const Run *r = PREPARE_WITH("data.on_bad=skip");
    assert_int_equal(r->code, EXIT_DATA);
}

static void rights_are_needed(void **state) {
    (void)state;
    if (geteuid()) skip(); /* cannot become another user */
    clips_run(folder, "chmod 755 . && chmod -R a+rX . && chmod 755 data");
    run_as.unprivileged = true;
    const Run *r = PREPARE();
    assert_int_equal(r->code, EXIT_WORLD);
    assert_parts(r->err, (const char *const[]){cache, "Permission denied", NULL});
    SHELL("chmod 700 .");
    r = PREPARE();
    run_as.unprivileged = false;
    assert_int_not_equal(r->code, 0);
    assert_parts(r->err, (const char *const[]){data, "Permission denied", NULL});
}

static int setup(void **state) {
    (void)state;
    folder = scratch_make();
    model = xprintf("%s/model", folder);
    setting_model = xprintf("model.path=%s", model);
    model_make(model);
    char *clips = xprintf("%s/clips", folder);
    mkdir(clips, 0755);
    clip_make(clips, "a", "testsrc2", 3);
    clip_make(clips, "b", "mandelbrot", 3);
    clip_make(clips, "c", "rgbtestsrc", 3);
    free(clips);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    scratch_remove(folder);
    free(model);
    free(setting_model);
    return 0;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, fresh, fresh_end)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(nothing_is_done_twice),   TEST(inspect_lists_it),
        TEST(values_are_the_encoders), TEST(images_have_variants),
        TEST(python_reads_it),         TEST(exactly_what_changed_is_made),
        TEST(a_budget_decides),        TEST(damage_is_named_and_mended),
        TEST(one_writes_at_a_time),    TEST(a_full_disk_is_an_error),
        TEST(bad_clips_are_named),     TEST(bad_captions_are_named),
        TEST(mistakes_are_said),       TEST(rights_are_needed),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
