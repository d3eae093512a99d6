/* Owns the reading of vae/config.json. */
#include "data/vae_config.h"

#include "data/json.h"
#include "data/nearest.h"

#include <string.h>

const VaeModel VAE_PUBLISHED = {.channels = {128, 256, 256, 512},
                                .layers = 3,
                                .latent = 16,
                                .groups = 32,
                                .norm_eps = 1e-6,
                                .sample_height = 480,
                                .sample_width = 720,
                                .scaling_factor = 1.15258426};

/* Every key of diffusers' class. */
static const char *const KEYS[] = {"in_channels",
                                   "out_channels",
                                   "down_block_types",
                                   "up_block_types",
                                   "block_out_channels",
                                   "latent_channels",
                                   "layers_per_block",
                                   "act_fn",
                                   "norm_eps",
                                   "norm_num_groups",
                                   "temporal_compression_ratio",
                                   "sample_height",
                                   "sample_width",
                                   "scaling_factor",
                                   "shift_factor",
                                   "latents_mean",
                                   "latents_std",
                                   "force_upcast",
                                   "use_quant_conv",
                                   "use_post_quant_conv",
                                   "invert_scale_latents"};

/* A key that is not read could describe another model. Those with an underscore are notes. */
static bool check_key(void *context, const Json *j, const char *key, Error *e) {
    (void)context;
    for (size_t i = 0; i < COUNT(KEYS); i++)
        if (key[0] == '_' || !strcmp(KEYS[i], key)) return true;
    const char *near = nearest_name(key, KEYS, COUNT(KEYS));
    return error_set(e, EXIT_USER,
                     "%.300s: \"%.80s\": no such key of a CogVideoX autoencoder%s%s%s. Mend the "
                     "name, or remove the key if it changes nothing.",
                     j->path, key, near ? "; the nearest is \"" : "", near ? near : "",
                     near ? "\"" : "");
}

static bool read_sizes(VaeModel *m, const Json *j, Error *e) {
    int64_t colors_in = VAE_COLORS, colors_out = VAE_COLORS, ratio = VAE_TIME;
    const struct {
        const char *key;
        int64_t *value, min, max;
    } sizes[] = {
        {"in_channels", &colors_in, VAE_COLORS, VAE_COLORS},
        {"out_channels", &colors_out, VAE_COLORS, VAE_COLORS},
        {"temporal_compression_ratio", &ratio, VAE_TIME, VAE_TIME},
        {"layers_per_block", &m->layers, 1, 64},
        {"latent_channels", &m->latent, 1, 1024},
        {"norm_num_groups", &m->groups, 1, 1024},
        {"sample_height", &m->sample_height, 2, 1 << 16},
        {"sample_width", &m->sample_width, 2, 1 << 16},
    };
    for (size_t i = 0; i < COUNT(sizes); i++) {
        if (!json_get_int(j, sizes[i].key, sizes[i].value, e)) return false;
        if (*sizes[i].value >= sizes[i].min && *sizes[i].value <= sizes[i].max) continue;
        if (sizes[i].min == sizes[i].max)
            return error_set(
                e, EXIT_USER, "%.300s: \"%s\": expected %lld, as in every CogVideoX, found %lld",
                j->path, sizes[i].key, (long long)sizes[i].min, (long long)*sizes[i].value);
        return error_set(e, EXIT_USER, "%.300s: \"%s\": expected %lld to %lld, found %lld", j->path,
                         sizes[i].key, (long long)sizes[i].min, (long long)sizes[i].max,
                         (long long)*sizes[i].value);
    }
    return true;
}

static bool read_channels(VaeModel *m, const Json *j, Error *e) {
    size_t n = VAE_LEVELS;
    if (!json_get_ints(j, "block_out_channels", m->channels, VAE_LEVELS, &n, e)) return false;
    if (n != VAE_LEVELS)
        return error_set(e, EXIT_USER,
                         "%.300s: \"block_out_channels\": expected %d numbers, found %zu", j->path,
                         VAE_LEVELS, n);
    for (int i = 0; i < VAE_LEVELS; i++)
        if (m->channels[i] < 1 || m->channels[i] > 1 << 14 || m->channels[i] % m->groups)
            return error_set(e, EXIT_USER,
                             "%.300s: \"block_out_channels\": expected multiples of "
                             "norm_num_groups, %lld, found %lld",
                             j->path, (long long)m->groups, (long long)m->channels[i]);
    return true;
}

