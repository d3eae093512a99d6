/* `cogsmith probe` against the numbers of the published implementation: predictions, losses, every
 * gradient, six-step replays, other sizes, a sharded folder and bf16 weights. Tolerances are those
 * of the README beside the data, which has the noise of the reference itself; where the program
 * computes in bf16 ($COGSMITH_COMPUTE), those of that type. */
#define _GNU_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "data/weights.h"
#include "kernels/kernels.h"
#include "tests/trainer/program.h"

/* The data beside the project holds every case; the project's own copy leaves some files out. */
static const char ALL[] = "../shared/golden/dit", OWN[] = "tests/golden/dit";
static const char *root;

static char *folder; /* for what the program writes */

typedef enum { PREDICTION, FULL, ADAPTER, OTHER_SIZE, REPLAY_FULL, REPLAY_ADAPTER } Kind;

static const struct {
    const char *inputs, *expect, *method;
} KINDS[] = {
    [PREDICTION] = {"inputs", "expect", NULL},
    [FULL] = {"inputs", "expect", "method=full"},
    [ADAPTER] = {"inputs", "expect_lora", "method=lora"},
    [OTHER_SIZE] = {"inputs_other_size", "expect_other_size", NULL},
    [REPLAY_FULL] = {"replay_inputs", "replay_full", "method=full"},
    [REPLAY_ADAPTER] = {"replay_inputs", "replay_lora", "method=lora"},
};

static const char *const VARIANTS[] = {"2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v"};

/* ---- tensors as numbers -----------------------------------------------------------------------
 */

typedef struct {
    double *x;
    int64_t n, rows; /* rows: of the first axis */
} Array;

static Array array_of(const SafetensorsTensor *t) {
    Array a = {.n = 1, .rows = t->n_dims ? t->shape[0] : 1};
    for (int i = 0; i < t->n_dims; i++) a.n *= t->shape[i];
    a.x = xcalloc((size_t)a.n, sizeof *a.x);
    if (t->dtype == DT_F64) {
        memcpy(a.x, t->data, (size_t)a.n * sizeof *a.x);
        return a;
    }
    void *typed = memcpy(xcalloc(t->bytes, 1), t->data, t->bytes);
    float *values = xcalloc((size_t)a.n, sizeof *values);
    BACKEND_CPU.cast(NULL, t->dtype, DT_F32, a.n, typed, values);
    for (int64_t i = 0; i < a.n; i++) a.x[i] = (double)values[i];
    free(typed);
    free(values);
    return a;
}

static Array read_array(const Safetensors *file, const char *name) {
    const SafetensorsTensor *t = safetensors_find(file, name);
    if (!t) fail_msg("%s: there is no %s", file->path, name);
    return array_of(t);
}

/* Every `step`-th row, in place. */
static void thin(Array *a, int64_t step) {
    int64_t width = a->n / a->rows, rows = (a->rows + step - 1) / step;
    for (int64_t i = 0; i < rows; i++)
        memmove(a->x + i * width, a->x + i * step * width, (size_t)width * sizeof *a->x);
    a->n = rows * width;
    a->rows = rows;
}

/* Differences of two arrays of one size. */
typedef struct {
    double most, sum, squares, size; /* max |a - b|, sum |a - b|, sum (a - b)^2, max |b| */
    int64_t n;
} Difference;

static Difference difference(const char *what, Array got, Array want) {
    Difference d = {.n = want.n};
    if (got.n != want.n) fail_msg("%s: %lld values", what, (long long)got.n);
    for (int64_t i = 0; i < want.n; i++) {
        double off = fabs(got.x[i] - want.x[i]);
        if (!isfinite(off)) fail_msg("%s: value %lld is %g", what, (long long)i, got.x[i]);
        d.most = fmax(d.most, off);
        d.sum += off;
        d.squares += off * off;
        d.size = fmax(d.size, fabs(want.x[i]));
    }
    return d;
}

/* ---- one output file against one of expectations ----------------------------------------------
 */

typedef struct {
    const char *what; /* "2b/replay_full" */
    bool trained, replay;
    Safetensors got, expect;
    double largest_gradient;
    double sum; /* of |difference| over all parameters, and their elements */
    int64_t elements;
    size_t matched; /* tensors that are gradients or parameters */
} Case;

