/* Sampling in latent space: the denoising loop with classifier-free guidance (Ho and Salimans
 * 2022), on a model that its caller opened, for training or not.
 *
 *     Sampler *s = sampler_open(model, config, &size, true);
 *     sample_noise_start(&noise, clip_elements(&size, &model->dit->config), latents);
 *     if (!sampler_run(s, &(SampleJob){...}, latents, &e)) ...     as often as there are prompts
 *     sampler_close(s);
 *
 * It plans a forward-only graph of its own over the model's parameters as they are now. It may
 * live beside a bound learner of the same model: what is sealed is so again after sampler_close.
 * Over several ranks every rank must make the same calls.
 */
#pragma once

#include "trainer/clip_size.h"
#include "trainer/learner.h"
#include "trainer/sample_noise.h"
#include "trainer/scheduler.h"

typedef struct Sampler Sampler;

/* Allocates what a step needs. guided: with an unconditional half, which shares a pack with the
 * conditional one unless only one of them fits the memory. Ends the program (exit 2) above
 * memory.budget. */
Sampler *sampler_open(Model *m, const Config *c, const ClipSize *size, bool guided);
void sampler_close(Sampler *s);
/* Device memory that it holds, beside the parameters. */
int64_t sampler_bytes(const Sampler *s);

/* What a step made; all [F,C,H,W]. */
typedef struct {
    int64_t step;          /* from 0 */
    const float *velocity; /* after guidance */
    const float *latents;  /* after the step */
} SampleStep;

typedef struct {
    const Scheduler *scheduler;
    double guidance; /* used where the sampler is guided */
    bool dynamic;
    const float *text, *negative; /* embeddings [L,E]; negative NULL unless guided */
    const float *image;           /* image latents [F,C,H,W]; NULL unless the model takes them */
    const SampleNoise *noise;     /* what the scheduler draws */
    /* Called after each step; false stops. NULL: nobody wants to know. */
    bool (*each)(void *context, const SampleStep *step);
    void *context;
} SampleJob;

/* latents [F,C,H,W]: in, where the first timestep begins; out, what the last step left. false:
 * `each` stopped it (EXIT_STOPPED), or what came out is not finite (EXIT_USER). */
bool sampler_run(Sampler *s, const SampleJob *job, float *latents, Error *e);
