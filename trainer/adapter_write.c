/* Owns the names and settings with which adapters are written. */
#define _POSIX_C_SOURCE 200809L
#include "trainer/adapter_write.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- names ------------------------------------------------------------------------------------
 */

/* What ComfyUI's transformer (comfy/ldm/cogvideo/model.py) calls the modules of a block, and those
 * outside blocks whose names differ. */
static const struct {
    const char *module, *comfy;
} COMFY_BLOCK[] = {{"attn1.to_q", "q"},
                   {"attn1.to_k", "k"},
                   {"attn1.to_v", "v"},
                   {"attn1.to_out.0", "attn_out"},
                   {"ff.net.0.proj", "ff_proj"},
                   {"ff.net.2", "ff_out"},
                   {"norm1.linear", "norm1.linear"},
                   {"norm2.linear", "norm2.linear"}},
  COMFY_OTHER[] = {{"time_embedding.linear_1", "time_embedding_linear_1"},
                   {"time_embedding.linear_2", "time_embedding_linear_2"},
                   {"ofs_embedding.linear_1", "ofs_embedding_linear_1"},
                   {"ofs_embedding.linear_2", "ofs_embedding_linear_2"}};

typedef struct {
    const char *prefix, *a, *b;
    bool alpha; /* a scalar tensor beside the pair */
} Names;

static const Names NAMES[] = {
    [ADAPTER_DIFFUSERS] = {"transformer.", ".lora_A.weight", ".lora_B.weight", false},
    [ADAPTER_PEFT] = {"base_model.model.", ".lora_A.weight", ".lora_B.weight", false},
    [ADAPTER_COMFY] = {"diffusion_model.", ".lora_A.weight", ".lora_B.weight", true},
    [ADAPTER_KOHYA] = {"lora_unet__", ".lora_down.weight", ".lora_up.weight", true},
};

/* "transformer_blocks.7.attn1.to_q" is of the kind "attn1.to_q" in block 7; else -1. */
static const char *kind_of(const char *module, int *block) {
    int skip = 0;
    *block = -1;
    if (sscanf(module, "transformer_blocks.%d.%n", block, &skip) == 1 && skip) return module + skip;
    *block = -1;
    return module;
}

static char *comfy_name(const char *module) {
    int block;
    const char *kind = kind_of(module, &block);
    for (size_t i = 0; i < COUNT(COMFY_BLOCK) && block >= 0; i++)
        if (!strcmp(kind, COMFY_BLOCK[i].module))
            return xprintf("diffusion_model.blocks.%d.%s", block, COMFY_BLOCK[i].comfy);
    if (block >= 0) return NULL;
    for (size_t i = 0; i < COUNT(COMFY_OTHER); i++)
        if (!strcmp(kind, COMFY_OTHER[i].module)) kind = COMFY_OTHER[i].comfy;
    return xprintf("diffusion_model.%s", kind);
}

char *adapter_layer_name(AdapterForm form, const char *module) {
    if (form == ADAPTER_COMFY) return comfy_name(module);
    char *name = xprintf("%s%s", NAMES[form].prefix, module);
    for (char *c = name; form == ADAPTER_KOHYA && *c; c++)
        if (*c == '.') *c = '_';
    return name;
}

/* ---- settings ---------------------------------------------------------------------------------
 */

/* The value that most layers have; of equals the first. */
static double most_frequent(const AdapterLayer *layers, int n, bool rank) {
    double best = 0;
    for (int i = 0, most = 0; i < n; i++) {
        double value = rank ? (double)layers[i].rank : layers[i].alpha;
        int count = 0;
        for (int k = i; k < n; k++)
            count += value == (rank ? (double)layers[k].rank : layers[k].alpha);
        if (count > most) most = count, best = value;
    }
    return best;
}

/* Whole numbers without a point, as Python writes them. */
static json_t *number(double x) {
    return x == floor(x) && fabs(x) < 1e15 ? json_integer((json_int_t)x) : json_real(x);
}

static json_t *pattern(const AdapterLayer *layers, int n, bool rank, double usual) {
    json_t *object = json_object();
    for (int i = 0; i < n; i++) {
        double value = rank ? (double)layers[i].rank : layers[i].alpha;
        if (value != usual) json_object_set_new(object, layers[i].module, number(value));
    }
    return object;
}

