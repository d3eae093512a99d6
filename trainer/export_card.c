/* Owns the model card: what the base model is called, its licence, and how an export is used. */
#define _XOPEN_SOURCE 700
#include "trainer/export.h"

#include "data/json.h"
#include "trainer/dit.h"

#include <ctype.h>
#include <jansson.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* The published models. */
static const struct {
    const char *variant; /* dit_variant */
    const char *name;
    bool open; /* Apache 2.0; else the CogVideoX licence */
} PUBLISHED[] = {
    {"CogVideoX-2b", "THUDM/CogVideoX-2b", true},
    {"CogVideoX-5b", "THUDM/CogVideoX-5b", false},
    {"CogVideoX-5b-I2V", "THUDM/CogVideoX-5b-I2V", false},
    {"CogVideoX1.5-5b", "THUDM/CogVideoX1.5-5B", false},
    {"CogVideoX1.5-5b-I2V", "THUDM/CogVideoX1.5-5B-I2V", false},
};

static const char LICENCE_NAME[] = "cogvideox-license";
static const char LICENCE_URL[] = "https://huggingface.co/THUDM/CogVideoX-5b/blob/main/LICENSE";

/* ---- the base model ---------------------------------------------------------------------------
 */

static const char *last_part(const char *name) {
    const char *slash = strrchr(name, '/');
    return slash ? slash + 1 : name;
}

/* The row of the table that a name, or a variant, means; -1: none. */
static int published(const char *name) {
    for (size_t i = 0; i < COUNT(PUBLISHED); i++)
        if (!strcasecmp(last_part(name), last_part(PUBLISHED[i].name))) return (int)i;
    return -1;
}

/* A value of the card's front matter, of its own memory: plain words alone. NULL: none. */
static char *front_matter(const char *folder, const char *key) {
    char *path = xprintf("%s/README.md", folder), *value = NULL, line[1024];
    FILE *f = fopen(path, "r");
    size_t n = strlen(key);
    free(path);
    if (!f) return NULL;
    bool inside = fgets(line, sizeof line, f) && !strncmp(line, "---", 3);
    while (inside && !value && fgets(line, sizeof line, f) && strncmp(line, "---", 3)) {
        if (strncmp(line, key, n) || line[n] != ':') continue;
        char *at = line + n + 1, *end = line + strlen(line);
        while (*at == ' ' || *at == '"' || *at == '\'') at++;
        while (end > at && (isspace((unsigned char)end[-1]) || end[-1] == '"' || end[-1] == '\''))
            *--end = 0;
        bool plain = *at;
        for (const char *c = at; *c; c++)
            plain &= isalnum((unsigned char)*c) || strchr("._:/-", *c) != NULL;
        if (plain) value = xstrdup(at);
    }
    fclose(f);
    return value;
}

/* "models--THUDM--CogVideoX-2b" in a path of the hub's cache means THUDM/CogVideoX-2b. */
static char *hub_name(const char *path) {
    const char *at = strstr(path, "models--");
    if (!at) return NULL;
    char *name = xstrdup(at + strlen("models--"));
    name[strcspn(name, "/")] = 0;
    char *dashes = strstr(name, "--");
    if (dashes) {
        dashes[0] = '/';
        memmove(dashes + 1, dashes + 2, strlen(dashes + 2) + 1);
    }
    return name;
}

/* A name from a path: that of the hub, or the folder's own ("transformer" and "model" are none). */
static char *name_of_path(const char *path) {
    char *real = realpath(path, NULL), *copy = real ? real : xstrdup(path);
    char *name = hub_name(copy);
    if (!name) {
        char *at = basename(copy);
        if (!strcmp(at, "transformer") || !strcmp(at, "model")) at = basename(dirname(copy));
        name = xstrdup(at);
    }
    free(copy);
    return name;
}

/* _name_or_path of a JSON file: a name ("org/name") as it is, of a path its folder. NULL: none. */
static char *name_in(const char *folder, const char *file) {
    char *path = xprintf("%s/%s", folder, file), *found = NULL;
    const char *name = NULL;
    Json j;
    Error e;
    if (json_open(&j, path, &e)) {
        if (json_get_string(&j, "_name_or_path", &name, &e) && name && *name) {
            const char *slash = strchr(name, '/');
            bool plain = slash && slash != name && *name != '.' && !strchr(slash + 1, '/');
            found = plain ? xstrdup(name) : name_of_path(name);
        }
        json_close(&j);
    }
    free(path);
    return found;
}

