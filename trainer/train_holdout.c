/* Owns the held-out loss: samples that are never trained on, at timesteps and with noise that are
 * the same each time. */
#include "trainer/train.h"

#include <stdlib.h>

/* Evenly over the schedule, off its ends. */
static const int64_t TIMESTEPS[] = {100, 300, 500, 700, 900};

Holdout holdout_open(const Train *t, int64_t available) {
    const Samples *s = t->samples;
    Holdout h = {0};
    if (!s->n_holdout || !t->config->train.validate_every) return h;
    size_t n = (size_t)samples_latent_count(s);
    Pack pack = samples_pack(s, 1);
    h.learner = learner_plan(t->model, t->config, &pack, 1, false, available);
    h.prepared = (Prepared){.noisy = xcalloc(n, sizeof(float)),
                            .target = xcalloc(n, sizeof(float)),
                            .image = s->wanted->images ? xcalloc(n, sizeof(float)) : NULL,
                            .text = xcalloc((size_t)samples_text_count(s), sizeof(float))};
    h.prediction = xcalloc(n, sizeof(float));
    samples_pack_free(&pack);
    return h;
}

void holdout_close(Holdout *h) {
    learner_close(h->learner);
    free(h->prepared.noisy);
    free(h->prepared.target);
    free(h->prepared.image);
    free(h->prepared.text);
    free(h->prediction);
    *h = (Holdout){0};
}

static bool loss_of(Train *t, int sample, int64_t timestep, double *loss, Error *e) {
    Holdout *h = &t->holdout;
    Prepared *p = &h->prepared;
    uint32_t ordinal = (uint32_t)sample;
    int64_t n = samples_latent_count(t->samples);
    if (!sample_prepare_holdout(t->samples, &t->model->schedule, sample, timestep, p, e))
        return false;
    learner_micro(h->learner, &(Micro){.noisy = p->noisy,
                                       .image = p->image,
                                       .text = p->text,
                                       .timesteps = &timestep,
                                       .ordinals = &ordinal,
                                       .seed = (uint64_t)t->config->train.seed,
                                       .micros = 1});
    learner_prediction(h->learner, 0, h->prediction);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)h->prediction[i] - (double)p->target[i];
        sum += d * d;
    }
    *loss = sum / (double)n;
    return true;
}

/* Data-parallel ranks take turns; every rank runs as often as every other, for the weights may be
 * sharded. */
bool holdout_loss(Train *t, double *loss, Error *e) {
    Comm *comm = t->model->comm;
    int64_t jobs = t->samples->n_holdout * (int64_t)COUNT(TIMESTEPS);
    int64_t ranks = t->model->data_ranks, sharing = t->model->sequence->size;
    int64_t rounds = (jobs + ranks - 1) / ranks;
    double *all = xcalloc((size_t)comm->size, sizeof *all), sum = 0;
    bool ok = true;
    for (int64_t i = 0; ok && i < rounds; i++) {
        int64_t job = (i * ranks + t->model->data_rank) % jobs;
        double mine = 0;
        ok = loss_of(t, (int)(job / (int64_t)COUNT(TIMESTEPS)),
                     TIMESTEPS[job % (int64_t)COUNT(TIMESTEPS)], &mine, e);
        comm->all_gather(comm, t->model->stream, DT_F64, 1, &mine, all);
        for (int64_t r = 0; r < ranks && i * ranks + r < jobs; r++) sum += all[r * sharing];
    }
    *loss = sum / (double)jobs;
    free(all);
    return ok;
}
