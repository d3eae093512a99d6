/* Runs that are captured and replayed have the bits of those that are not: losses, gradients and
 * parameters of steps that differ in all that changes from step to step. */
#include "tests/kernels/fixture.h"
#include "tests/trainer/micro.h"
#include "tests/trainer/models.h"
#include "tests/trainer/replay_device.h"

#include <omp.h>

enum { SHAPES = 2, MICROS = 3, STEPS = 4, MAX_PACK = 2 };

typedef struct {
    const char *variant;
    Training training;
    const char *recompute, *base, *optimizer, *activations;
    bool prefetch;
    DType compute;
} Setting;

/* Micro-steps take the packs in turn: the first one's are both a step's first and another. */
static const int64_t SIZE[3] = {3, 4, 8}, TEXT = 10;
static const int SAMPLES[SHAPES] = {1, 2};

typedef enum { EAGER, REPLAYED } How;

typedef struct {
    float *x;
    int64_t n;
    int64_t copied; /* bytes between the device and its host */
    int captured;
} Result;

static float *more(Result *r, int64_t n) {
    r->x = xrealloc(r->x, (size_t)(r->n + n) * sizeof *r->x);
    r->n += n;
    return r->x + r->n - n;
}

static Config *config_of(const Setting *s) {
    Config *c = tiny_config(s->variant);
    char *adapter = xprintf("%s/lora", c->model.path);
    set(c, "train.accumulate", "3");
    set(c, "train.learning_rate", "1e-3");
    set(c, "memory.recompute", s->recompute ? s->recompute : "none");
    set(c, "memory.base.home", s->base ? s->base : "auto");
    set(c, "memory.optimizer.home", s->optimizer ? s->optimizer : "auto");
    set(c, "memory.activations.home", s->activations ? s->activations : "auto");
    set(c, "memory.prefetch", s->prefetch ? "on" : "off");
    if (s->training == TRAIN_LORA) set(c, "lora.dropout", "0.3");
    if (s->training == TRAIN_LORA) set(c, "lora.start", adapter);
    replay_device(c, s->compute);
    free(adapter);
    return c;
}

static Learner *learner_of(Model *m, const Config *c, How how) {
    int64_t fhw[MAX_PACK][3], text[MAX_PACK];
    Pack packs[SHAPES];
    for (int j = 0; j < MAX_PACK; j++) memcpy(fhw[j], SIZE, sizeof SIZE), text[j] = TEXT;
    for (int i = 0; i < SHAPES; i++) packs[i] = (Pack){SAMPLES[i], (const int64_t(*)[3])fhw, text};
    Learner *l = learner_plan(m, c, packs, SHAPES, m->training != TRAIN_NOTHING, INT64_MAX);
    learner_bind(l, false);
    for (int i = 0; i < SHAPES; i++) l->shaped[i].run->eager = how == EAGER;
    return l;
}

static float *draw(const void *salt, Drawn kind, int64_t n) {
    return numbers(n, *(const uint32_t *)salt + kind + 1);
}

static void run_micro(Learner *l, int step, int i, Result *r) {
    int shape = i % SHAPES, samples = SAMPLES[shape];
    uint32_t salt = (uint32_t)(10 * (step * MICROS + i));
    DrawnMicro d;
    micro_draw(&d, l, shape, draw, &salt);
    for (int j = 0; j < samples; j++) {
        d.timesteps[j] = (331 * (step * MICROS + i + j) + 17) % TRAIN_TIMESTEPS;
        d.ordinals[j] = salt + (uint32_t)j;
    }
    d.micro.step = (uint32_t)step;
    d.micro.micro = i;
    d.micro.micros = MICROS;
    *more(r, 1) = (float)learner_micro(l, &d.micro);
    micro_release(&d);
    if (l->trains) learner_losses(l, shape, more(r, samples));
    learner_prediction(l, shape, more(r, d.count));
}

static void take_params(Result *r, Model *m, Part part) {
    for (int b = 0; b < m->params->n_buckets; b++)
        if (m->params->bucket[b].trained)
            bucket_read(m->params, b, part, more(r, m->params->bucket[b].count), &m->memory,
                        m->stream);
}

/* Masters are read at the end alone: to read them is to settle what waits for the next step. */
static void update(const Config *c, Model *m, Learner *l, int step, Result *r) {
    take_params(r, m, PART_GRAD);
    double norm = optim_grad_norm(&l->optim, m->params, &m->memory, m->stream);
    optim_step(&l->optim, m->params, &c->train, c->train.learning_rate, norm, step + 1, &m->memory,
               m->stream);
}

