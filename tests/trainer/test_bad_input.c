/* Mistakes that a user can make, each refused by the built program with its exit code and one line
 * that names the file, the key or tensor, and what was expected: in weights, config.json, shard
 * indices, adapters, probe inputs and settings; and failures of the disk. */
#define _GNU_SOURCE
#include "kernels/base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/trainer/program.h"
#include "tests/trainer/spoil.h"

/* Of the running test: a copy of a tiny model under m/ (transformer/, scheduler/), its adapter and
 * its inputs beside it. The program writes to o/out.safetensors. */
static char *folder;

static const char *at(const char *name) {
    static char *ring[16];
    static int next;
    next = (next + 1) % 16;
    free(ring[next]);
    return ring[next] = xprintf("%s/%s", folder, name);
}

static const char CONFIG[] = "m/transformer/config.json";
static const char WEIGHTS[] = "m/transformer/diffusion_pytorch_model.safetensors";
static const char INDEX[] = "m/transformer/diffusion_pytorch_model.safetensors.index.json";
static const char ADAPTER[] = "lora/pytorch_lora_weights.safetensors";

static void take(const char *variant, const char *what, const char *to) {
    char *from = xprintf("tests/golden/dit/%s/%s", variant, what);
    copy_files(from, at(to));
    free(from);
}

/* A fresh copy of the variant; a sharded one of the 2b with "2b sharded". */
static void use(const char *variant) {
    bool sharded = !strcmp(variant, "2b sharded");
    if (sharded) variant = "2b";
    if (folder) scratch_remove(folder);
    folder = scratch_make();
    mkdir(at("m"), 0755);
    mkdir(at("o"), 0755);
    chmod(folder, 0755);
    take(variant, sharded ? "transformer_sharded" : "transformer", "m/transformer");
    take(variant, "scheduler", "m/scheduler");
    take(variant, "lora", "lora");
    take(variant, "inputs.safetensors", "inputs.safetensors");
}

static int leave(void **state) {
    (void)state;
    if (folder) scratch_remove(folder);
    folder = NULL;
    return 0;
}

/* `probe` on the copy, with one more setting or NULL. */
static const Run *probe(const char *setting) {
    char *model = xprintf("model.path=%s/m", folder);
    char *inputs = xprintf("probe.inputs=%s/inputs.safetensors", folder);
    char *out = xprintf("probe.out=%s/o/out.safetensors", folder);
    const Run *r = RUN("probe", model, inputs, out, setting);
    free(model);
    free(inputs);
    free(out);
    return r;
}

/* The copy is good before it is spoilt: a refusal is about what was spoilt. */
static void assert_good(const char *setting) {
    const Run *r = probe(setting);
    if (r->code) fail_msg("%s", r->err);
    assert_int_equal(unlink(at("o/out.safetensors")), 0);
}

static void refused_by_probe(const char *setting, int code, const char *const *parts) {
    assert_refused(probe(setting), code, parts);
    assert_int_equal(scratch_count(at("o")), 0);
}

static void refused_by_inspect(const char *path, const char *const *parts) {
    assert_refused(RUN("inspect", path), EXIT_USER, parts);
}

#define PARTS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* ---- weights ----------------------------------------------------------------------------------
 */

#define TO_Q "transformer_blocks.1.attn1.to_q.weight"

static const struct {
    Spoil spoil;
    const char *parts[6];
} WEIGHT_MISTAKES[] = {
    {DROPPED(TO_Q), {TO_Q, "expected the tensor", "not there", "nearest", "of one model"}},
    {RENAMED(TO_Q, "transformer_blocks.1.attn1.toq.weight"),
     {"expected the tensor \"" TO_Q "\"",
      "the nearest is \"transformer_blocks.1.attn1.toq.weight\""}},
    {ADDED("proj_out.weight", "proj_outs.weight"),
     {"tensor \"proj_outs.weight\"", "expected only what config.json describes",
      "the nearest is \"proj_out.weight\"", "of one model"}},
    {ADDED("proj_out.bias", "xyzzy"), {"tensor \"xyzzy\"", "expected only what config.json"}},
    {RESHAPED(TO_Q, 2, 32, 128),
     {"tensor \"" TO_Q "\"", "expected the shape [64, 64], got [32, 128]", "of one model"}},
    {RESHAPED(TO_Q, 1, 4096), {TO_Q, "expected the shape [64, 64], got [4096]"}},
    {OF_TYPE(TO_Q, DT_I8), {TO_Q, "expected F32, BF16, F16 or F64, found I8", "Quantised"}},
};