/* Bounds are absolute + relative * |value| + of_largest * the largest |value|. */
typedef struct {
    const char *name, *output; /* in the expectations; of probe */
    double absolute, relative, of_largest;
} Rule;

static const struct {
    const char *prefix, *output;
    int64_t rows; /* every how-many-th row is there */
} TENSORS[] = {
    {"grad.", "grad.", 1},
    {"grad_rows8.", "grad.", 8},
    {"param.", "param.", 1},
    {"param_rows8.", "param.", 8},
};

enum { RULES = 6 };
typedef struct {
    Rule values[RULES];
    double replay_relative;
    double grad_relative, grad_absolute; /* of the tensor's largest */
    double grad_floor;                   /* of the largest of all gradients */
    double param_most, param_mean;
} Bounds;

/* f32: those of the README. In bf16 a value is off by some of its rounding units, 2^-8; a gradient
 * that is a sum that cancels has the noise of its parts, from which Adam makes steps of the rate.
 */
static const Bounds IN_F32 = {{{"noisy", "noisy", 3e-6, 0, 0},
                               {"prediction", "prediction", 1e-5, 0, 0},
                               {"loss", "loss", 0, 2e-6, 0},
                               {"loss_published", "loss", 0, 3e-5,
                                0}, /* at t = 0 the reference is off by 1.2e-5 */
                               {"loss_published_f32", "loss", 0, 3e-5, 0},
                               {"grad_norm", "grad_norm", 0, 2e-5, 0}},
                              2e-5,
                              2e-5,
                              1e-8,
                              0,
                              3e-4,
                              1e-6},
                    IN_BF16 = {{{"noisy", "noisy", 3e-6, 0, 0},
                                {"prediction", "prediction", 0, 0, 0.03 / 2.07},
                                {"loss", "loss", 0, 0x1p-8, 0},
                                {"loss_published", "loss", 0, 0x1p-8, 0},
                                {"loss_published_f32", "loss", 0, 0x1p-8, 0},
                                {"grad_norm", "grad_norm", 0, 0x1p-6, 0}},
                               0x1p-5,
                               16 * 0x1p-8,
                               1e-8,
                               0x1p-14,
                               1.2e-2,
                               3e-4};
static const Bounds *bounds = &IN_F32;

static double worst_prediction, worst_grad, worst_param;

static void expect_values(Case *c, size_t rule, const SafetensorsTensor *t) {
    const Rule *v = &bounds->values[rule];
    Array want = array_of(t), got = read_array(&c->got, v->output);
    double relative = c->replay ? bounds->replay_relative : v->relative, largest = 0;
    for (int64_t i = 0; i < want.n; i++) largest = fmax(largest, fabs(want.x[i]));
    if (got.n != want.n) fail_msg("%s: %s has %lld values", c->what, t->name, (long long)got.n);
    for (int64_t i = 0; i < want.n; i++) {
        double off = fabs(got.x[i] - want.x[i]);
        if (!(off <= v->absolute + relative * fabs(want.x[i]) + v->of_largest * largest))
            fail_msg("%s: %s[%lld] is %.9g, not %.9g", c->what, t->name, (long long)i, got.x[i],
                     want.x[i]);
        if (!strcmp(t->name, "prediction")) worst_prediction = fmax(worst_prediction, off);
    }
    free(got.x);
    free(want.x);
}

static void expect_tensor(Case *c, size_t rule, const SafetensorsTensor *t) {
    char *output = xprintf("%s%s", TENSORS[rule].output, t->name + strlen(TENSORS[rule].prefix));
    Array want = array_of(t), got = read_array(&c->got, output);
    if (TENSORS[rule].rows > 1) thin(&got, TENSORS[rule].rows);
    Difference d = difference(output, got, want);
    double least = bounds->grad_absolute + bounds->grad_floor * c->largest_gradient;
    double bound = c->replay ? bounds->param_most : bounds->grad_relative * d.size + least;
    if (d.most > bound) fail_msg("%s: %s is off by %.3g of %.3g", c->what, output, d.most, bound);
    double *worst = c->replay ? &worst_param : &worst_grad;
    *worst = fmax(*worst, c->replay ? d.most : (d.most - least) / d.size);
    c->sum += d.sum;
    c->elements += d.n;
    c->matched++;
    free(output);
    free(got.x);
    free(want.x);
}

