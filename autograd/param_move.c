/* Owns how buckets move: from their homes to where steps compute, and their gradients back. */
#include "autograd/param.h"

#include <stdlib.h>

static void gather_sources(const ParamSet *p, const Bucket *b, DType type, char *copy, Memory *m,
                           Stream *s) {
    for (int i = 0; i < b->n_sources; i++) {
        const Source *from = &b->sources[i];
        char *to = copy + from->offset * (int64_t)dtype_size(type);
        m->k->upload_cast(s, from->form, type, from->count, from->data, to);
        if (p->release)
            p->release(p->release_context, from->data,
                       (size_t)from->count * dtype_size(from->form));
    }
}

/* Host memory comes over in its own form, and is widened where steps compute. */
static void gather_host(const Bucket *b, DType type, void *copy, void *workspace, Memory *m,
                        Stream *s) {
    size_t bytes = (size_t)b->count * dtype_size(b->form);
    void *to = b->form == type ? copy : workspace;
    m->k->upload(s, to, b->resident, bytes);
    memory_host(m)->copied_bytes += (int64_t)bytes;
    if (b->form != type) m->k->cast(s, b->form, type, b->count, workspace, copy);
}

/* Shards travel in the smaller of their form and the type that steps compute in. */
static bool widens(const Bucket *b, DType type) { return dtype_size(b->form) < dtype_size(type); }

static void gather_shards(const ParamSet *p, const Bucket *b, DType type, char *copy,
                          void *workspace, Memory *m, Stream *s) {
    Comm *comm = p->comm;
    bool wide = widens(b, type);
    DType travels = wide ? b->form : type;
    char *all = wide ? workspace : copy;
    char *mine = all + b->shard.from * (int64_t)dtype_size(travels);
    size_t bytes = (size_t)b->shard.count * dtype_size(b->form);
    if (b->host && b->form == travels)
        m->k->upload(s, mine, b->resident, bytes);
    else if (b->host)
        m->k->upload_cast(s, b->form, travels, b->shard.count, b->resident, mine);
    else if (b->form == travels)
        m->k->copy(s, mine, b->resident, bytes);
    else
        m->k->cast(s, b->form, travels, b->shard.count, b->resident, mine);
    if (b->host) memory_host(m)->copied_bytes += (int64_t)bytes;
    comm->all_gather(comm, s, travels, b->shard.count, mine, all);
    if (wide) m->k->cast(s, b->form, type, b->count, workspace, copy);
}

size_t bucket_gather_workspace(const ParamSet *p, int bucket, DType type) {
    const Bucket *b = &p->bucket[bucket];
    bool passes =
        (b->home == HOME_RANKS && widens(b, type)) || (b->home == HOME_HOST && b->form != type);
    return passes ? (size_t)b->count * dtype_size(b->form) : 0;
}

void bucket_gather(const ParamSet *p, int bucket, DType type, void *copy, void *workspace,
                   Memory *m, Stream *s) {
    const Bucket *b = &p->bucket[bucket];
    bucket_settle(p, bucket, m, s);
    switch (b->home) {
    case HOME_FILE:
        gather_sources(p, b, type, copy, m, s);
        break;
    case HOME_DEVICE:
        m->k->cast(s, b->form, type, b->count, b->resident, copy);
        break;
    case HOME_HOST:
        gather_host(b, type, copy, workspace, m, s);
        break;
    case HOME_RANKS:
        gather_shards(p, b, type, copy, workspace, m, s);
        break;
    }
}

static int by_offset(const void *x, const void *y) {
    const Param *a = *(const Param *const *)x, *b = *(const Param *const *)y;
    return (a->offset > b->offset) - (a->offset < b->offset);
}

/* Zeroes what lies between and behind the parameters, which no step writes. */
static void zero_gaps(const ParamSet *p, int bucket, real *grad, Memory *m, Stream *s) {
    const Bucket *b = &p->bucket[bucket];
    const Param **mine = xcalloc((size_t)p->n_params, sizeof *mine);
    int n = 0;
    for (int i = 0; i < p->n_params; i++)
        if (p->param[i].bucket == bucket) mine[n++] = &p->param[i];
    qsort(mine, (size_t)n, sizeof *mine, by_offset);
    int64_t at = 0;
    for (int i = 0; i <= n; i++) {
        int64_t next = i < n ? mine[i]->offset : b->count;
        m->k->zero(s, grad + at, (size_t)(next - at) * sizeof *grad);
        if (i < n) at = next + param_count(mine[i]);
    }
    free(mine);
}

/* y = keep*y + x, [n] */
typedef struct {
    int64_t n;
    const real *x;
    real keep, *y;
} Sum;

static void add_there(const void *args) {
    const Sum *sum = args;
    BACKEND_CPU.axpy(NULL, DT_REAL, sum->n, 1, sum->x, sum->keep, sum->y);
}

static void add_on_host(const ParamSet *p, const Bucket *b, const real *grad, int micro, Memory *m,
                        Stream *s) {
    size_t bytes = (size_t)b->grads.count * sizeof *grad;
    m->k->download(s, p->passing, grad, bytes);
    memory_host(m)->copied_bytes += (int64_t)bytes;
    m->k->host_call(s, add_there, &(Sum){b->grads.count, p->passing, micro ? 1 : 0, b->grad},
                    sizeof(Sum));
}

void bucket_reduce(const ParamSet *p, int bucket, real *grad, int micro, Memory *m, Stream *s) {
    const Bucket *b = &p->bucket[bucket];
    Comm *comm = p->comm;
    bucket_settle(p, bucket, m, s);
    zero_gaps(p, bucket, grad, m, s);
    if (b->grads.count < b->count)
        comm->reduce_scatter(comm, s, b->shard.count, grad, grad + b->shard.from);
    else if (params_world(p) > 1)
        comm_sum(comm, s, b->count, grad);
    if (b->host)
        add_on_host(p, b, grad + b->grads.from, micro, m, s);
    else
        m->k->axpy(s, DT_REAL, b->grads.count, 1, grad + b->grads.from, micro ? 1 : 0, b->grad);
}

void param_write(ParamSet *p, int param, const real *values, Memory *m, Stream *s) {
    const Param *q = &p->param[param];
    const Bucket *b = &p->bucket[q->bucket];
    CHECK(b->form == DT_REAL, "%s does not rest in f32", q->name);
    int64_t first = b->rests.from, end = first + b->rests.count;
    int64_t lo = MAX(q->offset, first), hi = MIN(q->offset + param_count(q), end);
    if (lo < hi)
        (b->host ? &BACKEND_CPU : m->k)
            ->upload(b->host ? NULL : s, (real *)b->resident + (lo - first),
                     values + (lo - q->offset), (size_t)(hi - lo) * sizeof(real));
}

void bucket_read(const ParamSet *p, int bucket, Part part, real *host, Memory *m, Stream *s) {
    const Bucket *b = &p->bucket[bucket];
    bucket_settle(p, bucket, m, s);
    m->k->stream_sync(s);
    const real *values[] = {b->resident, b->grad, b->m, b->v};
    const Range ranges[] = {b->rests, b->grads, b->moments, b->moments};
    Range r = ranges[part];
    (b->host ? &BACKEND_CPU : m->k)
        ->download(b->host ? NULL : s, host + r.from, values[part], (size_t)r.count * sizeof(real));
    m->k->stream_sync(s);
    if (r.count < b->count) p->comm->all_gather(p->comm, s, DT_REAL, r.count, host + r.from, host);
}