static void test_weights(void **state) {
    (void)state;
    use("2b");
    assert_good(NULL);
    for (size_t i = 0; i < COUNT(WEIGHT_MISTAKES); i++) {
        use("2b");
        spoil(at(WEIGHTS), WEIGHT_MISTAKES[i].spoil);
        assert_parts(probe(NULL)->err, PARTS(at("m/transformer")));
        refused_by_probe(NULL, EXIT_USER, WEIGHT_MISTAKES[i].parts);
        refused_by_probe("method=full", EXIT_USER, WEIGHT_MISTAKES[i].parts);
        refused_by_inspect(at("m"), WEIGHT_MISTAKES[i].parts);
        refused_by_inspect(at("m/transformer"), WEIGHT_MISTAKES[i].parts);
    }
}

static void test_values(void **state) {
    (void)state;
    static const struct {
        DType dtype;
        uint64_t one, nan, inf;
    } TYPES[] = {{DT_F32, 0x3f800000, 0xffc00001, 0x7f800000},
                 {DT_BF16, 0x3f80, 0x7fc0, 0xff80},
                 {DT_F16, 0x3c00, 0x7e01, 0xfc00},
                 {DT_F64, 0x3ff0000000000000, 0x7ff0000000000001, 0xfff0000000000000}};
    for (size_t i = 0; i < COUNT(TYPES); i++) {
        uint64_t values[] = {TYPES[i].one, TYPES[i].nan, TYPES[i].inf};
        for (size_t k = 0; k < COUNT(values); k++) {
            use("2b");
            spoil(at(WEIGHTS), (Spoil){CAST, TO_Q, .dtype = TYPES[i].dtype, .bits = values[k]});
            if (!k) {
                assert_good("method=full");
                continue;
            }
            const char *const *parts = PARTS(at("m/transformer"), "tensor \"" TO_Q "\"",
                                             "value 4095: expected a finite number", "damaged");
            refused_by_probe(NULL, EXIT_USER, parts);
            refused_by_probe("method=full", EXIT_USER, parts);
        }
    }
}

/* ---- config.json ------------------------------------------------------------------------------
 */

static const struct {
    const char *key, *value, *part; /* value: JSON */
} CONFIG_MISTAKES[] = {
    {"num_layers", "\"two\"", "expected a whole number, got \"two\""},
    {"num_layers", "2.5", "expected a whole number, got 2.5"},
    {"num_layers", "true", "expected a whole number, got true"},
    {"num_layers", "[2]", "expected a whole number, got [2]"},
    {"num_layers", "0", "expected a number from 1 to 1024, found 0"},
    {"num_layers", "-3", "expected a number from 1 to 1024, found -3"},
    {"num_layers", "99999999999", "expected a number from 1 to 1024"},
    {"num_attention_heads", "{}", "expected a whole number, got {}"},
    {"num_attention_heads", "9223372036854775807", "expected a number from 1 to 1024"},
    {"num_attention_heads", "129", "expected a multiple of 16 up to 8192, found 8256"},
    {"attention_head_dim", "36", "expected a multiple of 8, found 36"},
    {"attention_head_dim", "40", "expected a multiple of 16 up to 8192, found 40"},
    {"in_channels", "17", "expected 16, or 32 for image to video, found 17"},
    {"sample_width", "7", "expected multiples of patch_size"},
    {"norm_eps", "\"1e-5\"", "expected a number, got \"1e-5\""},
    {"norm_eps", "-1", "expected a number from"},
    {"spatial_interpolation_scale", "0", "expected a number from"},
    {"flip_sin_to_cos", "1", "expected true or false, got 1"},
    {"use_rotary_positional_embeddings", "\"no\"", "expected true or false"},
    {"activation_fn", "\"gelu\"", "expected \"gelu-approximate\", found \"gelu\""},
    {"activation_fn", "3", "expected a text, got 3"},
    {"_class_name", "\"FluxTransformer2DModel\"", "expected \"CogVideoXTransformer3DModel\""},
    {"ofs_embed_dim", "8", "expected time_embed_dim, 16, found 8"},
    {"dropout", "0.5", "dropout 0"},
    {"num_layer", "2", "no such key of a CogVideoX transformer; the nearest is \"num_layers\""},
    {"xyzzy", "2", "no such key of a CogVideoX transformer. Mend the name"},
};