static double largest_gradient(const Safetensors *expect) {
    double most = 0;
    for (size_t i = 0; i < expect->n_tensors; i++) {
        if (strncmp(expect->tensors[i].name, "grad", 4)) continue;
        Array a = array_of(&expect->tensors[i]);
        for (int64_t j = 0; j < a.n && strcmp(expect->tensors[i].name, "grad_norm"); j++)
            most = fmax(most, fabs(a.x[j]));
        free(a.x);
    }
    return most;
}

static void expect_everything(Case *c) {
    c->largest_gradient = largest_gradient(&c->expect);
    for (size_t i = 0; i < c->expect.n_tensors; i++) {
        const SafetensorsTensor *t = &c->expect.tensors[i];
        for (size_t r = 0; r < RULES; r++)
            if (!strcmp(t->name, bounds->values[r].name) &&
                (c->trained || strcmp(t->name, "grad_norm")))
                expect_values(c, r, t);
        for (size_t r = 0; c->trained && r < COUNT(TENSORS); r++)
            if (!strncmp(t->name, TENSORS[r].prefix, strlen(TENSORS[r].prefix)))
                expect_tensor(c, r, t);
    }
    if (c->replay && c->sum / (double)c->elements > bounds->param_mean)
        fail_msg("%s: parameters are off by %.3g in the mean", c->what,
                 c->sum / (double)c->elements);
}

/* Gradients or parameters among what the program wrote. */
static size_t count_tensors(const Safetensors *file) {
    size_t n = 0;
    for (size_t i = 0; i < file->n_tensors; i++) n += strchr(file->tensors[i].name, '.') != NULL;
    return n;
}

/* ---- running ----------------------------------------------------------------------------------
 */

enum { MAX_ARGS = 12 };

/* Runs probe over `inputs` and opens what it wrote. NULL ends `more`. */
static void probe(Safetensors *got, const char *model, const char *inputs,
                  const char *const *more) {
    char *out = xprintf("%s/out.safetensors", folder);
    char *args[MAX_ARGS + 1] = {xstrdup("probe"), xprintf("model.path=%s", model),
                                xprintf("probe.inputs=%s", inputs), xprintf("probe.out=%s", out)};
    int n = 4;
    for (int i = 0; more[i]; i++) {
        assert_true(n < MAX_ARGS);
        args[n++] = xstrdup(more[i]);
    }
    unlink(out);
    const Run *r = run_args((const char *const *)args);
    if (r->code) fail_msg("%s: exit code %d: %s", model, r->code, r->err);
    assert_int_equal(strncmp(r->out, out, strlen(out)), 0);
    Error e;
    if (!safetensors_open(got, out, &e)) fail_msg("%s", e.text);
    for (int i = 0; i < n; i++) free(args[i]);
    free(out);
}

/* Whether the file is there. The data beside the project must be whole. */
static bool have(const char *path) {
    if (!access(path, R_OK)) return true;
    if (root == ALL) fail_msg("%s is missing", path);
    print_message("left out: %s\n", path);
    return false;
}

