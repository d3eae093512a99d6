/* Owns text_encoder/config.json and the relative positions' buckets. */
#include "data/json.h"
#include "data/t5.h"

#include <math.h>
#include <string.h>

static const T5Config DEFAULTS = {.vocabulary = 32128,
                                  .width = 512,
                                  .layers = 6,
                                  .heads = 8,
                                  .head_size = 64,
                                  .hidden = 2048,
                                  .buckets = 32,
                                  .max_distance = 128,
                                  .eps = 1e-6,
                                  .stored = DT_F32};

static bool read_sizes(T5Config *c, const Json *j, Error *e) {
    const struct {
        const char *key;
        int64_t *value, min, max;
    } sizes[] = {
        {"vocab_size", &c->vocabulary, 1, 1 << 24},
        {"d_model", &c->width, 8, 1 << 16},
        {"num_layers", &c->layers, 1, 1024},
        {"num_heads", &c->heads, 1, 1024},
        {"d_kv", &c->head_size, 1, 256},
        {"d_ff", &c->hidden, 8, 1 << 18},
        {"relative_attention_num_buckets", &c->buckets, 4, 1024},
        {"relative_attention_max_distance", &c->max_distance, 2, 1 << 16},
    };
    for (size_t i = 0; i < COUNT(sizes); i++) {
        if (!json_get_int(j, sizes[i].key, sizes[i].value, e)) return false;
        if (*sizes[i].value < sizes[i].min || *sizes[i].value > sizes[i].max)
            return error_set(e, EXIT_USER, "%.300s: \"%s\": expected %lld to %lld, got %lld",
                             j->path, sizes[i].key, (long long)sizes[i].min,
                             (long long)sizes[i].max, (long long)*sizes[i].value);
    }
    return true;
}

static bool check_sizes(const T5Config *c, const Json *j, Error *e) {
    if (c->width % 8 || c->hidden % 8 || c->heads * c->head_size % 8)
        return error_set(e, EXIT_USER,
                         "%.300s: expected d_model, d_ff and num_heads * d_kv to be multiples of "
                         "8, got %lld, %lld and %lld",
                         j->path, (long long)c->width, (long long)c->hidden,
                         (long long)(c->heads * c->head_size));
    if (c->buckets % 2 || c->max_distance <= c->buckets / 4)
        return error_set(e, EXIT_USER,
                         "%.300s: expected an even relative_attention_num_buckets and a "
                         "relative_attention_max_distance above a quarter of it, got %lld and %lld",
                         j->path, (long long)c->buckets, (long long)c->max_distance);
    if (!(c->eps > 0 && c->eps < 1))
        return error_set(e, EXIT_USER, "%.300s: \"layer_norm_epsilon\": expected 0 to 1, got %g",
                         j->path, c->eps);
    return true;
}

/* As T5Config does it: feed_forward_proj says both, unless the file says them one by one. */
static bool check_activation(const Json *j, Error *e) {
    const char *projection = "relu", *activation;
    if (!json_get_string(j, "feed_forward_proj", &projection, e)) return false;
    bool gated = !strncmp(projection, "gated-", 6);
    activation = !strcmp(projection, "gated-gelu") ? "gelu_new" : projection + (gated ? 6 : 0);
    if (!json_get_string(j, "dense_act_fn", &activation, e) ||
        !json_get_bool(j, "is_gated_act", &gated, e))
        return false;
    if (gated && !strcmp(activation, "gelu_new")) return true;
    return error_set(e, EXIT_USER,
                     "%.300s: expected the feed-forward of T5 v1.1, feed_forward_proj gated-gelu "
                     "(dense_act_fn gelu_new, is_gated_act true), got %s%.40s",
                     j->path, gated ? "gated " : "", activation);
}

static bool read_type(T5Config *c, const Json *j, Error *e) {
    static const struct {
        const char *name;
        DType type;
    } TYPES[] = {{"float32", DT_F32}, {"bfloat16", DT_BF16}, {"float16", DT_F16}};
    const char *key = json_has(j, "dtype") ? "dtype" : "torch_dtype", *name = "float32";
    if (!json_get_string(j, key, &name, e)) return false;
    for (size_t i = 0; i < COUNT(TYPES); i++) {
        if (strcmp(name, TYPES[i].name)) continue;
        c->stored = TYPES[i].type;
        return true;
    }
    return error_set(e, EXIT_USER,
                     "%.300s: \"%s\": expected float32, bfloat16 or float16, got %.40s", j->path,
                     key, name);
}

bool t5_config_read(T5Config *c, const char *path, Error *e) {
    Json j;
    const char *model = "another model";
    *c = DEFAULTS;
    if (!json_open(&j, path, e)) return false;
    bool ok = json_get_string(&j, "model_type", &model, e);
    if (ok && strcmp(model, "t5"))
        ok = error_set(e, EXIT_USER,
                       "%.300s: \"model_type\": expected t5, the text encoder of every CogVideoX, "
                       "got %.40s",
                       path, model);
    ok = ok && read_sizes(c, &j, e) && json_get_double(&j, "layer_norm_epsilon", &c->eps, e) &&
         check_sizes(c, &j, e) && check_activation(&j, e) && read_type(c, &j, e);
    json_close(&j);
    return ok;
}

int64_t t5_bucket(const T5Config *c, int64_t relative) {
    int64_t half = c->buckets / 2, exact = half / 2, base = relative > 0 ? half : 0;
    int64_t distance = relative < 0 ? -relative : relative;
    if (distance < exact) return base + distance;
    float ratio = logf((float)distance / (float)exact);
    float range = (float)log((double)c->max_distance / (double)exact);
    int64_t far = exact + (int64_t)(ratio / range * (float)(half - exact));
    return base + MIN(far, half - 1);
}
