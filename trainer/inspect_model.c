/* Owns the reports on diffusers model folders and their components. */
#define _POSIX_C_SOURCE 200809L
#include "trainer/inspect.h"

#include "data/json.h"
#include "trainer/model.h"
#include "trainer/native.h"

#include <dirent.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* The components of a published model, and the file by which each is known. */
static const struct {
    const char *name, *config, *class; /* class: of a config that knows its own; NULL: any */
} COMPONENTS[] = {
    {"transformer", "config.json", "CogVideoXTransformer3DModel"},
    {"vae", "config.json", "AutoencoderKLCogVideoX"},
    {"text_encoder", "config.json", "T5EncoderModel"},
    {"tokenizer", "tokenizer_config.json", NULL},
    {"scheduler", "scheduler_config.json", NULL},
};

static bool is_folder(const char *path) {
    struct stat info;
    return !stat(path, &info) && S_ISDIR(info.st_mode);
}

bool inspect_is_model(const char *folder) {
    bool is = inspect_has(folder, "model_index.json");
    for (size_t i = 0; i < COUNT(COMPONENTS) && !is; i++) {
        char *file = xprintf("%s/%s", COMPONENTS[i].name, COMPONENTS[i].config);
        is = inspect_has(folder, file);
        free(file);
    }
    return is;
}

bool inspect_is_component(const char *folder) {
    for (size_t i = 0; i < COUNT(COMPONENTS); i++)
        if (inspect_has(folder, COMPONENTS[i].config)) return true;
    return false;
}

/* ---- weights ----------------------------------------------------------------------------------
 */

bool inspect_has_weights(const char *folder) {
    static const char *const MARKS[] = {".safetensors", ".bin", ".pt", ".ckpt"};
    DIR *d = opendir(folder);
    bool found = false;
    for (struct dirent *file; d && !found && (file = readdir(d));)
        for (size_t i = 0; i < COUNT(MARKS); i++) found |= strstr(file->d_name, MARKS[i]) != NULL;
    if (d) closedir(d);
    return found;
}

/* The weights must be those of the transformer that config.json describes. */
static bool check_transformer(const Weights *w, const DitConfig *config, Error *e) {
    Memory none = {.k = &BACKEND_CPU};
    Dit *d = dit_open(config);
    ParamSet *p = params_open();
    dit_params(d, p, false, 1);
    bool ok = weights_match(w, d, e);
    params_close(p, &none);
    dit_close(d);
    return ok;
}

/* Adds what a component's weights are; transformer NULL: they are not checked against a config. */
static bool add_weights(json_t *report, const char *folder, const DitConfig *transformer,
                        Error *e) {
    Weights w = {0};
    if (!inspect_has_weights(folder)) return inspect_weights(report, &w, e);
    if (!weights_open(&w, folder, e)) return false;
    bool ok =
        (!transformer || check_transformer(&w, transformer, e)) && inspect_weights(report, &w, e);
    weights_close(&w);
    return ok;
}

/* ---- components -------------------------------------------------------------------------------
 */

static json_t *optional(int64_t n, bool there) { return there ? json_integer(n) : json_null(); }

static json_t *report_sizes(const DitConfig *c) {
    int64_t frames = dit_native_frames(c);
    int64_t rows = dit_video_rows(c, frames, c->sample_height, c->sample_width);
    return json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:I, s:o, s:I, s:I, s:[III], s:[III], s:I}",
        "layers", (json_int_t)c->layers, "heads", (json_int_t)c->heads, "head_size",
        (json_int_t)c->head_size, "width", (json_int_t)c->width, "in_channels",
        (json_int_t)c->in_channels, "out_channels", (json_int_t)c->out_channels, "patch_size",
        (json_int_t)c->patch, "patch_size_t", optional(c->patch_t, c->temporal_patch),
        "time_embed_dim", (json_int_t)c->time_dim, "ofs_embed_dim",
        optional(c->ofs_dim, c->ofs_dim), "text_embed_dim", (json_int_t)c->text_dim,
        "max_text_seq_length", (json_int_t)c->text_length, "native_video",
        (json_int_t)c->sample_frames, (json_int_t)c->sample_height * VAE_SCALE,
        (json_int_t)c->sample_width * VAE_SCALE, "native_latents", (json_int_t)frames,
        (json_int_t)c->sample_height, (json_int_t)c->sample_width, "native_rows",
        (json_int_t)(rows + c->text_length));
}