/* The last block that has a layer, and whether each kind that some block has is in all up to it. */
static bool every_block(const AdapterLayer *layers, int n) {
    json_t *counts = json_object();
    int last = -1, block;
    for (int i = 0; i < n; i++) {
        const char *kind = kind_of(layers[i].module, &block);
        last = MAX(last, block);
        json_int_t count = json_integer_value(json_object_get(counts, kind));
        if (block >= 0) json_object_set_new(counts, kind, json_integer(count + 1));
    }
    const char *kind;
    json_t *count;
    bool all = true;
    json_object_foreach(counts, kind, count) all &= json_integer_value(count) == last + 1;
    json_decref(counts);
    return all;
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static json_t *targets(const AdapterLayer *layers, int n) {
    const char **names = xcalloc((size_t)n, sizeof *names);
    bool ends = every_block(layers, n);
    for (int i = 0; i < n; i++) {
        int block;
        const char *kind = kind_of(layers[i].module, &block);
        names[i] = !ends ? layers[i].module : strncmp(kind, "attn1.", 6) ? kind : kind + 6;
    }
    qsort(names, (size_t)n, sizeof *names, by_text);
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        if (!i || strcmp(names[i], names[i - 1]))
            json_array_append_new(list, json_string(names[i]));
    free(names);
    return list;
}

json_t *adapter_settings_json(const AdapterLayer *layers, int n) {
    double rank = most_frequent(layers, n, true), alpha = most_frequent(layers, n, false);
    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "r", number(rank), "lora_alpha", number(alpha),
                     "target_modules", targets(layers, n), "rank_pattern",
                     pattern(layers, n, true, rank), "alpha_pattern",
                     pattern(layers, n, false, alpha));
}

/* The header entry that diffusers reads. */
static char *diffusers_settings(const AdapterLayer *layers, int n) {
    json_t *settings = adapter_settings_json(layers, n), *prefixed = json_object(), *value;
    const char *key;
    json_object_foreach(settings, key, value) {
        if (!strcmp(key, "alpha_pattern") && !json_object_size(value)) continue;
        char *name = xprintf("transformer.%s", key);
        json_object_set(prefixed, name, value);
        free(name);
    }
    char *text = json_dumps(prefixed, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_ENSURE_ASCII);
    json_decref(settings);
    json_decref(prefixed);
    return text;
}

/* ---- the file ---------------------------------------------------------------------------------
 */

/* Where the values of the items come from. */
typedef struct {
    const char *path;
    const SafetensorsItem *items;
    const SafetensorsTensor **from; /* per item; NULL: the layer's alpha */
    double *alphas;                 /* per item, of its layer */
} Values;

bool values_round(const SafetensorsTensor *t, size_t first, size_t n, DType type, void *to) {
    enum { BLOCK = 2048 }; /* stays in the cache, and is too small to be worth threads */
    real wide[BLOCK], back[BLOCK];
    bool finite = true;
    for (size_t i = 0; i < n; i += BLOCK) {
        int64_t count = (int64_t)MIN(n - i, (size_t)BLOCK);
        const char *from = (const char *)t->data + (first + i) * dtype_size(t->dtype);
        char *out = (char *)to + i * dtype_size(type);
        BACKEND_CPU.cast(NULL, t->dtype, DT_REAL, count, from, wide);
        BACKEND_CPU.cast(NULL, DT_REAL, type, count, wide, out);
        BACKEND_CPU.cast(NULL, type, DT_REAL, count, out, back);
        for (int64_t k = 0; k < count; k++) finite &= back[k] - back[k] == 0;
    }
    return finite;
}

static bool fill(void *context, size_t item, size_t offset, size_t bytes, void *buffer, Error *e) {
    const Values *s = context;
    DType type = s->items[item].dtype;
    size_t size = dtype_size(type);
    float alpha = (float)s->alphas[item];
    if (!s->from[item]) {
        memcpy(buffer, &alpha, bytes);
        return true;
    }
    if (values_round(s->from[item], offset / size, bytes / size, type, buffer)) return true;
    return error_set(e, EXIT_USER,
                     "%.300s: tensor \"%.120s\": expected values that are finite as %s, and one is "
                     "not. Write the adapter as f32, or look at the training that made it.",
                     s->path, s->items[item].name, dtype_name(type));
}

static char *no_name(const char *path, AdapterForm form, const AdapterLayer *l, Error *e) {
    bool convolution = l->a->n_dims > 2;
    error_set(e, EXIT_USER,
              "%.300s: %.120s: %s. Export with export.preset=diffusers, or train other "
              "lora.target_modules.",
              path, l->module,
              convolution && form == ADAPTER_KOHYA ? "convolutions have no adapters in this form"
                                                   : "the runtime has no adapters for this layer");
    return NULL;
}

/* The name of one of the layer's tensors; NULL: *e. */
static char *tensor_name(const char *path, AdapterForm form, const AdapterLayer *l,
                         const char *suffix, Error *e) {
    bool possible = form != ADAPTER_KOHYA || l->a->n_dims == 2;
    char *layer = possible ? adapter_layer_name(form, l->module) : NULL;
    if (!layer) return no_name(path, form, l, e);
    char *name = xprintf("%s%s", layer, suffix);
    free(layer);
    return name;
}

/* Adds one tensor to the list; t NULL: the alpha, which is always f32. */
static bool add_item(Values *s, SafetensorsItem *item, size_t at, char *name, DType type,
                     const AdapterLayer *l, const SafetensorsTensor *t) {
    if (!name) return false;
    *item =
        (SafetensorsItem){.name = name, .dtype = t ? type : DT_F32, .n_dims = t ? t->n_dims : 0};
    if (t) memcpy(item->shape, t->shape, sizeof item->shape);
    s->from[at] = t;
    s->alphas[at] = l->alpha;
    return true;
}

