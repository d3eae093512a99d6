/* A small model with random weights, clips in a cache, and runs of `train` on them: what the tests
 * of training share. Include after cmocka.h. */
#pragma once

#include "tests/trainer/prepare_model.h"
#include "trainer/checkpoint.h"
#include "trainer/lora.h"

#include <limits.h>
#include <math.h>
#include <signal.h>
#include <time.h>

static int train_windows = 1; /* of each of five clips, four at the most */
static char *train_folder;    /* of the group: model/, data/, t.yaml, and the runs */

/* "train_folder/name", in memory that the next eight calls leave alone. */
static inline const char *in_train(const char *name) {
    static char *ring[8];
    static int next;
    next = (next + 1) % 8;
    free(ring[next]);
    return ring[next] = xprintf("%s/%s", train_folder, name);
}

/* Weights for the config.json in model/transformer: normal numbers, and ones for norms. */
static inline void train_weights(const char *model) {
    char *setting = xprintf("model.path=%s", model), *folder = xprintf("%s/transformer", model);
    Config *c = config_new();
    Error e;
    if (!config_assign(c, setting, &e)) fail_msg("%s", e.text);
    Model *m = model_open(c, TRAIN_FULL, MODEL_SHAPES, false);
    size_t n = (size_t)m->params->n_params;
    SafetensorsItem *items = xcalloc(n, sizeof *items);
    for (size_t i = 0; i < n; i++) {
        const Param *p = &m->params->param[i];
        float *values = xcalloc((size_t)param_count(p), sizeof *values);
        bool gamma = strstr(p->name, "norm") && p->shape.rank == 1 && strstr(p->name, ".weight");
        random_normal((Draw){.ordinal = (uint32_t)i, .purpose = PURPOSE_INIT}, 0, param_count(p),
                      values);
        for (int64_t k = 0; k < param_count(p); k++) values[k] = gamma ? 1 : 0.1f * values[k];
        items[i] = (SafetensorsItem){
            .name = xstrdup(p->name), .dtype = DT_F32, .n_dims = p->shape.rank, .data = values};
        memcpy(items[i].shape, p->shape.dim, (size_t)p->shape.rank * sizeof *p->shape.dim);
    }
    SafetensorsFile file = {.items = items, .n_items = n};
    char *path = xprintf("%s/diffusion_pytorch_model.safetensors", folder);
    if (!safetensors_write(path, &file, &e)) fail_msg("%s", e.text);
    for (size_t i = 0; i < n; i++) free((void *)items[i].data), free((void *)items[i].name);
    free(items);
    model_close(m);
    config_free(c);
    free(path);
    free(folder);
    free(setting);
}

static inline void train_transformer(const char *model, int layers) {
    char *text =
        xprintf("{\"num_attention_heads\": 1, \"num_layers\": %d, \"text_embed_dim\": 48, "
                "\"time_embed_dim\": 32, \"max_text_seq_length\": 8, \"sample_frames\": 5, "
                "\"sample_height\": 4, \"sample_width\": 6, "
                "\"use_rotary_positional_embeddings\": true, \"in_channels\": 16}",
                layers);
    char *folder = xprintf("%s/transformer", model), *path = xprintf("%s/config.json", folder);
    mkdir(folder, 0700);
    write_text(path, text);
    train_weights(model);
    free(text);
    free(folder);
    free(path);
}

static inline void pause_seconds(double seconds) {
    struct timespec wait = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&wait, NULL);
}

/* The folder with everything prepared: five clips, samples of 5 frames of 32 x 48, batches of 1. */
static inline int train_setup(void **state) {
    (void)state;
    static const char *const CLIPS[] = {"testsrc2", "mandelbrot", "rgbtestsrc", "testsrc",
                                        "smptebars"};
    train_folder = scratch_make();
    model_make(in_train("model"));
    train_transformer(in_train("model"), 2);
    copy_files("tests/golden/dit/5b/scheduler", in_train("model/scheduler"));
    mkdir(in_train("data"), 0755);
    for (int i = 0; i < (int)COUNT(CLIPS); i++)
        clip_make(in_train("data"), (char[]){(char)('a' + i), 0}, CLIPS[i], 1);
    char *text = xprintf("model:\n  path: %s/model\nlora:\n  rank: 4\ndata:\n  path: %s/data\n"
                         "  windows: %d\ntrain:\n  learning_rate: 1e-3\n  warmup_steps: 0\n",
                         train_folder, train_folder, train_windows);
    write_text(in_train("t.yaml"), text);
    free(text);
    pause_seconds(1.1); /* clips that are older than that are not looked at again */
    const Run *r = RUN("prepare", in_train("t.yaml"));
    if (r->code) fail_msg("%s", r->err);
    return 0;
}