static void set_key(const char *name, const char *key, const char *value) {
    json_t *config = read_json(at(name));
    json_object_set_new(config, key, json_loads(value, JSON_DECODE_ANY, NULL));
    write_json(at(name), config);
    json_decref(config);
}

static void test_config(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(CONFIG_MISTAKES); i++) {
        use("2b");
        set_key(CONFIG, CONFIG_MISTAKES[i].key, CONFIG_MISTAKES[i].value);
        const char *const *parts =
            PARTS(at(CONFIG), CONFIG_MISTAKES[i].key, CONFIG_MISTAKES[i].part);
        refused_by_probe(NULL, EXIT_USER, parts);
        if (strcmp(CONFIG_MISTAKES[i].key, "_class_name"))
            refused_by_inspect(at("m/transformer"), parts);
        refused_by_inspect(at("m"), parts);
    }
    use("2b");
    set_key(CONFIG, "num_layers", "3");
    refused_by_probe(NULL, EXIT_USER, PARTS("transformer_blocks.2.", "expected the tensor"));
    use("2b");
    set_key(CONFIG, "num_layers", "1");
    refused_by_probe(NULL, EXIT_USER, PARTS("transformer_blocks.1.", "expected only what config"));
    use("2b");
    set_key(CONFIG, "num_attention_heads", "2");
    refused_by_probe(NULL, EXIT_USER, PARTS("patch_embed.proj.weight", "expected the shape [128,"));
}

static void test_config_text(void **state) {
    (void)state;
    static const struct {
        const char *text, *place, *part;
    } TEXTS[] = {
        {"{\"num_layers\": 2,\n\"num_layers\": 2}", ":2:", "duplicate"},
        {"{\"num_layers\": 2", ":1:", "not valid JSON"},
        {"[1]", ":1:1:", "expected an object"},
        {"", ":1:", "not valid JSON"},
        {"{\"num_layers\": NaN}", ":1:", "not valid JSON"},
        {"{\"a\xff\": 1}", ":1:", "unable to decode byte 0xff"},
        {"{\"x\\u001b[2J\\u0085\\n\": 1}", ": \"x?[2J??", "no such key"},
    };
    for (size_t i = 0; i < COUNT(TEXTS); i++) {
        use("2b");
        write_text(at(CONFIG), TEXTS[i].text);
        char *place = xprintf("%s%s", at(CONFIG), TEXTS[i].place);
        refused_by_probe(NULL, EXIT_USER, PARTS(place, TEXTS[i].part));
        refused_by_inspect(at("m"), PARTS(place, TEXTS[i].part));
        free(place);
    }
}

static void test_model_path(void **state) {
    (void)state;
    use("2b");
    char *inputs = xprintf("probe.inputs=%s", at("inputs.safetensors"));
    char *out = xprintf("probe.out=%s", at("o/out.safetensors"));
    REFUSED(RUN("probe", inputs, out), EXIT_USER, "model.path", "probe");
    char *none = xprintf("model.path=%s", at("none"));
    REFUSED(RUN("probe", inputs, out, none), EXIT_USER, "model.path", at("none"), "no such folder");
    unlink(at(CONFIG));
    char *empty = xprintf("model.path=%s", at("m"));
    REFUSED(RUN("probe", inputs, out, empty), EXIT_USER, "model.path", at("m"),
            "expected transformer/config.json");
    REFUSED(RUN("probe", empty, out), EXIT_USER, "probe.inputs");
    REFUSED(RUN("probe", empty, inputs), EXIT_USER, "probe.out");
    use("2b");
    set_key("m/scheduler/scheduler_config.json", "beta_schedule", "\"linear\"");
    refused_by_probe(NULL, EXIT_USER,
                     PARTS(at("m/scheduler/scheduler_config.json"), "expected beta_schedule"));
    free(inputs);
    free(out);
    free(none);
    free(empty);
}

