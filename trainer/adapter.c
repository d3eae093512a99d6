/* Owns adapters on disk: the names and the rank and alpha rules of diffusers and PEFT. */
#include "data/json.h"
#include "data/nearest.h"
#include "data/weights.h"
#include "trainer/inspect.h"
#include "trainer/lora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const double MAX_ALPHA = 1e6; /* as for lora.alpha */

typedef struct {
    char *module;
    const SafetensorsTensor *a, *b;
    int64_t rank;
    double alpha;
} Entry;

struct Adapter {
    char *path;
    Weights weights;
    Entry *entries;
    int n_entries;
    Json meta;            /* the settings: header entry or adapter_config.json */
    const char *settings; /* where they are; NULL: there are none */
    const char *prefix;   /* of the settings' keys: "transformer." or "" */
};

static Entry *entry_of(Adapter *a, const char *module, size_t length) {
    for (int i = 0; i < a->n_entries; i++)
        if (strlen(a->entries[i].module) == length &&
            !strncmp(a->entries[i].module, module, length))
            return &a->entries[i];
    a->entries = xrealloc(a->entries, (size_t)(a->n_entries + 1) * sizeof *a->entries);
    a->entries[a->n_entries] = (Entry){.module = xcalloc(length + 1, 1)};
    memcpy(a->entries[a->n_entries].module, module, length);
    return &a->entries[a->n_entries++];
}

static const char PEFT_PREFIX[] = "base_model.model.";

/* Finds the module in an adapter tensor's name, and which half of the pair it is. */
static bool split_name(const char *name, const char **module, size_t *n_module, bool *is_b) {
    static const char *const PREFIXES[] = {"transformer.", PEFT_PREFIX};
    static const char *const SUFFIXES[] = {".lora_A.weight", ".lora_B.weight", ".lora.down.weight",
                                           ".lora.up.weight"};
    for (size_t p = 0; p < COUNT(PREFIXES); p++) {
        size_t skip = strlen(PREFIXES[p]), length = strlen(name);
        if (strncmp(name, PREFIXES[p], skip)) continue;
        for (size_t s = 0; s < COUNT(SUFFIXES); s++) {
            size_t tail = strlen(SUFFIXES[s]);
            if (length <= skip + tail || strcmp(name + length - tail, SUFFIXES[s])) continue;
            *module = name + skip;
            *n_module = length - skip - tail;
            *is_b = s % 2;
            return true;
        }
    }
    return false;
}

bool adapter_holds(const Weights *w) {
    const char *module;
    size_t n_module;
    bool is_b;
    for (size_t i = 0; i < w->n_tensors; i++)
        if (split_name(w->tensors[i].name, &module, &n_module, &is_b)) return true;
    return false;
}

static bool read_name(Adapter *a, const SafetensorsTensor *t, Error *e) {
    const char *module;
    size_t n_module;
    bool is_b;
    if (!split_name(t->name, &module, &n_module, &is_b))
        return error_set(e, EXIT_USER,
                         "%.300s: tensor \"%.120s\": expected names like "
                         "transformer.<module>.lora_A.weight (diffusers) or "
                         "base_model.model.<module>.lora_A.weight (PEFT). Is it an adapter of "
                         "CogVideoX, in one of these forms?",
                         a->path, t->name);
    Entry *entry = entry_of(a, module, n_module);
    const SafetensorsTensor **half = is_b ? &entry->b : &entry->a;
    if (*half)
        return error_set(e, EXIT_USER,
                         "%.300s: tensors \"%.120s\" and \"%.120s\" are the same half of one "
                         "adapter: expected one of them. Remove the other.",
                         a->path, (*half)->name, t->name);
    *half = t;
    return true;
}

