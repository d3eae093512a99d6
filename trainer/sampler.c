/* Owns the denoising loop. */
#include "trainer/sampler.h"

#include "trainer/profile.h"
#include "trainer/same.h"

#include <stdlib.h>
#include <string.h>

struct Sampler {
    Model *model;
    Learner *learner;
    int halves;   /* predictions that a step needs: 2 where guided, else 1 */
    int together; /* of them in a pack */
    bool was_sealed;
    int64_t count;     /* latent elements */
    int64_t text;      /* elements of an embedding */
    float *in, *image; /* [together * count] what goes into a pack */
    float *rows;       /* [together * text] */
    float *out;        /* [halves * count] unconditional first */
    float *x0, *noise; /* [count] */
};

/* ---- opening ----------------------------------------------------------------------------------
 */

/* must_fit: else the program ends. */
static Learner *plan(const Sampler *s, const Config *c, const ClipSize *size, int samples,
                     bool must_fit) {
    const DitConfig *dit = &s->model->dit->config;
    int64_t fhw[2][3], text_rows[2];
    for (int i = 0; i < 2; i++) {
        fhw[i][0] = size->f, fhw[i][1] = size->h, fhw[i][2] = size->w;
        text_rows[i] = dit->text_length;
    }
    Pack pack = {samples, (const int64_t(*)[3])fhw, text_rows};
    int64_t available = model_available(s->model, c);
    return (must_fit ? learner_plan : learner_try)(s->model, c, &pack, 1, false, available);
}

/* Both halves in one pack, so that weights travel once a step; one after the other where that does
 * not fit. */
static void plan_halves(Sampler *s, const Config *c, const ClipSize *size) {
    s->together = s->halves;
    s->learner = plan(s, c, size, s->together, s->together == 1);
    Model *m = s->model;
    int64_t left = model_available(m, c) - learner_bytes(s->learner).total;
    if (s->together == 1 || ranks_least(m->comm, m->stream, left) >= 0) return;
    learner_close(s->learner);
    s->together = 1;
    s->learner = plan(s, c, size, 1, true);
}

static float *floats(int64_t n) { return xcalloc((size_t)n, sizeof(float)); }

Sampler *sampler_open(Model *m, const Config *c, const ClipSize *size, bool guided) {
    const DitConfig *dit = &m->dit->config;
    Sampler *s = xcalloc(1, sizeof *s);
    s->model = m;
    s->halves = guided ? 2 : 1;
    s->count = clip_elements(size, dit);
    s->text = dit->text_length * dit->text_dim;
    s->was_sealed = m->memory.sealed;
    plan_halves(s, c, size);
    memory_seal(&m->memory, false);
    learner_bind(s->learner, false);
    s->in = floats(s->together * s->count);
    if (dit->in_channels != dit->out_channels) s->image = floats(s->together * s->count);
    s->rows = floats(s->together * s->text);
    s->out = floats(s->halves * s->count);
    s->x0 = floats(s->count);
    s->noise = floats(s->count);
    return s;
}

void sampler_close(Sampler *s) {
    if (!s) return;
    learner_close(s->learner);
    memory_seal(&s->model->memory, s->was_sealed);
    free(s->in);
    free(s->image);
    free(s->rows);
    free(s->out);
    free(s->x0);
    free(s->noise);
    free(s);
}

int64_t sampler_bytes(const Sampler *s) {
    LearnerBytes b = learner_bytes(s->learner);
    return b.total - b.resident;
}

/* ---- one step ---------------------------------------------------------------------------------
 */

/* The prediction of half `half` goes to s->out, or those of both. */
static void predict(Sampler *s, const SampleJob *job, const float *latents, int64_t t, int half) {
    int64_t timesteps[2] = {t, t};
    for (int i = 0; i < s->together; i++) {
        const float *text = s->halves == 2 && half + i == 0 ? job->negative : job->text;
        memcpy(s->in + i * s->count, latents, (size_t)s->count * sizeof *latents);
        memcpy(s->rows + i * s->text, text, (size_t)s->text * sizeof *text);
        if (s->image)
            memcpy(s->image + i * s->count, job->image, (size_t)s->count * sizeof *s->image);
    }
    learner_micro(s->learner, &(Micro){.noisy = s->in,
                                       .image = s->image,
                                       .text = s->rows,
                                       .timesteps = timesteps,
                                       .micros = 1});
    learner_prediction(s->learner, 0, s->out + half * s->count);
}

/* s->out becomes the velocity after guidance. */
static void guide(Sampler *s, double weight) {
    float g = (float)weight, *v = s->out;
    const float *with = s->out + s->count;
    for (int64_t i = 0; i < s->count; i++) v[i] = v[i] + g * (with[i] - v[i]);
}

static bool is_finite(const float *x, int64_t n) {
    bool finite = true;
    for (int64_t i = 0; i < n; i++) finite &= x[i] - x[i] == 0;
    return finite;
}

bool sampler_run(Sampler *s, const SampleJob *job, float *latents, Error *e) {
    const Scheduler *plan = job->scheduler;
    int64_t drawn = 0;
    memset(s->x0, 0, (size_t)s->count * sizeof *s->x0);
    for (int64_t i = 0; i < plan->count; i++) {
        int64_t t = plan->timesteps[i];
        for (int half = 0; half < s->halves; half += s->together) predict(s, job, latents, t, half);
        if (s->halves == 2) guide(s, guidance_at(job->guidance, job->dynamic, plan->count, t));
        int draws = scheduler_draws(plan, i);
        drawn += draws;
        if (draws) sample_noise_step(job->noise, drawn - 1, s->count, s->noise);
        scheduler_step(plan, i, s->count, s->out, draws ? s->noise : NULL, latents, s->x0);
        if (!is_finite(latents, s->count))
            return error_set(e, EXIT_USER,
                             "step %lld: what came out is not finite. The weights are damaged, or "
                             "the adapter or the guidance is too strong",
                             (long long)i + 1);
        SampleStep step = {i, s->out, latents};
        if (job->each && !job->each(job->context, &step))
            return error_set(e, EXIT_STOPPED, "stopped after step %lld", (long long)i + 1);
    }
    return true;
}
