/* Owns image conditions: noised encodings of a sample's first frame, or of its picture.
 *
 * The published training draws sigma = exp(N(-3, 0.5)) and fresh pixel noise each time that a
 * sample is used, and encodes the picture anew. Here each sample has WANTED_VARIANTS encodings in
 * the cache, each with a sigma and noise of its own, and training draws one of them (and a sample
 * of its posterior, so that even one variant is not one value).
 *
 * Kept encodings, not a kept encoder. At 480x720 one encoding is 4.8 TFLOP and 0.35 MB, of a clip
 * of 49 frames that takes 149 TFLOP and 4.5 MB: eight add a quarter to the work, once, and three
 * fifths to the space. An encoder kept for training would take 0.85 GiB beside the transformer
 * (0.23 in tiles) and 4.8 TFLOP for each sample of each step. Eight values of sigma differ by a
 * factor of about four.
 */
#include "trainer/prepare.h"

#include "kernels/random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const double LOG_SIGMA = -3, LOG_SIGMA_DEVIATION = 0.5;

/* picture + sigma * noise, all [n]. */
static void add_noise(uint64_t seed, int variant, int64_t n, const float *picture, float *noised) {
    Draw draw = {.seed = seed, .ordinal = (uint32_t)variant, .purpose = PURPOSE_IMAGE_SIGMA};
    float z;
    random_normal(draw, 0, 1, &z);
    float sigma = (float)exp(LOG_SIGMA + LOG_SIGMA_DEVIATION * z);
    draw.purpose = PURPOSE_IMAGE_NOISE;
    random_normal(draw, 0, n, noised);
    for (int64_t i = 0; i < n; i++) noised[i] = picture[i] + sigma * noised[i];
}

bool prepare_image(Prepare *p, const Encoder *n, const WantedSample *s, const float *picture,
                   Error *e) {
    const Wanted *w = p->wanted;
    const DatasetItem *item = &w->dataset.items[s->item];
    const char *source = item->image ? item->image : item->video;
    int64_t pixels = VAE_COLORS * w->want.height * w->want.width;
    int64_t half = w->latent[1] * w->latent[2] * w->latent[3];
    float *noised = xcalloc((size_t)pixels, sizeof *noised);
    float *moments = xcalloc((size_t)(2 * half), sizeof *moments);
    bool ok = true;
    for (int v = 0; ok && v < WANTED_VARIANTS; v++) {
        if (s->image[v] >= 0) continue;
        CacheEntry entry = {.kind = CACHE_IMAGE,
                            .shape = {w->latent[1], w->latent[2], w->latent[3], 1},
                            .source = source,
                            .first_frame = item->image ? 0 : s->first_frame,
                            .frames = 1,
                            .variant = v};
        const WantedKeys *keys = &s->image_key[v];
        snprintf(entry.key, sizeof entry.key, "%s",
                 vae_job_tiled(n->images) ? keys->tiled : keys->whole);
        if (cache_find(p->cache, CACHE_IMAGE, entry.key) >= 0) continue;
        add_noise(s->image_seed, v, pixels, picture, noised);
        vae_run(n->images, noised, moments);
        ok = moments_finite(moments, 2 * half, source, e) &&
             prepare_add(p, &entry, moments, moments + half, e);
        prepare_tell(p, &p->news.images, ok);
    }
    free(noised);
    free(moments);
    return ok;
}
