/* `inspect`: the published models as sparse folders, every verdict on hostile headers, and each
 * kind of thing that it can be shown. */
#define _GNU_SOURCE
#include "kernels/base.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/data/folder.h"
#include "tests/data/verdicts.h"
#include "tests/trainer/program.h"

static json_int_t whole(const json_t *j, const char *key) {
    const json_t *value = json_object_get(j, key);
    if (!json_is_integer(value)) fail_msg("%s is not a whole number", key);
    return json_integer_value(value);
}

static const char *text(const json_t *j, const char *key) {
    const char *value = json_string_value(json_object_get(j, key));
    if (!value) fail_msg("%s is not a text", key);
    return value ? value : ""; /* the compiler does not know that fail_msg ends the test */
}

/* The reports of `inspect --json` on one path; ends the test where it fails. */
static json_t *inspect_json(const char *path) {
    const Run *r = RUN("inspect", "--json", path);
    if (r->code) fail_msg("%s: %d: %s", path, r->code, r->err);
    assert_string_equal(r->err, "");
    json_t *list = json_loads(r->out, JSON_REJECT_DUPLICATES, NULL);
    assert_int_equal(json_array_size(list), 1);
    json_t *report = json_incref(json_array_get(list, 0));
    json_decref(list);
    assert_string_equal(text(report, "path"), path);
    return report;
}

/* ---- the published models ---------------------------------------------------------------------
 */

static const struct Published {
    const char *name, *variant, *dtype, *positions, *task;
    json_int_t parameters, tensors, rows;
    int shards;
} PUBLISHED[] = {
    {"2b", "CogVideoX-2b", "F16", "sincos", "text to video", 1693783872, 736, 17776, 1},
    {"5b", "CogVideoX-5b", "BF16", "rotary", "text to video", 5570283072, 1024, 17776, 2},
    {"5b-i2v", "CogVideoX-5b-I2V", "BF16", "rotary and learned", "image to video", 5625087552, 1025,
     17776, 2},
    {"1.5-5b", "CogVideoX1.5-5b", "BF16", "rotary", "text to video", 5570676352, 1024, 45106, 3},
    {"1.5-5b-i2v", "CogVideoX1.5-5b-I2V", "BF16", "rotary", "image to video", 5571594880, 1028,
     45106, 3},
};

/* A safetensors file with holes in place of its tensors' data. */
static void write_sparse(const char *path, const json_t *header, json_int_t data_bytes) {
    char *json = json_dumps(header, JSON_COMPACT);
    uint64_t n = (uint64_t)align_up((int64_t)strlen(json), 8);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fwrite(&n, 8, 1, f);
    fprintf(f, "%-*s", (int)n, json);
    assert_int_equal(fflush(f), 0);
    assert_int_equal(ftruncate(fileno(f), 8 + (off_t)n + data_bytes), 0);
    fclose(f);
    free(json);
}

/* A model's weights on their way into shards of max_bytes each. */
typedef struct {
    const struct Published *p;
    json_int_t max_bytes, at, total;
    json_t *header, *map;
    int shard;
} Sparse;

static char *shard_name(const Sparse *s) {
    if (s->p->shards == 1) return xstrdup("diffusion_pytorch_model.safetensors");
    return xprintf("diffusion_pytorch_model-%05d-of-%05d.safetensors", s->shard + 1, s->p->shards);
}

static void end_shard(Sparse *s) {
    char *name = shard_name(s), *path = xprintf("%s/transformer/%s", folder, name);
    write_sparse(path, s->header, s->at);
    s->total += s->at;
    s->at = 0;
    s->shard++;
    json_object_clear(s->header);
    free(path);
    free(name);
}

static void add_sparse(Sparse *s, const char *name, const json_t *shape) {
    json_int_t bytes = 2;
    json_t *size;
    size_t i;
    json_array_foreach(shape, i, size) bytes *= json_integer_value(size);
    if (s->at + bytes > s->max_bytes) end_shard(s);
    json_t *entry = json_pack("{s:s, s:O, s:[II]}", "dtype", s->p->dtype, "shape", shape,
                              "data_offsets", s->at, s->at + bytes);
    json_object_set_new(s->header, name, entry);
    char *shard = shard_name(s);
    json_object_set_new(s->map, name, json_string(shard));
    free(shard);
    s->at += bytes;
}

