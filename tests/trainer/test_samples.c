/* The samples that a run learns from: their order, their draws, and how ranks share them. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* A run of the program, which is not a run of a plan. */
#define Run ProgramRun
#define run_output program_output
#include "tests/trainer/train_model.h"
#undef Run
#undef run_output

#include "trainer/loader.h"

static Config *samples_config(const char *const *settings) {
    Config *c = config_new();
    Error e;
    if (!config_read_file(c, in_train("t.yaml"), &e)) fail_msg("%s", e.text);
    for (int i = 0; settings[i]; i++)
        if (!config_assign(c, settings[i], &e)) fail_msg("%s", e.text);
    return c;
}

#define CONFIG(...) samples_config((const char *const[]){__VA_ARGS__, NULL})

/* An epoch has every sample but those held out, each once, in an order of its own. */
static void an_epoch_is_a_permutation(void **state) {
    (void)state;
    enum { N = 4, EPOCHS = 40 };
    Config *c = CONFIG("data.holdout=1");
    Samples *s = samples_open(c);
    int order[EPOCHS][N], repeated = 0, firsts[N] = {0};
    assert_int_equal(s->n_train, N);
    assert_int_equal(s->n_holdout, 1);
    for (int i = 0; i < EPOCHS; i++) {
        int seen[N + 1] = {0};
        for (int k = 0; k < N; k++) seen[order[i][k] = samples_at(s, i * N + k)]++;
        for (int k = 0; k < N; k++) assert_int_equal(seen[s->train[k]], 1);
        assert_int_equal(seen[s->holdout[0]], 0);
        repeated += i && !memcmp(order[i], order[i - 1], sizeof *order);
        firsts[order[i][0]]++;
    }
    assert_true(repeated < 8);
    for (int k = 0; k < N; k++) assert_true(firsts[k] >= 3);
    for (int i = EPOCHS - 1; i >= 0; i -= 7) assert_int_equal(samples_at(s, i * N), order[i][0]);
    samples_close(s);
    config_free(c);
}

static Prepared open_prepared(const Samples *s) {
    size_t n = (size_t)samples_latent_count(s);
    return (Prepared){.noisy = xcalloc(n, sizeof(float)),
                      .target = xcalloc(n, sizeof(float)),
                      .text = xcalloc((size_t)samples_text_count(s), sizeof(float))};
}

static void close_prepared(Prepared *p) {
    free(p->noisy);
    free(p->target);
    free(p->text);
}

static void prepare_one(Samples *s, const Config *c, const Schedule *schedule, int64_t ordinal,
                        Prepared *p) {
    Turn turn = {.ordinal = ordinal, .global = 1, .step = (uint32_t)ordinal};
    Error e;
    if (!sample_prepare(s, c, schedule, turn, p, &e)) fail_msg("%s", e.text);
}

/* The posterior's noise that the ordinal was made with: target and noisy give the clean latents
 * back, and the cache their mean and deviation. */
static void posterior_noise(Samples *s, const Config *c, const Schedule *schedule, int64_t ordinal,
                            Prepared *p, double *noise) {
    int64_t n = samples_latent_count(s);
    float *mean = xcalloc((size_t)(3 * n), sizeof *mean), *deviation = mean + 2 * n;
    Error e;
    prepare_one(s, c, schedule, ordinal, p);
    const WantedSample *sample = &s->wanted->samples[samples_at(s, ordinal)];
    if (!cache_read(s->cache, sample->latents, mean, mean + n, &e)) fail_msg("%s", e.text);
    posterior_deviation(mean, n, deviation);
    double a = sqrt(schedule->alpha_bar[p->timestep]);
    double b = sqrt(1 - schedule->alpha_bar[p->timestep]);
    for (int64_t i = 0; i < n; i++) {
        double clean = a * (double)p->noisy[i] - b * (double)p->target[i];
        noise[i] = (clean / s->latent_scale - (double)mean[i]) / (double)deviation[i];
    }
    free(mean);
}

/* The model's own schedule. */
static Schedule schedule_of(void) {
    ScheduleConfig config = schedule_published(true);
    Schedule s;
    schedule_make(&s, &config);
    return s;
}

static double correlation(const double *x, const double *y, int64_t n) {
    double xy = 0, xx = 0, yy = 0;
    for (int64_t i = 0; i < n; i++) xy += x[i] * y[i], xx += x[i] * x[i], yy += y[i] * y[i];
    return xy / sqrt(xx * yy);
}

static void the_posterior_is_drawn_anew(void **state) {
    (void)state;
    enum { LATENTS = 2 * 16 * 4 * 6 };
    static double first[LATENTS], second[LATENTS];
    Config *c = CONFIG("data.caption_dropout=0");
    Samples *s = samples_open(c);
    Schedule schedule = schedule_of();
    Prepared p = open_prepared(s);
    assert_int_equal(samples_latent_count(s), LATENTS);
    int64_t again = s->n_train;
    while (samples_at(s, again) != samples_at(s, 0)) again++;
    posterior_noise(s, c, &schedule, 0, &p, first);
    posterior_noise(s, c, &schedule, again, &p, second);
    double square = 0, mean = 0;
    for (int i = 0; i < LATENTS; i++) square += first[i] * first[i], mean += first[i];
    if (fabs(square / LATENTS - 1) > 0.2 || fabs(mean / LATENTS) > 0.15)
        fail_msg("mean %g, mean square %g", mean / LATENTS, square / LATENTS);
    if (fabs(correlation(first, second, LATENTS)) > 0.15) fail_msg("drawn alike");
    posterior_noise(s, c, &schedule, 0, &p, second);
    assert_memory_equal(first, second, sizeof first);
    close_prepared(&p);
    samples_close(s);
    config_free(c);
}