static bool check_entry(const Adapter *a, Entry *n, Error *e) {
    if (!n->a || !n->b)
        return error_set(e, EXIT_USER,
                         "%.300s: tensor \"%.120s\": expected lora_A and lora_B for %.120s, and "
                         "lora_%s is not there. The file is incomplete: export it again.",
                         a->path, (n->a ? n->a : n->b)->name, n->module, n->a ? "B" : "A");
    n->rank = n->a->n_dims ? n->a->shape[0] : 0;
    if (n->a->n_dims < 2 || n->b->n_dims < 2 || !n->a->bytes || !n->b->bytes ||
        n->b->shape[1] != n->rank)
        return error_set(e, EXIT_USER,
                         "%.300s: tensors \"%.120s\" and \"%.120s\": expected the shapes [r,K] and "
                         "[O,r] with one rank r of at least 1. Export the adapter again.",
                         a->path, n->a->name, n->b->name);
    n->alpha = (double)n->rank;
    return true;
}

/* The settings: a header entry of the file, or adapter_config.json beside it. */
static bool open_settings(Adapter *a, Error *e) {
    const Safetensors *file = &a->weights.shards[0];
    const char *text = safetensors_metadata(file, "lora_adapter_metadata");
    const char *slash = strrchr(file->path, '/');
    char *config =
        xprintf("%.*sadapter_config.json", slash ? (int)(slash + 1 - file->path) : 0, file->path);
    struct stat info;
    bool ok = true;
    if (text) {
        a->prefix = "transformer.";
        a->settings = "lora_adapter_metadata";
        char *place = xprintf("%s: lora_adapter_metadata", file->path);
        ok = json_parse(&a->meta, text, strlen(text), place, e);
        free(place);
    } else if (!stat(config, &info)) {
        a->settings = "adapter_config.json";
        ok = json_open(&a->meta, config, e);
    }
    free(config);
    return ok;
}

/* What lies beside the file is as it was written, where digests.json says how that was. */
static bool verify_folder(const Adapter *a, Error *e) {
    const char *file = a->weights.shards[0].path, *slash = strrchr(file, '/');
    char *folder = slash ? xprintf("%.*s", (int)MAX(slash - file, 1), file) : xstrdup(".");
    int files;
    bool ok = inspect_digests(folder, &files, e);
    free(folder);
    return ok;
}

/* settings[<prefix><key>], and over it the entry of <prefix><pattern_key> that fits the module. */
static bool setting(const Adapter *a, const char *key, const char *pattern_key, const char *module,
                    double *value, Error *e) {
    char name[80];
    snprintf(name, sizeof name, "%s%s", a->prefix, key);
    if (!json_get_double(&a->meta, name, value, e)) return false;
    Json patterns;
    snprintf(name, sizeof name, "%s%s", a->prefix, pattern_key);
    if (!json_get_object(&a->meta, name, &patterns, e)) return false;
    for (const char *tail = module; tail; tail = strchr(tail, '.')) {
        tail += *tail == '.';
        if (json_has(&patterns, tail)) return json_get_double(&patterns, tail, value, e);
    }
    return true;
}

static bool flag(const Adapter *a, const char *key, bool *value, Error *e) {
    char name[80];
    snprintf(name, sizeof name, "%s%s", a->prefix, key);
    return json_get_bool(&a->meta, name, value, e);
}

/* Alpha of each module by PEFT's rules; rslora scales by alpha / sqrt(r), kept here as an alpha. */
static bool read_settings(Adapter *a, Error *e) {
    if (!a->meta.root) return true;
    bool rslora = false, dora = false;
    if (!flag(a, "use_rslora", &rslora, e) || !flag(a, "use_dora", &dora, e)) return false;
    if (dora)
        return error_set(e, EXIT_USER,
                         "%.300s: use_dora: DoRA adapters are not read. Train "
                         "the adapter without DoRA.",
                         a->path);
    for (int i = 0; i < a->n_entries; i++) {
        Entry *n = &a->entries[i];
        double rank = (double)n->rank;
        n->alpha = 8; /* what PEFT takes when the settings do not say */
        if (!setting(a, "lora_alpha", "alpha_pattern", n->module, &n->alpha, e) ||
            !setting(a, "r", "rank_pattern", n->module, &rank, e))
            return false;
        if (rank != (double)n->rank)
            return error_set(e, EXIT_USER,
                             "%.300s: %.120s: expected the rank of the tensors, %lld, and %s says "
                             "%g. Export the adapter again.",
                             a->path, n->module, (long long)n->rank, a->settings, rank);
        if (!(fabs(n->alpha) <= MAX_ALPHA))
            return error_set(e, EXIT_USER,
                             "%.300s: %.120s: expected an alpha of at most %g, and %s says %g.",
                             a->path, n->module, MAX_ALPHA, a->settings, n->alpha);
        if (rslora) n->alpha *= sqrt((double)n->rank);
    }
    return true;
}

