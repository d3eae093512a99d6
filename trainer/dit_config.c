/* Owns the reading of transformer/config.json. */
#include "trainer/dit_config.h"

#include "data/json.h"
#include "data/nearest.h"

#include <jansson.h>
#include <string.h>

enum {
    MAX_ROWS = 1 << 28, /* far beyond any video; keeps every product of sizes in 64 bits */
    MAX_WIDTH = 8192,   /* what the CPU's kernels take of a row */
};

static const DitConfig DEFAULTS = {.heads = 30,
                                   .head_size = 64,
                                   .in_channels = 16,
                                   .out_channels = 16,
                                   .layers = 30,
                                   .patch = 2,
                                   .patch_t = 1,
                                   .time_dim = 512,
                                   .text_dim = 4096,
                                   .text_length = 226,
                                   .sample_frames = 49,
                                   .sample_height = 60,
                                   .sample_width = 90,
                                   .temporal_ratio = 4,
                                   .spatial_scale = 1.875,
                                   .temporal_scale = 1,
                                   .norm_eps = 1e-5,
                                   .flip_sin_to_cos = true,
                                   .attention_bias = true};

/* Every key of diffusers' class. */
static const char *const KEYS[] = {"num_attention_heads",
                                   "attention_head_dim",
                                   "in_channels",
                                   "out_channels",
                                   "flip_sin_to_cos",
                                   "freq_shift",
                                   "time_embed_dim",
                                   "ofs_embed_dim",
                                   "text_embed_dim",
                                   "num_layers",
                                   "dropout",
                                   "attention_bias",
                                   "sample_width",
                                   "sample_height",
                                   "sample_frames",
                                   "patch_size",
                                   "patch_size_t",
                                   "temporal_compression_ratio",
                                   "max_text_seq_length",
                                   "activation_fn",
                                   "timestep_activation_fn",
                                   "norm_elementwise_affine",
                                   "norm_eps",
                                   "spatial_interpolation_scale",
                                   "temporal_interpolation_scale",
                                   "use_rotary_positional_embeddings",
                                   "use_learned_positional_embeddings",
                                   "patch_bias"};

/* A key that is not read could describe another model. Those with an underscore are notes. */
static bool check_keys(const Json *j, Error *e) {
    const char *key;
    json_t *value;
    json_object_foreach(j->root, key, value) {
        bool known = key[0] == '_';
        for (size_t i = 0; i < COUNT(KEYS) && !known; i++) known = !strcmp(KEYS[i], key);
        if (known) continue;
        const char *near = nearest_name(key, KEYS, COUNT(KEYS));
        return error_set(
            e, EXIT_USER,
            "%.300s: \"%.80s\": no such key of a CogVideoX transformer%s%s%s. Mend the "
            "name, or remove the key if it changes nothing.",
            j->path, key, near ? "; the nearest is \"" : "", near ? near : "", near ? "\"" : "");
    }
    return true;
}

typedef struct {
    const char *key;
    int64_t *value;
    int64_t max;
} Count;

/* Whole numbers, all at least 1. */
static bool read_counts(DitConfig *c, const Json *j, Error *e) {
    const Count counts[] = {
        {"num_attention_heads", &c->heads, 1024},
        {"attention_head_dim", &c->head_size, 256},
        {"in_channels", &c->in_channels, 1024},
        {"out_channels", &c->out_channels, 1024},
        {"num_layers", &c->layers, 1024},
        {"patch_size", &c->patch, 16},
        {"patch_size_t", &c->patch_t, 16},
        {"time_embed_dim", &c->time_dim, 1 << 16},
        {"ofs_embed_dim", &c->ofs_dim, 1 << 16},
        {"text_embed_dim", &c->text_dim, 1 << 16},
        {"max_text_seq_length", &c->text_length, 1 << 16},
        {"sample_frames", &c->sample_frames, 1 << 16},
        {"sample_height", &c->sample_height, 1 << 16},
        {"sample_width", &c->sample_width, 1 << 16},
        {"temporal_compression_ratio", &c->temporal_ratio, 64},
    };
    for (size_t i = 0; i < COUNT(counts); i++) {
        if (!json_get_int(j, counts[i].key, counts[i].value, e)) return false;
        if (json_has(j, counts[i].key) &&
            (*counts[i].value < 1 || *counts[i].value > counts[i].max))
            return error_set(e, EXIT_USER,
                             "%.300s: \"%s\": expected a number from 1 to %lld, found %lld. Fetch "
                             "the file again.",
                             j->path, counts[i].key, (long long)counts[i].max,
                             (long long)*counts[i].value);
    }
    return true;
}

typedef struct {
    const char *key;
    double *value;
    double min, max;
} Number;

static bool read_numbers(DitConfig *c, const Json *j, Error *e) {
    const Number numbers[] = {
        {"spatial_interpolation_scale", &c->spatial_scale, 1e-3, 1e3},
        {"temporal_interpolation_scale", &c->temporal_scale, 1e-3, 1e3},
        {"norm_eps", &c->norm_eps, 1e-12, 1},
        {"freq_shift", &c->freq_shift, 0, 1},
    };
    for (size_t i = 0; i < COUNT(numbers); i++) {
        const Number *n = &numbers[i];
        if (!json_get_double(j, n->key, n->value, e)) return false;
        if (!(*n->value >= n->min && *n->value <= n->max))
            return error_set(e, EXIT_USER,
                             "%.300s: \"%s\": expected a number from %g to %g, found %g. Fetch the "
                             "file again.",
                             j->path, n->key, n->min, n->max, *n->value);
    }
    return true;
}