static int variant_of(const char *folder) {
    char *path = xprintf("%s/config.json", folder);
    DitConfig config;
    Error e;
    const char *variant = dit_config_read(&config, path, &e) ? dit_variant(&config) : "";
    free(path);
    for (size_t i = 0; i < COUNT(PUBLISHED); i++)
        if (!strcmp(PUBLISHED[i].variant, variant)) return (int)i;
    return -1;
}

BaseModel base_model(const ExportSource *s) {
    BaseModel b = {0};
    int row = s->transformer ? variant_of(s->transformer) : -1;
    if (row >= 0) b.variant = PUBLISHED[row].variant;
    if (s->transformer) b.name = name_in(s->transformer, "config.json");
    if (!b.name && s->model) b.name = name_in(s->model, "model_index.json");
    if (!b.name && s->model) b.name = name_of_path(s->model);
    int named = b.name ? published(b.name) : -1;
    if (named >= 0) {
        free(b.name);
        b.name = xstrdup(PUBLISHED[named].name);
        if (row < 0) row = named;
    }
    if (s->model) {
        b.licence = front_matter(s->model, "license");
        b.licence_name = front_matter(s->model, "license_name");
        b.licence_url = front_matter(s->model, "license_link");
    }
    if (b.licence || row < 0) return b;
    b.licence = xstrdup(PUBLISHED[row].open ? "apache-2.0" : "other");
    if (!PUBLISHED[row].open) b.licence_name = xstrdup(LICENCE_NAME);
    if (!PUBLISHED[row].open) b.licence_url = xstrdup(LICENCE_URL);
    return b;
}

void base_model_free(BaseModel *b) {
    free(b->name);
    free(b->licence);
    free(b->licence_name);
    free(b->licence_url);
    *b = (BaseModel){0};
}

/* ---- the text ---------------------------------------------------------------------------------
 */

