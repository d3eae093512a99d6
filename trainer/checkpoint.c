/* Owns writing checkpoints: the copy, the thread that writes it, and the order of what it does. */
#define _XOPEN_SOURCE 700
#include "trainer/checkpoint.h"

#include "data/whole.h"
#include "trainer/adapter_write.h"
#include "trainer/checkpoint_manifest.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const size_t SHARD_BYTES = (size_t)5 << 30; /* of a transformer's file */

/* Host copies of one bucket. Rank 0 keeps masters whole, for the files that are usable as they are;
 * all else is this rank's shard. What one rank alone holds in host memory is not copied: it is
 * written from there, and training waits. */
typedef struct {
    bool there;
    real *master, *m, *v;
    Range shard; /* of this rank, without padding */
} Copy;

struct Saver {
    const Config *config;
    Model *model;
    char *run, *folder; /* the run, and its checkpoints/ */
    Copy *copies;       /* [n_buckets]; of trained ones */
    real **masters;     /* [n_buckets] whole, rank 0 */
    real *passing;      /* other ranks: one bucket on its way */
    Position at;
    char *temporary, *path; /* of the one being written */
    bool writing, waits;    /* waits: some bucket is written from where it rests */
    pthread_t thread;
    pthread_mutex_t lock; /* over done and error */
    bool done;
    Error error;
};

/* ---- opening ----------------------------------------------------------------------------------
 */

/* Of this rank, without padding. */
static Range shard_of(const Bucket *b) {
    return (Range){b->shard.from, MAX(0, MIN(b->used - b->shard.from, b->shard.count))};
}

/* Other ranks would wait too long. */
static bool is_there(const Model *m, const Bucket *b) { return b->host && m->comm->size == 1; }

static bool is_copied(const Model *m, const Bucket *b) { return b->trained && !is_there(m, b); }

/* Elements of a master's copy, on rank 0 or another. */
static int64_t master_count(const Bucket *b, bool first) {
    return first ? b->count : shard_of(b).count;
}

/* Elements of the largest bucket that is copied: on ranks but the first it passes through whole. */
static int64_t passing_count(const Model *m, bool first) {
    int64_t most = 0;
    for (int i = 0; i < m->params->n_buckets; i++)
        if (is_copied(m, &m->params->bucket[i])) most = MAX(most, m->params->bucket[i].count);
    return first ? 0 : most;
}

int64_t saver_needs(const Model *m, bool first) {
    int64_t count = passing_count(m, first);
    for (int i = 0; i < m->params->n_buckets; i++) {
        const Bucket *b = &m->params->bucket[i];
        if (is_copied(m, b)) count += master_count(b, first) + 2 * shard_of(b).count;
    }
    return count * (int64_t)sizeof(real);
}

/* On one rank, where the shard is the whole. */
static void use_there(Saver *s, int b, Copy *c) {
    const Bucket *bucket = &s->model->params->bucket[b];
    s->waits = c->there = true;
    c->m = bucket->m;
    c->v = bucket->v;
    c->master = s->masters[b] = bucket->resident;
}

static real *host(int64_t count) { return xcalloc((size_t)count, sizeof(real)); }

static void open_copies(Saver *s) {
    const ParamSet *p = s->model->params;
    bool first = s->model->comm->rank == 0;
    for (int b = 0; b < p->n_buckets; b++) {
        const Bucket *bucket = &p->bucket[b];
        Copy *c = &s->copies[b];
        if (!bucket->trained) continue;
        c->shard = shard_of(bucket);
        if (is_there(s->model, bucket)) {
            use_there(s, b, c);
            continue;
        }
        c->m = host(c->shard.count);
        c->v = host(c->shard.count);
        c->master = host(master_count(bucket, first));
        if (first) s->masters[b] = c->master;
    }
    s->passing = host(passing_count(s->model, first));
}