/* ---- shards -----------------------------------------------------------------------------------
 */

#define SHARD "diffusion_pytorch_model-00002-of-00003.safetensors"

/* Says in the index that one tensor, of those in the second shard, lies in `file`. */
static void move_in_index(const char *file) {
    json_t *index = read_json(at(INDEX)), *map = json_object_get(index, "weight_map"), *value;
    const char *name;
    json_object_foreach(map, name, value) {
        if (strcmp(json_string_value(value), SHARD)) continue;
        json_object_set_new(map, name, json_string(file));
        break;
    }
    write_json(at(INDEX), index);
    json_decref(index);
}

static void refused_shards(const char *const *parts) {
    refused_by_probe(NULL, EXIT_USER, parts);
    refused_by_inspect(at("m"), parts);
    refused_by_inspect(at("m/transformer"), parts);
}

static void test_shards(void **state) {
    (void)state;
    static const char *const OUTSIDE[] = {
        "../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "x.safetensors\n"};
    use("2b sharded");
    assert_good(NULL);
    for (size_t i = 0; i < COUNT(OUTSIDE); i++) {
        use("2b sharded");
        move_in_index(OUTSIDE[i]);
        refused_shards(PARTS(at(INDEX), "expected a file of this folder", "could lead elsewhere"));
    }
    use("2b sharded");
    move_in_index("diffusion_pytorch_model-00001-of-00003.safetensors");
    refused_shards(PARTS(at(INDEX), "is listed in", "lies in " SHARD));
    use("2b sharded");
    rename(at("m/transformer/" SHARD), at("elsewhere.safetensors"));
    refused_shards(
        PARTS(at("m/transformer/" SHARD), "expected a file", "No such file", "Download"));
    assert_int_equal(symlink(at("elsewhere.safetensors"), at("m/transformer/" SHARD)), 0);
    refused_shards(PARTS(at("m/transformer/" SHARD), "symbolic link", "cp -rL"));
    use("2b sharded");
    unlink(at(INDEX));
    refused_shards(PARTS(at("m/transformer"), "expected diffusion_pytorch_model.safetensors"));
    use("2b sharded");
    take("2b", "transformer/diffusion_pytorch_model.safetensors", WEIGHTS);
    refused_shards(PARTS(at("m/transformer"), "holds both", "remove the one"));
    use("2b");
    assert_int_equal(truncate(at(WEIGHTS), 300000), 0);
    refused_shards(PARTS(at(WEIGHTS), "The file is damaged"));
}

/* ---- adapters and lora settings ---------------------------------------------------------------
 */

#define LORA "transformer.transformer_blocks.1.attn1.to_v.lora_"

static const struct {
    Spoil spoil;
    bool inspect; /* sees it without the model */
    const char *parts[6];
} ADAPTER_MISTAKES[] = {
    {DROPPED(LORA "B.weight"), true, {LORA "A.weight", "expected lora_A and lora_B", "export"}},
    {DROPPED(LORA "A.weight"), true, {LORA "B.weight", "lora_A is not there", "export"}},
    {RENAMED(LORA "A.weight", "to_v.alpha"), true, {"\"to_v.alpha\"", "expected names like"}},
    {ADDED(LORA "A.weight", "base_model.model.transformer_blocks.1.attn1.to_v.lora_A.weight"),
     true,
     {LORA "A.weight", "base_model.model.", "expected one of them"}},
    {RESHAPED(LORA "A.weight", 2, 2, 128),
     true,
     {LORA "A.weight", "expected the shapes [r,K] and [O,r]"}},
    {RESHAPED(LORA "A.weight", 4, 4, 16, 2, 2), false, {LORA "A.weight", "the shape [4,64]"}},
    {RESHAPED(LORA "A.weight", 1, 256), true, {"expected the shapes [r,K] and [O,r]"}},
    {WITH_LAST(LORA "B.weight", 0x7fc00000),
     true,
     {LORA "B.weight", "value 255: expected a finite number", "damaged"}},
    {OF_TYPE(LORA "B.weight", DT_F64), true, {LORA "B.weight", "expected F32, BF16 or F16"}},
};

static void test_adapters(void **state) {
    (void)state;
    use("2b");
    char *start = NULL;
    for (size_t i = 0; i < COUNT(ADAPTER_MISTAKES); i++) {
        use("2b");
        free(start);
        start = xprintf("lora.start=%s", at("lora"));
        if (!i) assert_good(start);
        spoil(at(ADAPTER), ADAPTER_MISTAKES[i].spoil);
        assert_parts(probe(start)->err, PARTS(at("lora")));
        refused_by_probe(start, EXIT_USER, ADAPTER_MISTAKES[i].parts);
        if (ADAPTER_MISTAKES[i].inspect) refused_by_inspect(at("lora"), ADAPTER_MISTAKES[i].parts);
    }
    free(start);
}

static void test_foreign_adapters(void **state) {
    (void)state;
    static const struct {
        const char *variant;
        const char *parts[6];
    } FOREIGN[] = {
        {"5b",
         {"attn1.to_k.lora_A.weight", "expected the shape [4,64]", "a layer of 64 x 64 values",
          "found one of 128 x 128", "another model"}},
        {"1.5-5b",
         {"transformer_blocks.2.attn1.to_k", "expected a linear layer of this transformer",
          "nearest is transformer_blocks.", "another model"}},
    };
    for (size_t i = 0; i < COUNT(FOREIGN); i++) {
        use("2b");
        take(FOREIGN[i].variant, "lora", "foreign");
        char *start = xprintf("lora.start=%s", at("foreign"));
        refused_by_probe(start, EXIT_USER, PARTS("lora.start", at("foreign")));
        refused_by_probe(start, EXIT_USER, FOREIGN[i].parts);
        free(start);
    }
    use("2b");
    char *start = xprintf("lora.start=%s", at("none"));
    refused_by_probe(start, EXIT_USER, PARTS("lora.start", at("none"), "No such file", "Check"));
    free(start);
    mkdir(at("step"), 0755);
    write_text(at("step/manifest.json"), "{}");
    rename(at("lora"), at("step/adapter"));
    start = xprintf("lora.start=%s", at("step"));
    refused_by_probe(start, EXIT_USER,
                     PARTS("lora.start", "a run or checkpoint", at("step/adapter")));
    free(start);
}

static void test_settings(void **state) {
    (void)state;
    static const struct {
        const char *setting;
        const char *parts[6];
    } SETTINGS[] = {
        {"lora.rank=0", {"lora.rank", "expected a whole number from 1 to 8192, not '0'"}},
        {"lora.alpha=nan", {"lora.alpha", "expected a number", "not 'nan'"}},
        {"lora.alpha=inf", {"lora.alpha", "expected a number"}},
        {"lora.dropout=1", {"lora.dropout", "expected a number"}},
        {"lora.ranks=4", {"lora.ranks", "no such key", "lora.rank"}},
        {"train.precision=bf16", {"train.precision", "f32"}},
        {"device=cuda", {"device", "use device=cpu"}},
        {"lora.target_modules=[to_x]", {"lora.target_modules", "'to_x' matches no linear layer"}},
        {"probe.out=/none/x", {"probe.out", "cannot write into the folder /none/", "No such file"}},
        {"probe.out=/tmp", {"probe.out", "/tmp is a folder"}},
        {"probe.inputs=/none", {"/none", "expected a safetensors file", "Check the path"}},
    };
    use("2b");
    for (size_t i = 0; i < COUNT(SETTINGS); i++)
        refused_by_probe(SETTINGS[i].setting, EXIT_USER, SETTINGS[i].parts);
    write_text(at("run.yaml"), "method: lora\nlora:\n  target_modules: [to_q, to_x]\n");
    refused_by_probe(at("run.yaml"), EXIT_USER,
                     PARTS(at("run.yaml:3:19"), "lora.target_modules",
                           "'to_x' matches no linear layer", "there are: patch_embed.proj,",
                           "attn1.to_q"));
    write_text(at("run.yaml"), "model:\n  dtype: f32\nmemory:\n  base:\n    home: file\n");
    refused_by_probe(at("run.yaml"), EXIT_USER,
                     PARTS(at("run.yaml:5:11"), "memory.base.home", "model.dtype"));
    write_text(at("run.yaml"), "method: lora\nlora:\n  rnak: 3\n");
    refused_by_probe(at("run.yaml"), EXIT_USER,
                     PARTS(at("run.yaml:3:3"), "lora.rnak", "'lora.rank'"));
}

/* ---- inputs of probe --------------------------------------------------------------------------
 */

static const struct {
    const char *variant;
    Spoil spoil;
    const char *parts[6];
} INPUT_MISTAKES[] = {
    {"5b-i2v", DROPPED("image_latents"), {"image_latents", "missing", "image-to-video model"}},
    {"5b", ADDED("latents", "image_latents"), {"image_latents", "text-to-video model", "remove"}},
    {"2b", DROPPED("latents"), {"latents", "missing", "expected latents [B,F,C,H,W]"}},
    {"2b", DROPPED("noise"), {"noise", "missing"}},
    {"2b", DROPPED("text"), {"text", "expected [2,L,E]"}},
    {"2b", DROPPED("timesteps"), {"timesteps", "expected 2 numbers of type I64"}},
    {"2b", WITH_LAST("timesteps", 1000), {"timesteps", "from 0 to 999, found 1000"}},
    {"2b", WITH_LAST("timesteps", UINT64_MAX), {"timesteps", "from 0 to 999, found -1"}},
    {"2b", OF_TYPE("timesteps", DT_I32), {"timesteps", "expected 2 numbers of type I64"}},
    {"2b",
     RESHAPED("text", 3, 2, 20, 16),
     {"text", "expected embeddings of 32 values, found 16", "text encoder"}},
    {"2b", RESHAPED("text", 3, 1, 20, 32), {"text", "expected [2,L,E]"}},
    {"2b", RESHAPED_ALL("latents", 5, 2, 3, 16, 1, 32), {"3 x 1 x 32", "multiples of", "2 rows"}},
    {"1.5-5b", RESHAPED_ALL("latents", 5, 2, 1, 16, 24, 8), {"1 x 24 x 8", "multiples of 2 fr"}},
    {"2b", RESHAPED_ALL("latents", 5, 2, 3, 8, 8, 8), {"latents", "expected 16 channels, found 8"}},
    {"2b", RESHAPED("noise", 5, 2, 3, 16, 8, 4), {"noise", "expected the shape of latents"}},
    {"2b", RESHAPED("latents", 2, 96, 32), {"latents", "expected [B,F,C,H,W]", "2 axes"}},
    {"5b-i2v",
     RESHAPED_ALL("latents", 5, 2, 3, 16, 8, 4),
     {"3 x 8 x 4", "learned positions are for 4 x 8 and up to 3 frames"}},
    {"2b", WITH_LAST("latents", 0x7fc00000), {"latents", "expected a finite number"}},
    {"2b", WITH_LAST("text", 0xff800000), {"text", "value 639", "expected a finite number"}},
    {"2b", OF_TYPE("noise", DT_I64), {"noise", "expected F32, BF16 or F16, found I64"}},
    {"2b", RESHAPED("timesteps", 2, 2, 1), {"timesteps", "expected 2 numbers", "[B] or [K,B]"}},
    {"2b", RENAMED("timesteps", "timestep"), {"timestep", "did you mean 'timesteps'"}},
    {"2b", ADDED("latents", "image_latent"), {"image_latent", "did you mean 'image_latents'"}},
    {"2b", RENAMED("latents", "noisy"), {"latents", "missing", "noise goes with latents"}},
};

static void test_inputs(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(INPUT_MISTAKES); i++) {
        use(INPUT_MISTAKES[i].variant);
        spoil(at("inputs.safetensors"), INPUT_MISTAKES[i].spoil);
        assert_parts(probe(NULL)->err, PARTS(at("inputs.safetensors")));
        refused_by_probe(NULL, EXIT_USER, INPUT_MISTAKES[i].parts);
        refused_by_probe("method=full", EXIT_USER, INPUT_MISTAKES[i].parts);
    }
}

