/* `cogsmith export`: an adapter, or full weights, as another runtime reads them. */
#define _XOPEN_SOURCE 700
#include "data/digests.h"
#include "data/whole.h"
#include "trainer/cli.h"
#include "trainer/export.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const Config *config;
    ExportSource source;
    ExportOut out;
    BaseModel base;
    Adapter *adapter;     /* NULL: a full model */
    AdapterLayer *layers; /* [n] of the adapter */
    int n;
    DType type; /* DT_COUNT: as stored */
} Export;

static const DType TYPES[] = {[NUMBERS_AUTO] = DT_COUNT,
                              [NUMBERS_F32] = DT_F32,
                              [NUMBERS_BF16] = DT_BF16,
                              [NUMBERS_F16] = DT_F16};

static const char *title(const Export *x) {
    const char *slash = strrchr(x->out.path, '/'), *last = slash ? slash + 1 : x->out.path;
    return *last && *last != '.' ? last : "adapter";
}

/* ---- an adapter's file, and what goes beside it ---- */

static const AdapterForm FORMS[] = {[EXPORT_DIFFUSERS] = ADAPTER_DIFFUSERS,
                                    [EXPORT_PEFT] = ADAPTER_PEFT,
                                    [EXPORT_COMFY] = ADAPTER_COMFY,
                                    [EXPORT_KOHYA] = ADAPTER_KOHYA};

static char *adapter_file(const Export *x) {
    ExportChoice preset = x->config->export.preset;
    if (preset == EXPORT_DIFFUSERS) return xstrdup("pytorch_lora_weights.safetensors");
    if (preset == EXPORT_PEFT) return xstrdup("adapter_model.safetensors");
    return xprintf("%s.safetensors", title(x));
}

/* PEFT's adapter_config.json. */
static char *peft_config(const Export *x) {
    json_t *config = adapter_settings_json(x->layers, x->n);
    json_t *fixed = json_pack(
        "{s:s, s:{s:s, s:s}, s:s?, s:s, s:b, s:b, s:b, s:n, s:n, s:f, s:n, s:n, s:b, s:b}",
        "peft_type", "LORA", "auto_mapping", "base_model_class", "CogVideoXTransformer3DModel",
        "parent_library", "diffusers.models.transformers.cogvideox_transformer_3d",
        "base_model_name_or_path", x->base.name, "bias", "none", "fan_in_fan_out", 0,
        "inference_mode", 1, "init_lora_weights", 1, "layers_pattern", "layers_to_transform",
        "lora_dropout", 0.0, "modules_to_save", "task_type", "use_dora", 0, "use_rslora", 0);
    CHECK(fixed, "adapter_config.json");
    json_object_update(config, fixed);
    char *json = json_dumps(config, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_ENSURE_ASCII);
    char *text = xprintf("%s\n", json);
    json_decref(fixed);
    json_decref(config);
    free(json);
    return text;
}

static bool write_text(const char *folder, const char *name, const char *text, Error *e) {
    char *path = xprintf("%s/%s", folder, name);
    bool ok = whole_text(path, text, e);
    free(path);
    return ok;
}

static bool export_adapter(const Export *x, const char *card, Error *e) {
    WholeFolder folder;
    if (!whole_folder_open(&folder, x->out.work, e)) return false;
    ExportChoice preset = x->config->export.preset;
    char *name = adapter_file(x), *path = xprintf("%s/%s", folder.temporary, name);
    DType type = x->type == DT_COUNT ? DT_F32 : x->type;
    bool ok = adapter_write(path, FORMS[preset], x->layers, x->n, type, e);
    if (ok && preset == EXPORT_PEFT) {
        char *config = peft_config(x);
        ok = write_text(folder.temporary, "adapter_config.json", config, e);
        free(config);
    }
    ok = ok && write_text(folder.temporary, "README.md", card, e) &&
         digests_write(folder.temporary, &FOLDER_DIGESTS, NULL, e);
    free(path);
    free(name);
    return ok ? whole_folder_commit(&folder, e) : whole_folder_discard(&folder);
}

