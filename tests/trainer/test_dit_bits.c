/* The transformer of every variant through the Learner, bit for bit: recomputation, threads, homes,
 * packs, repeats and accumulation change nothing. Every arena is poisoned. */
#include "tests/kernels/fixture.h"
#include "tests/trainer/micro.h"
#include "tests/trainer/models.h"

#include <omp.h>

typedef struct {
    const char *name;
    int64_t size[2][3]; /* F, H, W of even and of odd samples */
    int64_t text[2];    /* their text rows; models without rotary positions take 10 */
} Variant;

static const Variant VARIANTS[] = {
    {"2b", {{3, 4, 8}, {2, 6, 6}}, {10, 10}},         {"5b", {{3, 4, 8}, {2, 6, 6}}, {10, 7}},
    {"5b-i2v", {{3, 4, 8}, {2, 4, 8}}, {10, 10}},     {"1.5-5b", {{4, 6, 8}, {6, 4, 6}}, {10, 1}},
    {"1.5-5b-i2v", {{4, 6, 8}, {2, 4, 10}}, {10, 3}},
};

typedef enum { ADAPTER, ADAPTER_DROPOUT, ADAPTER_EVERYWHERE, FULL, N_METHODS } Method;

/* Samples of a pack, by number: ids[i] even or odd says the size. */
typedef struct {
    int n, ids[12];
} Ids;

typedef struct {
    const Variant *variant;
    Method method;
    const char *recompute, *home, *optimizer, *activations; /* memory.*; NULL: the usual */
    bool prefetch;
    int accumulate; /* micro-steps in a step, by the plan */
    int steps;      /* optimizer steps */
    int n_packs;    /* micro-step i is pack i % n_packs */
    Ids pack[3];
} Setting;

enum { CHANNELS = 16, TEXT_DIM = 32 };

/* ---- numbers of a sample, the same in every pack ----------------------------------------------
 */

static int64_t latent_count(const Setting *s, int id) {
    const int64_t *size = s->variant->size[id % 2];
    return size[0] * CHANNELS * size[1] * size[2];
}

static int64_t text_count(const Setting *s, int id) { return s->variant->text[id % 2] * TEXT_DIM; }

typedef struct {
    const Setting *setting;
    const Ids *pack;
} Numbers;

/* Of all samples of a pack, end to end. */
static float *draw(const void *context, Drawn kind, int64_t n) {
    const Numbers *from = context;
    float *values = BACKEND_CPU.alloc((size_t)n * sizeof *values);
    int64_t at = 0;
    for (int i = 0; i < from->pack->n; i++) {
        int id = from->pack->ids[i];
        int64_t each = (kind == DRAWN_TEXT ? text_count : latent_count)(from->setting, id);
        float *own = numbers(each, kind + 1 + 100 * (uint32_t)id);
        memcpy(values + at, own, (size_t)each * sizeof *own);
        at += each;
        release(1, own);
    }
    return values;
}

/* ---- a learner and what came out of it --------------------------------------------------------
 */

/* Losses, predictions, gradients and weights of a whole run, end to end. */
typedef struct {
    float *x;
    int64_t n;
} Result;

static void take(Result *r, const float *values, int64_t n) {
    r->x = xrealloc(r->x, (size_t)(r->n + n) * sizeof *r->x);
    memcpy(r->x + r->n, values, (size_t)n * sizeof *values);
    r->n += n;
}

static Config *config_of(const Setting *s) {
    Config *c = tiny_config(s->variant->name);
    char *adapter = xprintf("%s/lora", c->model.path), accumulate[16];
    snprintf(accumulate, sizeof accumulate, "%d", MAX(s->accumulate, 1));
    set(c, "train.accumulate", accumulate);
    set(c, "train.learning_rate", "1e-2");
    set(c, "memory.recompute", s->recompute ? s->recompute : "none");
    set(c, "memory.base.home", s->home ? s->home : "auto");
    set(c, "memory.optimizer.home", s->optimizer ? s->optimizer : "auto");
    set(c, "memory.activations.home", s->activations ? s->activations : "auto");
    set(c, "memory.prefetch", s->prefetch ? "on" : "off");
    if (s->method == ADAPTER_DROPOUT) set(c, "lora.dropout", "0.3");
    if (s->method == ADAPTER_EVERYWHERE)
        set(c, "lora.target_modules",
            "[to_q, to_v, to_out.0, norm1.linear, norm2.linear, net.0.proj, net.2, "
            "patch_embed.proj, text_proj, linear_1, proj_out]");
    else if (s->method != FULL)
        set(c, "lora.start", adapter);
    free(adapter);
    return c;
}