/* The list's tensors in the order of the published file: `{i}` stands for each block in turn. */
static void add_all_sparse(Sparse *s, json_t *shapes, json_int_t layers) {
    const char *name;
    json_t *shape;
    bool blocks_done = false;
    json_object_foreach(shapes, name, shape) {
        if (!strstr(name, "{i}")) {
            add_sparse(s, name, shape);
            continue;
        }
        for (json_int_t i = 0; i < layers && !blocks_done; i++) {
            const char *inner;
            json_t *inner_shape;
            json_object_foreach(shapes, inner, inner_shape) {
                const char *mark = strstr(inner, "{i}");
                if (!mark) continue;
                char *full =
                    xprintf("%.*s%lld%s", (int)(mark - inner), inner, (long long)i, mark + 3);
                add_sparse(s, full, inner_shape);
                free(full);
            }
        }
        blocks_done = true;
    }
}

static void make_published(const struct Published *p) {
    json_t *all = read_json("tests/golden/published/full_size_tensors.json");
    json_t *model = json_object_get(all, p->name);
    char *config = xprintf("tests/golden/published/%s/transformer/config.json", p->name);
    assert_int_equal(mkdir(in_folder("transformer"), 0700), 0);
    copy_files(config, in_folder("transformer/config.json"));
    json_int_t part = whole(model, "parameters") * 2 / p->shards;
    Sparse s = {
        .p = p, .max_bytes = part + (64 << 20), .header = json_object(), .map = json_object()};
    add_all_sparse(&s, json_object_get(model, "transformer"), whole(model, "layers"));
    end_shard(&s);
    assert_int_equal(s.shard, p->shards);
    if (p->shards > 1) {
        json_t *index =
            json_pack("{s:{s:I}, s:O}", "metadata", "total_size", s.total, "weight_map", s.map);
        write_json(in_folder("transformer/diffusion_pytorch_model.safetensors.index.json"), index);
        json_decref(index);
    }
    json_decref(s.header);
    json_decref(s.map);
    json_decref(all);
    free(config);
}

/* Only headers were read: at once, and with little memory. */
static void assert_instant(const Run *r) {
    if (r->seconds > 5 || r->peak_kib > 200 * 1024)
        fail_msg("%.1f s and %ld KiB for the headers alone", r->seconds, r->peak_kib);
}

static void check_published(const struct Published *p) {
    const Run *r = RUN("inspect", folder);
    if (r->code) fail_msg("%s: %s", p->name, r->err);
    assert_instant(r);
    char *counts = xprintf("%lld tensors, %lld parameters, %s", (long long)p->tensors,
                           (long long)p->parameters, p->dtype);
    assert_parts(r->out, (const char *const[]){counts, p->variant, p->task, p->positions, NULL});
    free(counts);
    json_t *report = inspect_json(folder);
    assert_string_equal(text(report, "kind"), "model");
    json_t *t = json_array_get(json_object_get(report, "components"), 0);
    assert_string_equal(text(t, "name"), "transformer");
    assert_string_equal(text(t, "variant"), p->variant);
    assert_true(whole(t, "parameters") == p->parameters && whole(t, "tensors") == p->tensors);
    assert_true(whole(t, "bytes") == 2 * p->parameters);
    assert_true(whole(json_object_get(t, "dtypes"), p->dtype) == p->tensors);
    assert_true(whole(json_object_get(t, "sizes"), "native_rows") == p->rows);
    assert_int_equal(json_array_size(json_object_get(t, "shards")), p->shards);
    json_decref(report);
    report = inspect_json(in_folder("transformer"));
    assert_string_equal(text(report, "kind"), "transformer");
    assert_true(whole(report, "parameters") == p->parameters);
    json_decref(report);
}

static void each_published(void (*check)(const struct Published *)) {
    for (size_t i = 0; i < COUNT(PUBLISHED); i++) {
        make_published(&PUBLISHED[i]);
        check(&PUBLISHED[i]);
        scratch_remove(folder);
        folder = scratch_make();
    }
}

static void test_published_sizes(void **state) {
    (void)state;
    each_published(check_published);
}

static void check_plan(const struct Published *p) {
    char *model = xprintf("model.path=%s", folder);
    const Run *r = RUN("plan", model, "plan.device=h200", "--json");
    if (r->code) fail_msg("%s: plan: %d: %s", p->name, r->code, r->err);
    json_t *report = json_loads(r->out, 0, NULL);
    assert_true(whole(report, "peak_device_bytes") > 2 * p->parameters);
    json_decref(report);
    free(model);
}