/* A run or a checkpoint in the place of its adapter is told where that is. */
static bool open_weights(Adapter *a, Error *e) {
    if (weights_open(&a->weights, a->path, e)) return true;
    bool around = inspect_is_run(a->path) || inspect_is_checkpoint(a->path);
    if (!around || !inspect_has(a->path, "adapter")) return false;
    return error_set(e, EXIT_USER,
                     "%.300s: expected an adapter's folder or file, and this is the folder of a "
                     "run or checkpoint around one: give %.300s/adapter.",
                     a->path, a->path);
}

Adapter *adapter_open(const char *path, Error *e) {
    Adapter *a = xcalloc(1, sizeof *a);
    a->path = xstrdup(path);
    a->prefix = "";
    bool ok = open_weights(a, e) && weights_verify(&a->weights, e) && verify_folder(a, e) &&
              open_settings(a, e);
    for (size_t i = 0; ok && i < a->weights.n_tensors; i++)
        ok = read_name(a, &a->weights.tensors[i], e);
    for (int i = 0; ok && i < a->n_entries; i++) ok = check_entry(a, &a->entries[i], e);
    if (ok && !a->n_entries)
        ok = error_set(e, EXIT_USER,
                       "%.300s: expected an adapter, and it "
                       "holds no tensor. Export it again.",
                       path);
    if (ok && read_settings(a, e)) return a;
    adapter_close(a);
    return NULL;
}

void adapter_close(Adapter *a) {
    if (!a) return;
    for (int i = 0; i < a->n_entries; i++) free(a->entries[i].module);
    free(a->entries);
    json_close(&a->meta);
    weights_close(&a->weights);
    free(a->path);
    free(a);
}

static const Linear *find_linear(const Dit *d, const char *module) {
    for (int i = 0; i < d->n_linears; i++)
        if (!strcmp(d->linears[i]->module, module)) return d->linears[i];
    return NULL;
}

static bool no_such_linear(const Adapter *a, const Dit *d, const char *module, Error *e) {
    Nearest near = nearest_to(module);
    for (int i = 0; i < d->n_linears; i++) nearest_offer(&near, d->linears[i]->module);
    return error_set(e, EXIT_USER,
                     "%.300s: %.120s: expected a linear layer of this transformer, which has none "
                     "of that name%s%s. The adapter was made for another model.",
                     a->path, module, near.best ? "; the nearest is " : "",
                     near.best ? near.best : "");
}

static bool check_shapes(const Adapter *a, const Entry *n, const Linear *l, Error *e) {
    Shape want_a, want_b;
    linear_adapter_shapes(l, n->rank, &want_a, &want_b);
    const Weights *w = &a->weights;
    bool good = weights_expect(w, n->a->name, want_a.rank, want_a.dim, NULL);
    if (good && weights_expect(w, n->b->name, want_b.rank, want_b.dim, NULL)) return true;
    char want[64];
    return error_set(
        e, EXIT_USER,
        "%.300s: tensor \"%.120s\": expected the shape %s of an adapter of a layer of %lld x %lld "
        "values, found one of %lld x %lld. It was made for another model.",
        a->path, (good ? n->b : n->a)->name, shape_text(good ? want_b : want_a, want),
        (long long)linear_out(l), (long long)linear_in(l),
        (long long)(safetensors_count(n->b) / n->rank),
        (long long)(safetensors_count(n->a) / n->rank));
}

