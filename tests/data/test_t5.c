/* The text encoder against the published implementation's numbers, and against itself: any number
 * of threads, repeated, and each caption alone. Every arena is poisoned. */
#define _XOPEN_SOURCE 700
#include "data/t5.h"
#include "kernels/math.h"
#include "tests/data/golden.h"

#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static T5 *open_t5(const char *folder) {
    Error e;
    T5 *t = t5_open(folder, &BACKEND_CPU, &e);
    if (!t) fail_msg("%s", e.text);
    t->poison = true;
    return t;
}

static T5 *open_golden(void) {
    char *folder = golden_find("t5/text_encoder");
    T5 *t = open_t5(folder);
    free(folder);
    return t;
}

static const void *golden_data(const Safetensors *s, const char *name, DType type, size_t count) {
    const SafetensorsTensor *t = safetensors_find(s, name);
    if (!t || t->dtype != type || t->bytes != count * dtype_size(type))
        fail_msg("%s of %s is not there", name, s->path);
    return t->data;
}

enum { ROWS = 4, L = 226, WIDTH = 48, COUNT_ALL = ROWS * L * WIDTH };

/* input_ids of the golden batch, in memory that the caller frees. */
static int64_t *golden_ids(void) {
    Safetensors s = golden_file("t5/ids.safetensors");
    int64_t *ids = xcalloc(ROWS * L, sizeof *ids);
    memcpy(ids, golden_data(&s, "input_ids", DT_I64, ROWS * L), ROWS * L * sizeof *ids);
    safetensors_close(&s);
    return ids;
}

static float *encode(T5 *t, const int64_t *ids, int64_t n) {
    Error e;
    float *out = xcalloc((size_t)(n * L * WIDTH), sizeof *out);
    if (!t5_encode(t, ids, n, L, out, &e)) fail_msg("%s", e.text);
    return out;
}

/* ---- golden -----------------------------------------------------------------------------------
 */

static void buckets_are_the_published_ones(void **state) {
    (void)state;
    enum { N = 601 };
    Safetensors s = golden_file("t5/buckets.safetensors");
    const int64_t *relative = golden_data(&s, "relative_position", DT_I64, N);
    const int64_t *want = golden_data(&s, "bucket", DT_I64, N);
    T5 *t = open_golden();
    for (int i = 0; i < N; i++) assert_int_equal(t5_bucket(&t->config, relative[i]), want[i]);
    t5_close(t);
    safetensors_close(&s);
}

/* Both differences to `want` [n], of which the largest must be within `bound`. */
static void expect_near(const char *what, const float *got, const float *want, size_t n,
                        double max_bound, double rms_bound) {
    double most = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - (double)want[i]);
        most = d <= most ? most : d; /* NaN stays */
        sum += d * d;
    }
    double rms = sqrt(sum / (double)n);
    print_message("%s: max %.3g (bound %g), rms %.3g (bound %g)\n", what, most, max_bound, rms,
                  rms_bound);
    assert_true(most <= max_bound && rms <= rms_bound);
}

static void embeddings_are_the_published_ones(void **state) {
    (void)state;
    Safetensors s = golden_file("t5/embeddings.safetensors");
    int64_t *ids = golden_ids();
    T5 *t = open_golden();
    float *got = encode(t, ids, ROWS);
    expect_near("embeddings", got, golden_data(&s, "embeddings", DT_F32, COUNT_ALL), COUNT_ALL,
                8e-5, 8e-5);
    t5_close(t);
    free(got);
    free(ids);
    safetensors_close(&s);
}

