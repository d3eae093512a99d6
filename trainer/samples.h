/* What is trained on: the samples of a dataset as the cache has them, their order over the run, and
 * everything random about one of them.
 *
 * The position of a run is its count of samples consumed. The n-th sample that a run consumes has
 * ordinal n, and epoch, place in the epoch and every draw (kernels/random.h) follow from it and the
 * seed alone: order, noise and timesteps are the same for any number of ranks and after any resume.
 *
 *   order       an epoch is a Fisher-Yates shuffle of all samples by PURPOSE_ORDER
 *   timestep    uniform: floor(1000 u); explicit: floor(1000 (place + u) / global), where
 *               `place` is the sample's among the `global` samples of its step
 *               (Yang et al. 2024, §3.3)
 *   latents     scale * (mean + deviation * PURPOSE_POSTERIOR)
 *   caption     the empty one where PURPOSE_CAPTION_DROPOUT < data.caption_dropout
 *   image       zeros where PURPOSE_IMAGE_DROPOUT's element 0 < data.image_dropout, else a sample
 *               of the posterior of the noised encoding that its element 1 picks
 */
#pragma once

#include "trainer/diffusion.h"
#include "trainer/pack.h"
#include "trainer/wanted.h"

#include <pthread.h>

typedef struct {
    Wanted *wanted;
    Cache *cache;
    pthread_mutex_t lock;   /* over the cache, which is read by one thread at a time, and order */
    int *train, *holdout;   /* samples of `wanted` */
    int n_train, n_holdout; /* holdout: all windows of the dataset's last data.holdout clips */
    int64_t f, c, h, w;     /* of latents as the transformer takes them: f padded to its patch */
    int64_t text_rows, text_dim;
    double latent_scale, image_scale;
    uint64_t seed;
    uint32_t *order; /* [n_train] the shuffle of `epoch` */
    int64_t epoch;
    char digest[CACHE_KEY_CHARS]; /* of what the samples are made of, in their order */
} Samples;

/* Ends the program where the cache has not all that the config wants (exit 3), naming `prepare`. */
Samples *samples_open(const Config *c);
void samples_close(Samples *s);

/* Elements of one sample's latents [F,C,H,W], and of its text [L,E]. */
int64_t samples_latent_count(const Samples *s);
int64_t samples_text_count(const Samples *s);
/* The pack of n samples; the caller frees it with samples_pack_free. */
Pack samples_pack(const Samples *s, int n);
void samples_pack_free(Pack *p);
/* What a sample is, for people: "red_ball.mp4", of the caller's own. */
char *sample_name(const Samples *s, int sample);

/* The sample that ordinal `ordinal` of the run consumes; its index in wanted->samples. */
int samples_at(Samples *s, int64_t ordinal);

/* One sample made ready; the caller's memory. */
typedef struct {
    float *noisy, *target; /* [F,C,H,W] */
    float *image;          /* the same; NULL unless the model is conditioned on images */
    float *text;           /* [L,E] */
    int64_t timestep;
} Prepared;

/* A place in the run: its ordinal, the optimizer step from 0, and the place among the step's
 * `global` samples. */
typedef struct {
    int64_t ordinal, place, global;
    uint32_t step;
} Turn;

/* Makes the sample of a turn ready. false: a value of the cache cannot be read (EXIT_DATA). */
bool sample_prepare(Samples *s, const Config *c, const Schedule *schedule, Turn turn, Prepared *out,
                    Error *e);
/* Held-out sample `i` at a timestep of the caller's, without dropout, with draws of its own that
 * are the same at every step: a loss that can be compared over a run. */
bool sample_prepare_holdout(Samples *s, const Schedule *schedule, int i, int64_t timestep,
                            Prepared *out, Error *e);
/* The image condition of a sample [F,C,H,W], for previews: the same each time. */
bool samples_image(Samples *s, int sample, float *image, Error *e);