static void test_published_plans(void **state) {
    (void)state;
    each_published(check_plan);
}

/* ---- hostile headers --------------------------------------------------------------------------
 */

static bool verdict_differs(const char *name, const uint8_t *bytes, size_t n, bool accept) {
    const char *path = in_folder("case.safetensors");
    scratch_write(path, bytes, n);
    const Run *r = RUN("inspect", path);
    bool differs = r->code != (accept ? 0 : EXIT_USER);
    if (differs) print_message("%s: got %d: %s\n", name, r->code, r->err);
    if (accept)
        assert_string_equal(r->err, "");
    else
        REFUSED(r, r->code, path, ". ");
    return differs;
}

/* Files of one verdict that a single run is to give. */
enum { BATCH = 24 };
typedef struct {
    const char *args[BATCH + 2];
    int n;
} Batch;

/* Every file is accepted, or every one refused by a line of its own. */
static void expect_batch(Batch *b, bool accept) {
    if (!b->n) return;
    b->args[0] = "inspect";
    b->args[b->n + 1] = NULL;
    const Run *r = run_args(b->args);
    assert_int_equal(r->code, accept ? 0 : EXIT_USER);
    if (accept) assert_string_equal(r->err, "");
    const char *line = accept ? r->out : r->err;
    if (!accept) assert_string_equal(r->out, "");
    for (int i = 1; i <= b->n; i++) {
        char *begin = xprintf("%s%s: ", accept ? "" : "cogsmith: ", b->args[i]);
        const char *at = strstr(line, begin);
        if (!at || (!accept && at != line)) fail_msg("no word of its own on %s", begin);
        if (!accept) line = strchr(line, '\n') + 1;
        free(begin);
        free((char *)b->args[i]);
    }
    if (!accept) assert_string_equal(line, "");
    b->n = 0;
}

static Batch batches[2]; /* of files that are refused, and accepted */

/* Each by a run of its own, but for mutants: these are many to a run without $COGSMITH_FULL. */
static bool verdict_at_once(const char *name, const uint8_t *bytes, size_t n, bool accept) {
    Batch *b = &batches[accept];
    if (getenv("COGSMITH_FULL") || strncmp(name, "mutant", strlen("mutant")))
        return verdict_differs(name, bytes, n, accept);
    char *path = xprintf("%s/%s", folder, name);
    scratch_write(path, bytes, n);
    b->args[++b->n] = path;
    if (b->n == BATCH) expect_batch(b, accept);
    return false;
}

static void test_header_verdicts(void **state) {
    (void)state;
    expect_verdicts(verdict_at_once);
    for (int accept = 0; accept < 2; accept++) expect_batch(&batches[accept], accept);
}

/* ---- models -----------------------------------------------------------------------------------
 */

static void test_tiny_models(void **state) {
    (void)state;
    static const struct {
        const char *path;
        json_int_t parameters;
        size_t shards;
    } MODELS[] = {
        {"tests/golden/dit/2b/transformer", 140768, 1},
        {"tests/golden/dit/2b/transformer_sharded", 140768, 3},
        {"tests/golden/dit/5b/transformer", 477280, 1},
        {"tests/golden/dit/1.5-5b-i2v/transformer", 510656, 1},
    };
    for (size_t i = 0; i < COUNT(MODELS); i++) {
        json_t *r = inspect_json(MODELS[i].path);
        assert_string_equal(text(r, "kind"), "transformer");
        assert_true(whole(r, "parameters") == MODELS[i].parameters);
        assert_int_equal(json_array_size(json_object_get(r, "shards")), MODELS[i].shards);
        json_decref(r);
    }
}

/* A vae of one tensor. */
static void make_vae(const char *path) {
    char *config = xprintf("%s/config.json", path);
    char *weights = xprintf("%s/diffusion_pytorch_model.safetensors", path);
    mkdir(path, 0700);
    write_text(config, "{\"_class_name\": \"AutoencoderKLCogVideoX\"}");
    float values[6] = {0};
    SafetensorsItem item = {"w", DT_F32, 2, {2, 3}, values};
    SafetensorsFile file = {.items = &item, .n_items = 1, .digest = true};
    Error e = {0};
    if (!safetensors_write(weights, &file, &e)) fail_msg("%s", e.text);
    free(config);
    free(weights);
}