Saver *saver_open(const Config *c, Model *m, const char *run_folder) {
    Saver *s = xcalloc(1, sizeof *s);
    Error e;
    s->config = c;
    s->model = m;
    s->run = xstrdup(run_folder);
    s->folder = xprintf("%s/checkpoints", run_folder);
    s->copies = xcalloc((size_t)m->params->n_buckets, sizeof *s->copies);
    s->masters = xcalloc((size_t)m->params->n_buckets, sizeof *s->masters);
    pthread_mutex_init(&s->lock, NULL);
    if (m->comm->rank == 0) {
        if (!folders_make(s->folder, &e) || !whole_sweep(s->folder, ".step-", &e)) die_error(&e);
    }
    open_copies(s);
    return s;
}

void saver_close(Saver *s) {
    if (!s) return;
    Error e;
    saver_wait(s, &e);
    for (int b = 0; b < s->model->params->n_buckets; b++) {
        if (s->copies[b].there) continue;
        free(s->copies[b].master);
        free(s->copies[b].m);
        free(s->copies[b].v);
    }
    pthread_mutex_destroy(&s->lock);
    free(s->copies);
    free(s->masters);
    free(s->passing);
    free(s->temporary);
    free(s->path);
    free(s->folder);
    free(s->run);
    free(s);
}

/* ---- the files --------------------------------------------------------------------------------
 */

static bool make_folder(const char *path, Error *e) {
    return !mkdir(path, 0777) ||
           error_set(e, EXIT_WORLD, "%.300s: cannot make the folder: %s.", path, strerror(errno));
}

static bool write_adapter(const Saver *s, Error *e) {
    int n;
    AdapterLayer *layers = adapter_layers_of(s->model->dit, (const real *const *)s->masters, &n);
    char *folder = xprintf("%s/adapter", s->temporary);
    char *path = xprintf("%s/pytorch_lora_weights.safetensors", folder);
    bool ok =
        make_folder(folder, e) && adapter_write(path, ADAPTER_DIFFUSERS, layers, n, DT_F32, e);
    free(layers);
    free(folder);
    free(path);
    return ok;
}

typedef struct {
    const SafetensorsItem *items;
    const SafetensorsTensor *values; /* [n] where each comes from */
} Transformer;

static bool fill_transformer(void *context, size_t item, size_t offset, size_t bytes, void *buffer,
                             Error *e) {
    const Transformer *t = context;
    DType type = t->items[item].dtype;
    size_t size = dtype_size(type);
    return values_round(&t->values[item], offset / size, bytes / size, type, buffer) ||
           error_set(e, EXIT_USER, "tensor \"%.120s\": a value is not finite as %s",
                     t->items[item].name, dtype_name(type));
}

static char *read_config_json(const Model *m, Error *e) {
    char *path = xprintf("%s/config.json", m->folder), *text = NULL;
    size_t n = 0;
    FILE *f = fopen(path, "rb");
    if (!f || getdelim(&text, &n, 0, f) < 0)
        error_set(e, EXIT_WORLD, "%.300s: %s", path, strerror(errno)), free(text), text = NULL;
    if (f) fclose(f);
    free(path);
    return text;
}

/* Every parameter in the type in which the base model stores it. */
static bool write_transformer(const Saver *s, Error *e) {
    const ParamSet *p = s->model->params;
    size_t n = (size_t)p->n_params;
    SafetensorsItem *items = xcalloc(n, sizeof *items);
    SafetensorsTensor *values = xcalloc(n, sizeof *values);
    for (size_t i = 0; i < n; i++) {
        const Param *q = &p->param[i];
        const SafetensorsTensor *stored = weights_find(&s->model->weights, q->name, NULL);
        items[i] =
            (SafetensorsItem){.name = q->name, .dtype = stored->dtype, .n_dims = stored->n_dims};
        memcpy(items[i].shape, stored->shape, sizeof stored->shape);
        values[i] = *stored;
        if (!q->trained) continue;
        values[i].dtype = DT_REAL;
        values[i].data = s->masters[q->bucket] + q->offset;
    }
    Transformer t = {items, values};
    SafetensorsFile file = {
        .items = items, .n_items = n, .digest = true, .fill = fill_transformer, .context = &t};
    char *folder = xprintf("%s/transformer", s->temporary);
    char *config = read_config_json(s->model, e);
    WeightsText text = {"config.json", config};
    bool ok =
        config && weights_save(folder, "diffusion_pytorch_model", SHARD_BYTES, &file, &text, 1, e);
    free(config);
    free(folder);
    free(items);
    free(values);
    return ok;
}