/* One row of KINDS for one variant; `suffix` names other expectations, made with `more`. */
static void check(const char *variant, Kind kind, const char *model, const char *suffix,
                  const char *more) {
    char *inputs = xprintf("%s/%s/%s.safetensors", root, variant, KINDS[kind].inputs);
    char *expect = xprintf("%s/%s/%s%s.safetensors", root, variant, KINDS[kind].expect, suffix);
    char *start = xprintf("lora.start=%s/%s/lora", root, variant);
    if (have(inputs) && have(expect)) {
        Case c = {.what = expect, .trained = KINDS[kind].method, .replay = kind >= REPLAY_FULL};
        bool adapter = kind == ADAPTER || kind == REPLAY_ADAPTER;
        const char *args[5] = {0};
        int n = 0;
        if (c.trained) args[n++] = KINDS[kind].method;
        if (c.replay) args[n++] = "train.learning_rate=1e-3";
        if (adapter) args[n++] = start;
        if (more) args[n++] = more;
        Error e;
        if (!safetensors_open(&c.expect, expect, &e)) fail_msg("%s", e.text);
        probe(&c.got, model, inputs, args);
        expect_everything(&c);
        bool whole = !(kind == REPLAY_FULL && *suffix); /* that file has small parameters only */
        if (whole) assert_int_equal(c.matched, count_tensors(&c.got));
        assert_true(c.matched > 0 || !c.trained);
        safetensors_close(&c.got);
        safetensors_close(&c.expect);
    }
    free(inputs);
    free(expect);
    free(start);
}

static void check_variant(const char *variant, Kind kind, const char *suffix, const char *more) {
    char *model = xprintf("%s/%s", root, variant);
    check(variant, kind, model, suffix, more);
    free(model);
}

static void check_all(Kind kind) {
    for (size_t i = 0; i < COUNT(VARIANTS); i++) check_variant(VARIANTS[i], kind, "", NULL);
}

/* ---- the tests --------------------------------------------------------------------------------
 */

static void predictions(void **state) {
    (void)state;
    check_all(PREDICTION);
    check_variant("2b", OTHER_SIZE, "", NULL);
    check_variant("5b", OTHER_SIZE, "", NULL);
    check_variant("1.5-5b", OTHER_SIZE, "", NULL);
}

static void full_gradients(void **state) {
    (void)state;
    check_all(FULL);
}

static void adapter_gradients(void **state) {
    (void)state;
    check_all(ADAPTER);
}

static void replays(void **state) {
    (void)state;
    check_all(REPLAY_FULL);
    check_all(REPLAY_ADAPTER);
    check_variant("2b", REPLAY_FULL, "_decay", "train.weight_decay=0.5");
    check_variant("2b", REPLAY_ADAPTER, "_decay", "train.weight_decay=0.5");
}

/* What no variant has, in the project's own copy alone: tests/golden/make_narrow.py. Its sums over
 * a handful of rows are too short to even out bf16's rounding: there it is the prediction alone. */
static void narrow(void **state) {
    (void)state;
    const char *before = root;
    root = OWN;
    check_variant("narrow", PREDICTION, "", NULL);
    for (Kind kind = FULL; kind <= ADAPTER && bounds == &IN_F32; kind++)
        check_variant("narrow", kind, "", NULL);
    root = before;
}

/* The transformer's own folder: its schedule lies beside it, or is the published one of its kind.
 */
static void bare_folder(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(VARIANTS); i++) {
        char *transformer = xprintf("%s/%s/transformer", root, VARIANTS[i]);
        char *copy = xprintf("%s/bare/%s", folder, VARIANTS[i]);
        char *parent = xprintf("%s/bare", folder);
        mkdir(parent, 0755);
        copy_files(transformer, copy);
        check(VARIANTS[i], PREDICTION, transformer, "", NULL);
        check(VARIANTS[i], PREDICTION, copy, "", NULL);
        free(transformer);
        free(parent);
        free(copy);
    }
}

static void sharded_folder(void **state) {
    (void)state;
    char *model = xprintf("%s/sharded", folder);
    assert_int_equal(mkdir(model, 0755), 0);
    static const char *const PARTS[][2] = {{"transformer_sharded", "transformer"},
                                           {"scheduler", "scheduler"}};
    for (int i = 0; i < 2; i++) {
        char *from = xprintf("%s/2b/%s", root, PARTS[i][0]);
        char *to = xprintf("%s/%s", model, PARTS[i][1]);
        copy_files(from, to);
        free(from);
        free(to);
    }
    check("2b", PREDICTION, model, "", NULL);
    check("2b", FULL, model, "", NULL);
    check("2b", REPLAY_ADAPTER, model, "", NULL);
    free(model);
}

