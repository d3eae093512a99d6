/* Owns finding out what a path is, and the reports on weights, adapters and other tensor files. */
#define _POSIX_C_SOURCE 200809L
#include "trainer/inspect.h"

#include "trainer/lora.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool inspect_has(const char *folder, const char *name) {
    char *path = xprintf("%s/%s", folder, name);
    struct stat info;
    bool there = !stat(path, &info);
    free(path);
    return there;
}

json_t *inspect_text(const char *text) {
    json_t *j = json_string(text);
    if (j) return j;
    char *copy = xstrdup(text);
    for (char *c = copy; *c; c++)
        if (*c & 0x80) *c = '?';
    j = json_string(copy);
    free(copy);
    return j;
}

/* ---- weights ----------------------------------------------------------------------------------
 */

static json_t *report_shard(const Safetensors *s, Error *e) {
    if (!safetensors_verify(s, e)) return NULL;
    const char *slash = strrchr(s->path, '/');
    bool digest = safetensors_metadata(s, SAFETENSORS_DIGEST_KEY);
    return json_pack("{s:o, s:I, s:I, s:s}", "file", inspect_text(slash ? slash + 1 : s->path),
                     "bytes", (json_int_t)s->n_bytes, "tensors", (json_int_t)s->n_tensors, "digest",
                     digest ? "verified" : "none");
}

bool inspect_weights(json_t *report, const Weights *w, Error *e) {
    json_t *dtypes = json_object(), *shards = json_array();
    int64_t parameters = 0, bytes = 0;
    for (size_t i = 0; i < w->n_tensors; i++) {
        const SafetensorsTensor *t = &w->tensors[i];
        parameters += safetensors_count(t);
        bytes += (int64_t)t->bytes;
        json_int_t n = json_integer_value(json_object_get(dtypes, t->dtype_name));
        json_object_set_new(dtypes, t->dtype_name, json_integer(n + 1));
    }
    json_object_set_new(report, "tensors", json_integer((json_int_t)w->n_tensors));
    json_object_set_new(report, "parameters", json_integer(parameters));
    json_object_set_new(report, "bytes", json_integer(bytes));
    json_object_set_new(report, "dtypes", dtypes);
    json_object_set_new(report, "shards", shards);
    for (size_t i = 0; i < w->n_shards; i++) {
        json_t *shard = report_shard(&w->shards[i], e);
        if (!shard) return false;
        json_array_append_new(shards, shard);
    }
    return true;
}

/* ---- adapters ---------------------------------------------------------------------------------
 */

/* The Gram matrix of a layer's half over its long axis: A A^T or B^T B, [r,r]. */
static real *gram(Stream *s, const real *half, int64_t rank, int64_t length, bool b) {
    Gemm g = {.type = DT_REAL,
              .type_c = DT_REAL,
              .m = rank,
              .n = rank,
              .k = length,
              .batch = 1,
              .a_transposed = b,
              .b_transposed = !b,
              .lda = b ? rank : length,
              .ldb = b ? rank : length,
              .ldc = rank,
              .alpha = 1};
    size_t bytes = BACKEND_CPU.gemm_workspace(s, &g);
    void *workspace = BACKEND_CPU.alloc(MAX(bytes, 1));
    CHECK(workspace, "out of host memory");
    real *out = xcalloc((size_t)(rank * rank), sizeof *out);
    BACKEND_CPU.stream_workspace(s, workspace, bytes);
    BACKEND_CPU.gemm(s, &g, half, half, NULL, out);
    BACKEND_CPU.release(workspace);
    return out;
}

/* The Frobenius norm of B A, without B A: |B A|^2 = <B^T B, A A^T>. */
static bool layer_norm(Stream *s, const Adapter *adapter, const AdapterLayer *l, double *norm,
                       Error *e) {
    int64_t n_a = safetensors_count(l->a), n_b = safetensors_count(l->b);
    real *a = xcalloc((size_t)n_a, sizeof *a), *b = xcalloc((size_t)n_b, sizeof *b);
    bool ok = adapter_values(adapter, l->a, a, e) && adapter_values(adapter, l->b, b, e);
    if (ok) {
        real *aa = gram(s, a, l->rank, n_a / l->rank, false);
        real *bb = gram(s, b, l->rank, n_b / l->rank, true);
        double square = 0;
        for (int64_t i = 0; i < l->rank * l->rank; i++) square += (double)aa[i] * (double)bb[i];
        *norm = sqrt(MAX(square, 0));
        free(aa);
        free(bb);
    }
    free(a);
    free(b);
    return ok;
}

