/* Owns opening a model: folder, config, adapters, parameters, weights. */
#define _POSIX_C_SOURCE 200809L
#include "trainer/model.h"

#include "trainer/device.h"

#include "data/nearest.h"
#include "kernels/random.h"
#include "trainer/folder.h"
#include "trainer/inspect.h"
#include "trainer/lora.h"
#include "trainer/profile.h"
#include "trainer/same.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static bool exists(const char *path) {
    struct stat info;
    return !stat(path, &info);
}

bool transformer_folder(const char *model_path, char **folder, Error *e) {
    return component_folder(model_path, "transformer", "config.json", folder, e);
}

/* ---- weights ----------------------------------------------------------------------------------
 */

static bool is_weight_type(DType t) {
    return t == DT_F32 || t == DT_BF16 || t == DT_F16 || t == DT_F64;
}

/* The index of the first NaN or infinity among n values; -1: there is none. */
static int64_t first_non_finite(const SafetensorsTensor *t, int64_t n) {
    static const uint64_t EXPONENT[DT_COUNT] = {
        [DT_F32] = 0x7f800000u, [DT_BF16] = 0x7f80u, [DT_F16] = 0x7c00u, [DT_F64] = 0x7ffull << 52};
    int64_t bad = n;
    uint64_t mask = EXPONENT[t->dtype];
    size_t size = dtype_size(t->dtype);
    const char *data = t->data;
#pragma omp parallel for reduction(min : bad)
    for (int64_t i = 0; i < n; i++) {
        uint64_t bits = 0; /* files are little-endian, and so are the machines */
        memcpy(&bits, data + (size_t)i * size, size);
        if ((bits & mask) == mask && i < bad) bad = i;
    }
    return bad < n ? bad : -1;
}

/* A parameter without its tensor. The nearest name is one that belongs to no other parameter, or
 * else any. */
static bool missing(const Weights *w, const ParamSet *p, const Param *q, Error *e) {
    Nearest near = nearest_to(q->name);
    for (size_t i = 0; i < w->n_tensors; i++)
        if (params_find(p, w->tensors[i].name) < 0) nearest_offer(&near, w->tensors[i].name);
    if (!near.best) return weights_find(w, q->name, e) != NULL;
    return error_set(e, EXIT_USER,
                     "%.300s: expected the tensor \"%.120s\", and it is not there; the nearest is "
                     "\"%.120s\". Check that config.json and the weights are of one model.",
                     w->path, q->name, near.best);
}

/* The file's tensor of a parameter, with its type and shape checked. */
static const SafetensorsTensor *tensor_of(const Weights *w, const Param *q, Error *e) {
    const SafetensorsTensor *t = weights_expect(w, q->name, q->shape.rank, q->shape.dim, e);
    if (!t) return NULL;
    if (is_weight_type(t->dtype)) return t;
    error_set(e, EXIT_USER,
              "%.300s: tensor \"%.120s\": expected F32, BF16, F16 or F64, found %s. Quantised "
              "weights must be converted first.",
              w->path, q->name, t->dtype_name);
    return NULL;
}

static bool is_adapter(const Param *q) { return strstr(q->name, ".lora_") != NULL; }

/* Every parameter is among the tensors: as many tensors as parameters are the parameters alone. */
static bool no_surplus(const Weights *w, const ParamSet *p, size_t wanted, Error *e) {
    for (size_t i = 0; i < w->n_tensors && w->n_tensors > wanted; i++) {
        const char *name = w->tensors[i].name;
        if (params_find(p, name) >= 0) continue;
        Nearest near = nearest_to(name);
        for (int j = 0; j < p->n_params; j++)
            if (!is_adapter(&p->param[j])) nearest_offer(&near, p->param[j].name);
        return error_set(
            e, EXIT_USER,
            "%.300s: tensor \"%.120s\": expected only what config.json describes, and "
            "it is not among that%s%s%s. Check that config.json and the weights are of "
            "one model.",
            w->path, name, near.best ? "; the nearest is \"" : "", near.best ? near.best : "",
            near.best ? "\"" : "");
    }
    return true;
}

