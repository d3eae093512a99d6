/* Owns the ring of micro-steps between the reading thread and the training one. */
#include "trainer/loader.h"

#include <stdlib.h>

enum { RING = LOADER_BATCHES, READY = RING - 1 };

struct Loader {
    Samples *samples;
    const Config *config;
    const Schedule *schedule;
    int rank, world;
    int64_t consumed, step; /* where the next step to be read begins */
    Batch ring[RING];
    int64_t made, taken; /* micro-steps so far */
    bool stop;
    Error error; /* ended the reading */
    pthread_t thread;
    pthread_mutex_t lock; /* over made, taken, stop and error */
    pthread_cond_t changed;
};

static void batch_open(Batch *b, const Samples *s, int n) {
    size_t latents = (size_t)(n * samples_latent_count(s));
    b->noisy = xcalloc(latents, sizeof *b->noisy);
    b->target = xcalloc(latents, sizeof *b->target);
    b->text = xcalloc((size_t)(n * samples_text_count(s)), sizeof *b->text);
    if (s->wanted->images) b->image = xcalloc(latents, sizeof *b->image);
    b->timesteps = xcalloc((size_t)n, sizeof *b->timesteps);
    b->ordinals = xcalloc((size_t)n, sizeof *b->ordinals);
}

static void batch_close(Batch *b) {
    free(b->noisy);
    free(b->target);
    free(b->text);
    free(b->image);
    free(b->timesteps);
    free(b->ordinals);
}

/* Micro-step `micro` of the step at which the loader is. */
static bool fill(Loader *l, int64_t micro, Batch *b) {
    const TrainConfig *t = &l->config->train;
    int64_t each = samples_latent_count(l->samples), text = samples_text_count(l->samples);
    int64_t first = (micro * l->world + l->rank) * t->batch;
    bool ok = true;
    for (int64_t i = 0; ok && i < t->batch; i++) {
        Turn turn = {.ordinal = l->consumed + first + i,
                     .place = first + i,
                     .global = t->batch * t->accumulate * l->world,
                     .step = (uint32_t)l->step};
        Prepared p = {.noisy = b->noisy + i * each,
                      .target = b->target + i * each,
                      .image = b->image ? b->image + i * each : NULL,
                      .text = b->text + i * text};
        ok = sample_prepare(l->samples, l->config, l->schedule, turn, &p, &l->error);
        b->timesteps[i] = p.timestep;
        b->ordinals[i] = (uint32_t)turn.ordinal;
    }
    return ok;
}

/* Waits for a free place; false: asked to stop. */
static bool wait_for_place(Loader *l) {
    pthread_mutex_lock(&l->lock);
    while (!l->stop && l->made - l->taken >= READY) pthread_cond_wait(&l->changed, &l->lock);
    bool go = !l->stop;
    pthread_mutex_unlock(&l->lock);
    return go;
}

static void *read_ahead(void *context) {
    Loader *l = context;
    const TrainConfig *t = &l->config->train;
    for (bool ok = true; ok;) {
        for (int64_t micro = 0; ok && micro < t->accumulate; micro++) {
            if (!wait_for_place(l)) return NULL;
            ok = fill(l, micro, &l->ring[l->made % RING]);
            pthread_mutex_lock(&l->lock);
            if (ok) l->made++;
            l->stop = l->stop || !ok;
            pthread_cond_broadcast(&l->changed);
            pthread_mutex_unlock(&l->lock);
        }
        l->consumed += t->batch * t->accumulate * l->world;
        l->step++;
    }
    return NULL;
}

Loader *loader_open(Samples *s, const Config *c, const Schedule *schedule, int rank, int ranks,
                    int64_t consumed, int64_t step) {
    Loader *l = xcalloc(1, sizeof *l);
    l->samples = s;
    l->config = c;
    l->schedule = schedule;
    l->rank = rank;
    l->world = ranks;
    l->consumed = consumed;
    l->step = step;
    for (int i = 0; i < RING; i++) batch_open(&l->ring[i], s, (int)c->train.batch);
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    int failed = pthread_create(&l->thread, NULL, read_ahead, l);
    CHECK(!failed, "loader: the thread cannot be started (%d)", failed);
    return l;
}

void loader_close(Loader *l) {
    if (!l) return;
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    pthread_join(l->thread, NULL);
    for (int i = 0; i < RING; i++) batch_close(&l->ring[i]);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->changed);
    free(l);
}

const Batch *loader_next(Loader *l, Error *e) {
    double start = now_seconds();
    pthread_mutex_lock(&l->lock);
    while (!l->stop && l->made == l->taken) pthread_cond_wait(&l->changed, &l->lock);
    Batch *b = l->made > l->taken ? &l->ring[l->taken % RING] : NULL;
    if (b)
        l->taken++;
    else
        *e = l->error;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    if (b) b->waited_ms = 1e3 * (now_seconds() - start);
    return b;
}
