/* The transformer on a device, in every type that steps compute in, against the CPU; and its passes
 * and homes bit for bit. Built twice: over the shim, whose memory the host cannot touch, and for
 * the GPU that is here. Every arena is poisoned. */
#include "tests/kernels/fixture.h"
#include "tests/trainer/guarded_device.h"
#include "tests/trainer/micro.h"
#include "tests/trainer/models.h"

#include <omp.h>

typedef struct {
    const char *name;
    int64_t size[2][3]; /* F, H, W of even and of odd samples */
    int64_t text[2];    /* their text rows */
} Variant;

/* Sincos positions; rotary and an image; learned positions, patches in time, ofs and an image. */
static const Variant VARIANTS[] = {
    {"2b", {{3, 4, 8}, {2, 6, 6}}, {10, 10}},
    {"5b", {{3, 4, 8}, {2, 6, 6}}, {10, 7}},
    {"1.5-5b-i2v", {{4, 6, 8}, {2, 4, 10}}, {10, 3}},
};

/* Moves between the steps; beside them; beside them and as late as they may. */
typedef enum { STILL, BESIDE, LATE } Moves;

typedef struct {
    const Variant *variant;
    Training training;
    const char *recompute, *base, *optimizer, *activations; /* memory.*; NULL: the usual */
    Moves moves;
    bool dropout;
    DType stored; /* what frozen weights rest in */
} Setting;

enum { MICROS = 2, STEPS = 2, MAX_PACK = 2 };

/* Sample numbers of the packs that micro-steps take in turn. */
static const struct { int n, ids[MAX_PACK]; } PACKS[MICROS] = {{2, {0, 1}}, {1, {3}}};

/* ---- what came out ----------------------------------------------------------------------------
 */

typedef enum { LOSS, PREDICTION, GRADIENT, PARAMETER, KINDS } Kind;

typedef struct {
    Kind kind;
    char *name;
    float *x;
    int64_t n;
} Values;

typedef struct {
    Values *values;
    int n;
} Result;

/* n zeros that belong to the result. */
static float *add(Result *r, Kind kind, const char *name, int64_t n) {
    r->values = xrealloc(r->values, (size_t)(r->n + 1) * sizeof *r->values);
    float *x = xcalloc((size_t)n, sizeof *x);
    r->values[r->n++] = (Values){kind, xstrdup(name), x, n};
    return x;
}

static void result_free(Result *r) {
    for (int i = 0; i < r->n; i++) {
        free(r->values[i].name);
        free(r->values[i].x);
    }
    free(r->values);
}

/* scale: what the values were multiplied by. */
static void add_params(Result *r, Kind kind, Model *m, double scale) {
    const ParamSet *p = m->params;
    for (int b = 0; b < p->n_buckets; b++) {
        if (!p->bucket[b].trained) continue;
        real *all = xcalloc((size_t)p->bucket[b].count, sizeof *all);
        bucket_read(p, b, kind == GRADIENT ? PART_GRAD : PART_MASTER, all, &m->memory, m->stream);
        for (int i = 0; i < p->n_params; i++) {
            const Param *q = &p->param[i];
            if (q->bucket != b) continue;
            int64_t n = param_count(q);
            float *to = add(r, kind, q->name, n);
            for (int64_t j = 0; j < n; j++) to[j] = (float)((double)all[q->offset + j] / scale);
        }
        free(all);
    }
}

/* ---- a run ------------------------------------------------------------------------------------
 */

static Config *config_of(const Setting *s) {
    Config *c = tiny_config(s->variant->name);
    char *adapter = xprintf("%s/lora", c->model.path);
    set(c, "train.accumulate", "2");
    set(c, "train.learning_rate", "1e-3");
    set(c, "train.deterministic", "true");
    set(c, "memory.recompute", s->recompute ? s->recompute : "none");
    set(c, "memory.base.home", s->base ? s->base : "auto");
    set(c, "memory.optimizer.home", s->optimizer ? s->optimizer : "auto");
    set(c, "memory.activations.home", s->activations ? s->activations : "auto");
    set(c, "memory.prefetch", s->moves == STILL ? "off" : "on");
    if (s->dropout) set(c, "lora.dropout", "0.3");
    if (s->training == TRAIN_LORA) set(c, "lora.start", adapter);
    if (s->stored == DT_BF16) set(c, "model.dtype", "bf16");
    if (s->stored == DT_F16) set(c, "model.dtype", "f16");
    free(adapter);
    return c;
}