bool weights_match(const Weights *w, const Dit *d, Error *e) {
    const ParamSet *p = d->params;
    size_t wanted = 0;
    for (int i = 0; i < p->n_params; i++) {
        if (is_adapter(&p->param[i])) continue;
        if (!weights_find(w, p->param[i].name, NULL)) return missing(w, p, &p->param[i], e);
        if (!tensor_of(w, &p->param[i], e)) return false;
        wanted++;
    }
    return no_surplus(w, p, wanted, e);
}

static bool finite(const Weights *w, const SafetensorsTensor *t, int64_t n, Error *e) {
    int64_t bad = first_non_finite(t, n);
    if (bad < 0) return true;
    return error_set(e, EXIT_USER,
                     "%.300s: tensor \"%.120s\": value %lld: expected a finite number. The file is "
                     "damaged or its training diverged: download it again or use an earlier one.",
                     w->path, t->name, (long long)bad);
}

static void read_weights(Model *m) {
    Error e;
    if (!weights_match(&m->weights, m->dit, &e)) die_error(&e);
    for (int i = 0; i < m->params->n_params; i++) {
        const Param *q = &m->params->param[i];
        if (is_adapter(q)) continue;
        const SafetensorsTensor *t = tensor_of(&m->weights, q, &e);
        if (!finite(&m->weights, t, param_count(q), &e)) die_error(&e);
        weights_release(&m->weights, t->data, t->bytes);
        if (!q->trained) param_source(m->params, i, t->data, t->dtype);
    }
}

static void load_masters(Model *m) {
    for (int i = 0; i < m->params->n_params; i++) {
        const Param *q = &m->params->param[i];
        if (is_adapter(q) || !q->trained) continue;
        const SafetensorsTensor *t = weights_find(&m->weights, q->name, NULL);
        real *values = xcalloc((size_t)param_count(q), sizeof *values);
        BACKEND_CPU.cast(NULL, t->dtype, DT_REAL, param_count(q), t->data, values);
        param_write(m->params, i, values, &m->memory, m->stream);
        free(values);
        weights_release(&m->weights, t->data, t->bytes);
    }
}

/* What a standard normal becomes: small normals of the size that a trained model has; layer norms'
 * weights are 1. */
typedef struct {
    bool gain;
    float over;
} Spread;

static Spread spread_of(const Param *q) {
    bool matrix = q->shape.rank > 1;
    int64_t fan_in = matrix ? param_count(q) / q->shape.dim[0] : 16;
    return (Spread){!matrix && strstr(q->name, "norm") && strstr(q->name, "weight"), (float)fan_in};
}

static void spread(Spread to, int64_t n, float *values) {
    for (int64_t j = 0; j < n; j++) values[j] = to.gain ? 1 : 0.5f * values[j] / to.over;
}

static void draw_weights(Model *m, uint64_t seed) {
    ParamSet *p = m->params;
    for (int i = 0; i < p->n_params; i++) {
        const Param *q = &p->param[i];
        if (is_adapter(q)) continue;
        int64_t n = param_count(q);
        float *values = xcalloc((size_t)n, sizeof *values);
        random_normal((Draw){seed, (uint32_t)i, 0, PURPOSE_INIT}, 0, n, values);
        spread(spread_of(q), n, values);
        param_write(p, i, values, &m->memory, m->stream);
        free(values);
    }
}

enum { DRAWN = 1 << 20 };

/* The parameter's values in `form`: the DRAWN normals, over and over. */
static void *repeated(const Param *q, const float *normals, DType form) {
    int64_t n = param_count(q), first = MIN(n, DRAWN), size = (int64_t)dtype_size(form);
    float *scaled = xcalloc((size_t)first, sizeof *scaled);
    char *values = xcalloc((size_t)n, (size_t)size);
    memcpy(scaled, normals, (size_t)first * sizeof *scaled);
    spread(spread_of(q), first, scaled);
    BACKEND_CPU.cast(NULL, DT_F32, form, first, scaled, values);
    for (int64_t have = first; have < n; have *= 2)
        memcpy(values + have * size, values, (size_t)(MIN(have, n - have) * size));
    free(scaled);
    return values;
}

