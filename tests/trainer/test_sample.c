/* Sampling against the published pipelines, inside the sampler: every step of every golden case;
 * then what must hold of any model, on the tiny one. Bounds are those of the README beside the
 * data.
 */
#define _GNU_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/trainer/pipelines.h"
#include "trainer/latents.h"
#include "trainer/sampler.h"

static const double GUIDANCE = 6;

static Config *config_of(const char *model) {
    Config *c = config_new();
    char *path = xprintf("model.path=%s", model);
    Error e;
    assert_true(config_assign(c, path, &e));
    free(path);
    return c;
}

typedef struct {
    const Safetensors *want;
    int64_t count;
    double velocity, latents; /* largest distances */
} Trace;

static bool compare_step(void *context, const SampleStep *step) {
    Trace *t = context;
    const float *velocity = floats(t->want, "model_output") + step->step * t->count;
    const float *latents = floats(t->want, "trace") + step->step * t->count;
    t->velocity = fmax(t->velocity, distance(step->velocity, velocity, t->count));
    t->latents = fmax(t->latents, distance(step->latents, latents, t->count));
    return true;
}

/* Image latents of the golden image and posterior noise. */
static float *golden_image(const Config *c, const DitConfig *dit, const ClipSize *size,
                           const Safetensors *want) {
    if (!floats(want, "image")) return NULL;
    int64_t n = clip_elements(size, dit), frame = clip_frame_elements(size, dit);
    float *latents = xcalloc((size_t)n, sizeof *latents);
    Vae *v = latents_vae(c, dit);
    latents_encode(c, v, floats(want, "image"), 1, HEIGHT, WIDTH, floats(want, "posterior_noise"),
                   image_latent_scale(&v->model, c->model.image_latent_scale), latents);
    vae_close(v);
    assert_true(distance(latents, floats(want, "image_latents"), frame) <= 3e-5);
    return latents;
}

static void check_frames(const Config *c, const DitConfig *dit, const ClipSize *size,
                         const float *latents, const Safetensors *want) {
    int64_t pixels = size->frames_out * 3 * HEIGHT * WIDTH;
    const SafetensorsTensor *bytes = safetensors_find(want, "frames_u8");
    float *frames = xcalloc((size_t)pixels, sizeof *frames);
    uint8_t *rgb = xcalloc((size_t)pixels, 1);
    Vae *v = latents_vae(c, dit);
    latents_decode(c, v, size, latents, frames);
    vae_close(v);
    assert_true(distance(frames, floats(want, "frames"), pixels) <= FRAME_BOUND);
    frames_to_bytes(size, frames, rgb);
    for (int64_t i = 0; bytes && i < pixels; i++)
        assert_true(abs(rgb[i] - ((const uint8_t *)bytes->data)[i]) <= 1);
    free(frames);
    free(rgb);
}

static void check_case(const Case *k) {
    Safetensors want = open_case(k->name), text = open_case(k->embeddings);
    char *path = xprintf("%s/%s", PIPELINE, k->model);
    Config *c = config_of(path);
    Model *m = model_open_sampling(c);
    const DitConfig *dit = &m->dit->config;
    SchedulerConfig kind = {k->dpm ? SCHEDULER_KIND_DPM : SCHEDULER_KIND_DDIM, SPACING_TRAILING, 0,
                            true};
    ClipSize size;
    Scheduler plan;
    const char *key;
    Error e;
    assert_true(clip_size(&size, dit, k->frames, HEIGHT, WIDTH, &key, &e));
    assert_true(scheduler_open(&plan, &kind, &m->schedule, STEPS, &e));
    Trace trace = {&want, clip_elements(&size, dit), 0, 0};
    SampleNoise noise = {.steps = (float *)floats(&want, "noise"),
                         .n_steps = scheduler_all_draws(&plan)};
    float *latents = xcalloc((size_t)trace.count, sizeof *latents);
    float *image = golden_image(c, dit, &size, &want);
    memcpy(latents, floats(&want, "latents_in"), (size_t)trace.count * sizeof *latents);
    Sampler *s = sampler_open(m, c, &size, true);
    SampleJob job = {.scheduler = &plan,
                     .guidance = GUIDANCE,
                     .dynamic = k->dynamic,
                     .text = floats(&text, "prompt_embeds"),
                     .negative = floats(&text, "negative_prompt_embeds"),
                     .image = image,
                     .noise = &noise,
                     .each = compare_step,
                     .context = &trace};
    if (!sampler_run(s, &job, latents, &e)) fail_msg("%s", e.text);
    print_message("%s: velocity %.2g, latents %.2g\n", k->name, trace.velocity, trace.latents);
    assert_true(trace.velocity <= STEP_BOUND && trace.latents <= STEP_BOUND);
    sampler_close(s);
    check_frames(c, dit, &size, latents, &want);
    model_close(m);
    scheduler_close(&plan);
    config_free(c);
    free(latents);
    free(image);
    free(path);
    safetensors_close(&want);
    safetensors_close(&text);
}