typedef struct {
    Setting setting;
    Config *config;
    Model *model;
    Learner *learner;
} Lesson;

static Lesson lesson_open(const Setting *s) {
    Lesson l = {.setting = *s, .config = config_of(s)};
    l.model =
        model_open(l.config, s->method == FULL ? TRAIN_FULL : TRAIN_LORA, MODEL_WEIGHTS, false);
    Pack packs[3];
    int64_t fhw[3][12][3], text[3][12];
    for (int i = 0; i < s->n_packs; i++) {
        for (int j = 0; j < s->pack[i].n; j++) {
            int odd = s->pack[i].ids[j] % 2;
            memcpy(fhw[i][j], s->variant->size[odd], sizeof fhw[i][j]);
            text[i][j] = s->variant->text[odd];
        }
        packs[i] = (Pack){s->pack[i].n, (const int64_t(*)[3])fhw[i], text[i]};
    }
    l.learner = learner_plan(l.model, l.config, packs, s->n_packs, true, INT64_MAX);
    learner_bind(l.learner, true);
    return l;
}

static void lesson_close(Lesson *l) {
    learner_close(l->learner);
    model_close(l->model);
    config_free(l->config);
}

/* Micro-step `micro` of `micros` over pack `shape`; *r takes the losses and the predictions. */
static void lesson_micro(Lesson *l, int shape, int step, int micro, int micros, Result *r) {
    const Setting *s = &l->setting;
    const Ids *pack = &s->pack[shape];
    DrawnMicro d;
    micro_draw(&d, l->learner, shape, draw, &(Numbers){s, pack});
    for (int i = 0; i < pack->n; i++) {
        d.timesteps[i] = (pack->ids[i] * 331 + 17) % TRAIN_TIMESTEPS;
        d.ordinals[i] = (uint32_t)pack->ids[i];
    }
    d.micro.step = (uint32_t)step;
    d.micro.micro = micro;
    d.micro.micros = micros;
    float loss = (float)learner_micro(l->learner, &d.micro);
    take(r, &loss, 1);
    learner_losses(l->learner, shape, d.values[DRAWN_TARGET]);
    take(r, d.values[DRAWN_TARGET], pack->n);
    learner_prediction(l->learner, shape, d.values[DRAWN_NOISY]);
    take(r, d.values[DRAWN_NOISY], d.count);
    micro_release(&d);
}

static void take_params(Result *r, const ParamSet *p, bool grads) {
    for (int i = 0; i < p->n_params; i++)
        if (p->param[i].trained)
            take(r, grads ? param_grad(p, i) : param_master(p, i), param_count(&p->param[i]));
}

static int count_owed(const ParamSet *p) {
    int n = 0;
    for (int i = 0; i < p->n_buckets; i++) n += p->bucket[i].owed;
    return n;
}

/* In host memory updates wait for the next step. */
static void lesson_step(Lesson *l, int step) {
    Model *m = l->model;
    const TrainConfig *c = &l->config->train;
    int trained = 0;
    assert_int_equal(count_owed(m->params), 0);
    double norm = optim_grad_norm(&l->learner->optim, m->params, &m->memory, m->stream);
    optim_step(&l->learner->optim, m->params, c, c->learning_rate, norm, step + 1, &m->memory,
               m->stream);
    for (int i = 0; i < m->params->n_buckets; i++) trained += m->params->bucket[i].trained;
    assert_int_equal(count_owed(m->params), l->setting.optimizer ? trained : 0);
}

/* What lies on the device and in host memory, and what went there and came from there in the last
 * micro-step, is what the plan says. */