/* Plans the golden batch with the streams of layer 0 as outputs, and runs it. */
static void stages_are_the_published_ones(void **state) {
    (void)state;
    enum { N = 2 * L * WIDTH };
    if (access("../shared/golden/t5/stages.safetensors", F_OK)) {
        print_message("the streams inside are not in the project: not compared\n");
        skip();
    }
    Safetensors s = golden_file("t5/stages.safetensors");
    int64_t *ids = golden_ids();
    T5 *t = open_golden();
    Graph *g = graph_open(DT_REAL, t->params);
    T5Graph io = t5_record(t, g, 2, L);
    io.streams[0]->output = io.streams[1]->output = true;
    Plan *p = plan_open(g);
    plan_homes(p, 1);
    plan_place(p, &(Ctx){.k = t->memory.k, .stream = t->stream});
    Run *run = run_open(p, &t->memory, t->stream, NULL);
    run->poison = true;
    float *rows = xcalloc(N, sizeof *rows), *bias = xcalloc(4 * L * L, sizeof *bias);
    t5_rows(t, ids, 2 * L, rows);
    t5_bias(t, L, bias);
    run_input(run, io.x, rows);
    run_input(run, io.bias, bias);
    run_plan(run, &(RunArgs){0});
    static const char *const NAMES[] = {"block0_attention", "block0"};
    for (int i = 0; i < 2; i++) {
        run_output(run, io.streams[i], rows);
        expect_near(NAMES[i], rows, golden_data(&s, NAMES[i], DT_F32, N), N, 5e-5, 5e-5);
    }
    run_close(run);
    plan_close(p);
    graph_close(g);
    t5_close(t);
    free(rows);
    free(bias);
    free(ids);
    safetensors_close(&s);
}

/* ---- folders ----------------------------------------------------------------------------------
 */

/* How a copy of the golden folder differs from it. */
typedef struct {
    DType type;                 /* of all tensors; F64: zeros */
    const char *drop;           /* a tensor that it lacks */
    const char *from, *to;      /* a tensor under another name */
    const char *extra;          /* one more tensor, [1] */
    const char *nan;            /* a tensor whose first value is NaN */
    const char *config, *value; /* a line of config.json ("\"d_ff\": 64"), and what it becomes */
} Change;

static char *copy_config(const Change *c) {
    char *path = golden_find("t5/text_encoder/config.json");
    size_t n;
    char *text = (char *)scratch_read(path, &n), *whole = xprintf("%.*s", (int)n, text);
    if (c->config) {
        char *at = strstr(whole, c->config);
        CHECK(at, "%s", c->config);
        char *changed =
            xprintf("%.*s%s%s", (int)(at - whole), whole, c->value, at + strlen(c->config));
        free(whole);
        whole = changed;
    }
    free(text);
    free(path);
    return whole;
}

/* A folder of one shard. */
static char *copy_folder(const Change *c) {
    char *from = golden_find("t5/text_encoder"), *folder = scratch_make();
    Weights w;
    Error e;
    assert_true(weights_open(&w, from, &e));
    SafetensorsItem *items = xcalloc(w.n_tensors + 1, sizeof *items);
    size_t n = 0;
    for (size_t i = 0; i < w.n_tensors; i++) {
        const SafetensorsTensor *t = &w.tensors[i];
        if (c->drop && !strcmp(t->name, c->drop)) continue;
        int64_t count = (int64_t)t->bytes / 4;
        char *data = xcalloc((size_t)count, dtype_size(c->type));
        if (c->type != DT_F64) BACKEND_CPU.cast(NULL, DT_F32, c->type, count, t->data, data);
        if (c->nan && !strcmp(t->name, c->nan)) memset(data, 0xff, dtype_size(c->type));
        bool renamed = c->from && !strcmp(t->name, c->from);
        items[n] = (SafetensorsItem){renamed ? c->to : t->name, c->type, t->n_dims, {0}, data};
        memcpy(items[n++].shape, t->shape, sizeof t->shape);
    }
    if (c->extra) items[n++] = (SafetensorsItem){c->extra, DT_F32, 1, {1}, xcalloc(4, 1)};
    char *file = xprintf("%s/model.safetensors", folder), *json = copy_config(c);
    char *config = xprintf("%s/config.json", folder);
    assert_true(safetensors_write(file, &(SafetensorsFile){.items = items, .n_items = n}, &e));
    scratch_write(config, json, strlen(json));
    for (size_t i = 0; i < n; i++) free((void *)items[i].data);
    weights_close(&w);
    free(items);
    free(file);
    free(config);
    free(json);
    free(from);
    return folder;
}