static void steps_are_the_published_ones(void **state) {
    (void)state;
    if (!is_here(PIPELINE)) return;
    for (size_t i = 0; i < COUNT(CASES); i++) check_case(&CASES[i]);
}

/* ---- what must hold of any model --------------------------------------------------------------
 */

typedef struct {
    Config *config;
    Model *model;
    ClipSize size;
    Scheduler plan;
    float *text; /* [2,L,E] */
    int64_t count;
} Tiny;

static Tiny tiny_open(Training training) {
    Tiny t = {.config = config_of(TINY)};
    const char *key;
    Error e;
    t.model = training == TRAIN_NOTHING ? model_open_sampling(t.config)
                                        : model_open(t.config, training, MODEL_WEIGHTS, false);
    const DitConfig *dit = &t.model->dit->config;
    int64_t n = 2 * dit->text_length * dit->text_dim;
    assert_true(clip_size(&t.size, dit, 9, 0, 0, &key, &e));
    assert_true(scheduler_open(&t.plan, &SCHEDULER_PUBLISHED, &t.model->schedule, 3, &e));
    t.count = clip_elements(&t.size, dit);
    t.text = xcalloc((size_t)n, sizeof *t.text);
    sample_noise_start(&(SampleNoise){.seed = 9}, n, t.text);
    return t;
}

static void tiny_close(Tiny *t) {
    model_close(t->model);
    scheduler_close(&t->plan);
    config_free(t->config);
    free(t->text);
}

/* latents [count] of three guided steps, the caller's. */
static float *tiny_run(const Tiny *t, Sampler *s) {
    const DitConfig *dit = &t->model->dit->config;
    SampleNoise noise = {.seed = 4};
    float *latents = xcalloc((size_t)t->count, sizeof *latents);
    SampleJob job = {.scheduler = &t->plan,
                     .guidance = 3,
                     .text = t->text,
                     .negative = t->text + dit->text_length * dit->text_dim,
                     .noise = &noise};
    Error e;
    sample_noise_start(&noise, t->count, latents);
    if (!sampler_run(s, &job, latents, &e)) fail_msg("%s", e.text);
    return latents;
}

/* The preview of a training run: the same numbers, and the learner is as it was. */
static void it_works_beside_a_bound_learner(void **state) {
    (void)state;
    if (!is_here(TINY)) return;
    Tiny alone = tiny_open(TRAIN_NOTHING), t = tiny_open(TRAIN_LORA);
    int64_t fhw[1][3] = {{t.size.f, t.size.h, t.size.w}};
    int64_t rows[1] = {t.model->dit->config.text_length};
    Pack pack = {1, (const int64_t(*)[3])fhw, rows};
    Learner *l = learner_plan(t.model, t.config, &pack, 1, true, (int64_t)1 << 40);
    learner_bind(l, false);
    size_t bytes = t.model->memory.bytes;
    Sampler *s = sampler_open(t.model, t.config, &t.size, true);
    float *beside = tiny_run(&t, s);
    sampler_close(s);
    assert_true(t.model->memory.sealed && t.model->memory.bytes == bytes);
    learner_close(l);
    s = sampler_open(alone.model, alone.config, &alone.size, true);
    float *want = tiny_run(&alone, s);
    sampler_close(s);
    assert_memory_equal(beside, want, (size_t)t.count * sizeof *want); /* B is zero */
    free(beside);
    free(want);
    tiny_close(&t);
    tiny_close(&alone);
}

/* Where only one half fits, they run one after the other, with the same bits. */
static void halves_apart_give_the_same_bits(void **state) {
    (void)state;
    if (!is_here(TINY)) return;
    Tiny t = tiny_open(TRAIN_NOTHING);
    Error e;
    Sampler *s = sampler_open(t.model, t.config, &t.size, true);
    int64_t together = sampler_bytes(s);
    float *want = tiny_run(&t, s);
    sampler_close(s);
    int64_t context = 40 << 20; /* what plans leave to the program itself */
    char *budget = xprintf("memory.budget=%lld", (long long)(context + together - 1));
    assert_true(config_assign(t.config, budget, &e));
    free(budget);
    s = sampler_open(t.model, t.config, &t.size, true);
    assert_true(sampler_bytes(s) < together);
    float *got = tiny_run(&t, s);
    sampler_close(s);
    assert_memory_equal(got, want, (size_t)t.count * sizeof *want);
    free(got);
    free(want);
    tiny_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_are_the_published_ones),
        cmocka_unit_test(it_works_beside_a_bound_learner),
        cmocka_unit_test(halves_apart_give_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