static void expect_planned(const Lesson *l, int shape, int64_t copied_before) {
    const Memory *host = &l->model->host, *device = &l->model->memory;
    assert_int_equal(device->bytes, learner_bytes(l->learner).total);
    assert_int_equal(device->peak_bytes, device->bytes);
    int64_t copied = host->copied_bytes - copied_before;
    assert_int_equal(host->bytes, learner_bytes(l->learner).host);
    assert_int_equal(host->peak_bytes, host->bytes);
    assert_int_equal(copied, (int64_t)plan_cost(l->learner->shaped[shape].plan, -1).copied);
}

/* The whole run of a setting. */
static Result learn(Setting s) {
    Lesson l = lesson_open(&s);
    Result r = {0};
    int micros = MAX(s.accumulate, 1), allocations = l.model->memory.allocations;
    for (int step = 0; step < MAX(s.steps, 1); step++) {
        for (int i = 0; i < micros; i++) {
            int shape = (step * micros + i) % s.n_packs;
            int64_t copied = l.model->host.copied_bytes;
            lesson_micro(&l, shape, step, i, micros, &r);
            expect_planned(&l, shape, copied);
            assert_int_equal(l.learner->shaped[shape].run->high_water_bytes,
                             l.learner->shaped[shape].plan->arena_bytes);
        }
        take_params(&r, l.model->params, true);
        lesson_step(&l, step);
    }
    for (int i = 0; i < l.model->params->n_buckets; i++)
        bucket_settle(l.model->params, i, &l.model->memory, l.model->stream);
    take_params(&r, l.model->params, false);
    assert_int_equal(l.model->memory.allocations, allocations);
    lesson_close(&l);
    return r;
}

static void expect_result(const Setting *s, const char *what, Result got, Result want) {
    assert_true(want.n > 1000);
    for (int64_t i = 0; i < want.n; i++)
        if (!isfinite(want.x[i])) fail_msg("%s, %s: not finite", s->variant->name, what);
    if (got.n != want.n || memcmp(got.x, want.x, (size_t)want.n * sizeof *want.x))
        fail_msg("%s, method %d, %s: the bits differ", s->variant->name, s->method, what);
    free(got.x);
}

/* ---- the tests --------------------------------------------------------------------------------
 */

/* Two steps of every variant and method: pack {0, 1} of two sizes, then pack {3}. */
static Setting setting_of(size_t variant, Method method) {
    return (Setting){.variant = &VARIANTS[variant],
                     .method = method,
                     .steps = 2,
                     .n_packs = 2,
                     .pack = {{2, {0, 1}}, {1, {3}}}};
}

static void passes_and_repeats_keep_the_bits(void **state) {
    (void)state;
    for (size_t v = 0; v < COUNT(VARIANTS); v++)
        for (Method m = 0; m < N_METHODS; m++) {
            Setting s = setting_of(v, m);
            Result want = learn(s);
            expect_result(&s, "repeated", learn(s), want);
            s.recompute = "selective";
            expect_result(&s, "selective", learn(s), want);
            s.recompute = "block";
            expect_result(&s, "block", learn(s), want);
            s.home = "device";
            expect_result(&s, "block, on the device", learn(s), want);
            free(want.x);
        }
}

/* Base weights, optimizer and activations in host memory, one by one and together. */
static void host_homes_keep_the_bits(void **state) {
    (void)state;
    static const Method METHODS[] = {ADAPTER_DROPOUT, FULL};
    for (size_t v = 0; v < COUNT(VARIANTS); v++)
        for (size_t m = 0; m < COUNT(METHODS); m++) {
            Setting s = setting_of(v, METHODS[m]);
            s.accumulate = 2;
            Result want = learn(s);
            for (int where = 1; where < 8; where++) {
                if (where != 7 && where & (where - 1)) continue;
                s.home = where & 1 ? "host" : NULL;
                s.optimizer = where & 2 ? "host" : NULL;
                s.activations = where & 4 ? "host" : NULL;
                s.recompute = where == 7 ? "selective" : NULL;
                expect_result(&s, "from the host", learn(s), want);
                s.prefetch = true;
                expect_result(&s, "from the host, ahead", learn(s), want);
                s.prefetch = false;
            }
            free(want.x);
        }
}