static bool read_flags(DitConfig *c, const Json *j, Error *e) {
    return json_get_bool(j, "use_rotary_positional_embeddings", &c->rotary, e) &&
           json_get_bool(j, "use_learned_positional_embeddings", &c->learned, e) &&
           json_get_bool(j, "flip_sin_to_cos", &c->flip_sin_to_cos, e) &&
           json_get_bool(j, "attention_bias", &c->attention_bias, e);
}

/* Switches that the published models leave alone; another value would need other code. */
static bool check_fixed(const Json *j, Error *e) {
    static const struct {
        const char *key, *value;
    } TEXTS[] = {{"_class_name", "CogVideoXTransformer3DModel"},
                 {"activation_fn", "gelu-approximate"},
                 {"timestep_activation_fn", "silu"}};
    for (size_t i = 0; i < COUNT(TEXTS); i++) {
        const char *found = TEXTS[i].value;
        if (!json_get_string(j, TEXTS[i].key, &found, e)) return false;
        if (strcmp(found, TEXTS[i].value))
            return error_set(
                e, EXIT_USER,
                "%.300s: \"%s\": expected \"%s\", found \"%.80s\". Is this a CogVideoX "
                "transformer?",
                j->path, TEXTS[i].key, TEXTS[i].value, found);
    }
    bool affine = true;
    double dropout = 0;
    if (!json_get_bool(j, "norm_elementwise_affine", &affine, e) ||
        !json_get_double(j, "dropout", &dropout, e))
        return false;
    if (!affine || dropout != 0)
        return error_set(e, EXIT_USER,
                         "%s: expected norm_elementwise_affine true and dropout 0, as in every "
                         "published CogVideoX transformer",
                         j->path);
    return true;
}

/* Rotary angles take quarters and eighths of a head, sincos positions sixteenths of the width. */
static bool check_width(const DitConfig *c, const char *path, Error *e) {
    int64_t width = c->heads * c->head_size, of_head = c->rotary ? 16 : 8;
    if (c->head_size % of_head)
        return error_set(e, EXIT_USER,
                         "%.300s: attention_head_dim: expected a multiple of %lld, found %lld",
                         path, (long long)of_head, (long long)c->head_size);
    if (width % 16 || width > MAX_WIDTH)
        return error_set(e, EXIT_USER,
                         "%.300s: num_attention_heads times attention_head_dim: expected a "
                         "multiple of 16 up to %d, found %lld",
                         path, MAX_WIDTH, (long long)width);
    return true;
}

static bool check_together(const DitConfig *c, const char *path, Error *e) {
    if (c->in_channels != c->out_channels && c->in_channels != 2 * c->out_channels)
        return error_set(e, EXIT_USER,
                         "%s: in_channels: expected %lld, or %lld for image to video, found %lld",
                         path, (long long)c->out_channels, (long long)(2 * c->out_channels),
                         (long long)c->in_channels);
    if (c->ofs_dim && c->ofs_dim != c->time_dim)
        return error_set(e, EXIT_USER,
                         "%s: ofs_embed_dim: expected time_embed_dim, %lld, found %lld", path,
                         (long long)c->time_dim, (long long)c->ofs_dim);
    if (!check_width(c, path, e)) return false;
    if (c->sample_height % c->patch || c->sample_width % c->patch)
        return error_set(e, EXIT_USER,
                         "%s: sample_height and sample_width: expected multiples of patch_size, "
                         "%lld",
                         path, (long long)c->patch);
    if (dit_video_rows(c, dit_native_frames(c), c->sample_height, c->sample_width) > MAX_ROWS)
        return error_set(e, EXIT_USER,
                         "%.300s: sample_frames, sample_height and sample_width: expected a native "
                         "size of at most %d rows. Fetch the file again.",
                         path, MAX_ROWS);
    if (c->learned && c->temporal_patch)
        return error_set(e, EXIT_USER,
                         "%s: learned positions with patch_size_t are not a model "
                         "that was published",
                         path);
    return true;
}

bool dit_config_read(DitConfig *c, const char *path, Error *e) {
    Json j;
    *c = DEFAULTS;
    if (!json_open(&j, path, e)) return false;
    c->temporal_patch = json_has(&j, "patch_size_t");
    bool ok = check_keys(&j, e) && check_fixed(&j, e) && read_counts(c, &j, e) &&
              read_numbers(c, &j, e) && read_flags(c, &j, e) && check_together(c, path, e);
    if (ok) c->width = c->heads * c->head_size;
    json_close(&j);
    return ok;
}

int64_t dit_native_frames(const DitConfig *c) {
    int64_t f = (c->sample_frames - 1) / c->temporal_ratio + 1;
    return align_up(f, c->patch_t);
}

int64_t dit_video_rows(const DitConfig *c, int64_t f, int64_t h, int64_t w) {
    return f / c->patch_t * (h / c->patch) * (w / c->patch);
}

const char *dit_variant(const DitConfig *c) {
    bool image = c->in_channels != c->out_channels;
    if (c->width == 1920 && c->layers == 30 && !image) return "CogVideoX-2b";
    if (c->width != 3072 || c->layers != 42) return "CogVideoX of another size";
    if (c->temporal_patch) return image ? "CogVideoX1.5-5b-I2V" : "CogVideoX1.5-5b";
    return image ? "CogVideoX-5b-I2V" : "CogVideoX-5b";
}