/* ---- what is asked for ---- */

static void open_adapter(Export *x) {
    Error e;
    if (!x->source.adapter) return;
    if (!(x->adapter = adapter_open(x->source.adapter, &e))) die_error(&e);
    x->n = adapter_count(x->adapter);
    x->layers = xcalloc((size_t)x->n, sizeof *x->layers);
    for (int i = 0; i < x->n; i++) x->layers[i] = adapter_layer(x->adapter, i);
}

/* An adapter must fit the model that was named for it. */
static void check_fits(const Export *x) {
    if (!x->adapter || !x->source.transformer) return;
    char *file = xprintf("%s/config.json", x->source.transformer);
    DitConfig config;
    Error e;
    if (!dit_config_read(&config, file, &e)) die_error(&e);
    Dit *d = dit_open(&config);
    if (!adapter_attach(x->adapter, d, 0, &e)) die_error(&e);
    dit_close(d);
    free(file);
}

static void check_asked(const Export *x) {
    static const char *const NEEDS_ADAPTER =
        "expected diffusers or merged for full weights; this one is a form of adapters";
    const Config *c = x->config;
    ExportChoice preset = c->export.preset;
    if (!x->source.adapter && preset != EXPORT_DIFFUSERS && preset != EXPORT_MERGED)
        config_die(c, "export.preset", "%s", NEEDS_ADAPTER);
    if (x->source.adapter && preset == EXPORT_MERGED && !x->source.transformer)
        config_die(c, "model.path",
                   "%s: export.preset=merged needs the model that the adapter is merged into",
                   x->source.model ? x->source.model : "not set");
    if (x->source.adapter && preset == EXPORT_MERGED && !c->model.path)
        fprintf(stderr, "cogsmith: base model %s, as the run's config.yaml says\n",
                x->source.model);
}

/* The source must not lie in the folder that is replaced. */
static void check_apart(const Export *x) {
    const char *path = x->source.adapter ? x->source.adapter : x->source.transformer;
    char *from = realpath(path, NULL), *to = realpath(x->out.path, NULL);
    size_t n = to ? strlen(to) : 0;
    if (from && to && !strncmp(from, to, n) && (!from[n] || from[n] == '/'))
        config_die(x->config, "export.out",
                   "%.300s: holds what is to be exported; choose another folder", x->out.path);
    free(from);
    free(to);
}

static bool write_export(Export *x, Error *e) {
    bool merged = !x->adapter || x->config->export.preset == EXPORT_MERGED;
    ExportChoice preset = merged && x->adapter ? EXPORT_MERGED : x->config->export.preset;
    char *card = export_card(&x->base, title(x), x->adapter ? preset : EXPORT_DIFFUSERS,
                             merged ? NULL : x->layers, x->n);
    bool ok =
        merged ? export_merged(x->out.work, x->source.transformer, x->adapter,
                               TYPES[x->config->model.dtype], x->type, EXPORT_SHARD_BYTES, card, e)
               : export_adapter(x, card, e);
    free(card);
    return ok && export_out_commit(&x->out, e);
}

int verb_export(const Call *call) {
    const Config *c = call->config;
    config_require(c, "export.out", "export");
    Export x = {.config = c, .source = export_source(c), .type = TYPES[c->export.dtype]};
    Error e;
    check_asked(&x);
    open_adapter(&x);
    check_fits(&x);
    if (!export_out_open(&x.out, c->export.out, &e)) die_error(&e);
    check_apart(&x);
    x.base = base_model(&x.source);
    bool ok = write_export(&x, &e);
    if (ok && !x.base.licence)
        fprintf(stderr,
                "cogsmith: %s/README.md: the base model's licence is not known here: fill "
                "it in before you publish\n",
                x.out.path);
    export_out_discard(&x.out);
    adapter_close(x.adapter);
    free(x.layers);
    base_model_free(&x.base);
    export_source_free(&x.source);
    if (!ok) die_error(&e);
    return 0;
}
