/* Owns the writing of full models: merging, and rounding, as the tensors stream to the disk. */
#define _POSIX_C_SOURCE 200809L
#include "trainer/export.h"

#include "trainer/model.h"
#include "trainer/progress.h"
#include "trainer/stop.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *folder;
    Weights base;
    const AdapterLayer **layers; /* [base.n_tensors]; NULL: the tensor stays as it is */
    AdapterLayer *own;           /* of the adapter */
    const Adapter *adapter;
    DType form;             /* of the base; DT_COUNT: as stored */
    SafetensorsItem *items; /* [base.n_tensors] */
    Stream *stream;
    void *merged; /* the item `held`, whole */
    size_t held, done;
    Progress *progress;
} Merge;

static int64_t count_of(const SafetensorsTensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->n_dims; i++) n *= t->shape[i];
    return n;
}

/* delta[O,K] = B[O,r] A[r,K] */
static void multiply(Stream *s, const real *b, const real *a, int64_t o, int64_t r, int64_t k,
                     real *delta) {
    Gemm g = {.type = DT_REAL,
              .type_c = DT_REAL,
              .m = o,
              .n = k,
              .k = r,
              .batch = 1,
              .lda = r,
              .ldb = k,
              .ldc = k,
              .alpha = 1};
    size_t bytes = BACKEND_CPU.gemm_workspace(s, &g);
    void *workspace = BACKEND_CPU.alloc(MAX(bytes, 1));
    CHECK(workspace, "out of host memory");
    BACKEND_CPU.stream_workspace(s, workspace, bytes);
    BACKEND_CPU.gemm(s, &g, b, a, NULL, delta);
    BACKEND_CPU.release(workspace);
}

/* The layer's B A in f32, of its own memory; NULL: *e. */
static real *product(const Merge *m, const AdapterLayer *l, Error *e) {
    int64_t n_a = count_of(l->a), n_b = count_of(l->b), o = n_b / l->rank, k = n_a / l->rank;
    real *a = xcalloc((size_t)n_a, sizeof *a), *b = xcalloc((size_t)n_b, sizeof *b), *delta = NULL;
    if (adapter_values(m->adapter, l->a, a, e) && adapter_values(m->adapter, l->b, b, e)) {
        delta = xcalloc((size_t)(o * k), sizeof *delta);
        multiply(m->stream, b, a, o, l->rank, k, delta);
    }
    free(a);
    free(b);
    return delta;
}

static bool not_finite(const Merge *m, size_t item, Error *e) {
    return error_set(e, EXIT_USER,
                     "%.300s: tensor \"%.120s\": expected values that are finite as %s, and one is "
                     "not. Choose another export.dtype, or look at the training that made it.",
                     m->folder, m->items[item].name, dtype_name(m->items[item].dtype));
}

/* Base weights in their form, rounded to `type`; false: one is not finite. */
static bool base_values(const Merge *m, size_t item, size_t first, size_t n, DType type, void *to) {
    const SafetensorsTensor *t = &m->base.tensors[item];
    if (m->form == DT_COUNT || m->form == type) return values_round(t, first, n, type, to);
    void *formed = xcalloc(n, dtype_size(m->form));
    SafetensorsTensor mid = {.dtype = m->form, .data = formed};
    bool ok = values_round(t, first, n, m->form, formed) && values_round(&mid, 0, n, type, to);
    free(formed);
    return ok;
}

/* Fills m->merged with the item: W + (alpha / r) B A, rounded once. */
static bool merge(Merge *m, size_t item, Error *e) {
    const AdapterLayer *l = m->layers[item];
    int64_t n = count_of(&m->base.tensors[item]);
    real scale = (real)(l->alpha / (double)l->rank), *delta = product(m, l, e);
    if (!delta) return false;
    real *sum = xcalloc((size_t)n, sizeof *sum);
    if (!base_values(m, item, 0, (size_t)n, DT_REAL, sum)) {
        free(delta);
        free(sum);
        return not_finite(m, item, e);
    }
    for (int64_t i = 0; i < n; i++) delta[i] *= scale; /* rounded before the sum, as PEFT does */
    for (int64_t i = 0; i < n; i++) sum[i] += delta[i];
    free(delta);
    SafetensorsTensor whole = {.dtype = DT_REAL, .data = sum};
    m->merged = xrealloc(m->merged, safetensors_item_bytes(&m->items[item]));
    m->held = item;
    bool finite = values_round(&whole, 0, (size_t)n, m->items[item].dtype, m->merged);
    free(sum);
    return finite || not_finite(m, item, e);
}