/* A file may hold what to compare with: that it is not read is said. */
static void test_other_tensors(void **state) {
    (void)state;
    use("2b");
    spoil(at("inputs.safetensors"), (Spoil)ADDED("latents", "prediction_of_another"));
    const Run *r = probe(NULL);
    assert_int_equal(r->code, 0);
    assert_parts(r->err, PARTS(at("inputs.safetensors"), "prediction_of_another", "not read"));
}

/* A plan needs no weights, but does not keep quiet about those that it could not read. */
static void test_plan_of_damaged_weights(void **state) {
    (void)state;
    use("2b");
    char *model = xprintf("model.path=%s", at("m"));
    assert_int_equal(truncate(at(WEIGHTS), 300000), 0);
    const Run *r = RUN("plan", model, "plan.device=h200");
    assert_int_equal(r->code, 0);
    assert_parts(r->err, PARTS(at(WEIGHTS), "The file is damaged", "going on without weights"));
    unlink(at(WEIGHTS));
    assert_string_equal(RUN("plan", model, "plan.device=h200")->err, "");
    free(model);
}

/* More than any machine could even plan. */
static void test_plan_of_too_much(void **state) {
    (void)state;
    use("2b");
    char *model = xprintf("model.path=%s", at("m"));
    REFUSED(RUN("plan", model, "plan.device=h200", "train.batch=65536"), EXIT_USER, "train.batch",
            "65536 such samples in a pack are more than 1048576");
    free(model);
}