static Learner *plan_learner(const Setting *s, Model *m, const Config *c) {
    Pack packs[MICROS];
    int64_t fhw[MICROS][MAX_PACK][3], text[MICROS][MAX_PACK];
    for (int i = 0; i < MICROS; i++) {
        for (int j = 0; j < PACKS[i].n; j++) {
            int odd = PACKS[i].ids[j] % 2;
            memcpy(fhw[i][j], s->variant->size[odd], sizeof fhw[i][j]);
            text[i][j] = s->variant->text[odd];
        }
        packs[i] = (Pack){PACKS[i].n, (const int64_t(*)[3])fhw[i], text[i]};
    }
    Learner *l = learner_plan(m, c, packs, MICROS, true, INT64_MAX);
    learner_bind(l, true);
    for (int i = 0; i < MICROS; i++) l->shaped[i].run->late = s->moves == LATE;
    return l;
}

/* n numbers that every type holds exactly. */
static float *draw(const void *salt, Drawn kind, int64_t n) {
    float *x = numbers(n, *(const uint32_t *)salt + kind + 1);
    uint16_t *half = BACKEND_CPU.alloc((size_t)n * sizeof *half);
    BACKEND_CPU.cast(NULL, DT_F32, DT_BF16, n, x, half);
    BACKEND_CPU.cast(NULL, DT_BF16, DT_F32, n, half, x);
    BACKEND_CPU.release(half);
    return x;
}

/* Losses and predictions of micro-step i are added to *r. */
static void run_micro(Learner *l, int step, int i, Result *r) {
    uint32_t salt = (uint32_t)(10 * (step * MICROS + i));
    DrawnMicro d;
    micro_draw(&d, l, i, draw, &salt);
    for (int j = 0; j < PACKS[i].n; j++)
        d.timesteps[j] = (PACKS[i].ids[j] * 331 + 17) % TRAIN_TIMESTEPS;
    d.micro.step = (uint32_t)step;
    d.micro.micro = i;
    d.micro.micros = MICROS;
    double loss = learner_micro(l, &d.micro);
    micro_release(&d);
    *add(r, LOSS, "loss", 1) = (float)loss;
    learner_losses(l, i, add(r, LOSS, "losses", PACKS[i].n));
    learner_prediction(l, i, add(r, PREDICTION, "prediction", d.count));
}

static Result learn(const Setting *s, Device device) {
    guarded_device = device;
    Config *c = config_of(s);
    Model *m = model_open(c, s->training, MODEL_WEIGHTS, false);
    Learner *l = plan_learner(s, m, c);
    int64_t calls = guarded_calls();
    Result r = {0};
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < MICROS; i++) run_micro(l, step, i, &r);
        if (!step) add_params(&r, GRADIENT, m, l->optim.scale.value);
        double norm = optim_grad_norm(&l->optim, m->params, &m->memory, m->stream);
        assert_false(optim_overflowed(&l->optim, norm));
        optim_step(&l->optim, m->params, &c->train, c->train.learning_rate, norm, step + 1,
                   &m->memory, m->stream);
        if (!step) add_params(&r, PARAMETER, m, 1);
    }
    assert_true(strcmp(device.k->name, "guarded") || guarded_calls() > calls + 100);
    learner_close(l);
    model_close(m);
    config_free(c);
    return r;
}

static Device on_cpu(void) { return (Device){&BACKEND_CPU, DT_F32}; }

/* ---- comparisons ------------------------------------------------------------------------------
 */

typedef struct {
    double most, rms;           /* of the differences */
    double largest, rms_wanted; /* of the wanted */
} Difference;

static Difference difference(const Values *got, const Values *want) {
    Difference d = {0};
    assert_string_equal(got->name, want->name);
    assert_int_equal(got->n, want->n);
    for (int64_t i = 0; i < want->n; i++) {
        double off = fabs((double)got->x[i] - (double)want->x[i]);
        if (!isfinite(off)) fail_msg("%s[%d] is %g", got->name, (int)i, (double)got->x[i]);
        d.most = fmax(d.most, off);
        d.largest = fmax(d.largest, fabs((double)want->x[i]));
        d.rms += off * off;
        d.rms_wanted += (double)want->x[i] * (double)want->x[i];
    }
    d.rms = sqrt(d.rms / (double)want->n);
    d.rms_wanted = sqrt(d.rms_wanted / (double)want->n);
    return d;
}