/* Half-precision weights, f32 arithmetic: within what the reference's own half arithmetic loses. */
static void half_precision_weights_are_read(void **state) {
    (void)state;
    static const struct {
        DType type;
        const char *name;
        double max, rms;
    } HALVES[] = {{DT_BF16, "embeddings_bf16", 0.16, 0.02}, {DT_F16, "embeddings_f16", 0.02, 3e-3}};
    Safetensors s = golden_file("t5/embeddings.safetensors");
    int64_t *ids = golden_ids();
    float *want = xcalloc(COUNT_ALL, sizeof *want);
    for (size_t i = 0; i < COUNT(HALVES); i++) {
        char *folder = copy_folder(&(Change){.type = HALVES[i].type});
        T5 *t = open_t5(folder);
        float *got = encode(t, ids, ROWS);
        BACKEND_CPU.cast(NULL, HALVES[i].type, DT_F32, COUNT_ALL,
                         golden_data(&s, HALVES[i].name, HALVES[i].type, COUNT_ALL), want);
        expect_near(HALVES[i].name, got, want, COUNT_ALL, HALVES[i].max, HALVES[i].rms);
        t5_close(t);
        free(got);
        scratch_remove(folder);
    }
    free(want);
    free(ids);
    safetensors_close(&s);
}

static void the_table_may_have_either_name(void **state) {
    (void)state;
    Change change = {.from = "shared.weight", .to = "encoder.embed_tokens.weight"};
    char *folder = copy_folder(&change);
    int64_t *ids = golden_ids();
    T5 *a = open_t5(folder), *b = open_golden();
    float *x = encode(a, ids, 1), *y = encode(b, ids, 1);
    assert_memory_equal(x, y, L * WIDTH * sizeof *x);
    t5_close(a);
    t5_close(b);
    free(x);
    free(y);
    free(ids);
    scratch_remove(folder);
}

static void expect_refused(Change change, const char *word) {
    char *folder = copy_folder(&change);
    Error e = {0};
    T5 *t = t5_open(folder, &BACKEND_CPU, &e);
    if (t || e.exit_code != EXIT_USER || !strstr(e.text, word))
        fail_msg("expected an error about %s, got \"%s\"", word, e.text);
    scratch_remove(folder);
}

static void bad_folders_are_refused(void **state) {
    (void)state;
    static const char wo[] = "encoder.block.1.layer.1.DenseReluDense.wo.weight";
    static const char bias[] =
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    expect_refused((Change){.drop = wo}, wo);
    expect_refused((Change){.drop = bias}, bias);
    expect_refused((Change){.drop = "shared.weight"}, "shared.weight");
    expect_refused((Change){.extra = "lm_head.weight"}, "lm_head.weight");
    expect_refused((Change){.type = DT_F64}, "F64");
    expect_refused((Change){.config = "\"d_ff\": 64", .value = "\"d_ff\": 72"}, "[72, 48]");
    expect_refused((Change){.config = "\"d_ff\": 64", .value = "\"d_ff\": 63"}, "multiples");
    expect_refused((Change){.config = "\"d_ff\": 64", .value = "\"d_ff\": -64"}, "d_ff");
    expect_refused((Change){.config = "\"num_layers\": 2", .value = "\"num_layers\": 1"},
                   "encoder.block.1");
    expect_refused((Change){.config = "gelu_new", .value = "relu"}, "gated relu");
    expect_refused((Change){.config = "\"is_gated_act\": true", .value = "\"is_gated_act\": false"},
                   "is_gated_act");
    expect_refused(
        (Change){.config = "\"model_type\": \"t5\"", .value = "\"model_type\": \"umt5\""}, "umt5");
    expect_refused((Change){.config = "float32", .value = "float8"}, "float8");
    Error e;
    assert_null(t5_open("/nowhere", &BACKEND_CPU, &e));
}