static void make_model(void) {
    copy_files("tests/golden/dit/5b/transformer", in_folder("transformer"));
    copy_files("tests/golden/dit/5b/scheduler", in_folder("scheduler"));
    make_vae(in_folder("vae"));
    mkdir(in_folder("tokenizer"), 0700);
    write_text(in_folder("tokenizer/tokenizer_config.json"),
               "{\"tokenizer_class\": \"T5Tokenizer\"}");
    write_text(in_folder("tokenizer/spiece.model"), "pieces");
    write_text(in_folder("model_index.json"),
               "{\"_class_name\": \"CogVideoXPipeline\", \"transformer\": [\"diffusers\", "
               "\"CogVideoXTransformer3DModel\"], \"text_encoder\": [\"transformers\", "
               "\"T5EncoderModel\"], \"extra\": [null, null]}");
}

static void test_model_folder(void **state) {
    (void)state;
    make_model();
    json_t *r = inspect_json(folder), *list = json_object_get(r, "components"), *part;
    static const char *const NAMES[] = {"transformer", "vae", "text_encoder", "tokenizer",
                                        "scheduler"};
    assert_string_equal(text(r, "class"), "CogVideoXPipeline");
    assert_int_equal(json_array_size(list), COUNT(NAMES));
    size_t i;
    json_array_foreach(list, i, part) {
        assert_string_equal(text(part, "name"), NAMES[i]);
        assert_string_equal(text(part, "kind"), NAMES[i]);
        assert_int_equal(json_is_true(json_object_get(part, "present")), i != 2);
    }
    json_t *shards = json_object_get(json_array_get(list, 1), "shards");
    assert_string_equal(text(json_array_get(shards, 0), "digest"), "verified");
    assert_true(whole(json_array_get(list, 3), "vocabulary_bytes") == 6);
    assert_true(json_real_value(json_object_get(json_array_get(list, 4), "snr_shift_scale")) == 1);
    json_decref(r);
    const Run *run =
        RUN("inspect", folder, in_folder("vae"), in_folder("tokenizer"), in_folder("scheduler"));
    assert_int_equal(run->code, 0);
    assert_parts(run->out,
                 (const char *const[]){": model folder, CogVideoXPipeline\n", "477280 parameters",
                                       "text_encoder  T5EncoderModel: not there\n",
                                       "1 tensors, 6 parameters, F32, 24 bytes in 1 file, digest "
                                       "verified\n",
                                       "T5Tokenizer, spiece.model of 6 bytes\n",
                                       "zero terminal SNR\n", "/vae: vae\n", NULL});
}

/* A component that is wrong makes the whole model wrong, and nothing is printed of it. */
static void test_broken_model(void **state) {
    (void)state;
    make_model();
    write_text(in_folder("scheduler/scheduler_config.json"),
               "{\"_class_name\": \"CogVideoXDDIMScheduler\", \"prediction_type\": \"epsilon\"}");
    REFUSED(RUN("inspect", folder), EXIT_USER, in_folder("scheduler"), "prediction_type",
            "expected", "v_prediction");
    write_text(in_folder("model_index.json"), "{\"../etc\": [\"diffusers\", \"X\"]}");
    copy_files("tests/golden/dit/5b/scheduler/scheduler_config.json", in_folder("scheduler"));
    REFUSED(RUN("inspect", folder), EXIT_USER, "model_index.json", "\"../etc\"", "lead elsewhere");
    write_text(in_folder("model_index.json"), "{\"vae\": 1, \"vae\": 2}");
    REFUSED(RUN("inspect", folder), EXIT_USER, "model_index.json:1:", "duplicate");
    write_text(in_folder("model_index.json"), "{\"_class_name\": 7}");
    REFUSED(RUN("inspect", folder), EXIT_USER, "model_index.json", "_class_name",
            "expected a text");
}

/* ---- adapters ---------------------------------------------------------------------------------
 */

/* Rank 2, 3 -> 4 values: B A has the norm that is computed here value by value. */
static const float A[6] = {1, -2, 3, 0.5f, 4, -1}, B[8] = {2, 1, -1, 0, 3, -2, 0.25f, 1};

static double product_norm(void) {
    double sum = 0;
    for (int o = 0; o < 4; o++)
        for (int k = 0; k < 3; k++) {
            double v = (double)B[2 * o] * A[k] + (double)B[2 * o + 1] * A[3 + k];
            sum += v * v;
        }
    return sqrt(sum);
}

