/* Runs that are captured and replayed have the bits of those that are not: losses, gradients and
 * parameters of steps that differ in all that changes from step to step. */
#include "tests/kernels/fixture.h"
#include "tests/trainer/models.h"
#include "tests/trainer/replay_device.h"

#include <omp.h>

enum { CHANNELS = 16, TEXT_DIM = 32, SHAPES = 2, MICROS = 3, STEPS = 4, MAX_PACK = 2 };

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

static void run_micro(Learner *l, int step, int i, Result *r) {
    int shape = i % SHAPES, samples = SAMPLES[shape];
    int64_t timesteps[MAX_PACK], n = samples * SIZE[0] * CHANNELS * SIZE[1] * SIZE[2];
    uint32_t ordinals[MAX_PACK], salt = (uint32_t)(10 * (step * MICROS + i));
    float *noisy = numbers(n, salt + 1), *image = numbers(n, salt + 2);
    float *target = numbers(n, salt + 3), *text = numbers(samples * TEXT * TEXT_DIM, salt + 4);
    for (int j = 0; j < samples; j++) {
        timesteps[j] = (331 * (step * MICROS + i + j) + 17) % TRAIN_TIMESTEPS;
        ordinals[j] = salt + (uint32_t)j;
    }
    Micro m = {.shape = shape,
               .noisy = noisy,
               .image = l->shaped[shape].io.image ? image : NULL,
               .text = text,
               .target = target,
               .timesteps = timesteps,
               .ordinals = ordinals,
               .seed = 11,
               .step = (uint32_t)step,
               .micro = i,
               .micros = MICROS};
    *more(r, 1) = (float)learner_micro(l, &m);
    release(4, noisy, image, target, text);
    if (l->trains) learner_losses(l, shape, more(r, samples));
    learner_prediction(l, shape, more(r, n));
}

static void take_params(Result *r, Model *m, Part part) {
    for (int b = 0; b < m->params->n_buckets; b++)
        if (m->params->bucket[b].trained)
            bucket_read(m->params, b, part, more(r, m->params->bucket[b].count), &m->memory,
                        m->stream);
}

static void update(const Config *c, Model *m, Learner *l, int step, Result *r) {
    take_params(r, m, PART_GRAD);
    double norm = optim_grad_norm(&l->optim, m->params, &m->memory, m->stream);
    optim_step(&l->optim, m->params, &c->train, c->train.learning_rate, norm, step + 1, &m->memory,
               m->stream);
    take_params(r, m, PART_MASTER);
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

/* Copies to and from the host, in and beside the steps. */
static void so_they_have_with_copies(void **state) {
    (void)state;
    Setting s = {"5b", TRAIN_LORA, .activations = "host", .compute = DT_BF16};
    for (int prefetch = 0; prefetch < 2; prefetch++) {
        s.prefetch = prefetch;
        expect_replays(s, ALL);
    }
}

static void what_reads_the_host_is_not_captured(void **state) {
    (void)state;
    expect_replays((Setting){"5b", TRAIN_LORA, .base = "file", .compute = DT_F32}, 0);
    expect_replays((Setting){"5b", TRAIN_LORA, .optimizer = "host", .compute = DT_BF16}, 0);
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
        cmocka_unit_test(so_they_have_with_copies),
        cmocka_unit_test(what_reads_the_host_is_not_captured),
        cmocka_unit_test(refused_captures_do_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