static inline int train_teardown(void **state) {
    (void)state;
    scratch_remove(train_folder);
    return 0;
}

/* cogsmith train t.yaml train.out=<train_folder>/out ..., the last of them NULL. */
static inline const Run *train_args(const char *out, const char *const *settings) {
    char *out_setting = xprintf("train.out=%s/%s", train_folder, out);
    const char *args[RUN_MAX_ARGS] = {"train", in_train("t.yaml"), out_setting};
    for (int i = 0; settings[i]; i++) args[i + 3] = settings[i];
    const Run *r = run_args(args);
    free(out_setting);
    return r;
}

#define TRAIN(out, ...) train_args(out, (const char *const[]){__VA_ARGS__, NULL})

/* An adapter of proj_out [64,64] with these values everywhere, as the setting that starts from it.
 */
static inline char *train_start_from(const char *name, float a, float b, int64_t inner) {
    enum { WIDTH = 64, RANK = 2 };
    float *halves[2] = {xcalloc((size_t)(RANK * inner), sizeof(float)),
                        xcalloc(RANK * WIDTH, sizeof(float))};
    for (int64_t i = 0; i < RANK * inner; i++) halves[0][i] = a;
    for (int i = 0; i < RANK * WIDTH; i++) halves[1][i] = i / RANK % 2 ? b : -b;
    SafetensorsItem items[] = {
        {"transformer.proj_out.lora_A.weight", DT_F32, 2, {RANK, inner}, halves[0]},
        {"transformer.proj_out.lora_B.weight", DT_F32, 2, {WIDTH, RANK}, halves[1]}};
    Error e;
    if (!safetensors_write(in_train(name), &(SafetensorsFile){.items = items, .n_items = 2}, &e))
        fail_msg("%s", e.text);
    free(halves[0]);
    free(halves[1]);
    return xprintf("lora.start=%s", in_train(name));
}

static inline void train_expect(const Run *r, int code) {
    if (r->code != code) fail_msg("expected exit code %d, got %d: %s", code, r->code, r->err);
}

/* ---- what a run leaves ------------------------------------------------------------------------
 */

/* An array of the lines of out/metrics.jsonl. */
static inline json_t *train_metrics(const char *out) {
    char *path = xprintf("%s/%s/metrics.jsonl", train_folder, out), *line = NULL;
    FILE *f = fopen(path, "r");
    if (!f) fail_msg("%s is not there", path);
    json_t *list = json_array();
    size_t room = 0;
    while (getline(&line, &room, f) > 0) {
        json_t *j = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
        if (!j) fail_msg("%s: %s", path, line);
        json_array_append_new(list, j);
    }
    fclose(f);
    free(line);
    free(path);
    return list;
}

/* A number of line i, from 0; negative: from the end. */
static inline double train_metric(const json_t *list, int i, const char *key) {
    size_t at = i < 0 ? json_array_size(list) - (size_t)-i : (size_t)i;
    const json_t *value = json_object_get(json_array_get(list, at), key);
    if (!json_is_number(value)) fail_msg("line %d: no number %s", i, key);
    return json_number_value(value);
}

static inline void expect_same_metrics(const char *a, const char *b) {
    static const char *const KEYS[] = {"step", "loss", "grad_norm", "learning_rate", "samples"};
    json_t *x = train_metrics(a), *y = train_metrics(b);
    if (json_array_size(x) != json_array_size(y))
        fail_msg("%s has %zu steps, %s has %zu", a, json_array_size(x), b, json_array_size(y));
    for (size_t i = 0; i < json_array_size(x); i++)
        for (size_t k = 0; k < COUNT(KEYS); k++)
            if (!json_equal(json_object_get(json_array_get(x, i), KEYS[k]),
                            json_object_get(json_array_get(y, i), KEYS[k])))
                fail_msg("%s and %s: step %zu: %s differs", a, b, i + 1, KEYS[k]);
    json_decref(x);
    json_decref(y);
}