static void the_feed_forward_may_be_named_by_one_key(void **state) {
    (void)state;
    char *folder = scratch_make(), *path = xprintf("%s/config.json", folder);
    static const char text[] = "{\"model_type\": \"t5\", \"torch_dtype\": \"bfloat16\", "
                               "\"feed_forward_proj\": \"gated-gelu\"}";
    T5Config c;
    Error e;
    scratch_write(path, text, strlen(text));
    assert_true(t5_config_read(&c, path, &e));
    assert_true(c.stored == DT_BF16 && c.width == 512 && c.heads == 8 && c.vocabulary == 32128);
    scratch_write(path, text, 0);
    assert_false(t5_config_read(&c, path, &e));
    scratch_write(path, "{\"model_type\": \"t5\"}", 20); /* the default is plain relu */
    assert_false(t5_config_read(&c, path, &e));
    free(path);
    scratch_remove(folder);
}

static void what_cannot_be_embedded_is_an_error(void **state) {
    (void)state;
    char *folder = copy_folder(&(Change){.nan = "encoder.final_layer_norm.weight"});
    int64_t ids[] = {5, 7, 928};
    float out[3 * WIDTH];
    Error e;
    T5 *t = open_t5(folder);
    assert_false(t5_encode(t, ids, 1, 2, out, &e) || !strstr(e.text, "not finite"));
    assert_false(t5_encode(t, ids, 1, 3, out, &e) || !strstr(e.text, "token 2"));
    ids[2] = -1;
    assert_false(t5_encode(t, ids, 1, 3, out, &e) || !strstr(e.text, "token 2"));
    t5_close(t);
    scratch_remove(folder);
}

/* ---- bits -------------------------------------------------------------------------------------
 */

/* The golden captions in turn, more of them than go in one pass. */
enum { MANY = 11 };

static float *encode_on(int threads, const int64_t *ids, int64_t n) {
    omp_set_num_threads(threads);
    T5 *t = open_golden();
    float *out = encode(t, ids, n), *again = encode(t, ids, n);
    assert_memory_equal(out, again, (size_t)(n * L * WIDTH) * sizeof *out);
    free(again);
    t5_close(t);
    return out;
}

static void bits_depend_on_the_caption_alone(void **state) {
    (void)state;
    int64_t *four = golden_ids(), *ids = xcalloc(MANY * L, sizeof *ids);
    for (int i = 0; i < MANY; i++) memcpy(ids + i * L, four + i % ROWS * L, L * sizeof *ids);
    float *one = encode_on(1, ids, MANY);
    for (int threads = 2; threads <= 3; threads++) {
        float *many = encode_on(threads, ids, MANY);
        assert_memory_equal(one, many, MANY * L * WIDTH * sizeof *one);
        free(many);
    }
    for (int i = 0; i < MANY; i++) {
        float *alone = encode_on(1 + i % 2, ids + i * L, 1);
        if (memcmp(alone, one + i * L * WIDTH, L * WIDTH * sizeof *one))
            fail_msg("caption %d of %d differs from the same alone", i, MANY);
        free(alone);
    }
    free(one);
    free(ids);
    free(four);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(buckets_are_the_published_ones),
        cmocka_unit_test(stages_are_the_published_ones),
        cmocka_unit_test(embeddings_are_the_published_ones),
        cmocka_unit_test(half_precision_weights_are_read),
        cmocka_unit_test(the_table_may_have_either_name),
        cmocka_unit_test(bad_folders_are_refused),
        cmocka_unit_test(the_feed_forward_may_be_named_by_one_key),
        cmocka_unit_test(what_cannot_be_embedded_is_an_error),
        cmocka_unit_test(bits_depend_on_the_caption_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