/* A number, or null where it is none that JSON knows. */
static json_t *number(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static json_t *report_layer(Stream *s, const Adapter *a, const AdapterLayer *l, Error *e) {
    double norm = 0;
    if (!layer_norm(s, a, l, &norm, e)) return NULL;
    bool same = l->a->dtype == l->b->dtype;
    char *dtype =
        same ? xstrdup(l->a->dtype_name) : xprintf("%s and %s", l->a->dtype_name, l->b->dtype_name);
    json_t *report = json_pack("{s:s, s:I, s:f, s:f, s:s, s:o}", "module", l->module, "rank",
                               (json_int_t)l->rank, "alpha", l->alpha, "scale",
                               l->alpha / (double)l->rank, "dtype", dtype, "norm", number(norm));
    free(dtype);
    return report;
}

/* "transformer_blocks.7.attn1.to_q" is of the kind "attn1.to_q". */
static const char *module_kind(const char *module) {
    int skip = 0;
    sscanf(module, "transformer_blocks.%*d.%n", &skip);
    return module + skip;
}

/* What a kind's layers have in common: null where they differ. */
static void join_kind(json_t *kind, json_t *layer) {
    static const char *const SHARED[] = {"rank", "alpha", "scale", "dtype"};
    for (size_t i = 0; i < COUNT(SHARED); i++)
        if (!json_equal(json_object_get(kind, SHARED[i]), json_object_get(layer, SHARED[i])))
            json_object_set_new(kind, SHARED[i], json_null());
    double norm = json_number_value(json_object_get(layer, "norm"));
    double least = json_number_value(json_object_get(kind, "norm_least"));
    double most = json_number_value(json_object_get(kind, "norm_most"));
    json_int_t layers = json_integer_value(json_object_get(kind, "layers"));
    json_object_set_new(kind, "layers", json_integer(layers + 1));
    json_object_set_new(kind, "norm_least", number(layers ? MIN(norm, least) : norm));
    json_object_set_new(kind, "norm_most", number(MAX(norm, most)));
}

static void add_to_kind(json_t *kinds, json_t *layer) {
    const char *name = module_kind(json_string_value(json_object_get(layer, "module")));
    json_t *kind;
    size_t i;
    json_array_foreach(kinds, i, kind) if (!strcmp(json_string_value(json_object_get(kind, "kind")),
                                                   name)) return join_kind(kind, layer);
    kind =
        json_pack("{s:s, s:i, s:O, s:O, s:O, s:O}", "kind", name, "layers", 0, "rank",
                  json_object_get(layer, "rank"), "alpha", json_object_get(layer, "alpha"), "scale",
                  json_object_get(layer, "scale"), "dtype", json_object_get(layer, "dtype"));
    join_kind(kind, layer);
    json_array_append_new(kinds, kind);
}

static bool add_layers(json_t *report, const Adapter *a, Error *e) {
    json_t *kinds = json_array(), *layers = json_array();
    json_object_set_new(report, "kinds", kinds);
    json_object_set_new(report, "layers", layers);
    Stream *s = BACKEND_CPU.stream_open();
    bool ok = true;
    for (int i = 0; ok && i < adapter_count(a); i++) {
        AdapterLayer l = adapter_layer(a, i);
        json_t *layer = report_layer(s, a, &l, e);
        ok = layer != NULL;
        if (!ok) break;
        json_array_append_new(layers, layer);
        add_to_kind(kinds, layer);
    }
    BACKEND_CPU.stream_close(s);
    return ok;
}

static json_t *inspect_adapter(const char *path, Error *e) {
    Adapter *a = adapter_open(path, e);
    if (!a) return NULL;
    const Weights *w = adapter_weights(a);
    bool peft = !strncmp(w->tensors[0].name, "base_model.", 11);
    json_t *report =
        json_pack("{s:o, s:s, s:s, s:s?}", "path", inspect_text(path), "kind", "adapter", "names",
                  peft ? "PEFT" : "diffusers", "alpha_from", adapter_settings(a));
    if (!inspect_weights(report, w, e) || !add_layers(report, a, e)) {
        json_decref(report);
        report = NULL;
    }
    adapter_close(a);
    return report;
}

/* ---- other tensors ----------------------------------------------------------------------------
 */

static void add_tensor_list(json_t *report, const Weights *w) {
    json_t *list = json_array(), *metadata = json_object();
    for (size_t i = 0; i < w->n_tensors; i++) {
        const SafetensorsTensor *t = &w->tensors[i];
        json_t *shape = json_array();
        for (int k = 0; k < t->n_dims; k++) json_array_append_new(shape, json_integer(t->shape[k]));
        json_array_append_new(list, json_pack("{s:s, s:s, s:o, s:I}", "name", t->name, "dtype",
                                              t->dtype_name, "shape", shape, "bytes",
                                              (json_int_t)t->bytes));
    }
    for (size_t i = 0; i < w->n_shards; i++)
        for (size_t k = 0; k < w->shards[i].n_metadata; k++)
            json_object_set_new(metadata, w->shards[i].metadata[k].key,
                                inspect_text(w->shards[i].metadata[k].value));
    json_object_set_new(report, "tensor_list", list);
    json_object_set_new(report, "metadata", metadata);
}

static json_t *inspect_tensors(const char *path, const Weights *w, Error *e) {
    json_t *report = json_pack("{s:o, s:s}", "path", inspect_text(path), "kind", "tensors");
    add_tensor_list(report, w);
    if (inspect_weights(report, w, e)) return report;
    json_decref(report);
    return NULL;
}

/* ---- what it is -------------------------------------------------------------------------------
 */

static bool ends_with(const char *text, const char *tail) {
    size_t n = strlen(text), m = strlen(tail);
    return n >= m && !strcmp(text + n - m, tail);
}

/* What to open of a path: a folder's one safetensors file, by whatever name, where it has no other
 * and no index; else the path. */
static char *file_to_open(const char *path, bool folder) {
    char *only = NULL;
    bool several = false;
    DIR *d = folder ? opendir(path) : NULL;
    for (struct dirent *file; d && (file = readdir(d));) {
        several |= ends_with(file->d_name, ".index.json");
        if (!ends_with(file->d_name, ".safetensors")) continue;
        several |= only != NULL;
        free(only);
        only = xprintf("%s/%s", path, file->d_name);
    }
    if (d) closedir(d);
    if (only && !several) return only;
    free(only);
    return xstrdup(path);
}

static json_t *inspect_files(const char *path, bool folder, Error *e) {
    Weights w;
    json_t *report = NULL;
    char *from = file_to_open(path, folder);
    if (weights_open(&w, from, e)) {
        report = adapter_holds(&w) ? inspect_adapter(from, e) : inspect_tensors(from, &w, e);
        weights_close(&w);
    }
    if (report) json_object_set_new(report, "path", inspect_text(path));
    free(from);
    return report;
}

static json_t *inspect_what_it_is(const char *path, bool folder, Error *e) {
    if (folder && inspect_is_run(path)) return inspect_run(path, e);
    if (folder && inspect_is_checkpoint(path)) return inspect_checkpoint(path, e);
    if (folder && inspect_is_cache(path)) return inspect_cache(path, e);
    if (folder && inspect_is_model(path)) return inspect_model(path, e);
    if (folder && inspect_is_component(path)) return inspect_component(path, e);
    if (!folder && ends_with(path, ".json")) {
        error_set(e, EXIT_USER,
                  "%.300s: expected a safetensors file or a folder. Give the folder "
                  "that holds this file.",
                  path);
        return NULL;
    }
    if (folder && !inspect_has_weights(path)) {
        error_set(e, EXIT_USER,
                  "%.300s: expected a model folder (model_index.json or transformer/config.json), "
                  "a component's (config.json), an adapter's (pytorch_lora_weights.safetensors), a "
                  "run's or checkpoint's, a cache, or a safetensors file. Check the path.",
                  path);
        return NULL;
    }
    return inspect_files(path, folder, e);
}

json_t *inspect_path(const char *path, Error *e) {
    struct stat info;
    if (stat(path, &info)) {
        error_set(e, EXIT_USER, "%.300s: expected a file or folder: %s. Check the path.", path,
                  strerror(errno));
        return NULL;
    }
    bool folder = S_ISDIR(info.st_mode);
    if (folder && access(path, R_OK | X_OK)) {
        error_set(e, EXIT_USER, "%.300s: expected a folder that can be read: %s.", path,
                  strerror(errno));
        return NULL;
    }
    int digests = 0;
    if (folder && !inspect_digests(path, &digests, e)) return NULL;
    json_t *report = inspect_what_it_is(path, folder, e);
    if (report && digests) json_object_set_new(report, "digests", json_integer(digests));
    return report;
}