static bool read_numbers(VaeModel *m, const Json *j, Error *e) {
    if (!json_get_double(j, "norm_eps", &m->norm_eps, e) ||
        !json_get_double(j, "scaling_factor", &m->scaling_factor, e) ||
        !json_get_bool(j, "invert_scale_latents", &m->invert_scale_latents, e))
        return false;
    if (!(m->norm_eps > 0 && m->norm_eps < 1))
        return error_set(e, EXIT_USER, "%.300s: \"norm_eps\": expected 0 to 1, found %g", j->path,
                         m->norm_eps);
    if (!(m->scaling_factor >= 1e-6 && m->scaling_factor <= 1e6))
        return error_set(e, EXIT_USER, "%.300s: \"scaling_factor\": expected 1e-6 to 1e6, found %g",
                         j->path, m->scaling_factor);
    return true;
}

static bool expect_text(const Json *j, const char *key, const char *found, const char *want,
                        Error *e) {
    if (!strcmp(found, want)) return true;
    return error_set(e, EXIT_USER,
                     "%.300s: \"%s\": expected \"%s\", found \"%.80s\". Is this the autoencoder of "
                     "a CogVideoX model?",
                     j->path, key, want, found);
}

static bool check_blocks(const Json *j, const char *key, const char *type, Error *e) {
    const char *found[VAE_LEVELS] = {type, type, type, type};
    size_t n = VAE_LEVELS;
    if (!json_get_strings(j, key, found, VAE_LEVELS, &n, e)) return false;
    for (size_t i = 0; i < n; i++)
        if (!expect_text(j, key, found[i], type, e)) return false;
    if (n == VAE_LEVELS) return true;
    return error_set(e, EXIT_USER, "%.300s: \"%s\": expected %d blocks, found %zu", j->path, key,
                     VAE_LEVELS, n);
}

/* Switches that the published models leave alone; another value would need other code. */
static bool check_fixed(const Json *j, Error *e) {
    static const char CLASS[] = "AutoencoderKLCogVideoX", SILU[] = "silu";
    const char *type = CLASS, *activation = SILU;
    if (!json_get_string(j, "_class_name", &type, e) ||
        !expect_text(j, "_class_name", type, CLASS, e) ||
        !json_get_string(j, "act_fn", &activation, e) ||
        !expect_text(j, "act_fn", activation, SILU, e) ||
        !check_blocks(j, "down_block_types", "CogVideoXDownBlock3D", e) ||
        !check_blocks(j, "up_block_types", "CogVideoXUpBlock3D", e))
        return false;
    bool before = false, after = false;
    if (!json_get_bool(j, "use_quant_conv", &before, e) ||
        !json_get_bool(j, "use_post_quant_conv", &after, e))
        return false;
    if (before || after)
        return error_set(e, EXIT_USER,
                         "%.300s: expected use_quant_conv and use_post_quant_conv false, as in "
                         "every published CogVideoX autoencoder",
                         j->path);
    static const char *const ABSENT[] = {"shift_factor", "latents_mean", "latents_std"};
    for (size_t i = 0; i < COUNT(ABSENT); i++)
        if (json_has(j, ABSENT[i]))
            return error_set(e, EXIT_USER,
                             "%.300s: \"%s\": expected null, as in every published CogVideoX "
                             "autoencoder",
                             j->path, ABSENT[i]);
    return true;
}

bool vae_model_read(VaeModel *m, const char *path, Error *e) {
    Json j;
    *m = VAE_PUBLISHED;
    if (!json_open(&j, path, e)) return false;
    bool ok = json_each_key(&j, check_key, NULL, e) && check_fixed(&j, e) && read_sizes(m, &j, e) &&
              read_channels(m, &j, e) && read_numbers(m, &j, e);
    json_close(&j);
    return ok;
}
