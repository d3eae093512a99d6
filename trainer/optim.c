/* Owns the optimizer's arithmetic over buckets. */
#include "trainer/optim.h"

#include <math.h>
#include <stdlib.h>

enum { NORM_CHUNK = 1024 };

static int64_t count_chunks(const ParamSet *p) {
    int64_t n = 0;
    for (int i = 0; i < p->n_buckets; i++)
        if (p->bucket[i].trained) n += p->bucket[i].count / NORM_CHUNK;
    return n;
}

int64_t optim_bytes(const ParamSet *p) { return count_chunks(p) * (int64_t)sizeof(double); }

Optim optim_open(const ParamSet *p, DType compute, Memory *m) {
    Optim o = {.scales = compute == DT_F16 && DT_REAL != DT_F16, .chunks = count_chunks(p)};
    o.scale.value = o.scales ? LOSS_SCALE_FIRST : 1;
    o.partial = memory_alloc(m, (size_t)o.chunks * sizeof *o.partial, "gradient norm");
    return o;
}

void optim_close(Optim *o, Memory *m) {
    memory_release(m, o->partial, (size_t)o->chunks * sizeof *o->partial);
    *o = (Optim){0};
}

/* Partial sums of the chunks that rest here, then those of the other ranks. Returns how many. */
static int64_t bucket_partials(const ParamSet *p, const Bucket *b, double *to, Memory *m,
                               Stream *s) {
    int64_t chunks = b->count / NORM_CHUNK, mine = b->grads.count / NORM_CHUNK;
    double *at = to + b->grads.from / NORM_CHUNK;
    if (b->host) {
        double *host = xcalloc((size_t)mine, sizeof *host);
        BACKEND_CPU.sum_squares(NULL, b->grads.count, b->grad, host);
        m->k->upload(s, at, host, (size_t)mine * sizeof *host);
        m->k->stream_sync(s);
        free(host);
    } else {
        m->k->sum_squares(s, b->grads.count, b->grad, at);
    }
    if (mine < chunks) p->comm->all_gather(p->comm, s, DT_F64, mine, at, to);
    return chunks;
}

double optim_grad_norm(const Optim *o, const ParamSet *p, Memory *m, Stream *s) {
    double *to = o->partial;
    m->k->stream_sync(s); /* what comes to rest on the host is there */
    for (int i = 0; i < p->n_buckets; i++)
        if (p->bucket[i].trained) to += bucket_partials(p, &p->bucket[i], to, m, s);
    double *host = xcalloc((size_t)o->chunks, sizeof *host), sum = 0;
    m->k->download(s, host, o->partial, (size_t)o->chunks * sizeof *host);
    m->k->stream_sync(s);
    for (int64_t i = 0; i < o->chunks; i++) sum += host[i];
    free(host);
    return sqrt(sum) / o->scale.value;
}

bool optim_overflowed(Optim *o, double grad_norm) {
    if (!o->scales) return false;
    bool overflowed = !isfinite(grad_norm) && o->scale.value > 1;
    if (overflowed) {
        o->scale = (LossScale){o->scale.value / 2, 0};
    } else if (++o->scale.good_steps == LOSS_SCALE_STEPS) {
        o->scale = (LossScale){o->scale.value * 2, 0};
    }
    return overflowed;
}

void optim_step(const Optim *o, ParamSet *p, const TrainConfig *c, double learning_rate,
                double grad_norm, int64_t step, Memory *m, Stream *s) {
    double clip = c->clip_norm > 0 ? fmin(1, c->clip_norm / (grad_norm + 1e-6)) : 1;
    double beta1 = c->betas.items[0], beta2 = c->betas.items[1];
    AdamW adamw = {.learning_rate = (real)learning_rate,
                   .beta1 = (real)beta1,
                   .beta2 = (real)beta2,
                   .eps = (real)c->eps,
                   .weight_decay = (real)c->weight_decay,
                   .correction1 = (real)(1 - pow(beta1, (double)step)),
                   .correction2 = (real)(1 - pow(beta2, (double)step)),
                   .grad_scale = (real)(clip / o->scale.value)};
    for (int i = 0; i < p->n_buckets; i++) {
        const Bucket *b = &p->bucket[i];
        Update u = {adamw, c->decay == DECAY_ALL ? b->count : b->matrices};
        if (b->trained) bucket_update(p, i, &u, m, s);
    }
}

Cost optim_cost(const ParamSet *p) {
    Cost sum = {0};
    for (int i = 0; i < p->n_buckets; i++) {
        Cost c = bucket_update_cost(p, i);
        sum.bytes += c.bytes;
        sum.sent += c.sent;
    }
    return sum;
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