static bool add_transformer(json_t *report, const char *folder, Error *e) {
    DitConfig c;
    char *file = xprintf("%s/config.json", folder);
    bool ok = dit_config_read(&c, file, e);
    free(file);
    if (!ok) return false;
    const char *positions = c.rotary && c.learned ? "rotary and learned"
                            : c.rotary            ? "rotary"
                            : c.learned           ? "learned"
                                                  : "sincos";
    json_t *facts = json_pack("{s:s, s:s, s:s, s:o}", "variant", dit_variant(&c), "task",
                              c.in_channels == c.out_channels ? "text to video" : "image to video",
                              "positions", positions, "sizes", report_sizes(&c));
    json_object_update(report, facts);
    json_decref(facts);
    return add_weights(report, folder, &c, e);
}

/* diffusers says _class_name, transformers architectures or tokenizer_class. */
static bool add_class(json_t *report, const char *file, Error *e) {
    Json j;
    const char *class = NULL, *architecture = NULL;
    size_t n = 0;
    if (!json_open(&j, file, e)) return false;
    bool ok = json_get_string(&j, "tokenizer_class", &class, e) &&
              json_get_strings(&j, "architectures", &architecture, 1, &n, e) &&
              json_get_string(&j, "_class_name", &class, e);
    if (!class) class = architecture;
    if (ok && class) json_object_set_new(report, "class", json_string(class));
    json_close(&j);
    return ok;
}

static bool add_scheduler(json_t *report, const char *file, Error *e) {
    const char *class = json_string_value(json_object_get(report, "class"));
    ScheduleConfig s;
    if (!class || strncmp(class, "CogVideoX", 9)) return true;
    if (!schedule_read(&s, file, e)) return false;
    json_t *facts = json_pack("{s:s, s:f, s:f, s:f, s:b}", "prediction", "v_prediction",
                              "beta_start", s.beta_start, "beta_end", s.beta_end, "snr_shift_scale",
                              s.snr_shift_scale, "zero_terminal_snr", (int)s.zero_terminal_snr);
    json_object_update(report, facts);
    json_decref(facts);
    return true;
}

static bool add_tokenizer(json_t *report, const char *folder) {
    char *file = xprintf("%s/spiece.model", folder);
    struct stat info;
    bool there = !stat(file, &info);
    json_object_set_new(report, "vocabulary_bytes", optional(there ? info.st_size : 0, there));
    free(file);
    return true;
}

/* Fills a report whose kind, path and (where a config.json knows it) class are set. */
static bool add_facts(json_t *report, const char *folder, const char *config, Error *e) {
    const char *kind = json_string_value(json_object_get(report, "kind"));
    char *file = xprintf("%s/%s", folder, config);
    bool ok = true;
    if (inspect_has(folder, config)) ok = add_class(report, file, e);
    if (ok && !strcmp(kind, "transformer"))
        ok = add_transformer(report, folder, e);
    else if (ok && !strcmp(kind, "tokenizer"))
        ok = add_tokenizer(report, folder);
    else if (ok && !strcmp(kind, "scheduler"))
        ok = add_scheduler(report, file, e);
    else if (ok)
        ok = add_weights(report, folder, NULL, e);
    free(file);
    return ok;
}

static json_t *new_report(const char *path, const char *kind) {
    return json_pack("{s:o, s:s, s:n}", "path", inspect_text(path), "kind", kind, "class");
}

/* NULL, and the report's end, unless ok. */
static json_t *report_or_null(json_t *report, bool ok) {
    if (ok) return report;
    json_decref(report);
    return NULL;
}

/* The kind of a component in its own folder. A config without a class is a transformer's: all of
 * its keys have defaults. */
static const char *kind_of(const json_t *class) {
    if (json_is_null(class)) return "transformer";
    for (size_t i = 0; i < COUNT(COMPONENTS); i++)
        if (COMPONENTS[i].class && !strcmp(COMPONENTS[i].class, json_string_value(class)))
            return COMPONENTS[i].name;
    return "component";
}