/* How far a result may be off. Each bound is of the largest, or of the root mean square, of what is
 * wanted, plus a part of the largest gradient. */
typedef struct {
    double prediction_most, prediction_rms, loss;
    double gradient_most, gradient_rms, gradient_floor, smallest;
    double parameter_mean; /* of all, absolute */
} Bounds;

/* The README of the golden data: f32; and bf16, by the prediction there (largest 2.07, rms 0.436),
 * from which that of f16 differs by the rounding unit. Where a gradient is a sum that cancels (2b's
 * norm_k.bias, to_k.bias), what is left is noise of its parts: the floor, in f16 some of its
 * smallest numbers. Adam makes steps of the rate from it. */
static Bounds bounds_of(DType t) {
    const double unit = t == DT_BF16 ? 0x1p-8 : 0x1p-11;
    if (t == DT_F32) return (Bounds){2e-5, 2e-5, 2e-6, 2e-5, 2e-5, 0, 1e-8, 1e-6};
    return (Bounds){.prediction_most = 0.03 / 2.07 * 256 * unit,
                    .prediction_rms = 0.006 / 0.436 * 256 * unit,
                    .loss = unit,
                    .gradient_most = 8 * unit,
                    .gradient_rms = 8 * unit,
                    .gradient_floor = unit / 64,
                    .smallest = t == DT_F16 ? 8 * 0x1p-24 : 0,
                    .parameter_mean = 1e-4};
}

static double largest_gradient(const Result *r) {
    double most = 0;
    for (int i = 0; i < r->n; i++)
        for (int64_t j = 0; r->values[i].kind == GRADIENT && j < r->values[i].n; j++)
            most = fmax(most, fabs((double)r->values[i].x[j]));
    return most;
}

/* The largest share of its bound that a difference took, by kind. */
static double worst[KINDS];

static void expect_within(const Values *got, Difference d, double most, double rms) {
    double share = fmax(d.most / most, d.rms / rms);
    worst[got->kind] = fmax(worst[got->kind], share);
    if (!(share <= 1))
        fail_msg("%s: off by %.3g of %.3g, rms %.3g of %.3g", got->name, d.most, most, d.rms, rms);
}

static void expect_near_result(const Result *got, const Result *want, DType t) {
    Bounds b = bounds_of(t), after = t == DT_F16 ? bounds_of(DT_BF16) : b;
    double floor = b.gradient_floor * largest_gradient(want) + b.smallest, sum = 0;
    int64_t parameters = 0;
    assert_int_equal(got->n, want->n);
    for (int i = 0; i < want->n; i++) {
        const Values *v = &got->values[i];
        Difference d = difference(v, &want->values[i]);
        /* What comes after the first step carries the noise of Adam's steps, which knows no unit.
         */
        const Bounds *own = parameters ? &after : &b;
        if (v->kind == LOSS) {
            expect_within(v, d, own->loss * d.largest, own->loss * d.largest);
        } else if (v->kind == PREDICTION) {
            expect_within(v, d, own->prediction_most * d.largest,
                          own->prediction_rms * d.rms_wanted);
        } else if (v->kind == GRADIENT) {
            expect_within(v, d, b.gradient_most * d.largest + floor,
                          b.gradient_rms * d.rms_wanted + floor);
        } else {
            for (int64_t j = 0; j < v->n; j++)
                sum += fabs((double)v->x[j] - (double)want->values[i].x[j]);
            parameters += v->n;
        }
    }
    double mean = sum / (double)parameters;
    worst[PARAMETER] = fmax(worst[PARAMETER], mean / b.parameter_mean);
    if (!(mean <= b.parameter_mean)) fail_msg("parameters are off by %.3g in the mean", mean);
}

static void expect_same_result(const char *what, Result got, const Result *want) {
    assert_int_equal(got.n, want->n);
    for (int i = 0; i < want->n; i++) {
        const Values *x = &got.values[i], *y = &want->values[i];
        assert_int_equal(x->n, y->n);
        if (memcmp(x->x, y->x, (size_t)x->n * sizeof *x->x))
            fail_msg("%s: the bits of %s differ", what, x->name);
    }
    result_free(&got);
}

/* ---- the tests --------------------------------------------------------------------------------
 */