/* How many of 200 samples have the empty caption's embedding; the others have their own. */
static int empty_captions(const char *dropout) {
    Config *c = CONFIG(dropout);
    Samples *s = samples_open(c);
    Schedule schedule = schedule_of();
    Prepared p = open_prepared(s);
    size_t n = (size_t)samples_text_count(s);
    float *empty = xcalloc(n, sizeof *empty), *own = xcalloc(n, sizeof *own);
    Error e;
    int count = 0;
    assert_true(cache_read(s->cache, s->wanted->empty, empty, NULL, &e));
    for (int i = 0; i < 200; i++) {
        prepare_one(s, c, &schedule, i, &p);
        const WantedSample *sample = &s->wanted->samples[samples_at(s, i)];
        assert_true(cache_read(s->cache, sample->embedding, own, NULL, &e));
        assert_memory_not_equal(own, empty, n * sizeof *own);
        bool dropped = !memcmp(p.text, empty, n * sizeof *empty);
        if (!dropped) assert_memory_equal(p.text, own, n * sizeof *own);
        count += dropped;
    }
    free(empty);
    free(own);
    close_prepared(&p);
    samples_close(s);
    config_free(c);
    return count;
}

static void captions_are_dropped(void **state) {
    (void)state;
    assert_int_equal(empty_captions("data.caption_dropout=0"), 0);
    assert_int_equal(empty_captions("data.caption_dropout=1"), 200);
    int third = empty_captions("data.caption_dropout=0.3");
    if (third < 40 || third > 80) fail_msg("%d of 200 at 0.3", third);
}

enum { GLOBAL = 12, ROUNDS = 3 };

/* What the ordinals of three steps were given, on `world` ranks. */
typedef struct {
    int64_t timestep[ROUNDS * GLOBAL];
    float noisy[ROUNDS * GLOBAL];
} Given;

static void read_given(int world, int batch, const char *timesteps, Given *g) {
    char *batches = xprintf("train.batch=%d", batch);
    char *micros = xprintf("train.accumulate=%d", GLOBAL / batch / world);
    Config *c = CONFIG(batches, micros, timesteps);
    Samples *s = samples_open(c);
    Schedule schedule = schedule_of();
    memset(g, 0xff, sizeof *g);
    for (int rank = 0; rank < world; rank++) {
        Comm comm = {.rank = rank, .size = world};
        Loader *l = loader_open(s, c, &schedule, comm.rank, comm.size, 0, 0);
        Error e;
        for (int i = 0; i < ROUNDS * GLOBAL / world / batch; i++) {
            const Batch *b = loader_next(l, &e);
            assert_non_null(b);
            for (int k = 0; k < batch; k++) {
                assert_true(g->timestep[b->ordinals[k]] == -1); /* each once */
                g->timestep[b->ordinals[k]] = b->timesteps[k];
                g->noisy[b->ordinals[k]] = b->noisy[k * samples_latent_count(s) + 7];
            }
        }
        loader_close(l);
    }
    samples_close(s);
    config_free(c);
    free(batches);
    free(micros);
}

/* How many samples are in the part of the schedule that explicit timesteps would give them. */
static int in_their_parts(const Given *g) {
    int count = 0;
    for (int k = 0; k < ROUNDS * GLOBAL; k++) {
        int64_t part = k % GLOBAL, t = g->timestep[k];
        assert_true(t >= 0 && t < TRAIN_TIMESTEPS);
        count += t >= part * TRAIN_TIMESTEPS / GLOBAL && t * GLOBAL < (part + 1) * TRAIN_TIMESTEPS;
    }
    return count;
}

/* Explicit timesteps spread over all samples of a step, and nothing depends on how many ranks
 * share them. */
static void timesteps_are_spread(void **state) {
    (void)state;
    static const int WORLDS[][2] = {{1, 1}, {1, 12}, {2, 3}, {3, 2}, {4, 1}};
    Given first, g;
    for (size_t i = 0; i < COUNT(WORLDS); i++) {
        read_given(WORLDS[i][0], WORLDS[i][1], "train.timesteps=explicit", &g);
        assert_int_equal(in_their_parts(&g), ROUNDS * GLOBAL);
        if (!i) first = g;
        assert_memory_equal(&first, &g, sizeof g);
    }
    read_given(1, 1, "train.timesteps=uniform", &g);
    assert_true(in_their_parts(&g) < ROUNDS * GLOBAL / 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_epoch_is_a_permutation),
        cmocka_unit_test(the_posterior_is_drawn_anew),
        cmocka_unit_test(captions_are_dropped),
        cmocka_unit_test(timesteps_are_spread),
    };
    return cmocka_run_group_tests(tests, train_setup, train_teardown);
}