/* In the third step the host looks on at the first pack's runs, which are then as ever. */
static void look(Learner *l, int step, double *seconds) {
    l->shaped[0].run->seconds = step == 2 ? seconds : NULL;
}

static int captured_runs(const Learner *l) {
    int n = 0;
    for (int i = 0; i < SHAPES; i++)
        for (int j = 0; j < 2; j++) n += l->shaped[i].run->repeated[j].captured != NULL;
    return n;
}

static Result learn(const Setting *s, How how) {
    Config *c = config_of(s);
    Model *m = model_open(c, s->training, MODEL_WEIGHTS, false);
    Learner *l = learner_of(m, c, how);
    Result r = {0};
    double *seconds = xcalloc((size_t)l->shaped[0].plan->n_steps, sizeof *seconds);
    for (int step = 0; step < STEPS; step++) {
        look(l, step, seconds);
        for (int i = 0; i < MICROS; i++) run_micro(l, step, i, &r);
        if (l->trains) update(c, m, l, step, &r);
    }
    free(seconds);
    if (l->trains) take_params(&r, m, PART_MASTER);
    r.captured = captured_runs(l);
    r.copied = memory_host(&m->memory)->copied_bytes;
    learner_close(l);
    model_close(m);
    config_free(c);
    return r;
}

/* captured: of which there are as many, where runs are replayed. */
static void expect_replays(Setting s, int captured) {
    Result want = learn(&s, EAGER), got = learn(&s, REPLAYED);
    assert_int_equal(want.captured, 0);
    assert_int_equal(got.captured, captured);
    assert_int_equal(got.n, want.n);
    assert_int_equal(got.copied, want.copied);
    for (int64_t i = 0; i < want.n; i++)
        if (memcmp(&got.x[i], &want.x[i], sizeof *got.x))
            fail_msg("number %lld of %lld is %g and not %g", (long long)i, (long long)want.n,
                     (double)got.x[i], (double)want.x[i]);
    free(want.x);
    free(got.x);
}

/* A shape's first micro-steps, its others, and the other shape's. */
enum { ALL = 3 };

static void replays_have_the_bits(void **state) {
    (void)state;
    expect_replays((Setting){"5b", TRAIN_LORA, .compute = DT_BF16}, ALL);
    expect_replays((Setting){"2b", TRAIN_FULL, "selective", .compute = DT_F32}, ALL);
    expect_replays((Setting){"2b", TRAIN_LORA, "block", .compute = DT_F16}, ALL);
    expect_replays((Setting){"5b", TRAIN_NOTHING, .compute = DT_BF16}, ALL);
}

/* Copies to and from the host, updates and sums there, in and beside the steps. */
static void so_they_have_with_the_host(void **state) {
    (void)state;
    const Setting settings[] = {
        {"5b", TRAIN_LORA, .activations = "host", .compute = DT_BF16},
        {"5b", TRAIN_LORA, .base = "host", .compute = DT_F32},
        {"5b", TRAIN_LORA, .optimizer = "host", .compute = DT_BF16},
        {"2b", TRAIN_FULL, "block", NULL, "host", "host", .compute = DT_BF16},
        {"2b", TRAIN_NOTHING, .base = "host", .compute = DT_F16},
    };
    for (size_t i = 0; i < COUNT(settings); i++)
        for (int prefetch = 0; prefetch < 2; prefetch++) {
            Setting s = settings[i];
            s.prefetch = prefetch;
            expect_replays(s, ALL);
        }
}

static void what_reads_files_is_not_captured(void **state) {
    (void)state;
    expect_replays((Setting){"5b", TRAIN_LORA, .base = "file", .compute = DT_F32}, 0);
}

static void refused_captures_do_nothing(void **state) {
    (void)state;
    if (!replay_refuse(true)) {
        print_message("this device cannot be told to refuse a capture\n");
        return;
    }
    expect_replays((Setting){"5b", TRAIN_LORA, .compute = DT_BF16}, 0);
    replay_refuse(false);
}

int main(void) {
    omp_set_num_threads(1); /* these sizes are too small for more */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replays_have_the_bits),
        cmocka_unit_test(so_they_have_with_the_host),
        cmocka_unit_test(what_reads_files_is_not_captured),
        cmocka_unit_test(refused_captures_do_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
