/* Owns the layout of parameters in buckets, and the memory of trained and resident ones. */
#include "autograd/param.h"

#include <stdlib.h>
#include <string.h>

ParamSet *params_open(void) { return xcalloc(1, sizeof(ParamSet)); }

int params_world(const ParamSet *p) { return p->comm ? p->comm->size : 1; }

/* Which elements of each part rest on this rank, by home and ZeRO stage. */
static void set_ranges(const ParamSet *p, Bucket *b) {
    int world = params_world(p), rank = p->comm ? p->comm->rank : 0;
    Range all = {0, b->count}, none = {0, 0};
    b->shard = (Range){b->count / world * rank, b->count / world};
    b->rests = b->home == HOME_FILE ? none : b->home == HOME_RANKS ? b->shard : all;
    b->grads = b->moments = !b->trained ? none : p->zero ? b->shard : all;
}

/* Whose account the bucket's memory is on. */
static Memory *account(const Bucket *b, Memory *m) { return b->host ? memory_host(m) : m; }

/* The largest part of a gradient that goes to the host at a time. */
static size_t passing_bytes(const ParamSet *p) {
    int64_t most = 0;
    for (int i = 0; i < p->n_buckets; i++)
        if (p->bucket[i].host) most = MAX(most, p->bucket[i].grads.count);
    return (size_t)most * sizeof(real);
}

static size_t resident_bytes(const Bucket *b) {
    return (size_t)b->rests.count * dtype_size(b->form);
}

void params_close(ParamSet *p, Memory *m) {
    if (!p) return;
    for (int i = 0; i < p->n_buckets; i++) {
        Bucket *b = &p->bucket[i];
        Memory *on = account(b, m);
        memory_release(on, b->resident, resident_bytes(b));
        memory_release(on, b->grad, (size_t)b->grads.count * sizeof(real));
        memory_release(on, b->m, (size_t)b->moments.count * sizeof(real));
        memory_release(on, b->v, (size_t)b->moments.count * sizeof(real));
        free(b->sources);
        free((char *)b->name);
    }
    if (p->passing) memory_release(memory_host(m), p->passing, passing_bytes(p));
    for (int i = 0; i < p->n_params; i++) free((char *)p->param[i].name);
    free(p->param);
    free(p->bucket);
    free(p);
}

int params_add(ParamSet *p, const char *name, Shape shape, int block, bool trained) {
    CHECK(!p->bucket, "%s added after params_layout", name);
    p->param = xrealloc(p->param, (size_t)(p->n_params + 1) * sizeof *p->param);
    p->param[p->n_params] =
        (Param){.name = xstrdup(name), .shape = shape, .block = block, .trained = trained};
    return p->n_params++;
}

void params_beside(ParamSet *p, int param) {
    CHECK(!p->bucket && param > 0, "parameter %d beside another, after params_layout", param);
    p->param[param].beside = true;
}

int params_find(const ParamSet *p, const char *name) {
    for (int i = 0; i < p->n_params; i++)
        if (!strcmp(p->param[i].name, name)) return i;
    return -1;
}

int64_t param_count(const Param *p) { return shape_count(p->shape); }

/* Gives places in bucket `b` to the parameters of its block and kind that are matrices, or not. */
static void lay_out(ParamSet *p, int b, bool matrices) {
    Bucket *bucket = &p->bucket[b];
    for (int i = 0; i < p->n_params; i++) {
        Param *q = &p->param[i];
        if (q->block != bucket->block || q->trained != bucket->trained) continue;
        if ((q->shape.rank > 1) != matrices) continue;
        q->bucket = b;
        q->offset = align_up(bucket->used, q->beside ? 1 : PARAM_ALIGN);
        bucket->used = q->offset + param_count(q);
    }
    if (matrices) bucket->matrices = bucket->used;
}

void params_layout(ParamSet *p, const char *const *block_names, int world) {
    int blocks = 0;
    for (int i = 0; i < p->n_params; i++) blocks = MAX(blocks, p->param[i].block + 1);
    p->bucket = xcalloc((size_t)blocks * 2, sizeof *p->bucket);
    for (int i = 0; i < blocks * 2; i++) {
        bool trained = i % 2;
        Bucket *b = &p->bucket[p->n_buckets];
        *b = (Bucket){.block = i / 2, .trained = trained, .form = DT_REAL};
        lay_out(p, p->n_buckets, true);
        lay_out(p, p->n_buckets, false);
        if (!b->used) continue;
        b->name = xprintf(trained ? "%s.trained" : "%s", block_names[i / 2]);
        b->count = align_up(b->used, (int64_t)BUCKET_ALIGN * world);
        set_ranges(p, b);
        p->n_buckets++;
    }
}