static char *state_path(const Saver *s, int rank) {
    return xprintf("%s/state-%05d-of-%05d.safetensors", s->temporary, rank + 1,
                   s->model->comm->size);
}

static bool write_state(const Saver *s, Error *e) {
    const ParamSet *p = s->model->params;
    const Comm *comm = s->model->comm;
    SafetensorsItem *items = xcalloc((size_t)p->n_buckets * 3 + 1, sizeof *items);
    size_t n = 0;
    for (int b = 0; b < p->n_buckets; b++) {
        const Copy *c = &s->copies[b];
        if (!p->bucket[b].trained || !c->shard.count) continue;
        const real *data[] = {c->master + (comm->rank == 0 ? c->shard.from : 0), c->m, c->v};
        const char *const names[] = {"master", "m", "v"};
        for (int i = 0; i < 3; i++)
            items[n++] =
                (SafetensorsItem){.name = xprintf("%s/%s@%lld", names[i], p->bucket[b].name,
                                                  (long long)c->shard.from),
                                  .dtype = DT_REAL,
                                  .n_dims = 1,
                                  .shape = {c->shard.count},
                                  .data = data[i]};
    }
    SafetensorsFile file = {.items = items, .n_items = n};
    char *path = state_path(s, comm->rank);
    bool ok = safetensors_write(path, &file, e);
    for (size_t i = 0; i < n; i++) free((char *)items[i].name);
    free(items);
    free(path);
    return ok;
}

/* Files of the other ranks appear whole. */
static bool wait_for_ranks(const Saver *s, Error *e) {
    const struct timespec pause = {.tv_nsec = 20000000};
    double end = now_seconds() + s->config->ranks.timeout;
    for (int rank = 1; rank < s->model->comm->size; rank++) {
        char *path = state_path(s, rank);
        while (access(path, F_OK) && now_seconds() < end) nanosleep(&pause, NULL);
        bool there = !access(path, F_OK);
        if (!there)
            error_set(e, EXIT_WORLD, "%.300s: rank %d has not written it in %g s", path, rank,
                      s->config->ranks.timeout);
        free(path);
        if (!there) return false;
    }
    return true;
}

/* ---- the order --------------------------------------------------------------------------------
 */

/* Renamed first, so that a kill never leaves half of one under its name. */
static bool drop(const Saver *s, int64_t step, Error *e) {
    char *path = checkpoint_path(s->folder, step);
    char *hidden = xprintf("%s/.step-%06lld.removing", s->folder, (long long)step);
    bool ok = folder_rename(path, hidden, e) && tree_remove(hidden, e);
    free(path);
    free(hidden);
    return ok;
}

static bool drop_old(const Saver *s, Error *e) {
    int n, kept = 0;
    int64_t *steps = checkpoint_list(s->folder, &n);
    bool ok = true;
    for (int i = 0; ok && i < n; i++)
        if (steps[i] <= s->at.step && ++kept > s->config->train.keep) ok = drop(s, steps[i], e);
    free(steps);
    return ok;
}