static void write_adapter(const char *path, const char *prefix, const SafetensorsMetadata *m) {
    static const char *const MODULES[] = {"transformer_blocks.0.attn1.to_q",
                                          "transformer_blocks.1"
                                          ".attn1.to_q",
                                          "proj_out"};
    SafetensorsItem items[2 * COUNT(MODULES)];
    for (size_t i = 0; i < COUNT(items); i++)
        items[i] = (SafetensorsItem){
            .name = xprintf("%s%s.lora_%c.weight", prefix, MODULES[i / 2], "AB"[i % 2]),
            .dtype = DT_F32,
            .n_dims = 2,
            .shape = {i % 2 ? 4 : 2, i % 2 ? 2 : 3},
            .data = i % 2 ? B : A};
    SafetensorsFile file = {.items = items,
                            .n_items = COUNT(items),
                            .metadata = m,
                            .n_metadata = m != NULL,
                            .digest = true};
    Error e = {0};
    if (!safetensors_write(path, &file, &e)) fail_msg("%s", e.text);
    for (size_t i = 0; i < COUNT(items); i++) free((char *)items[i].name);
}

static void check_layer(const json_t *layer, const char *module, double alpha) {
    assert_string_equal(text(layer, "module"), module);
    assert_string_equal(text(layer, "dtype"), "F32");
    assert_true(whole(layer, "rank") == 2);
    assert_true(json_number_value(json_object_get(layer, "alpha")) == alpha);
    assert_true(json_number_value(json_object_get(layer, "scale")) == alpha / 2);
    double norm = json_number_value(json_object_get(layer, "norm")), want = product_norm();
    if (fabs(norm - want) > 1e-5 * want) fail_msg("norm %g, expected %g", norm, want);
}

static void test_adapters(void **state) {
    (void)state;
    SafetensorsMetadata meta = {"lora_adapter_metadata",
                                "{\"transformer.r\": 2, \"transformer.lora_alpha\": 3, "
                                "\"transformer.alpha_pattern\": {\"proj_out\": 5}}"};
    const char *file = in_folder("pytorch_lora_weights.safetensors");
    write_adapter(file, "transformer.", &meta);
    for (int by_folder = 0; by_folder < 2; by_folder++) {
        json_t *r = inspect_json(by_folder ? folder : file), *layers = json_object_get(r, "layers");
        assert_string_equal(text(r, "kind"), "adapter");
        assert_string_equal(text(r, "alpha_from"), "lora_adapter_metadata");
        assert_int_equal(json_array_size(layers), 3);
        check_layer(json_array_get(layers, 0), "proj_out", 5);
        check_layer(json_array_get(layers, 1), "transformer_blocks.0.attn1.to_q", 3);
        json_t *kind = json_array_get(json_object_get(r, "kinds"), 1);
        assert_string_equal(text(kind, "kind"), "attn1.to_q");
        assert_true(whole(kind, "layers") == 2 && whole(kind, "rank") == 2);
        json_decref(r);
    }
    const Run *r = RUN("inspect", folder);
    assert_parts(r->out, (const char *const[]){"alpha from lora_adapter_metadata", "attn1.to_q",
                                               "proj_out", "digest verified", NULL});
    write_adapter(file, "transformer.", NULL);
    json_t *report = inspect_json(file);
    assert_true(json_is_null(json_object_get(report, "alpha_from")));
    check_layer(json_array_get(json_object_get(report, "layers"), 0), "proj_out", 2);
    json_decref(report);
}

static void test_peft_adapter(void **state) {
    (void)state;
    write_adapter(in_folder("adapter_model.safetensors"), "base_model.model.", NULL);
    write_text(in_folder("adapter_config.json"), "{\"r\": 2, \"lora_alpha\": 7}");
    const char *paths[] = {folder, in_folder("adapter_model.safetensors")};
    for (size_t i = 0; i < COUNT(paths); i++) {
        json_t *r = inspect_json(paths[i]);
        assert_string_equal(text(r, "names"), "PEFT");
        assert_string_equal(text(r, "alpha_from"), "adapter_config.json");
        check_layer(json_array_get(json_object_get(r, "layers"), 0), "proj_out", 7);
        json_decref(r);
    }
    write_text(in_folder("adapter_config.json"), "{\"r\": 3, \"lora_alpha\": 7}");
    REFUSED(RUN("inspect", folder), EXIT_USER, folder, "proj_out",
            "expected the rank of the tensors", "adapter_config.json says 3");
}

/* ---- other files ------------------------------------------------------------------------------
 */