bool adapter_attach(const Adapter *a, Dit *d, double dropout, Error *e) {
    for (int i = 0; i < a->n_entries; i++) {
        const Entry *n = &a->entries[i];
        Linear *l = (Linear *)find_linear(d, n->module);
        if (!l) return no_such_linear(a, d, n->module, e);
        if (!check_shapes(a, n, l, e)) return false;
        lora_give(l, n->rank, n->alpha, dropout);
    }
    return true;
}

bool adapter_values(const Adapter *a, const SafetensorsTensor *t, real *to, Error *e) {
    if (t->dtype != DT_F32 && t->dtype != DT_BF16 && t->dtype != DT_F16)
        return error_set(e, EXIT_USER,
                         "%.300s: tensor \"%.120s\": expected F32, BF16 or F16, found %s. Convert "
                         "the adapter first.",
                         a->path, t->name, t->dtype_name);
    int64_t n = safetensors_count(t);
    BACKEND_CPU.cast(NULL, t->dtype, DT_REAL, n, t->data, to);
    for (int64_t i = 0; i < n; i++)
        if (!(to[i] - to[i] == 0))
            return error_set(e, EXIT_USER,
                             "%.300s: tensor \"%.120s\": value %lld: expected a finite number. The "
                             "file is damaged or its training diverged: use an earlier one.",
                             a->path, t->name, (long long)i);
    return true;
}

static bool load(const Adapter *a, const SafetensorsTensor *t, const Dit *d, int param, Memory *m,
                 Stream *s, Error *e) {
    real *values = xcalloc((size_t)safetensors_count(t), sizeof *values);
    bool ok = adapter_values(a, t, values, e);
    if (ok) param_write(d->params, param, values, m, s);
    free(values);
    return ok;
}

bool adapter_load(const Adapter *a, const Dit *d, Memory *m, Stream *s, Error *e) {
    for (int i = 0; i < a->n_entries; i++) {
        const Entry *n = &a->entries[i];
        const Linear *l = find_linear(d, n->module);
        if (!load(a, n->a, d, l->lora_a, m, s, e) || !load(a, n->b, d, l->lora_b, m, s, e))
            return false;
    }
    return true;
}

/* The values of one tensor as the source of a parameter; NULL: *e says why not. */
static real *copy_source(const Adapter *a, const SafetensorsTensor *t, const Dit *d, int param,
                         Error *e) {
    real *values = xcalloc((size_t)safetensors_count(t), sizeof *values);
    if (adapter_values(a, t, values, e)) {
        param_source(d->params, param, values, DT_REAL);
        return values;
    }
    free(values);
    return NULL;
}

void **adapter_sources(const Adapter *a, const Dit *d, Error *e) {
    void **copies = xcalloc((size_t)a->n_entries * 2, sizeof *copies);
    bool ok = true;
    for (int i = 0; ok && i < a->n_entries; i++) {
        const Entry *n = &a->entries[i];
        const Linear *l = find_linear(d, n->module);
        ok = (copies[2 * i] = copy_source(a, n->a, d, l->lora_a, e)) &&
             (copies[2 * i + 1] = copy_source(a, n->b, d, l->lora_b, e));
    }
    if (ok) return copies;
    for (int i = 0; i < 2 * a->n_entries; i++) free(copies[i]);
    free(copies);
    return NULL;
}

int adapter_count(const Adapter *a) { return a->n_entries; }

AdapterLayer adapter_layer(const Adapter *a, int i) {
    const Entry *n = &a->entries[i];
    return (AdapterLayer){n->module, n->rank, n->alpha, n->a, n->b};
}

const char *adapter_settings(const Adapter *a) { return a->settings; }

const Weights *adapter_weights(const Adapter *a) { return &a->weights; }