/* A checkpoint is never there without the records of its steps. */
static bool sync_metrics(const Saver *s, Error *e) {
    char *path = xprintf("%s/metrics.jsonl", s->run);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 ? !fsync(fd) : errno == ENOENT;
    if (!ok) error_set(e, EXIT_WORLD, "%.300s: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    free(path);
    return ok;
}

static bool finish(const Saver *s, Error *e) {
    char *config = config_dump(s->config), *path = xprintf("%s/config.yaml", s->temporary);
    char *latest = xprintf("%s/latest", s->run);
    char *target = xprintf("checkpoints/step-%06lld", (long long)s->at.step);
    Position again;
    bool ok = wait_for_ranks(s, e) && sync_metrics(s, e) && whole_text(path, config, e) &&
              manifest_write(s->temporary, &s->at, e) && folder_sync(s->temporary, e) &&
              folder_rename(s->temporary, s->path, e) && checkpoint_verify(s->path, &again, e) &&
              whole_link(latest, target, e) && drop_old(s, e);
    free(config);
    free(path);
    free(latest);
    free(target);
    return ok;
}

static bool write_files(const Saver *s, Error *e) {
    bool first = s->model->comm->rank == 0;
    bool full = s->model->training == TRAIN_FULL;
    return (!first || (full ? write_transformer(s, e) : write_adapter(s, e))) &&
           write_state(s, e) && (!first || finish(s, e));
}

static void *write_in_background(void *context) {
    Saver *s = context;
    Error e = {0}, ignored;
    bool ok = write_files(s, &e);
    if (!ok && s->model->comm->rank == 0) tree_remove(s->temporary, &ignored);
    pthread_mutex_lock(&s->lock);
    s->done = true;
    if (!ok) s->error = e;
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static void copy_state(Saver *s) {
    Model *m = s->model;
    m->memory.k->stream_sync(m->stream); /* before the host reads what it holds itself */
    for (int b = 0; b < m->params->n_buckets; b++) {
        const Bucket *bucket = &m->params->bucket[b];
        Copy *c = &s->copies[b];
        if (c->there) bucket_settle(m->params, b, &m->memory, m->stream);
        if (!bucket->trained || c->there) continue;
        size_t bytes = (size_t)c->shard.count * sizeof(real);
        bool first = m->comm->rank == 0;
        bucket_read(m->params, b, PART_MASTER, first ? c->master : s->passing, &m->memory,
                    m->stream);
        if (!first) memcpy(c->master, s->passing + c->shard.from, bytes);
        int64_t at = c->shard.from - bucket->moments.from;
        const Backend *k = bucket->host ? &BACKEND_CPU : m->memory.k;
        Stream *stream = bucket->host ? NULL : m->stream;
        k->download(stream, c->m, bucket->m + at, bytes);
        k->download(stream, c->v, bucket->v + at, bytes);
    }
    m->memory.k->stream_sync(m->stream);
}

/* Every rank has come here, and rank 0's folder is there. */
static void meet(const Model *m) {
    double mine = 0, *all = xcalloc((size_t)m->comm->size, sizeof *all);
    m->comm->all_gather(m->comm, m->stream, DT_F64, 1, &mine, all);
    free(all);
}

bool saver_copy(Saver *s, const Position *at, Error *e) {
    if (!saver_wait(s, e)) return false;
    free(s->temporary);
    free(s->path);
    s->at = *at;
    s->at.world = s->model->comm->size;
    s->at.zero = s->model->params->zero;
    s->path = checkpoint_path(s->folder, at->step);
    s->temporary = xprintf("%s/.step-%06lld.writing", s->folder, (long long)at->step);
    if (s->model->comm->rank == 0 &&
        !(tree_remove(s->temporary, e) && make_folder(s->temporary, e)))
        return false;
    meet(s->model);
    copy_state(s);
    return true;
}

void saver_write(Saver *s) {
    s->done = false;
    s->writing = true;
    if (s->waits) {
        write_in_background(s);
        return;
    }
    int failed = pthread_create(&s->thread, NULL, write_in_background, s);
    CHECK(!failed, "checkpoint: the thread cannot be started (%d)", failed);
}

bool saver_failed(Saver *s) {
    pthread_mutex_lock(&s->lock);
    bool failed = s->writing && s->done && s->error.exit_code;
    pthread_mutex_unlock(&s->lock);
    return failed;
}

bool saver_wait(Saver *s, Error *e) {
    if (!s->writing) return true;
    if (!s->waits) pthread_join(s->thread, NULL);
    s->writing = false;
    if (!s->error.exit_code) return true;
    *e = s->error;
    s->error = (Error){0};
    return false;
}