/* A text as YAML and Python both read it. */
static void put_quoted(FILE *out, const char *text) {
    json_t *j = json_string(text);
    if (!j) j = json_string("not readable");
    json_dumpf(j, out, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
    json_decref(j);
}

/* Whether the name is one of the hub, "THUDM/CogVideoX-2b", and not just a folder's. */
static bool is_hub_name(const char *name) { return name && strchr(name, '/'); }

static void put_front_matter(FILE *out, const BaseModel *b, ExportChoice preset, bool adapter) {
    fprintf(out, "---\n");
    if (is_hub_name(b->name)) {
        fprintf(out, "base_model: ");
        put_quoted(out, b->name);
        fprintf(out, "\n");
    }
    fprintf(out, "license: %s\n", b->licence ? b->licence : "unknown");
    if (b->licence_name) fprintf(out, "license_name: %s\n", b->licence_name);
    if (b->licence_url) fprintf(out, "license_link: %s\n", b->licence_url);
    if (preset != EXPORT_COMFY && preset != EXPORT_KOHYA)
        fprintf(out, "library_name: %s\n", preset == EXPORT_PEFT ? "peft" : "diffusers");
    fprintf(out, "tags:\n- cogvideox\n- video\n%s---\n\n", adapter ? "- lora\n" : "");
}

static void put_strength(FILE *out, const AdapterLayer *layers, int n) {
    json_t *settings = adapter_settings_json(layers, n);
    char *targets = json_dumps(json_object_get(settings, "target_modules"), JSON_ENSURE_ASCII);
    double rank = json_number_value(json_object_get(settings, "r"));
    double alpha = json_number_value(json_object_get(settings, "lora_alpha"));
    fprintf(out, "A LoRA adapter of %d layers: rank %g, alpha %g (scale %g), targets `%s`.\n", n,
            rank, alpha, alpha / rank, targets);
    if (json_object_size(json_object_get(settings, "rank_pattern")) ||
        json_object_size(json_object_get(settings, "alpha_pattern")))
        fprintf(out, "Some layers have another rank or alpha, as the file says.\n");
    free(targets);
    json_decref(settings);
}

/* The type in which the model is published, and computes well. */
static const char *torch_type(const BaseModel *b) {
    const char *name = b->variant ? b->variant : b->name ? b->name : "";
    return strcasecmp(last_part(name), "CogVideoX-2b") ? "torch.bfloat16" : "torch.float16";
}

/* Code that loads the base model, and names the export as seen from the folder above it. */
static void put_pipeline(FILE *out, const BaseModel *b, const char *title, const char *imports) {
    fprintf(out, "```python\nimport torch\nfrom diffusers import DiffusionPipeline\n%s\n", imports);
    fprintf(out, "folder = ");
    put_quoted(out, title);
    fprintf(out, "  # this folder, or its repository\npipe = DiffusionPipeline.from_pretrained(");
    put_quoted(out, is_hub_name(b->name) ? b->name : "THE BASE MODEL'S FOLDER");
    fprintf(out, ", torch_dtype=%s)\n", torch_type(b));
}

static void put_use(FILE *out, const BaseModel *b, const char *title, ExportChoice preset,
                    bool adapter) {
    fprintf(out, "\n## Use\n\n");
    if (!adapter) {
        put_pipeline(out, b, title, "from diffusers import CogVideoXTransformer3DModel\n");
        fprintf(out,
                "pipe.transformer = CogVideoXTransformer3DModel.from_pretrained(folder, "
                "torch_dtype=%s)\n```\n",
                torch_type(b));
    } else if (preset == EXPORT_PEFT) {
        put_pipeline(out, b, title, "from peft import PeftModel\n");
        fprintf(out, "pipe.transformer = PeftModel.from_pretrained(pipe.transformer, folder)\n"
                     "```\n");
    } else if (preset == EXPORT_COMFY) {
        fprintf(out, "Put the `.safetensors` file into ComfyUI's `models/loras` and load it with "
                     "*Load LoRA* on its\nown CogVideoX model. Alpha is in the file: strength 1 is "
                     "the strength of training.\n");
    } else if (preset == EXPORT_KOHYA) {
        fprintf(out, "For CogVideoX-Fun, and programs that take its names. Alpha is in the file: "
                     "weight 1 is the\nstrength of training.\n");
    } else {
        put_pipeline(out, b, title, "");
        fprintf(out, "pipe.load_lora_weights(folder)\n```\n\n"
                     "Alpha is in the file (`lora_adapter_metadata`). A version of diffusers that "
                     "does not read it\nloads the adapter at scale 1: set the scale above with "
                     "`pipe.set_adapters`.\n");
    }
}

static void put_licence(FILE *out, const BaseModel *b) {
    fprintf(out, "\n## Licence\n\n");
    if (b->licence)
        fprintf(out, "That of the base model: %s%s%s%s.\n",
                b->licence_name ? b->licence_name : b->licence, b->licence_url ? " (" : "",
                b->licence_url ? b->licence_url : "", b->licence_url ? ")" : "");
    else
        fprintf(out, "That of the base model, which is not known here: fill it in before you "
                     "publish.\n");
}

char *export_card(const BaseModel *b, const char *title, ExportChoice preset,
                  const AdapterLayer *layers, int n) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    CHECK(out, "out of host memory");
    put_front_matter(out, b, preset, layers != NULL);
    fprintf(out, "# %s\n\n", title);
    fprintf(out, "Base model: %s", b->name ? b->name : "not known");
    if (b->variant && !strstr(b->name ? b->name : "", b->variant))
        fprintf(out, ", of the size of %s", b->variant);
    fprintf(out, ".\n");
    if (layers)
        put_strength(out, layers, n);
    else
        fprintf(out, "All weights of the transformer%s.\n",
                preset == EXPORT_MERGED ? ", the training merged into them" : ", fine-tuned");
    put_use(out, b, title, preset, layers != NULL);
    put_licence(out, b);
    fprintf(out, "\n%s %s.\n", EXPORT_MARK, COGSMITH_VERSION);
    CHECK(!fclose(out), "out of host memory");
    return text;
}
