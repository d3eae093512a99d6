/* Owns finding what is to be exported, and the model that it was made for. */
#define _XOPEN_SOURCE 700
#include "trainer/export.h"

#include "trainer/model.h"

#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { LEVELS = 5 }; /* folders above a source in which its run's config.yaml is looked for */

static bool has(const char *folder, const char *name) {
    char *path = xprintf("%s/%s", folder, name);
    struct stat info;
    bool there = !stat(path, &info);
    free(path);
    return there;
}

static bool is_adapter(const char *folder) {
    return has(folder, "pytorch_lora_weights.safetensors") ||
           has(folder, "adapter_model.safetensors");
}

/* folder/name */
static char *inside(const char *folder, const char *name) { return xprintf("%s/%s", folder, name); }

/* What a run's `latest` names, a link or a text: a checkpoint folder, or NULL. */
static char *latest_of(const char *folder) {
    char *path = inside(folder, "latest"), name[256] = "";
    struct stat info;
    if (stat(path, &info) || S_ISDIR(info.st_mode)) {
        if (has(folder, "latest")) return path;
        free(path);
        return NULL;
    }
    FILE *f = fopen(path, "r");
    free(path);
    if (!f) return NULL;
    bool named = fgets(name, sizeof name, f) != NULL;
    fclose(f);
    name[strcspn(name, "\r\n")] = 0;
    if (!named || !*name || strstr(name, "..")) return NULL;
    if (has(folder, name)) return inside(folder, name);
    char *below = xprintf("checkpoints/%s", name);
    char *found = has(folder, below) ? inside(folder, below) : NULL;
    free(below);
    return found;
}

/* Looks at a path itself, and at the folders of a checkpoint or a finished run. */
static bool look(ExportSource *s, const char *path) {
    struct stat info;
    if (stat(path, &info)) return false;
    char *adapter = inside(path, "adapter"), *transformer = inside(path, "transformer");
    if (!S_ISDIR(info.st_mode) || is_adapter(path))
        s->adapter = xstrdup(path);
    else if (is_adapter(adapter))
        s->adapter = xstrdup(adapter);
    else if (has(transformer, "config.json"))
        s->transformer = xstrdup(transformer);
    else if (has(path, "config.json"))
        s->transformer = xstrdup(path);
    free(adapter);
    free(transformer);
    return s->adapter || s->transformer;
}

static void find(ExportSource *s, const Config *c, const char *key, const char *path) {
    struct stat info;
    if (stat(path, &info)) config_die(c, key, "%.300s: no such file or folder", path);
    if (look(s, path)) return;
    char *latest = latest_of(path);
    bool found = latest && look(s, latest);
    free(latest);
    if (!found)
        config_die(c, key,
                   "%.300s: expected an adapter (pytorch_lora_weights.safetensors or "
                   "adapter_model.safetensors), a transformer's folder (config.json), a checkpoint "
                   "or a run folder",
                   path);
}

/* model.path of the config.yaml of the run around a path; NULL: none. */
static char *model_of_run(const char *path) {
    char *at = realpath(path, NULL), *model = NULL;
    for (int i = 0; at && i < LEVELS && strcmp(at, "/") && !model; i++) {
        char *config_file = inside(at, "config.yaml");
        Config *run = config_new();
        Error e;
        if (has(at, "config.yaml") && config_read_file(run, config_file, &e) && run->model.path)
            model = xstrdup(run->model.path);
        config_free(run);
        free(config_file);
        dirname(at);
    }
    free(at);
    return model;
}

ExportSource export_source(const Config *c) {
    ExportSource s = {0};
    bool adapter = c->export.adapter;
    const char *key = adapter ? "export.adapter" : "export.checkpoint";
    const char *path = adapter ? c->export.adapter : c->export.checkpoint;
    if (!path)
        config_die(c, "export.adapter",
                   "not set, and `export` needs it, or export.checkpoint; give one as "
                   "export.adapter=...");
    if (c->export.adapter && c->export.checkpoint)
        config_die(c, "export.checkpoint", "expected export.adapter or this one, not both");
    find(&s, c, key, path);
    if (adapter && !s.adapter)
        config_die(c, key,
                   "%.300s: expected an adapter, and this is a full model: give it as "
                   "export.checkpoint",
                   path);
    s.model = c->model.path ? xstrdup(c->model.path) : model_of_run(path);
    Error e;
    if (s.adapter && s.model && !transformer_folder(s.model, &s.transformer, &e) && c->model.path)
        config_die(c, "model.path", "%s", e.text);
    return s;
}

void export_source_free(ExportSource *s) {
    free(s->adapter);
    free(s->transformer);
    free(s->model);
    *s = (ExportSource){0};
}