/* ---- the disk ---------------------------------------------------------------------------------
 */

static void test_unreadable(void **state) {
    (void)state;
    static const char *const FILES[] = {CONFIG, WEIGHTS, "inputs.safetensors"};
    run_as.unprivileged = true;
    bool reachable = RUN("--version")->code == 0;
    for (size_t i = 0; reachable && i < COUNT(FILES); i++) {
        use("2b");
        chmod(at("o"), 0777);
        assert_good(NULL);
        chmod(at(FILES[i]), 0);
        refused_by_probe(NULL, EXIT_USER, PARTS(at(FILES[i]), "Permission denied"));
        if (i < 2) refused_by_inspect(at("m"), PARTS(at(FILES[i]), "Permission denied"));
    }
    for (int closed = 0; reachable && closed < 2; closed++) {
        use("2b");
        chmod(at("o"), closed ? 0 : 0555);
        assert_refused(probe(NULL), EXIT_USER,
                       PARTS("probe.out", at("o/out.safetensors"), "Permission denied"));
    }
    if (reachable) {
        use("2b");
        chmod(at("m/transformer"), 0);
        refused_by_inspect(at("m/transformer"), PARTS(at("m/transformer"), "Permission denied"));
        chmod(at("m/transformer"), 0755);
    }
    run_as.unprivileged = false;
    if (reachable) return;
    print_message("SKIPPED: a user without rights cannot reach %s\n", getenv("COGSMITH"));
    skip();
}