/* A pack of rows enough for kernels to work in parallel. */
static void threads_do_not_change_the_bits(void **state) {
    (void)state;
    static const Method METHODS[] = {ADAPTER_DROPOUT, FULL};
    for (size_t v = 0; v < COUNT(VARIANTS); v++)
        for (size_t m = 0; m < COUNT(METHODS); m++) {
            Setting s = setting_of(v, METHODS[m]);
            s.n_packs = 1;
            s.pack[0] = (Ids){12, {0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16}};
            omp_set_num_threads(1);
            Result want = learn(s);
            omp_set_num_threads(2);
            expect_result(&s, "2 threads", learn(s), want);
            omp_set_num_threads(1);
            free(want.x);
        }
}

/* Losses and prediction of sample i of a pack whose results lie in r, in the order of `learn`. */
static void expect_sample(const Setting *s, const Ids *pack, const Result *r, int i,
                          const Result *alone) {
    int64_t at = 1 + pack->n, n = latent_count(s, pack->ids[i]);
    for (int j = 0; j < i; j++) at += latent_count(s, pack->ids[j]);
    if (memcmp(r->x + 1 + i, alone->x + 1, sizeof(float)))
        fail_msg("%s: the loss of sample %d depends on its pack", s->variant->name, i);
    if (memcmp(r->x + at, alone->x + 2, (size_t)n * sizeof(float)))
        fail_msg("%s: the prediction of sample %d depends on its pack", s->variant->name, i);
}

static void packed_is_as_alone(void **state) {
    (void)state;
    static const Ids PACK = {5, {0, 1, 3, 2, 5}};
    for (size_t v = 0; v < COUNT(VARIANTS); v++)
        for (Method m = 0; m < N_METHODS; m++) {
            Setting s = setting_of(v, m);
            s.steps = s.n_packs = 1;
            s.pack[0] = PACK;
            Result packed = learn(s);
            for (int i = 0; i < PACK.n; i++) {
                s.pack[0] = (Ids){1, {PACK.ids[i]}};
                Result alone = learn(s);
                expect_sample(&s, &PACK, &packed, i, &alone);
                free(alone.x);
            }
            free(packed.x);
        }
}

/* The gradients of three micro-steps of two shapes, by the plan or added here. */
static Result accumulate(Setting s, bool by_plan) {
    enum { MICROS = 3 };
    s.accumulate = by_plan ? MICROS : 1;
    Lesson l = lesson_open(&s);
    Result sum = {0}, rest = {0};
    for (int i = 0; i < MICROS; i++) {
        lesson_micro(&l, i % s.n_packs, 0, by_plan ? i : 0, MICROS, &rest);
        Result r = {0};
        take_params(&r, l.model->params, true);
        for (int64_t j = 0; i && !by_plan && j < r.n; j++) r.x[j] += sum.x[j];
        free(sum.x);
        sum = r;
    }
    take(&sum, rest.x, rest.n);
    free(rest.x);
    lesson_close(&l);
    return sum;
}

static void accumulation_is_a_sum_in_order(void **state) {
    (void)state;
    for (size_t v = 0; v < COUNT(VARIANTS); v++)
        for (Method m = 0; m < N_METHODS; m++) {
            Setting s = setting_of(v, m);
            Result want = accumulate(s, false);
            expect_result(&s, "accumulated", accumulate(s, true), want);
            s.recompute = "block";
            expect_result(&s, "accumulated, block", accumulate(s, true), want);
            free(want.x);
        }
}

int main(void) {
    omp_set_num_threads(1); /* these sizes are too small for more */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(passes_and_repeats_keep_the_bits),
        cmocka_unit_test(host_homes_keep_the_bits),
        cmocka_unit_test(threads_do_not_change_the_bits),
        cmocka_unit_test(packed_is_as_alone),
        cmocka_unit_test(accumulation_is_a_sum_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