void params_shard(ParamSet *p, Comm *comm, int zero) {
    p->comm = comm;
    p->zero = comm->size > 1 ? zero : 0;
    for (int i = 0; i < p->n_buckets; i++) {
        Bucket *b = &p->bucket[i];
        if (b->trained && p->zero >= 3) b->home = HOME_RANKS;
        set_ranges(p, b);
    }
}

void params_rest(ParamSet *p, Home home, DType form) {
    for (int i = 0; i < p->n_buckets; i++) {
        if (p->bucket[i].trained) continue;
        p->bucket[i].home = home;
        p->bucket[i].host = home == HOME_HOST;
        p->bucket[i].form = form;
        set_ranges(p, &p->bucket[i]);
    }
}

void params_rest_trained_on_host(ParamSet *p) {
    for (int i = 0; i < p->n_buckets; i++) {
        Bucket *b = &p->bucket[i];
        if (!b->trained) continue;
        b->host = true;
        if (b->home == HOME_DEVICE) b->home = HOME_HOST;
    }
}

void param_source(ParamSet *p, int param, const void *data, DType form) {
    const Param *q = &p->param[param];
    Bucket *b = &p->bucket[q->bucket];
    CHECK(!b->trained, "%s is trained: it has a master", q->name);
    b->sources = xrealloc(b->sources, (size_t)(b->n_sources + 1) * sizeof *b->sources);
    b->sources[b->n_sources++] = (Source){data, form, q->offset, param_count(q)};
}

void params_settle(ParamSet *p, Memory *m, Stream *s) {
    for (int i = 0; i < p->n_buckets; i++) {
        Bucket *b = &p->bucket[i];
        if (b->home == HOME_FILE) continue;
        int64_t first = b->rests.from, end = first + b->rests.count;
        for (int j = 0; j < b->n_sources; j++) {
            const Source *from = &b->sources[j];
            int64_t lo = MAX(from->offset, first), hi = MIN(from->offset + from->count, end);
            if (lo >= hi) continue;
            (b->host ? &BACKEND_CPU : m->k)
                ->upload_cast(b->host ? NULL : s, from->form, b->form, hi - lo,
                              (const char *)from->data +
                                  (lo - from->offset) * (int64_t)dtype_size(from->form),
                              (char *)b->resident + (lo - first) * (int64_t)dtype_size(b->form));
        }
        b->n_sources = 0;
    }
}

void params_allocate(ParamSet *p, Memory *m) {
    for (int i = 0; i < p->n_buckets; i++) {
        Bucket *b = &p->bucket[i];
        if (b->home == HOME_FILE) continue;
        Memory *on = account(b, m);
        b->resident = memory_alloc(on, resident_bytes(b), b->name);
        if (!b->trained) continue;
        b->grad = memory_alloc(on, (size_t)b->grads.count * sizeof(real), b->name);
        b->m = memory_alloc(on, (size_t)b->moments.count * sizeof(real), b->name);
        b->v = memory_alloc(on, (size_t)b->moments.count * sizeof(real), b->name);
    }
    if (passing_bytes(p))
        p->passing = memory_alloc(memory_host(m), passing_bytes(p), "passing gradients");
}

real *param_master(const ParamSet *p, int param) {
    const Param *q = &p->param[param];
    const Bucket *b = &p->bucket[q->bucket];
    CHECK(q->trained && b->rests.count == b->count && !b->owed, "%s has no whole master here",
          q->name);
    return (real *)p->bucket[q->bucket].resident + q->offset;
}

real *param_grad(const ParamSet *p, int param) {
    const Param *q = &p->param[param];
    CHECK(q->trained && !p->zero, "%s has no whole gradient here", q->name);
    return p->bucket[q->bucket].grad + q->offset;
}

static int64_t resting_bytes(const ParamSet *p, bool host) {
    int64_t bytes = 0;
    for (int i = 0; i < p->n_buckets; i++) {
        const Bucket *b = &p->bucket[i];
        if (b->host != host) continue;
        bytes += (int64_t)resident_bytes(b);
        bytes += (b->grads.count + 2 * b->moments.count) * (int64_t)sizeof(real);
    }
    return bytes;
}

int64_t params_device_bytes(const ParamSet *p) { return resting_bytes(p, false); }

int64_t params_host_bytes(const ParamSet *p) {
    return resting_bytes(p, true) + (int64_t)passing_bytes(p);
}

int64_t params_total(const ParamSet *p, bool trained_only) {
    int64_t n = 0;
    for (int i = 0; i < p->n_params; i++)
        if (p->param[i].trained || !trained_only) n += param_count(&p->param[i]);
    return n;
}