static void test_tensor_file(void **state) {
    (void)state;
    const char *path = in_folder("some.safetensors");
    int64_t numbers[3] = {1, 2, 3};
    SafetensorsItem items[] = {{"a.b", DT_I64, 1, {3}, numbers},
                               {"empty", DT_BF16, 2, {0, 4}, ""},
                               {"scalar", DT_F32, 0, {0}, numbers}};
    SafetensorsMetadata notes[] = {{"note", "one\n\033[31mtwo"}};
    SafetensorsFile file = {
        .items = items, .n_items = 3, .metadata = notes, .n_metadata = 1, .digest = true};
    Error e = {0};
    assert_true(safetensors_write(path, &file, &e));
    const Run *r = RUN("inspect", path);
    assert_int_equal(r->code, 0);
    assert_parts(r->out, (const char *const[]){"3 tensors, 4 parameters", "digest verified",
                                               "metadata note: one??[31mtwo", "a.b", "[3]",
                                               "[0, 4]", "[]", "24 bytes", NULL});
    json_t *report = inspect_json(path), *list = json_object_get(report, "tensor_list");
    assert_int_equal(json_array_size(list), 3);
    assert_string_equal(text(json_array_get(list, 0), "dtype"), "I64");
    assert_string_equal(text(json_object_get(report, "metadata"), "note"), notes[0].value);
    json_decref(report);
    size_t n;
    uint8_t *bytes = scratch_read(path, &n);
    bytes[n - 1] ^= 1;
    scratch_write(path, bytes, n);
    free(bytes);
    REFUSED(RUN("inspect", path), EXIT_USER, path, "its digest is");
    REFUSED(RUN("inspect", "--json", path), EXIT_USER, path, "its digest is");
}

static void test_not_inspectable(void **state) {
    (void)state;
    REFUSED(RUN("inspect", in_folder("none")), EXIT_USER, in_folder("none"),
            "expected a file or "
            "folder",
            "No such file", "Check the path");
    REFUSED(RUN("inspect", folder), EXIT_USER, folder, "expected a model folder", "config.json");
    REFUSED(RUN("inspect", "/dev/null"), EXIT_USER, "/dev/null", "expected a safetensors file");
    write_text(in_folder("config.json"), "{");
    REFUSED(RUN("inspect", in_folder("config.json")), EXIT_USER, "Give the folder");
    REFUSED(RUN("inspect", folder), EXIT_USER, "config.json:1:1: not valid JSON");
    REFUSED(RUN("inspect"), EXIT_USER, "at least one FILE");
}

/* A file that fails costs its own report alone. */
static void test_several(void **state) {
    (void)state;
    const char *good = "tests/golden/dit/2b/transformer", *other = "tests/golden/dit/5b/lora";
    const char *bad = in_folder("bad.safetensors");
    write_text(bad, "no header");
    const Run *r = RUN("inspect", good, bad, other);
    assert_int_equal(r->code, EXIT_USER);
    assert_parts(r->out, (const char *const[]){good, other, NULL});
    assert_null(strstr(r->out, bad));
    assert_parts(r->err, (const char *const[]){bad, NULL});
    assert_null(strstr(r->err, good));
    r = RUN("inspect", "--json", good, bad, other);
    assert_int_equal(r->code, EXIT_USER);
    json_t *list = json_loads(r->out, 0, NULL);
    assert_int_equal(json_array_size(list), 2);
    assert_string_equal(text(json_array_get(list, 1), "path"), other);
    json_decref(list);
}

/* A transformer's folder before its weights are there. */
static void test_config_alone(void **state) {
    (void)state;
    json_t *r = inspect_json("tests/golden/published/2b/transformer");
    assert_string_equal(text(r, "variant"), "CogVideoX-2b");
    assert_true(whole(r, "tensors") == 0);
    json_decref(r);
    assert_parts(RUN("inspect", "tests/golden/published/2b")->out,
                 (const char *const[]){"CogVideoX-2b", "no weights", NULL});
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, enter, leave)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_published_sizes), TEST(test_published_plans), TEST(test_header_verdicts),
        TEST(test_tiny_models),     TEST(test_model_folder),    TEST(test_broken_model),
        TEST(test_adapters),        TEST(test_peft_adapter),    TEST(test_tensor_file),
        TEST(test_not_inspectable), TEST(test_several),         TEST(test_config_alone),
    };
    return cmocka_run_group_tests_name("inspect", tests, NULL, NULL);
}