/* Fills the list with every tensor of the file; false: *e. *n_items: how many there are. */
static bool list_items(Values *s, SafetensorsItem *items, size_t *n_items, AdapterForm form,
                       const AdapterLayer *layers, int n, DType type, Error *e) {
    const Names *names = &NAMES[form];
    bool ok = true;
    for (int i = 0; ok && i < n; i++) {
        const AdapterLayer *l = &layers[i];
        for (int part = 0; ok && part < 2 + names->alpha; part++) {
            const char *suffix = part == 0 ? names->a : part == 1 ? names->b : ".alpha";
            char *name = tensor_name(s->path, form, l, suffix, e);
            ok = add_item(s, &items[*n_items], *n_items, name, type, l,
                          part == 0   ? l->a
                          : part == 1 ? l->b
                                      : NULL);
            *n_items += ok;
        }
    }
    return ok;
}

/* The header's entries besides the digest; returns how many. texts[i] are the caller's to free. */
static size_t list_metadata(SafetensorsMetadata *m, char *texts[2], AdapterForm form,
                            const AdapterLayer *layers, int n) {
    size_t count = 0;
    m[count++] = (SafetensorsMetadata){"format", "pt"};
    if (form == ADAPTER_DIFFUSERS) {
        texts[0] = diffusers_settings(layers, n);
        m[count++] = (SafetensorsMetadata){"lora_adapter_metadata", texts[0]};
    }
    if (form == ADAPTER_KOHYA) {
        texts[0] = xprintf("%g", most_frequent(layers, n, true));
        texts[1] = xprintf("%.17g", most_frequent(layers, n, false));
        m[count++] = (SafetensorsMetadata){"ss_network_dim", texts[0]};
        m[count++] = (SafetensorsMetadata){"ss_network_alpha", texts[1]};
        m[count++] = (SafetensorsMetadata){"ss_network_module", "networks.lora"};
    }
    return count;
}

bool adapter_write(const char *path, AdapterForm form, const AdapterLayer *layers, int n,
                   DType type, Error *e) {
    CHECK(n > 0, "%s: an adapter without layers", path);
    size_t n_items = 0;
    SafetensorsItem *items = xcalloc((size_t)n * 3, sizeof *items);
    Values s = {.path = path, .items = items};
    s.from = xcalloc((size_t)n * 3, sizeof *s.from);
    s.alphas = xcalloc((size_t)n * 3, sizeof *s.alphas);
    SafetensorsMetadata metadata[4];
    char *texts[2] = {NULL, NULL};
    SafetensorsFile file = {.items = items, .metadata = metadata, .digest = true};
    file.n_metadata = list_metadata(metadata, texts, form, layers, n);
    file.fill = fill;
    file.context = &s;
    bool ok = list_items(&s, items, &n_items, form, layers, n, type, e);
    file.n_items = n_items;
    ok = ok && safetensors_write(path, &file, e);
    for (size_t i = 0; i < n_items; i++) free((void *)items[i].name);
    for (size_t i = 0; i < COUNT(texts); i++) free(texts[i]);
    free(s.alphas);
    free(s.from);
    free(items);
    return ok;
}

/* ---- a transformer's own adapters -------------------------------------------------------------
 */

static SafetensorsTensor half_of(const Dit *d, const real *const *values, int param) {
    const Param *q = &d->params->param[param];
    CHECK(values[q->bucket], "%s: its bucket was not read", q->name);
    SafetensorsTensor t = {.name = q->name,
                           .dtype = DT_REAL,
                           .dtype_name = dtype_name(DT_REAL),
                           .bits = 8 * (int)sizeof(real),
                           .n_dims = q->shape.rank,
                           .data = values[q->bucket] + q->offset,
                           .bytes = (size_t)param_count(q) * sizeof(real)};
    for (int i = 0; i < q->shape.rank; i++) t.shape[i] = q->shape.dim[i];
    return t;
}

AdapterLayer *adapter_layers_of(const Dit *d, const real *const *values, int *n) {
    *n = 0;
    for (int i = 0; i < d->n_linears; i++) *n += d->linears[i]->rank > 0;
    AdapterLayer *layers = xcalloc(1, (size_t)*n * (sizeof *layers + 2 * sizeof *layers->a));
    SafetensorsTensor *halves = (SafetensorsTensor *)(layers + *n);
    AdapterLayer *out = layers;
    for (int i = 0; i < d->n_linears; i++) {
        const Linear *l = d->linears[i];
        if (!l->rank) continue;
        halves[0] = half_of(d, values, l->lora_a);
        halves[1] = half_of(d, values, l->lora_b);
        *out++ = (AdapterLayer){l->module, l->rank, l->alpha, &halves[0], &halves[1]};
        halves += 2;
    }
    return layers;
}