json_t *inspect_component(const char *folder, Error *e) {
    const char *config = "config.json", *kind = NULL;
    for (size_t i = 0; i < COUNT(COMPONENTS); i++) {
        if (COMPONENTS[i].class || !inspect_has(folder, COMPONENTS[i].config)) continue;
        config = COMPONENTS[i].config;
        kind = COMPONENTS[i].name;
    }
    json_t *report = new_report(folder, "component");
    char *file = xprintf("%s/%s", folder, config);
    bool ok = add_class(report, file, e);
    free(file);
    if (!ok) return report_or_null(report, false);
    if (!kind) kind = kind_of(json_object_get(report, "class"));
    json_object_set_new(report, "kind", json_string(kind));
    return report_or_null(report, add_facts(report, folder, config, e));
}

/* ---- the model --------------------------------------------------------------------------------
 */

/* One component: listed is its line in model_index.json, NULL where there is none. */
static json_t *inspect_part(const char *folder, const char *name, const json_t *listed, Error *e) {
    char *path = xprintf("%s/%s", folder, name);
    const char *kind = "component", *config = "config.json";
    for (size_t i = 0; i < COUNT(COMPONENTS); i++) {
        if (strcmp(COMPONENTS[i].name, name)) continue;
        kind = name;
        config = COMPONENTS[i].config;
    }
    bool present = is_folder(path), ok = true;
    int digests = 0;
    json_t *report = new_report(path, kind);
    json_object_set_new(report, "name", json_string(name));
    json_object_set_new(report, "present", json_boolean(present));
    const char *class = json_string_value(json_array_get(listed, 1));
    if (class) json_object_set_new(report, "class", json_string(class));
    if (present) ok = inspect_digests(path, &digests, e) && add_facts(report, path, config, e);
    if (digests) json_object_set_new(report, "digests", json_integer(digests));
    free(path);
    return report_or_null(report, ok);
}

/* A component's name is a folder's: it must not lead elsewhere. */
static bool is_name(const char *name) {
    size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-");
    return n && n < 100 && !name[n];
}

static bool add_component(json_t *list, const char *folder, const char *name, const json_t *listed,
                          Error *e) {
    json_t *part = inspect_part(folder, name, listed, e);
    if (part) json_array_append_new(list, part);
    return part != NULL;
}

/* The five of a published model, then what else the index lists. */
static bool add_components(json_t *list, const char *folder, const Json *index, Error *e) {
    for (size_t i = 0; i < COUNT(COMPONENTS); i++) {
        const char *name = COMPONENTS[i].name;
        json_t *listed = index->root ? json_object_get(index->root, name) : NULL;
        char *path = xprintf("%s/%s", folder, name);
        bool wanted = is_folder(path) || json_is_string(json_array_get(listed, 1));
        free(path);
        if (wanted && !add_component(list, folder, name, listed, e)) return false;
    }
    const char *name;
    json_t *listed;
    json_object_foreach(index->root, name, listed) {
        bool known = false;
        for (size_t i = 0; i < COUNT(COMPONENTS); i++) known |= !strcmp(COMPONENTS[i].name, name);
        if (known || name[0] == '_' || !json_is_string(json_array_get(listed, 1))) continue;
        if (!is_name(name))
            return error_set(e, EXIT_USER,
                             "%.300s: \"%.120s\": expected a component's name such as transformer, "
                             "got one that could lead elsewhere. Fetch the model from its "
                             "publisher.",
                             index->path, name);
        if (!add_component(list, folder, name, listed, e)) return false;
    }
    return true;
}

json_t *inspect_model(const char *folder, Error *e) {
    Json index = {0};
    json_t *report = new_report(folder, "model"), *list = json_array();
    json_object_set_new(report, "components", list);
    char *file = xprintf("%s/model_index.json", folder);
    const char *class = NULL;
    bool ok = true;
    if (inspect_has(folder, "model_index.json"))
        ok = json_open(&index, file, e) && json_get_string(&index, "_class_name", &class, e);
    if (ok && class) json_object_set_new(report, "class", json_string(class));
    ok = ok && add_components(list, folder, &index, e);
    json_close(&index);
    free(file);
    return report_or_null(report, ok);
}