static inline void expect_same_bytes(const char *a, const char *b) {
    size_t n, m;
    char *x = (char *)scratch_read(in_train(a), &n), *y = (char *)scratch_read(in_train(b), &m);
    if (n != m || memcmp(x, y, n)) fail_msg("%s and %s differ", a, b);
    free(x);
    free(y);
}

/* Two runs of one rank came to the same: weights, moments, records and result. */
static inline void expect_same_run(const char *a, const char *b, int steps) {
    static const char *const FILES[] = {"%s/checkpoints/step-%06d/state-00001-of-00001.safetensors",
                                        "%s/checkpoints/step-%06d/adapter/"
                                        "pytorch_lora_weights.safetensors",
                                        "%s/adapter/pytorch_lora_weights.safetensors"};
    expect_same_metrics(a, b);
    for (size_t i = 0; i < COUNT(FILES); i++) {
        char x[300], y[300];
        snprintf(x, sizeof x, FILES[i], a, steps);
        snprintf(y, sizeof y, FILES[i], b, steps);
        expect_same_bytes(x, y);
    }
}

/* A folder of checkpoints has these steps, newest first, and nothing else but `others` entries. */
static inline void expect_checkpoints(const char *out, const int64_t *steps, int n, int others) {
    char *folder = xprintf("%s/%s/checkpoints", train_folder, out);
    int found;
    int64_t *list = checkpoint_list(folder, &found);
    if (found != n || scratch_count(folder) != n + others) {
        char *line = xprintf("ls -A '%s' >&2", folder);
        if (system(line)) free(line);
        fail_msg("expected %d checkpoints and %d others", n, others);
    }
    for (int i = 0; i < n; i++) {
        Position at;
        Error e;
        char *path = checkpoint_path(folder, list[i]);
        assert_int_equal(list[i], steps[i]);
        if (!checkpoint_verify(path, &at, &e)) fail_msg("%s", e.text);
        assert_int_equal(at.step, steps[i]);
        free(path);
    }
    free(list);
    free(folder);
}

#define CHECKPOINTS(out, others, ...)                                                              \
    expect_checkpoints(out, (const int64_t[]){__VA_ARGS__},                                        \
                       COUNT(((const int64_t[]){__VA_ARGS__})), others)

/* ---- interrupting -----------------------------------------------------------------------------
 */

/* Starts a run that is not waited for; its stderr goes to train_folder/stderr. */
static inline pid_t train_start(const char *out, const char *const *settings) {
    char *out_setting = xprintf("train.out=%s/%s", train_folder, out);
    const char *argv[RUN_MAX_ARGS] = {"cogsmith", "train", in_train("t.yaml"), out_setting};
    for (int i = 0; settings[i]; i++) argv[i + 4] = settings[i];
    const char *err = in_train("stderr");
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        setenv("OMP_NUM_THREADS", "1", 0);
        if (freopen("/dev/null", "w", stdout) && freopen(err, "w", stderr))
            execv(getenv("COGSMITH"), (char **)argv);
        _exit(126);
    }
    free(out_setting);
    return child;
}

#define START(out, ...) train_start(out, (const char *const[]){__VA_ARGS__, NULL})

/* The whole lines of out/metrics.jsonl as they are now. */
static inline int steps_so_far(const char *out) {
    char *path = xprintf("%s/%s/metrics.jsonl", train_folder, out);
    FILE *f = fopen(path, "r");
    int lines = 0;
    for (int c; f && (c = getc(f)) != EOF;) lines += c == '\n';
    if (f) fclose(f);
    free(path);
    return lines;
}

/* Waits until a run has recorded a step. */
static inline void wait_for_step(pid_t child, const char *out, int step) {
    double end = now_seconds() + 60;
    while (steps_so_far(out) < step && now_seconds() < end) {
        pause_seconds(0.001);
        if (!waitpid(child, NULL, WNOHANG)) continue;
        size_t n;
        fail_msg("ended before step %d: %s", step, (char *)scratch_read(in_train("stderr"), &n));
    }
}

/* The exit code of a child; a signal is a failure of the test. */
static inline int exit_code(pid_t child) {
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status)) fail_msg("signal %d", WTERMSIG(status));
    return WEXITSTATUS(status);
}
