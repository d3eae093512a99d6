/* Owns the optimizer's update of a bucket, and when it happens. */
#include "autograd/param.h"

/* Elements [from, to) of the bucket, as far as their moments rest here. */
static void step_range(const Backend *k, Stream *s, const Bucket *b, const AdamW *a, int64_t from,
                       int64_t to) {
    from = MAX(from, b->moments.from);
    to = MIN(to, b->moments.from + b->moments.count);
    if (from >= to) return;
    k->adamw(s, a, to - from, b->grad + (from - b->grads.from),
             (real *)b->resident + (from - b->rests.from), b->m + (from - b->moments.from),
             b->v + (from - b->moments.from));
}

static void step_all(const Backend *k, Stream *s, const Bucket *b, const Update *u) {
    AdamW undecayed = u->step;
    undecayed.weight_decay = 0;
    step_range(k, s, b, &u->step, 0, u->decayed);
    step_range(k, s, b, &undecayed, u->decayed, b->count);
}

/* Where masters rest whole and moments in shards, each rank updated its part: exchange them. */
static void share_masters(const ParamSet *p, const Bucket *b, Stream *s) {
    if (b->rests.count == b->moments.count) return;
    real *master = b->resident;
    p->comm->all_gather(p->comm, s, DT_REAL, b->shard.count, master + b->shard.from, master);
}

bool bucket_waits(const Bucket *b) { return b->host && b->rests.count == b->moments.count; }

/* What is owed is looked up when the stream has come so far: a step that was captured does it
 * whenever it is replayed. */
static void step_on_host(const void *args) {
    Bucket *b = *(Bucket *const *)args;
    if (b->owed) step_all(&BACKEND_CPU, NULL, b, &b->update);
    b->owed = false;
}

void bucket_settle(const ParamSet *p, int bucket, Memory *m, Stream *s) {
    Bucket *b = &p->bucket[bucket];
    if (bucket_waits(b)) m->k->host_call(s, step_on_host, &b, sizeof b);
}

/* Once no step that is under way looks any more. */
static void owe(ParamSet *p, int bucket, const Update *u, Memory *m, Stream *s) {
    Bucket *b = &p->bucket[bucket];
    m->k->stream_sync(s);
    if (b->owed) {
        bucket_settle(p, bucket, m, s);
        m->k->stream_sync(s);
    }
    b->update = *u;
    b->owed = true;
}

void bucket_update(ParamSet *p, int bucket, const Update *u, Memory *m, Stream *s) {
    Bucket *b = &p->bucket[bucket];
    if (bucket_waits(b)) {
        owe(p, bucket, u, m, s);
        return;
    }
    step_all(b->host ? &BACKEND_CPU : m->k, b->host ? NULL : s, b, u);
    share_masters(p, b, s);
}

Cost bucket_update_cost(const ParamSet *p, int bucket) {
    enum { PASSES = 7 }; /* gradient, master, m and v read; master, m and v written */
    const Bucket *b = &p->bucket[bucket];
    Cost c = {.bytes = PASSES * (double)b->moments.count * sizeof(real)};
    if (b->trained && b->rests.count > b->moments.count)
        c.sent = (double)b->shard.count * (params_world(p) - 1) * sizeof(real);
    return c;
}