static const DType TYPES[] = {DT_F32, DT_BF16, DT_F16};

/* Frozen weights rest in the type that steps compute in, and the CPU reads the same numbers. */
static void every_type_is_near_the_cpu(void **state) {
    (void)state;
    for (size_t t = 0; t < COUNT(TYPES); t++) {
        memset(worst, 0, sizeof worst);
        for (size_t v = 0; v < COUNT(VARIANTS); v++)
            for (Training training = TRAIN_LORA; training <= TRAIN_FULL; training++) {
                Setting s = {.variant = &VARIANTS[v], .training = training, .stored = TYPES[t]};
                Result want = learn(&s, on_cpu()), got = learn(&s, device_to_test(TYPES[t]));
                expect_near_result(&got, &want, TYPES[t]);
                result_free(&want);
                result_free(&got);
            }
        print_message("%s: of their bounds, losses %.2f, predictions %.2f, gradients %.2f, "
                      "parameters %.2f\n",
                      dtype_name(TYPES[t]), worst[LOSS], worst[PREDICTION], worst[GRADIENT],
                      worst[PARAMETER]);
    }
}

enum { BASE = 1, OPTIMIZER = 2, ACTIVATIONS = 4 }; /* what lies in host memory */

static Result learn_from(Setting s, Device device, int where, Moves moves) {
    s.base = where & BASE ? "host" : NULL;
    s.optimizer = where & OPTIMIZER ? "host" : NULL;
    s.activations = where & ACTIVATIONS ? "host" : NULL;
    s.recompute = where == (BASE | OPTIMIZER | ACTIVATIONS) ? "selective" : NULL;
    s.moves = moves;
    return learn(&s, device);
}

static void expect_passes_keep_the_bits(Setting s, Device device, const Result *want) {
    static const char *const RECOMPUTE[] = {"selective", "block"};
    for (size_t i = 0; i < COUNT(RECOMPUTE); i++) {
        s.recompute = RECOMPUTE[i];
        expect_same_result(RECOMPUTE[i], learn(&s, device), want);
    }
    if (s.stored != DT_F32) return; /* as model.dtype asks: not the file's numbers */
    s.base = "file";
    expect_same_result("block, from the file", learn(&s, device), want);
}

/* Masters and moments in host memory are updated by the CPU. */
static void expect_homes_keep_the_bits(Setting s, Device device, const Result *want) {
    static const int ALL = BASE | OPTIMIZER | ACTIVATIONS;
    for (Moves moves = STILL; moves <= LATE; moves++) {
        expect_same_result("all", learn_from(s, device, ALL, moves), want);
        if (moves == LATE) continue;
        expect_same_result("base", learn_from(s, device, BASE, moves), want);
        expect_same_result("optimizer", learn_from(s, device, OPTIMIZER, moves), want);
        expect_same_result("activations", learn_from(s, device, ACTIVATIONS, moves), want);
    }
}

static void expect_the_bits(Device device, size_t variant, Training training, DType stored) {
    Setting s = {.variant = &VARIANTS[variant],
                 .training = training,
                 .stored = stored,
                 .dropout = training == TRAIN_LORA};
    Result want = learn(&s, device);
    expect_same_result("repeated", learn(&s, device), &want);
    expect_passes_keep_the_bits(s, device, &want);
    expect_homes_keep_the_bits(s, device, &want);
    result_free(&want);
}

static void passes_and_homes_keep_the_bits(void **state) {
    (void)state;
    expect_the_bits(device_to_test(DT_F16), 0, TRAIN_FULL, DT_F32);
    expect_the_bits(device_to_test(DT_BF16), 1, TRAIN_LORA, DT_BF16);
    expect_the_bits(device_to_test(DT_BF16), 2, TRAIN_LORA, DT_F32);
}

static void so_they_do_on_a_guarded_cpu(void **state) {
    (void)state;
    Device cpu = {guarded(&BACKEND_CPU), DT_F32};
    expect_the_bits(cpu, 1, TRAIN_FULL, DT_F32);
    expect_the_bits(cpu, 2, TRAIN_LORA, DT_F32);
}

int main(void) {
    omp_set_num_threads(1); /* these sizes are too small for more */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_is_near_the_cpu),
        cmocka_unit_test(passes_and_homes_keep_the_bits),
        cmocka_unit_test(so_they_do_on_a_guarded_cpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