static void test_disk(void **state) {
    (void)state;
    use("2b");
    run_as.file_bytes = 4096;
    refused_by_probe(NULL, EXIT_WORLD, PARTS(at("o/out.safetensors"), "File too large"));
    write_text(at("o/out.safetensors"), "what was there");
    REFUSED(probe(NULL), EXIT_WORLD, at("o/out.safetensors"), "File too large");
    run_as.file_bytes = 0;
    assert_int_equal(scratch_count(at("o")), 1);
    size_t n;
    uint8_t *bytes = scratch_read(at("o/out.safetensors"), &n);
    assert_true(n == 14 && !memcmp(bytes, "what was there", n));
    free(bytes);
}

#define TEST(f) cmocka_unit_test_teardown(f, leave)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_weights),          TEST(test_values),
        TEST(test_config),           TEST(test_config_text),
        TEST(test_model_path),       TEST(test_shards),
        TEST(test_adapters),         TEST(test_foreign_adapters),
        TEST(test_settings),         TEST(test_inputs),
        TEST(test_other_tensors),    TEST(test_plan_of_damaged_weights),
        TEST(test_unreadable),       TEST(test_disk),
        TEST(test_plan_of_too_much),
    };
    return cmocka_run_group_tests_name("bad input", tests, NULL, NULL);
}