/* The same for a GPU, where drawing every number would take minutes. */
static void repeat_weights(Model *m, uint64_t seed) {
    ParamSet *p = m->params;
    float *normals = xcalloc(DRAWN, sizeof *normals);
    random_normal((Draw){.seed = seed, .purpose = PURPOSE_INIT}, 0, DRAWN, normals);
    for (int i = 0; i < p->n_params; i++) {
        const Param *q = &p->param[i];
        const Bucket *b = &p->bucket[q->bucket];
        if (is_adapter(q)) continue;
        void *values = repeated(q, normals, b->form);
        if (q->trained) {
            param_write(p, i, values, &m->memory, m->stream);
        } else {
            param_source(p, i, values, b->form);
            params_settle(p, &m->memory, m->stream);
        }
        if (b->n_sources) { /* this stands for the file that it is read from */
            m->frozen = xrealloc(m->frozen, (m->n_frozen + 1) * sizeof *m->frozen);
            m->frozen[m->n_frozen++] = values;
        } else {
            free(values);
        }
    }
    free(normals);
}

/* ---- opening ----------------------------------------------------------------------------------
 */

static void attach_adapters(Model *m, const Config *c, Adapter *start) {
    Error e;
    bool frozen = m->training == TRAIN_NOTHING;
    bool ok = start ? adapter_attach(start, m->dit, frozen ? 0 : c->lora.dropout, &e)
                    : lora_attach(m->dit, &c->lora, &e);
    const char *key = frozen ? "sample.adapter" : start ? "lora.start" : "lora.target_modules";
    if (!ok) config_die(c, key, "%s", e.text);
    if (frozen) lora_freeze(m->dit, c->sample.adapter_scale);
}

/* scheduler/ in model.path, or beside it where that is the transformer's own folder; without one
 * the published schedule of such a transformer, which is told. */
static Schedule read_schedule(const Config *c, const Model *m, bool tell) {
    Schedule s;
    ScheduleConfig config = schedule_published(m->dit->config.rotary);
    const char *root = c->model.path;
    bool own = !strcmp(root, m->folder);
    char *path = xprintf("%s%s/scheduler/scheduler_config.json", root, own ? "/.." : "");
    Error e;
    bool there = exists(path);
    if (there && !schedule_read(&config, path, &e)) die_error(&e);
    if (!there && tell)
        fprintf(stderr,
                "cogsmith: %s is not there; used is the published schedule, "
                "snr_shift_scale %g\n",
                path, config.snr_shift_scale);
    schedule_make(&s, &config);
    free(path);
    return s;
}

/* The type of the largest tensor, or of the published file where there are no weights. */
static DType stored_type(const Model *m) {
    size_t most = 0;
    DType type = m->dit->config.width == 1920 ? DT_F16 : DT_BF16;
    for (size_t i = 0; i < m->weights.n_tensors; i++) {
        if (m->weights.tensors[i].bytes <= most) continue;
        most = m->weights.tensors[i].bytes;
        type = m->weights.tensors[i].dtype;
    }
    return type;
}

/* Opens what is in the folder. Without MODEL_WEIGHTS, weights may be missing; that they are there
 * and cannot be read is said, once for all models of a search. */
static void open_weights(Model *m, ModelDetail detail) {
    static bool told;
    Error e;
    bool opened = weights_open(&m->weights, m->folder, &e);
    if (!opened && detail == MODEL_WEIGHTS) die_error(&e);
    m->stored = stored_type(m);
    if (opened || told || comm_world_rank() || !inspect_has_weights(m->folder)) return;
    told = true;
    fprintf(stderr, "cogsmith: %s\ncogsmith: going on without weights, as if stored in %s\n",
            e.text, dtype_name(m->stored));
}

/* Where frozen weights rest. Files are read block by block unless a copy is asked for, or stored
 * numbers are to be changed; a plan for a GPU keeps them there. */
