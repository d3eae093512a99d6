/* Owns adapters on disk: the names and the rank and alpha rules of diffusers and PEFT. */
#include "data/json.h"
#include "data/weights.h"
#include "trainer/lora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

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
    Json meta;              /* the settings: header entry or adapter_config.json */
    const char *prefix;     /* of the settings' keys: "transformer." or "" */
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

static bool read_name(Adapter *a, const SafetensorsTensor *t, Error *e) {
    static const char *const PREFIXES[] = {"transformer.", "base_model.model."};
    static const char *const SUFFIXES[] = {".lora_A.weight", ".lora_B.weight", ".lora.down.weight",
                                           ".lora.up.weight"};
    for (size_t p = 0; p < COUNT(PREFIXES); p++) {
        size_t skip = strlen(PREFIXES[p]), length = strlen(t->name);
        if (strncmp(t->name, PREFIXES[p], skip)) continue;
        for (size_t s = 0; s < COUNT(SUFFIXES); s++) {
            size_t tail = strlen(SUFFIXES[s]);
            if (length <= skip + tail || strcmp(t->name + length - tail, SUFFIXES[s])) continue;
            Entry *entry = entry_of(a, t->name + skip, length - skip - tail);
            *(s % 2 ? &entry->b : &entry->a) = t;
            return true;
        }
    }
    return error_set(e, EXIT_USER,
                     "%s: tensor %s: expected names like transformer.<module>.lora_A.weight "
                     "(diffusers) or base_model.model.<module>.lora_A.weight (PEFT)",
                     a->path, t->name);
}

static bool check_entry(const Adapter *a, Entry *n, Error *e) {
    if (!n->a || !n->b)
        return error_set(e, EXIT_USER, "%s: %s has lora_%s and no lora_%s", a->path, n->module,
                         n->a ? "A" : "B", n->a ? "B" : "A");
    n->rank = n->a->n_dims ? n->a->shape[0] : 0;
    if (n->a->n_dims < 2 || n->b->n_dims < 2 || n->rank < 1 || n->b->shape[1] != n->rank)
        return error_set(e, EXIT_USER, "%s: %s: expected lora_A [r,K] and lora_B [O,r]", a->path,
                         n->module);
    n->alpha = (double)n->rank;
    return true;
}

/* The settings: a header entry of the file, or adapter_config.json beside it. */
static bool open_settings(Adapter *a, const char *path, Error *e) {
    const Safetensors *file = &a->weights.shards[0];
    const char *text = safetensors_metadata(file, "lora_adapter_metadata");
    char *config = xprintf("%s/adapter_config.json", path);
    struct stat info;
    bool ok = true;
    if (text) {
        a->prefix = "transformer.";
        ok = json_parse(&a->meta, text, strlen(text), file->path, e);
    } else if (!stat(config, &info)) {
        a->prefix = "";
        ok = json_open(&a->meta, config, e);
    }
    free(config);
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
        if (json_has(&patterns, tail))
            return json_get_double(&patterns, tail, value, e);
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
    if (dora) return error_set(e, EXIT_USER, "%s: use_dora: DoRA adapters are not read", a->path);
    for (int i = 0; i < a->n_entries; i++) {
        Entry *n = &a->entries[i];
        double rank = (double)n->rank;
        n->alpha = 8; /* what PEFT takes when the settings do not say */
        if (!setting(a, "lora_alpha", "alpha_pattern", n->module, &n->alpha, e) ||
            !setting(a, "r", "rank_pattern", n->module, &rank, e))
            return false;
        if ((int64_t)rank != n->rank)
            return error_set(e, EXIT_USER, "%s: %s: the settings say rank %g, the tensors %lld",
                             a->path, n->module, rank, (long long)n->rank);
        if (rslora) n->alpha *= sqrt((double)n->rank);
    }
    return true;
}

Adapter *adapter_open(const char *path, Error *e) {
    Adapter *a = xcalloc(1, sizeof *a);
    a->path = xstrdup(path);
    a->prefix = "";
    bool ok = weights_open(&a->weights, path, e) && open_settings(a, path, e);
    for (size_t i = 0; ok && i < a->weights.n_tensors; i++)
        ok = read_name(a, &a->weights.tensors[i], e);
    for (int i = 0; ok && i < a->n_entries; i++) ok = check_entry(a, &a->entries[i], e);
    if (ok && !a->n_entries) ok = error_set(e, EXIT_USER, "%s: holds no adapter", path);
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

static int64_t items(const SafetensorsTensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->n_dims; i++) n *= t->shape[i];
    return n;
}

bool adapter_attach(const Adapter *a, Dit *d, double dropout, Error *e) {
    for (int i = 0; i < a->n_entries; i++) {
        const Entry *n = &a->entries[i];
        Linear *l = (Linear *)find_linear(d, n->module);
        if (!l)
            return error_set(e, EXIT_USER, "%s: %s is not a linear layer of this transformer",
                             a->path, n->module);
        if (items(n->a) != n->rank * linear_in(l) || items(n->b) != n->rank * linear_out(l))
            return error_set(e, EXIT_USER,
                             "%s: %s: expected an adapter of a layer of %lld x %lld values: it was "
                             "made for another model",
                             a->path, n->module, (long long)linear_out(l),
                             (long long)linear_in(l));
        lora_give(l, n->rank, n->alpha, dropout);
    }
    return true;
}

static bool copy_values(const Adapter *a, const SafetensorsTensor *t, real *to, Error *e) {
    if (t->dtype != DT_F32 && t->dtype != DT_BF16 && t->dtype != DT_F16)
        return error_set(e, EXIT_USER, "%s: %s: expected F32, BF16 or F16, found %s", a->path,
                         t->name, t->dtype_name);
    int64_t n = items(t);
    void *aligned = memcpy(xcalloc(t->bytes, 1), t->data, t->bytes);
    BACKEND_CPU.cast(NULL, t->dtype, DT_REAL, n, aligned, to);
    free(aligned);
    for (int64_t i = 0; i < n; i++)
        if (!(to[i] - to[i] == 0))
            return error_set(e, EXIT_USER, "%s: %s: value %lld is not finite", a->path, t->name,
                             (long long)i);
    return true;
}

bool adapter_load(const Adapter *a, const Dit *d, Error *e) {
    for (int i = 0; i < a->n_entries; i++) {
        const Entry *n = &a->entries[i];
        const Linear *l = find_linear(d, n->module);
        if (!copy_values(a, n->a, param_master(d->params, l->lora_a), e) ||
            !copy_values(a, n->b, param_master(d->params, l->lora_b), e))
            return false;
    }
    return true;
}

int adapter_count(const Adapter *a) {
    return a->n_entries;
}

const char *adapter_module(const Adapter *a, int i, int64_t *rank, double *alpha) {
    *rank = a->entries[i].rank;
    *alpha = a->entries[i].alpha;
    return a->entries[i].module;
}
