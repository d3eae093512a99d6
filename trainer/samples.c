/* Owns the order of samples and their draws. */
#include "trainer/samples.h"

#include "data/vae.h"
#include "kernels/random.h"
#include "trainer/latents.h"

#include <stdlib.h>
#include <string.h>

static const uint32_t HOLDOUT_STEP = 0xffffffffu; /* no optimizer step has this number */

/* ---- opening ----------------------------------------------------------------------------------
 */

static int count_missing(const Wanted *w) {
    int n = 0;
    for (int i = 0; i < w->n_samples; i++) n += !wanted_has(w, &w->samples[i]);
    return n;
}

static void need_all(const Config *c, const Wanted *w, const char *folder) {
    Error e;
    if (wanted_complete(w)) return;
    int missing = count_missing(w);
    char *what = missing ? xprintf("%d of %d samples are", missing, w->n_samples)
                         : xstrdup("the embedding of the empty caption is");
    error_set(&e, EXIT_DATA,
              "%.300s: %s not in the cache yet. Run `cogsmith prepare` with the same config "
              "first%s.",
              folder, what,
              c->data.on_bad == ON_BAD_SKIP ? "" : "; data.on_bad=skip leaves out bad clips");
    die_error(&e);
}

/* All windows of the last data.holdout clips are kept out of training. */
static void part_samples(Samples *s, const Config *c) {
    const Wanted *w = s->wanted;
    s->train = xcalloc((size_t)w->n_samples, sizeof *s->train);
    s->holdout = xcalloc((size_t)w->n_samples, sizeof *s->holdout);
    int clips = 0;
    for (int i = w->n_samples - 1; i >= 0; i--) {
        clips += i == w->n_samples - 1 || w->samples[i].item != w->samples[i + 1].item;
        if (clips <= c->data.holdout) s->n_holdout++;
    }
    s->n_train = w->n_samples - s->n_holdout;
    if (!s->n_train)
        config_die(c, "data.holdout", "%lld of %d clips leave none to train on",
                   (long long)c->data.holdout, clips);
    for (int i = 0; i < w->n_samples; i++)
        *(i < s->n_train ? &s->train[i] : &s->holdout[i - s->n_train]) = i;
}

static void digest_samples(Samples *s) {
    const Wanted *w = s->wanted;
    CacheKey *k = cache_key_open("samples");
    for (int i = 0; i < w->n_samples; i++) {
        cache_key_text(k, "latents", cache_entry(s->cache, w->samples[i].latents)->key);
        cache_key_text(k, "embedding", w->samples[i].embedding_key);
    }
    cache_key_number(k, "train", s->n_train);
    cache_key_close(k, s->digest);
}

Samples *samples_open(const Config *c) {
    Samples *s = xcalloc(1, sizeof *s);
    Error e;
    char *folder = wanted_cache_folder(c);
    s->cache = cache_open(folder, false, &e);
    if (!s->cache) die_error(&e);
    s->wanted = wanted_open(c, folder, &e);
    if (!s->wanted) die_error(&e);
    wanted_find(s->wanted, s->cache);
    if (c->data.on_bad == ON_BAD_SKIP) wanted_leave_out_bad(s->wanted, c);
    need_all(c, s->wanted, folder);
    const Wanted *w = s->wanted;
    s->f = align_up(w->latent[0], w->model.patch_t);
    s->c = w->latent[1], s->h = w->latent[2], s->w = w->latent[3];
    s->text_rows = w->text_length;
    s->text_dim = w->model.text_dim;
    s->latent_scale = latent_scale(&w->vae);
    s->image_scale = image_latent_scale(&w->vae, c->model.image_latent_scale);
    s->seed = (uint64_t)c->train.seed;
    pthread_mutex_init(&s->lock, NULL);
    part_samples(s, c);
    digest_samples(s);
    s->order = xcalloc((size_t)s->n_train, sizeof *s->order);
    s->epoch = -1;
    free(folder);
    return s;
}

