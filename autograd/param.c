/* Owns the layout of parameters in buckets, and the memory of trained and resident ones. */
#include "autograd/param.h"

#include <stdlib.h>
#include <string.h>

ParamSet *params_open(void) { return xcalloc(1, sizeof(ParamSet)); }

static size_t bucket_bytes(const Bucket *b) { return (size_t)b->count * dtype_size(b->form); }

void params_close(ParamSet *p, Memory *m) {
    if (!p) return;
    for (int i = 0; i < p->n_buckets; i++) {
        Bucket *b = &p->bucket[i];
        size_t bytes = (size_t)b->count * sizeof(real);
        memory_release(m, b->resident, bucket_bytes(b));
        memory_release(m, b->grad, bytes);
        memory_release(m, b->m, bytes);
        memory_release(m, b->v, bytes);
        free(b->sources);
        free((char *)b->name);
    }
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
        q->offset = align_up(bucket->used, PARAM_ALIGN);
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
        p->n_buckets++;
    }
}

void params_rest(ParamSet *p, Home home, DType form) {
    for (int i = 0; i < p->n_buckets; i++) {
        if (p->bucket[i].trained) continue;
        p->bucket[i].home = home;
        p->bucket[i].form = form;
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
        if (b->home != HOME_DEVICE) continue;
        for (int j = 0; j < b->n_sources; j++) {
            const Source *from = &b->sources[j];
            char *to = (char *)b->resident + from->offset * (int64_t)dtype_size(b->form);
            m->k->cast(s, from->form, b->form, from->count, from->data, to);
        }
        b->n_sources = 0;
    }
}

void params_allocate(ParamSet *p, Memory *m) {
    for (int i = 0; i < p->n_buckets; i++) {
        Bucket *b = &p->bucket[i];
        if (b->home != HOME_DEVICE) continue;
        b->resident = memory_alloc(m, bucket_bytes(b), b->name);
        if (!b->trained) continue;
        size_t bytes = (size_t)b->count * sizeof(real);
        b->grad = memory_alloc(m, bytes, b->name);
        b->m = memory_alloc(m, bytes, b->name);
        b->v = memory_alloc(m, bytes, b->name);
    }
}

real *param_master(const ParamSet *p, int param) {
    const Param *q = &p->param[param];
    CHECK(q->trained, "%s has no master", q->name);
    return (real *)p->bucket[q->bucket].resident + q->offset;
}

real *param_grad(const ParamSet *p, int param) {
    const Param *q = &p->param[param];
    CHECK(q->trained, "%s has no gradient", q->name);
    return p->bucket[q->bucket].grad + q->offset;
}

int64_t params_device_bytes(const ParamSet *p) {
    int64_t bytes = 0;
    for (int i = 0; i < p->n_buckets; i++) {
        const Bucket *b = &p->bucket[i];
        if (b->home == HOME_DEVICE) bytes += (int64_t)bucket_bytes(b);
        if (b->trained) bytes += 3 * b->count * (int64_t)sizeof(real);
    }
    return bytes;
}

int64_t params_total(const ParamSet *p, bool trained_only) {
    int64_t n = 0;
    for (int i = 0; i < p->n_params; i++)
        if (p->param[i].trained || !trained_only) n += param_count(&p->param[i]);
    return n;
}