static bool fill(void *context, size_t item, size_t offset, size_t bytes, void *buffer, Error *e) {
    Merge *m = context;
    if (stop_asked()) return error_set(e, EXIT_STOPPED, "stopped before the model was written");
    const SafetensorsTensor *t = &m->base.tensors[item];
    DType type = m->items[item].dtype;
    size_t size = dtype_size(type);
    bool last = offset + bytes == safetensors_item_bytes(&m->items[item]);
    if (m->layers[item]) {
        if (m->held != item && !merge(m, item, e)) return false;
        memcpy(buffer, (char *)m->merged + offset, bytes);
    } else if (!base_values(m, item, offset / size, bytes / size, type, buffer)) {
        return not_finite(m, item, e);
    }
    if (last) {
        weights_release(&m->base, t->data, t->bytes);
        progress_set(m->progress, (double)++m->done, NULL);
    }
    return true;
}

/* The layer that changes the tensor "<module>.weight"; NULL: none. */
static const AdapterLayer *layer_of(const Merge *m, const char *tensor) {
    for (int i = 0; m->adapter && i < adapter_count(m->adapter); i++) {
        size_t n = strlen(m->own[i].module);
        if (!strncmp(tensor, m->own[i].module, n) && !strcmp(tensor + n, ".weight"))
            return &m->own[i];
    }
    return NULL;
}

/* Adapter and weights must be those of the transformer that config.json describes. */
static bool check_model(const Merge *m, const char *config_file, Error *e) {
    DitConfig config;
    if (!dit_config_read(&config, config_file, e)) return false;
    Memory none = {.k = &BACKEND_CPU};
    Dit *d = dit_open(&config);
    ParamSet *p = params_open();
    bool ok = !m->adapter || adapter_attach(m->adapter, d, 0, e);
    dit_params(d, p, false, 1);
    ok = ok && weights_match(&m->base, d, e);
    params_close(p, &none);
    dit_close(d);
    return ok;
}

static void list_items(Merge *m, DType type) {
    size_t n = m->base.n_tensors;
    int layers = m->adapter ? adapter_count(m->adapter) : 0;
    m->own = xcalloc((size_t)layers, sizeof *m->own);
    for (int i = 0; i < layers; i++) m->own[i] = adapter_layer(m->adapter, i);
    m->items = xcalloc(n, sizeof *m->items);
    m->layers = xcalloc(n, sizeof *m->layers);
    for (size_t i = 0; i < n; i++) {
        const SafetensorsTensor *t = &m->base.tensors[i];
        DType stored = t->dtype == DT_F64 ? DT_F32 : t->dtype;
        DType own = m->form == DT_COUNT ? stored : m->form;
        m->items[i] = (SafetensorsItem){
            .name = t->name, .dtype = type == DT_COUNT ? own : type, .n_dims = t->n_dims};
        memcpy(m->items[i].shape, t->shape, sizeof t->shape);
        m->layers[i] = layer_of(m, t->name);
    }
    m->held = n;
}

static char *read_text(const char *path, Error *e) {
    FILE *f = fopen(path, "r");
    char *text = NULL;
    size_t room = 0;
    bool ok = f && (getdelim(&text, &room, 0, f) >= 0 || !ferror(f));
    if (f) fclose(f);
    if (ok && text) return text;
    error_set(e, EXIT_USER, "%.300s: cannot be read: %s.", path, strerror(errno));
    free(text);
    return NULL;
}

static bool save(Merge *m, const char *out, const char *config, size_t shard_bytes,
                 const char *card, Error *e) {
    const WeightsText texts[] = {{"config.json", config}, {"README.md", card}};
    SafetensorsFile file = {.items = m->items,
                            .n_items = m->base.n_tensors,
                            .digest = true,
                            .fill = fill,
                            .context = m};
    stop_catch(); /* what is half written is then removed */
    m->stream = BACKEND_CPU.stream_open();
    m->progress = progress_open(m->adapter ? "merging" : "exporting", "tensors", 0,
                                (double)m->base.n_tensors);
    bool ok =
        weights_save(out, "diffusion_pytorch_model", shard_bytes, &file, texts, COUNT(texts), e);
    progress_close(m->progress);
    BACKEND_CPU.stream_close(m->stream);
    return ok;
}

bool export_merged(const char *out, const char *folder, const Adapter *adapter, DType form,
                   DType type, size_t shard_bytes, const char *card, Error *e) {
    Merge m = {.folder = folder, .adapter = adapter, .form = form};
    char *config_file = xprintf("%s/config.json", folder), *config = NULL;
    bool ok = weights_open(&m.base, folder, e) && check_model(&m, config_file, e) &&
              weights_verify(&m.base, e) && (config = read_text(config_file, e));
    if (ok) {
        list_items(&m, type);
        ok = save(&m, out, config, shard_bytes, card, e);
    }
    free(m.merged);
    free(m.items);
    free(m.layers);
    free(m.own);
    free(config);
    free(config_file);
    weights_close(&m.base);
    return ok;
}
