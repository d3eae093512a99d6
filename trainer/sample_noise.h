/* The noise of sampling: from a file, or drawn (kernels/random.h) with key = seed and
 *
 *     PURPOSE_SAMPLE_START      ordinal = number of the prompt, element of [F,C,H,W]
 *     PURPOSE_SAMPLE_STEP       the same; step = number of the draw among all draws
 *     PURPOSE_SAMPLE_POSTERIOR  ordinal 0, element of [C,F,h,w]: of the image or video
 */
#pragma once

#include "trainer/clip_size.h"

typedef struct {
    uint64_t seed;
    uint32_t ordinal; /* of the prompt, from 0 */
    /* From the file; NULL: drawn. */
    float *start;     /* [F,C,H,W] */
    float *steps;     /* [n_steps,F,C,H,W] in the order in which the scheduler draws */
    float *posterior; /* [C,F,h,w] */
    int64_t n_steps;
} SampleNoise;

/* Reads `latents`, and where they are there `noise` and `posterior_noise`; the latter is of
 * `posterior_frames` latent frames (0: there is no image or video). Ends the program on mistakes
 * (exit 2). */
void sample_noise_read(SampleNoise *n, const char *path, const ClipSize *size,
                       const DitConfig *model, int64_t draws, int64_t posterior_frames);
void sample_noise_free(SampleNoise *n);

void sample_noise_start(const SampleNoise *n, int64_t count, float *out);
void sample_noise_step(const SampleNoise *n, int64_t draw, int64_t count, float *out);
void sample_noise_posterior(const SampleNoise *n, int64_t count, float *out);