/* The 5b model with its weights rounded to bf16, written by the project's own writer. */
static char *write_bf16(void) {
    char *path = xprintf("%s/5b/transformer", root), *model = xprintf("%s/bf16", folder);
    char *to = xprintf("%s/transformer", model), *config = xprintf("%s/config.json", path);
    assert_int_equal(mkdir(model, 0755), 0);
    Weights w;
    Error e;
    if (!weights_open(&w, path, &e)) fail_msg("%s", e.text);
    SafetensorsItem *items = xcalloc(w.n_tensors, sizeof *items);
    for (size_t i = 0; i < w.n_tensors; i++) {
        const SafetensorsTensor *t = &w.tensors[i];
        int64_t n = (int64_t)(t->bytes / sizeof(float));
        assert_int_equal(t->dtype, DT_F32);
        items[i] = (SafetensorsItem){.name = t->name, .dtype = DT_BF16, .n_dims = t->n_dims};
        memcpy(items[i].shape, t->shape, sizeof items[i].shape);
        void *rounded = xcalloc((size_t)n, 2),
             *own = memcpy(xcalloc(t->bytes, 1), t->data, t->bytes);
        BACKEND_CPU.cast(NULL, DT_F32, DT_BF16, n, own, rounded);
        items[i].data = rounded;
        free(own);
    }
    size_t bytes;
    char *text = (char *)scratch_read(config, &bytes);
    text = xrealloc(text, bytes + 1);
    text[bytes] = 0;
    WeightsText beside = {"config.json", text};
    SafetensorsFile file = {.items = items, .n_items = w.n_tensors};
    if (!weights_save(to, "diffusion_pytorch_model", SIZE_MAX, &file, &beside, 1, &e))
        fail_msg("%s", e.text);
    for (size_t i = 0; i < w.n_tensors; i++) free((void *)items[i].data);
    weights_close(&w);
    free(items);
    free(text);
    free(path);
    free(to);
    free(config);
    return model;
}

static void bf16_weights(void **state) {
    (void)state;
    char *model = write_bf16(), *path = xprintf("%s/5b/expect_bf16.safetensors", root);
    static const char *const HOMES[] = {"memory.base.home=file", "memory.base.home=device"};
    Safetensors expect, got;
    Error e;
    if (!safetensors_open(&expect, path, &e)) fail_msg("%s", e.text);
    Array exact = read_array(&expect, "prediction_f32");
    Array rounded = read_array(&expect, "prediction_bf16");
    for (int i = 0; i < 2; i++) {
        probe(&got, model, path, (const char *const[]){HOMES[i], NULL});
        Array prediction = read_array(&got, "prediction");
        Difference d = difference("prediction", prediction, exact);
        if (bounds == &IN_F32 && d.most > 1e-5)
            fail_msg("bf16 weights: the prediction is off by %.3g", d.most);
        d = difference("prediction", prediction, rounded);
        double rms = sqrt(d.squares / (double)d.n);
        if (d.most > 0.03 || rms > 0.006)
            fail_msg("off from arithmetic in bf16 by %.3g, rms %.3g", d.most, rms);
        safetensors_close(&got);
        free(prediction.x);
    }
    safetensors_close(&expect);
    free(exact.x);
    free(rounded.x);
    free(model);
    free(path);
}

static int open_folder(void **state) {
    (void)state;
    root = access(ALL, R_OK) ? OWN : ALL;
    folder = scratch_make();
    const char *compute = getenv("COGSMITH_COMPUTE");
    if (compute && !strcmp(compute, "BF16")) bounds = &IN_BF16;
    print_message("golden data: %s\n", root);
    return setenv("OMP_WAIT_POLICY", "passive", 0);
}

static int close_folder(void **state) {
    (void)state;
    print_message("worst: prediction %.1e, gradient %.1e of the largest, parameter %.1e\n",
                  worst_prediction, worst_grad, worst_param);
    scratch_remove(folder);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(predictions),       cmocka_unit_test(full_gradients),
        cmocka_unit_test(adapter_gradients), cmocka_unit_test(replays),
        cmocka_unit_test(sharded_folder),    cmocka_unit_test(bf16_weights),
        cmocka_unit_test(bare_folder),       cmocka_unit_test(narrow),
    };
    return cmocka_run_group_tests(tests, open_folder, close_folder);
}
