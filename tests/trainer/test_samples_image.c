/* What training is given of an image-to-video model: one sample of a prepared cache against the
 * published fine-tuning's equations, computed here from the cached moments and the documented draws
 * alone. And its dropouts. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "trainer/samples.h"

/* The executor has these names, too. */
#define Run ProgramRun
#define run_output program_output
#include "tests/trainer/prepare_model.h"

/* 9 frames of 32 x 48 are three latent frames, of which the model takes pairs: so four. */
enum { FRAMES = 3, PADDED = 4, FRAME = 16 * MODEL_H * MODEL_W, N = PADDED * FRAME, ORDINALS = 400 };
static const double SCALE = 1.15258426; /* of a vae/config.json that does not say */

static char *folder;
static Config *config;
static Samples *samples;
static Schedule schedule;

static void set(const char *key, const char *value) {
    char *text = xprintf("%s=%s", key, value);
    Error e;
    if (!config_assign(config, text, &e)) fail_msg("%s", e.text);
    free(text);
}

static Prepared new_prepared(void) {
    return (Prepared){.noisy = xcalloc(N, sizeof(float)),
                      .target = xcalloc(N, sizeof(float)),
                      .image = xcalloc(N, sizeof(float)),
                      .text = xcalloc((size_t)samples_text_count(samples), sizeof(float))};
}

static void free_prepared(Prepared *p) {
    free(p->noisy);
    free(p->target);
    free(p->image);
    free(p->text);
}

static void draw_sample(int64_t ordinal, Prepared *p) {
    Turn turn = {.ordinal = ordinal, .place = 0, .global = 1, .step = (uint32_t)ordinal};
    Error e;
    if (!sample_prepare(samples, config, &schedule, turn, p, &e)) fail_msg("%s", e.text);
}

static Draw draw_of(int64_t ordinal, uint32_t purpose) {
    return (Draw){(uint64_t)config->train.seed, (uint32_t)ordinal, (uint32_t)ordinal, purpose};
}

static double uniform(Draw d, int64_t element) {
    float u;
    random_uniform(d, element, 1, &u);
    return u;
}

/* to [n] = SCALE (mean + exp(logvar / 2) noise) of a cached entry, in f64. */
static void posterior(int entry, Draw draw, int64_t n, double *to) {
    float *moments = xcalloc((size_t)(2 * n), sizeof *moments);
    float *noise = xcalloc((size_t)n, sizeof *noise);
    Error e;
    if (!cache_read(samples->cache, entry, moments, moments + n, &e)) fail_msg("%s", e.text);
    random_normal(draw, 0, n, noise);
    for (int64_t i = 0; i < n; i++) {
        double logvar = fmin(fmax((double)moments[n + i], -30), 20);
        to[i] = SCALE * ((double)moments[i] + exp(0.5 * logvar) * (double)noise[i]);
    }
    free(moments);
    free(noise);
}

static void expect_near(const float *got, const double *expected, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        double wrong = fabs((double)got[i] - expected[i]);
        if (!(wrong <= 1e-5 * fmax(1, fabs(expected[i]))))
            fail_msg("element %d: %g, expected %g", (int)i, (double)got[i], expected[i]);
    }
}

/* ---- one sample -------------------------------------------------------------------------------
 */

/* The first latent once more in front, and only then noise: v = sqrt(a) noise - sqrt(1 - a) x0. */
static void odd_counts_repeat_the_first_latent(void **state) {
    (void)state;
    static double x0[N], noisy[N], velocity[N];
    static float noise[N];
    Prepared p = new_prepared();
    assert_int_equal(samples->f, PADDED);
    for (int64_t ordinal = 0; ordinal < 8; ordinal++) {
        draw_sample(ordinal, &p);
        const WantedSample *s = &samples->wanted->samples[samples_at(samples, ordinal)];
        posterior(s->latents, draw_of(ordinal, PURPOSE_POSTERIOR), FRAMES * FRAME, x0 + FRAME);
        memcpy(x0, x0 + FRAME, FRAME * sizeof *x0);
        random_normal(draw_of(ordinal, PURPOSE_NOISE), 0, N, noise);
        double a = schedule.alpha_bar[p.timestep];
        for (int i = 0; i < N; i++) {
            noisy[i] = sqrt(a) * x0[i] + sqrt(1 - a) * (double)noise[i];
            velocity[i] = sqrt(a) * (double)noise[i] - sqrt(1 - a) * x0[i];
        }
        expect_near(p.noisy, noisy, N);
        expect_near(p.target, velocity, N);
    }
    free_prepared(&p);
}

