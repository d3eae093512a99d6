/* Owns reading the state of a checkpoint: whatever ranks wrote it, this rank takes its part. */
#define _XOPEN_SOURCE 700
#include "trainer/checkpoint.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    Model *model;
    const char *path; /* of the state file being read */
    int64_t *found;   /* [n_buckets * 3] elements put in place */
} Load;

typedef enum { STATE_MASTER, STATE_M, STATE_V, STATES } State;

static const char *const NAMES[STATES] = {"master", "m", "v"};

static Range rests(const Bucket *b, State part) {
    return part == STATE_MASTER ? b->rests : b->moments;
}

/* The elements of a range that parameters can lie in. */
static int64_t used(const Bucket *b, Range r) {
    return MAX(0, MIN(r.from + r.count, b->used) - r.from);
}

static int find_bucket(const ParamSet *p, const char *name, size_t n) {
    for (int b = 0; b < p->n_buckets; b++)
        if (p->bucket[b].trained && strlen(p->bucket[b].name) == n &&
            !strncmp(p->bucket[b].name, name, n))
            return b;
    return -1;
}

static bool foreign(const Load *l, const SafetensorsTensor *t, Error *e) {
    return error_set(e, EXIT_USER,
                     "%.300s: tensor \"%.120s\": expected state of what this config trains. The "
                     "checkpoint is of another model or method.",
                     l->path, t->name);
}

/* "m/block.3.trained@4096": part, bucket, first element. */
static bool parse_name(const Load *l, const SafetensorsTensor *t, State *part, int *bucket,
                       int64_t *from) {
    const char *slash = strchr(t->name, '/'), *at = strrchr(t->name, '@');
    if (!slash || !at || at < slash) return false;
    for (*part = 0; *part < STATES; ++*part)
        if (strlen(NAMES[*part]) == (size_t)(slash - t->name) &&
            !strncmp(NAMES[*part], t->name, (size_t)(slash - t->name)))
            break;
    *bucket = find_bucket(l->model->params, slash + 1, (size_t)(at - slash - 1));
    *from = atoll(at + 1);
    return *part < STATES && *bucket >= 0;
}

static bool put(Load *l, const SafetensorsTensor *t, Error *e) {
    State part;
    int bucket;
    int64_t from;
    if (!parse_name(l, t, &part, &bucket, &from) || t->dtype != DT_F32 || t->n_dims != 1)
        return foreign(l, t, e);
    const Bucket *b = &l->model->params->bucket[bucket];
    if (from < 0 || from + t->shape[0] > b->used) return foreign(l, t, e);
    Range r = rests(b, part);
    real *const to[STATES] = {b->resident, b->m, b->v};
    int64_t lo = MAX(from, r.from), hi = MIN(from + t->shape[0], r.from + r.count);
    if (lo >= hi) return true;
    real *values = xcalloc((size_t)(hi - lo), sizeof *values);
    BACKEND_CPU.cast(NULL, DT_F32, DT_REAL, hi - lo, (const float *)t->data + (lo - from), values);
    Model *m = l->model;
    (b->host ? &BACKEND_CPU : m->memory.k)
        ->upload(b->host ? NULL : m->stream, to[part] + (lo - r.from), values,
                 (size_t)(hi - lo) * sizeof *values);
    m->memory.k->stream_sync(m->stream);
    free(values);
    l->found[bucket * STATES + (int)part] += hi - lo;
    return true;
}

static bool load_file(Load *l, const char *path, Error *e) {
    Safetensors file;
    l->path = path;
    if (!safetensors_open(&file, path, e)) return false;
    bool ok = true;
    for (size_t i = 0; ok && i < file.n_tensors; i++) ok = put(l, &file.tensors[i], e);
    safetensors_close(&file);
    return ok;
}

static bool complete(const Load *l, const char *path, Error *e) {
    const ParamSet *p = l->model->params;
    for (int b = 0; b < p->n_buckets; b++)
        for (int part = 0; p->bucket[b].trained && part < STATES; part++)
            if (l->found[b * STATES + part] != used(&p->bucket[b], rests(&p->bucket[b], part)))
                return error_set(e, EXIT_USER,
                                 "%.300s: expected the %s of %s, and it is not all there. The "
                                 "checkpoint is of another model or method.",
                                 path, part == STATE_MASTER ? "values" : "moments",
                                 p->bucket[b].name);
    return true;
}

bool checkpoint_load(const char *path, Model *m, Error *e) {
    Load l = {.model = m, .found = xcalloc((size_t)m->params->n_buckets * STATES, sizeof *l.found)};
    DIR *d = opendir(path);
    bool ok = d || error_set(e, EXIT_WORLD, "%.300s: cannot be read", path);
    for (struct dirent *entry; ok && (entry = readdir(d));) {
        if (strncmp(entry->d_name, "state-", strlen("state-"))) continue;
        char *file = xprintf("%s/%s", path, entry->d_name);
        ok = load_file(&l, file, e);
        free(file);
    }
    if (d) closedir(d);
    ok = ok && complete(&l, path, e);
    free(l.found);
    return ok;
}
