/* Owns the optimizer's arithmetic over buckets. */
#include "trainer/optim.h"

#include <math.h>
#include <stdlib.h>

enum { NORM_CHUNK = 1024 };

Optim optim_open(const ParamSet *p, Memory *m) {
    Optim o = {0};
    for (int i = 0; i < p->n_buckets; i++)
        if (p->bucket[i].trained) o.chunks += p->bucket[i].count / NORM_CHUNK;
    o.partial = memory_alloc(m, (size_t)o.chunks * sizeof *o.partial, "gradient norm");
    return o;
}

void optim_close(Optim *o, Memory *m) {
    memory_release(m, o->partial, (size_t)o->chunks * sizeof *o->partial);
    *o = (Optim){0};
}

double optim_grad_norm(Optim *o, const ParamSet *p, Memory *m, Stream *s) {
    double *to = o->partial;
    for (int i = 0; i < p->n_buckets; i++) {
        const Bucket *b = &p->bucket[i];
        if (!b->trained) continue;
        m->k->sum_squares(s, b->count, b->grad, to);
        to += b->count / NORM_CHUNK;
    }
    size_t bytes = (size_t)o->chunks * sizeof(double);
    double *host = xcalloc((size_t)o->chunks, sizeof *host), sum = 0;
    m->k->download(s, host, o->partial, bytes);
    m->k->stream_sync(s);
    for (int64_t i = 0; i < o->chunks; i++) sum += host[i];
    free(host);
    return sqrt(sum);
}

static void update(const Bucket *b, AdamW a, int64_t from, int64_t to, Memory *m, Stream *s) {
    real *master = b->resident;
    if (to > from)
        m->k->adamw(s, &a, to - from, b->grad + from, master + from, b->m + from, b->v + from);
}

void optim_step(const ParamSet *p, const TrainConfig *c, double learning_rate, double grad_norm,
                int64_t step, Memory *m, Stream *s) {
    double clip = c->clip_norm > 0 ? fmin(1, c->clip_norm / (grad_norm + 1e-6)) : 1;
    double beta1 = c->betas.items[0], beta2 = c->betas.items[1];
    AdamW all = {.learning_rate = (real)learning_rate,
                 .beta1 = (real)beta1,
                 .beta2 = (real)beta2,
                 .eps = (real)c->eps,
                 .weight_decay = (real)c->weight_decay,
                 .correction1 = (real)(1 - pow(beta1, (double)step)),
                 .correction2 = (real)(1 - pow(beta2, (double)step)),
                 .grad_scale = (real)clip};
    AdamW undecayed = all;
    undecayed.weight_decay = 0;
    for (int i = 0; i < p->n_buckets; i++) {
        const Bucket *b = &p->bucket[i];
        if (!b->trained) continue;
        int64_t decayed = c->decay == DECAY_ALL ? b->count : b->matrices;
        update(b, all, 0, decayed, m, s);
        update(b, undecayed, decayed, b->count, m, s);
    }
}

double learning_rate_at(const TrainConfig *c, int64_t step) {
    if (step < c->warmup_steps) return c->learning_rate * (double)step / (double)c->warmup_steps;
    double left = (double)MAX(1, c->steps - c->warmup_steps);
    double done = (double)(step - c->warmup_steps) / left;
    switch (c->schedule) {
    case SCHEDULE_LINEAR:
        return c->learning_rate * fmax(0, 1 - done);
    case SCHEDULE_COSINE:
        return c->learning_rate * fmax(0, 0.5 * (1 + cos(acos(-1.0) * done)));
    case SCHEDULE_CONSTANT:
        break;
    }
    return c->learning_rate;
}