/* The encoded picture in frame 0 of the padded latents, zeros behind it. */
static void the_picture_is_in_frame_0(void **state) {
    (void)state;
    static double image[N];
    bool used[WANTED_VARIANTS] = {false};
    Prepared p = new_prepared();
    set("data.image_dropout", "0");
    for (int64_t ordinal = 0; ordinal < 64; ordinal++) {
        draw_sample(ordinal, &p);
        const WantedSample *s = &samples->wanted->samples[samples_at(samples, ordinal)];
        int variant = (int)(uniform(draw_of(ordinal, PURPOSE_IMAGE_DROPOUT), 1) * WANTED_VARIANTS);
        used[variant] = true;
        memset(image, 0, sizeof image);
        posterior(s->image[variant], draw_of(ordinal, PURPOSE_IMAGE_POSTERIOR), FRAME, image);
        expect_near(p.image, image, N);
    }
    for (int v = 0; v < WANTED_VARIANTS; v++) assert_true(used[v]);
    free_prepared(&p);
}

/* ---- dropout ----------------------------------------------------------------------------------
 */

static bool all_zero(const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (x[i] != 0) return false;
    return true;
}

static int count_dropped(const char *share) {
    int dropped = 0;
    Prepared p = new_prepared();
    set("data.image_dropout", share);
    for (int64_t ordinal = 0; ordinal < ORDINALS; ordinal++) {
        draw_sample(ordinal, &p);
        dropped += all_zero(p.image, N);
    }
    free_prepared(&p);
    return dropped;
}

static void images_are_dropped_whole(void **state) {
    (void)state;
    assert_int_equal(count_dropped("0"), 0);
    assert_int_equal(count_dropped("1"), ORDINALS);
    int n = count_dropped("0.25"); /* within four deviations */
    assert_true(fabs(n - 0.25 * ORDINALS) < 4 * sqrt(0.25 * 0.75 * ORDINALS));
}

static void captions_are_dropped(void **state) {
    (void)state;
    int64_t n = samples_text_count(samples), dropped = 0;
    float *empty = xcalloc((size_t)n, sizeof *empty);
    Prepared p = new_prepared();
    Error e;
    assert_true(cache_read(samples->cache, samples->wanted->empty, empty, NULL, &e));
    set("data.caption_dropout", "0.25");
    for (int64_t ordinal = 0; ordinal < ORDINALS; ordinal++) {
        draw_sample(ordinal, &p);
        dropped += !memcmp(p.text, empty, (size_t)n * sizeof *empty);
    }
    assert_true(fabs((double)dropped - 0.25 * ORDINALS) < 4 * sqrt(0.25 * 0.75 * ORDINALS));
    free_prepared(&p);
    free(empty);
}

static int setup(void **state) {
    (void)state;
    folder = scratch_make();
    char *model = xprintf("%s/model", folder), *data = xprintf("%s/data", folder);
    char *set_model = xprintf("model.path=%s", model), *set_data = xprintf("data.path=%s", data);
    model_make(model);
    model_transformer(model, true);
    mkdir(data, 0755);
    clip_make(data, "a", "testsrc2", 3);
    clip_make(data, "b", "mandelbrot", 3);
    const ProgramRun *r =
        RUN("prepare", set_model, set_data, "data.frames=9", "data.fps=8", "data.windows=2");
    assert_int_equal(count_of(r, "encoded"), 4);
    config = config_new();
    set("model.path", model);
    set("data.path", data);
    set("data.frames", "9");
    set("data.fps", "8");
    set("data.windows", "2");
    samples = samples_open(config);
    ScheduleConfig published = schedule_published(true);
    schedule_make(&schedule, &published);
    free(model);
    free(data);
    free(set_model);
    free(set_data);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    samples_close(samples);
    config_free(config);
    scratch_remove(folder);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(odd_counts_repeat_the_first_latent),
        cmocka_unit_test(the_picture_is_in_frame_0),
        cmocka_unit_test(images_are_dropped_whole),
        cmocka_unit_test(captions_are_dropped),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