void samples_close(Samples *s) {
    if (!s) return;
    Error e;
    cache_close(s->cache, &e);
    wanted_close(s->wanted);
    pthread_mutex_destroy(&s->lock);
    free(s->train);
    free(s->holdout);
    free(s->order);
    free(s);
}

int64_t samples_latent_count(const Samples *s) { return s->f * s->c * s->h * s->w; }

int64_t samples_text_count(const Samples *s) { return s->text_rows * s->text_dim; }

Pack samples_pack(const Samples *s, int n) {
    int64_t(*fhw)[3] = xcalloc((size_t)n, sizeof *fhw);
    int64_t *text_rows = xcalloc((size_t)n, sizeof *text_rows);
    for (int i = 0; i < n; i++) {
        fhw[i][0] = s->f, fhw[i][1] = s->h, fhw[i][2] = s->w;
        text_rows[i] = s->text_rows;
    }
    return (Pack){n, (const int64_t(*)[3])fhw, text_rows};
}

void samples_pack_free(Pack *p) {
    free((void *)p->fhw);
    free((void *)p->text_rows);
    *p = (Pack){0};
}

char *sample_name(const Samples *s, int sample) {
    const Wanted *w = s->wanted;
    const WantedSample *n = &w->samples[sample];
    const char *path = w->dataset.items[n->item].video, *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    return n->windows > 1 ? xprintf("%s (window %lld)", name, (long long)n->window + 1)
                          : xstrdup(name);
}

/* ---- order ------------------------------------------------------------------------------------
 */

static void shuffle(Samples *s, int64_t epoch) {
    uint32_t *bits = xcalloc((size_t)s->n_train, sizeof *bits);
    random_bits((Draw){s->seed, (uint32_t)epoch, 0, PURPOSE_ORDER}, 0, s->n_train, bits);
    for (int i = 0; i < s->n_train; i++) s->order[i] = (uint32_t)i;
    for (int i = s->n_train - 1; i > 0; i--) {
        int j = (int)(((uint64_t)bits[i] * (uint64_t)(i + 1)) >> 32);
        uint32_t swap = s->order[i];
        s->order[i] = s->order[j];
        s->order[j] = swap;
    }
    s->epoch = epoch;
    free(bits);
}

int samples_at(Samples *s, int64_t ordinal) {
    int64_t epoch = ordinal / s->n_train;
    pthread_mutex_lock(&s->lock);
    if (epoch != s->epoch) shuffle(s, epoch);
    int sample = s->train[s->order[ordinal % s->n_train]];
    pthread_mutex_unlock(&s->lock);
    return sample;
}

/* ---- one sample -------------------------------------------------------------------------------
 */

static double uniform(Draw d, int64_t element) {
    float u;
    random_uniform(d, element, 1, &u);
    return u;
}

static bool read_value(Samples *s, int entry, float *values, float *logvar, Error *e) {
    pthread_mutex_lock(&s->lock);
    bool ok = cache_read(s->cache, entry, values, logvar, e);
    pthread_mutex_unlock(&s->lock);
    return ok;
}

/* x [n] = scale * a sample of the posterior of a cached encoding. */
static bool draw_posterior(Samples *s, int entry, Draw draw, double scale, int64_t n, float *x,
                           Error *e) {
    float *moments = xcalloc((size_t)(2 * n), sizeof *moments);
    float *noise = xcalloc((size_t)n, sizeof *noise);
    CHECK(cache_elements(cache_entry(s->cache, entry)) == n, "samples: a cached value's size");
    bool ok = read_value(s, entry, moments, moments + n, e);
    random_normal(draw, 0, n, noise);
    if (ok) posterior_sample(moments, noise, n, x);
    for (int64_t i = 0; ok && i < n; i++) x[i] *= (float)scale;
    free(moments);
    free(noise);
    return ok;
}

/* x0 [F,C,H,W]; where the transformer takes more frames than there are, the first one is repeated
 * in front, as the published fine-tuning of 1.5 does. */