static Home base_home(const Model *m, const Config *c, ModelDetail detail) {
    PlaceChoice home = c->memory.base.home;
    if (home == PLACE_RANKS) return HOME_RANKS;
    if (home == PLACE_HOST) return HOME_HOST;
    if (home == PLACE_FILE && (c->model.dtype != NUMBERS_AUTO || detail == MODEL_RANDOM))
        config_die(
            c, "memory.base.home",
            "weights that are drawn, or change their type (model.dtype), have no file to rest "
            "in; expected device, host or ranks");
    bool changed = c->model.dtype != NUMBERS_AUTO || detail == MODEL_RANDOM || m->foreign ||
                   m->memory.k != &BACKEND_CPU;
    return home == PLACE_DEVICE || (home == PLACE_AUTO && changed) ? HOME_DEVICE : HOME_FILE;
}

static void make_params(Model *m, const Config *c, ModelDetail detail) {
    static const DType TYPES[] = {
        [NUMBERS_F32] = DT_F32, [NUMBERS_BF16] = DT_BF16, [NUMBERS_F16] = DT_F16};
    DType form = c->model.dtype == NUMBERS_AUTO ? m->stored : TYPES[c->model.dtype];
    m->compute = device_compute(c, m->foreign ? NULL : m->memory.k, form);
    m->params = params_open();
    dit_params(m->dit, m->params, m->training == TRAIN_FULL, m->comm->size);
    params_shard(m->params, m->comm, (int)c->ranks.zero);
    if (c->memory.optimizer.home == PLACE_HOST) params_rest_trained_on_host(m->params);
    bool drawn_here = detail == MODEL_RANDOM && m->memory.k == &BACKEND_CPU;
    params_rest(m->params, base_home(m, c, detail), drawn_here ? DT_REAL : form);
}

static void freeze_adapter(Model *m, const Adapter *a) {
    Error e;
    size_t n = 2 * (size_t)adapter_count(a);
    void **copies = adapter_sources(a, m->dit, &e);
    if (!copies) die_error(&e);
    m->frozen = copies;
    m->n_frozen = n;
}

/* Before any of it is taken, by any rank: those of one machine have asked what is free there. */
static void check_host_memory(Model *m) {
    const double gib = 1 << 30;
    m->host_limit = ranks_least(m->comm, m->stream, m->host_limit);
    bool cpu = m->memory.k == &BACKEND_CPU;
    int64_t bytes = params_host_bytes(m->params) + (cpu ? params_device_bytes(m->params) : 0);
    if (bytes > MAX(m->host_limit, 0))
        die("%.3f GiB of host memory are needed%s for %s, and %.3f GiB are free. `cogsmith plan` "
            "says what takes how much",
            (double)bytes / gib, comm_local_size() > 1 ? " by each rank" : "",
            cpu ? "the weights and the optimizer's state"
                : "what memory.base.home and memory.optimizer.home have rest there",
            (double)MAX(m->host_limit, 0) / gib);
}

static void fill_params(Model *m, const Config *c, ModelDetail detail, Adapter *start) {
    Error e;
    if (detail == MODEL_WEIGHTS) read_weights(m);
    if (m->training == TRAIN_NOTHING && start) freeze_adapter(m, start);
    params_allocate(m->params, &m->memory);
    if (detail == MODEL_WEIGHTS)
        load_masters(m);
    else if (m->memory.k == &BACKEND_CPU)
        draw_weights(m, (uint64_t)c->train.seed);
    else
        repeat_weights(m, (uint64_t)c->train.seed);
    params_settle(m->params, &m->memory, m->stream);
    if (m->training != TRAIN_LORA) return;
    lora_init(m->dit, c->lora.init, (uint64_t)c->train.seed, &m->memory, m->stream);
    if (start && !adapter_load(start, m->dit, &m->memory, m->stream, &e)) die_error(&e);
}

static void read_config(Model *m, const Config *c) {
    Error e;
    DitConfig config;
    if (!transformer_folder(c->model.path, &m->folder, &e))
        config_die(c, "model.path", "%s", e.text);
    char *file = xprintf("%s/config.json", m->folder);
    if (!dit_config_read(&config, file, &e)) die_error(&e);
    free(file);
    m->dit = dit_open(&config);
}