static bool draw_clean(Samples *s, const WantedSample *sample, Draw draw, float *x0, Error *e) {
    int64_t frame = s->c * s->h * s->w, frames = s->wanted->latent[0];
    float *first = x0 + (s->f - frames) * frame;
    draw.purpose = PURPOSE_POSTERIOR;
    bool ok = draw_posterior(s, sample->latents, draw, s->latent_scale, frames * frame, first, e);
    for (float *pad = x0; ok && pad < first; pad += frame)
        memcpy(pad, first, (size_t)frame * sizeof *pad);
    return ok;
}

/* The image condition [F,C,H,W]: the encoded picture in frame 0, zeros behind it. */
static bool draw_image(Samples *s, const WantedSample *sample, Draw draw, double dropout,
                       float *image, Error *e) {
    if (!image) return true;
    memset(image, 0, (size_t)samples_latent_count(s) * sizeof *image);
    draw.purpose = PURPOSE_IMAGE_DROPOUT;
    if (uniform(draw, 0) < dropout) return true;
    int variant = (int)(uniform(draw, 1) * WANTED_VARIANTS);
    draw.purpose = PURPOSE_IMAGE_POSTERIOR;
    return draw_posterior(s, sample->image[variant], draw, s->image_scale, s->c * s->h * s->w,
                          image, e);
}

static bool noise_sample(Samples *s, const Schedule *schedule, const WantedSample *sample,
                         Draw draw, int64_t timestep, Prepared *out, Error *e) {
    int64_t n = samples_latent_count(s);
    float *x0 = xcalloc((size_t)n, sizeof *x0), *noise = xcalloc((size_t)n, sizeof *noise);
    bool ok = draw_clean(s, sample, draw, x0, e);
    draw.purpose = PURPOSE_NOISE;
    random_normal(draw, 0, n, noise);
    if (ok) diffuse(schedule, timestep, n, x0, noise, out->noisy, out->target);
    out->timestep = timestep;
    free(x0);
    free(noise);
    return ok;
}

static int64_t draw_timestep(const Config *c, Draw draw, Turn turn) {
    draw.purpose = PURPOSE_TIMESTEP;
    double u = uniform(draw, 0);
    if (c->train.timesteps == TIMESTEPS_EXPLICIT)
        u = ((double)turn.place + u) / (double)turn.global;
    return MIN((int64_t)(u * TRAIN_TIMESTEPS), TRAIN_TIMESTEPS - 1);
}

bool sample_prepare(Samples *s, const Config *c, const Schedule *schedule, Turn turn, Prepared *out,
                    Error *e) {
    const WantedSample *sample = &s->wanted->samples[samples_at(s, turn.ordinal)];
    Draw draw = {s->seed, (uint32_t)turn.ordinal, turn.step, PURPOSE_CAPTION_DROPOUT};
    bool drop = uniform(draw, 0) < c->data.caption_dropout;
    return noise_sample(s, schedule, sample, draw, draw_timestep(c, draw, turn), out, e) &&
           draw_image(s, sample, draw, c->data.image_dropout, out->image, e) &&
           read_value(s, drop ? s->wanted->empty : sample->embedding, out->text, NULL, e);
}

bool sample_prepare_holdout(Samples *s, const Schedule *schedule, int i, int64_t timestep,
                            Prepared *out, Error *e) {
    const WantedSample *sample = &s->wanted->samples[s->holdout[i]];
    Draw draw = {s->seed, (uint32_t)(i * TRAIN_TIMESTEPS + timestep), HOLDOUT_STEP, 0};
    return noise_sample(s, schedule, sample, draw, timestep, out, e) &&
           draw_image(s, sample, draw, 0, out->image, e) &&
           read_value(s, sample->embedding, out->text, NULL, e);
}

bool samples_image(Samples *s, int sample, float *image, Error *e) {
    Draw draw = {.seed = s->seed, .step = HOLDOUT_STEP};
    return draw_image(s, &s->wanted->samples[sample], draw, 0, image, e);
}