Training model_training(const Config *c) {
    return c->method == METHOD_FULL ? TRAIN_FULL : TRAIN_LORA;
}

/* The GATHER of a frozen bucket has read its file: the pages need not stay resident. */
static void release_pages(void *model, const void *data, size_t bytes) {
    const Model *m = model;
    for (size_t i = 0; i < m->n_frozen; i++)
        if (m->frozen[i] == data) return;
    weights_release(&m->weights, data, bytes);
}

/* Groups of ranks.sequence neighbours share the rows and heads of their samples. */
static void share_rows(Model *m, const Config *c) {
    int size = (int)c->ranks.sequence, ranks = m->comm->size;
    int64_t heads = m->dit->config.heads;
    if (ranks % size)
        config_die(c, "ranks.sequence", "%d ranks are not groups of %d; expected a divisor of %d",
                   ranks, size, ranks);
    if (heads % size)
        config_die(c, "ranks.sequence",
                   "%d ranks cannot share the model's %lld heads evenly; expected a divisor of "
                   "%lld",
                   size, (long long)heads, (long long)heads);
    m->sequence = comm_neighbours(m->comm, size);
    m->data_rank = m->comm->rank / size;
    m->data_ranks = ranks / size;
}

/* start: the adapter to go on from, or to freeze; NULL: none. Closes it. */
static Model *open_model(const Config *c, Training training, ModelDetail detail, bool foreign,
                         Adapter *start) {
    Model *m = xcalloc(1, sizeof *m);
    m->training = training;
    m->foreign = foreign;
    m->host_limit = available_bytes(0, NULL);
    m->comm = detail == MODEL_SHAPES ? comm_recording(0, (int)c->plan.world)
                                     : comm_world(c->ranks.timeout);
    cuda_deterministic(c->train.deterministic);
    m->memory.k = m->host.k = foreign || detail == MODEL_SHAPES ? &BACKEND_CPU : device_backend(c);
    m->comm = comm_over(m->comm, m->memory.k);
    read_config(m, c);
    share_rows(m, c);
    m->schedule = read_schedule(c, m, detail == MODEL_WEIGHTS && m->comm->rank == 0);
    if (training == TRAIN_LORA || start) attach_adapters(m, c, start);
    m->host.on_host = true;
    m->memory.host = &m->host;
    m->stream = m->memory.k->stream_open();
    open_weights(m, detail);
    make_params(m, c, detail);
    m->params->release = release_pages;
    m->params->release_context = m;
    if (detail != MODEL_SHAPES) check_host_memory(m);
    if (detail != MODEL_SHAPES) fill_params(m, c, detail, start);
    adapter_close(start);
    return m;
}

/* NULL: the key is unset. */
static Adapter *adapter_of(const Config *c, const char *key, const char *path) {
    Error e;
    Adapter *a = path ? adapter_open(path, &e) : NULL;
    if (path && !a) config_die(c, key, "%s", e.text);
    return a;
}

Model *model_open(const Config *c, Training training, ModelDetail detail, bool foreign) {
    bool adapted = training == TRAIN_LORA;
    return open_model(c, training, detail, foreign,
                      adapted ? adapter_of(c, "lora.start", c->lora.start) : NULL);
}

Model *model_open_sampling(const Config *c) {
    return open_model(c, TRAIN_NOTHING, MODEL_WEIGHTS, false,
                      adapter_of(c, "sample.adapter", c->sample.adapter));
}

int64_t model_available(const Model *m, const Config *c) {
    int64_t now = device_available(c), resident = params_device_bytes(m->params);
    int64_t beside = MAX(0, (int64_t)m->memory.bytes - resident);
    return c->memory.budget ? now - beside : now + resident;
}

void model_close(Model *m) {
    if (!m) return;
    m->memory.k->stream_close(m->stream);
    params_close(m->params, &m->memory);
    dit_close(m->dit);
    weights_close(&m->weights);
    comm_close(m->sequence);
    comm_close(m->comm);
    for (size_t i = 0; i < m->n_frozen; i++) free(m->frozen[i]);
    free(m->frozen);
    free(m->folder);
    free(m);
}
