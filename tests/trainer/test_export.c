/* `export`: the published merges and adapters to the bit or to one unit in the last place, the
 * files of every runtime, and what is refused. */
#define _GNU_SOURCE
#include "trainer/export.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/trainer/exports.h"
#include "trainer/stop.h"

static int64_t count_of(const SafetensorsTensor *t) {
    return (int64_t)(t->bytes / dtype_size(t->dtype));
}

static real *values_of(const SafetensorsTensor *t) {
    real *values = xcalloc((size_t)count_of(t), sizeof *values);
    assert_true(values_round(t, 0, (size_t)count_of(t), DT_REAL, values));
    return values;
}

static bool same_tensor(const SafetensorsTensor *a, const SafetensorsTensor *b) {
    return b && a->dtype == b->dtype && a->n_dims == b->n_dims &&
           !memcmp(a->shape, b->shape, sizeof a->shape) && !memcmp(a->data, b->data, a->bytes);
}

/* ---- the published numbers --------------------------------------------------------------------
 */

/* The order of a value among those of its type, so that neighbours differ by one. */
static int32_t place(const SafetensorsTensor *t, int64_t i) {
    if (t->dtype == DT_BF16) {
        int16_t bits;
        memcpy(&bits, (const char *)t->data + 2 * i, 2);
        return bits < 0 ? (int32_t)INT16_MIN - bits : bits;
    }
    int32_t bits;
    memcpy(&bits, (const char *)t->data + 4 * i, 4);
    return bits < 0 ? (int32_t)(INT32_MIN - (int64_t)bits) : bits;
}

static void assert_close(const SafetensorsTensor *got, const SafetensorsTensor *want) {
    assert_int_equal(got->dtype, want->dtype);
    assert_int_equal(got->bytes, want->bytes);
    for (int64_t i = 0; i < count_of(got); i++) {
        int64_t ulps = (int64_t)place(got, i) - place(want, i);
        if (ulps < -1 || ulps > 1)
            fail_msg("%s[%lld]: %lld units in the last place", want->name, (long long)i,
                     (long long)ulps);
    }
}

/* W + (B A) * 0.5 with the sum over the rank in order by fused multiply-adds. */
static real expected(const real *w, const real *a, const real *b, int64_t i, int64_t k, int64_t r) {
    real sum = 0;
    for (int64_t j = 0; j < r; j++) sum = fmaf(b[i / k * r + j], a[j * k + i % k], sum);
    real delta = sum * 0.5f;
    return w[i] + delta;
}

static void test_merged_f32(void **state) {
    (void)state;
    export_as("merged", in_folder("out"), "device=cpu", MODEL);
    Weights got = open_weights(in_folder("out")),
            base = open_weights("tests/golden/dit/2b/transformer"), lora = open_weights(ADAPTER);
    assert_int_equal(got.n_tensors, base.n_tensors);
    int merged = 0;
    for (size_t i = 0; i < base.n_tensors; i++) {
        const SafetensorsTensor *w = &base.tensors[i], *g = weights_find(&got, w->name, NULL);
        char *name_a = xprintf("transformer.%.*slora_A.weight", (int)strlen(w->name) - 6, w->name);
        char *name_b = xprintf("transformer.%.*slora_B.weight", (int)strlen(w->name) - 6, w->name);
        const SafetensorsTensor *a = weights_find(&lora, name_a, NULL),
                                *b = weights_find(&lora, name_b, NULL);
        free(name_a);
        free(name_b);
        if (!a && !same_tensor(w, g)) fail_msg("%s changed", w->name);
        if (!a) continue;
        real *wv = values_of(w), *av = values_of(a), *bv = values_of(b), *gv = values_of(g);
        for (int64_t k = 0; k < count_of(w); k++)
            if (gv[k] != expected(wv, av, bv, k, w->shape[1], a->shape[0]))
                fail_msg("%s[%lld]", w->name, (long long)k);
        free(wv);
        free(av);
        free(bv);
        free(gv);
        merged++;
    }
    assert_int_equal(merged, 8);
    weights_close(&got);
    weights_close(&base);
    weights_close(&lora);
}

static const char GOLDEN[] = "../shared/golden/export";

static bool golden_there(void) {
    struct stat info;
    if (!stat(GOLDEN, &info)) return true;
    print_message("SKIPPED: %s is not there\n", GOLDEN);
    return false;
}

static void test_merged_f32_golden(void **state) {
    (void)state;
    if (!golden_there()) return;
    export_as("merged", in_folder("out"), "device=cpu", MODEL);
    Weights got = open_weights(in_folder("out")),
            want = open_weights("../shared/golden/export/merged_f32");
    assert_int_equal(got.n_tensors, want.n_tensors);
    for (size_t i = 0; i < want.n_tensors; i++) {
        const SafetensorsTensor *g = weights_find(&got, want.tensors[i].name, NULL);
        assert_non_null(g);
        assert_close(g, &want.tensors[i]);
    }
    json_t *a = read_json(in_folder("out/config.json")),
           *b = read_json("../shared/golden/export/merged_f32/config.json");
    assert_true(json_equal(a, b));
    json_decref(a);
    json_decref(b);
    weights_close(&got);
    weights_close(&want);
}

/* The base in bf16, by model.dtype or in its files: one sum, one rounding. */
static void test_merged_bf16(void **state) {
    (void)state;
    const Run *r = RUN("export", "export.checkpoint=tests/golden/dit/2b", "export.dtype=bf16",
                       setting("export.out", in_folder("base")));
    assert_int_equal(r->code, 0);
    Weights want = open_weights("tests/golden/export/merged_bf16_by_peft.safetensors");
    assert_int_equal(want.n_tensors, 8);
    for (int stored = 0; stored < 2; stored++) {
        const char *out = in_folder(stored ? "a" : "b");
        export_as("merged", out, stored ? "device=cpu" : "model.dtype=bf16",
                  stored ? in_folder("base") : MODEL);
        Weights got = open_weights(in_folder(stored ? "a" : "b"));
        for (size_t i = 0; i < want.n_tensors; i++) {
            const SafetensorsTensor *g = weights_find(&got, want.tensors[i].name, NULL);
            assert_non_null(g);
            assert_close(g, &want.tensors[i]);
        }
        weights_close(&got);
    }
    weights_close(&want);
}

/* The header's settings: exactly those without which diffusers fails or errs. */
static void test_metadata(void **state) {
    (void)state;
    export_as("diffusers", in_folder("out"), "device=cpu", MODEL);
    Weights got = open_weights(in_folder("out")), want = open_weights(ADAPTER);
    assert_int_equal(got.n_tensors, want.n_tensors);
    for (size_t i = 0; i < want.n_tensors; i++)
        assert_true(same_tensor(&want.tensors[i], &got.tensors[i]));
    const Safetensors *file = &got.shards[0];
    assert_string_equal(safetensors_metadata(file, "format"), "pt");
    json_t *meta = json_loads(safetensors_metadata(file, "lora_adapter_metadata"),
                              JSON_REJECT_DUPLICATES, NULL);
    json_t *right = json_pack("{s:i, s:i, s:[s,s,s,s], s:{}}", "transformer.r", 4,
                              "transformer.lora_alpha", 2, "transformer.target_modules", "to_k",
                              "to_out.0", "to_q", "to_v", "transformer.rank_pattern");
    assert_true(json_equal(meta, right));
    json_decref(meta);
    json_decref(right);
    weights_close(&got);
    weights_close(&want);
}

static void test_peft(void **state) {
    (void)state;
    export_as("peft", in_folder("out"), "device=cpu", MODEL);
    json_t *got = read_json(in_folder("out/adapter_config.json"));
    assert_int_equal(json_integer_value(json_object_get(got, "r")), 4);
    assert_int_equal(json_integer_value(json_object_get(got, "lora_alpha")), 2);
    assert_string_equal(json_string_value(json_object_get(got, "base_model_name_or_path")), "2b");
    if (golden_there()) {
        json_t *want = read_json("../shared/golden/export/peft/adapter_config.json"), *value;
        json_object_set_new(want, "base_model_name_or_path", json_string("2b"));
        const char *key;
        json_object_foreach(got, key, value) {
            if (!json_equal(value, json_object_get(want, key))) fail_msg("%s", key);
        }
        json_decref(want);
        Weights a = open_weights(in_folder("out")),
                b = open_weights("../shared/golden/export/peft/adapter_model.safetensors");
        assert_int_equal(a.n_tensors, b.n_tensors);
        for (size_t i = 0; i < a.n_tensors; i++) {
            assert_string_equal(a.tensors[i].name, b.tensors[i].name);
            assert_true(same_tensor(&a.tensors[i], &b.tensors[i]));
        }
        weights_close(&a);
        weights_close(&b);
    }
    json_decref(got);
}

/* ---- names and settings -----------------------------------------------------------------------
 */

/* Every pair, and its alpha as a scalar. */
static void check_scalars(const char *preset, const char *a, const char *down, const char *up) {
    export_as(preset, in_folder(preset), "device=cpu", MODEL);
    char *file = xprintf("%s/%s/%s.safetensors", folder, preset, preset);
    Weights w = open_weights(file), want = open_weights(ADAPTER);
    assert_int_equal(w.n_tensors, 24);
    for (int part = 0; part < 3; part++) {
        char *name = xprintf("%s%s", a, part == 0 ? down : part == 1 ? up : ".alpha");
        const SafetensorsTensor *t = weights_find(&w, name, NULL);
        if (!t) fail_msg("%s is not there", name);
        float alpha;
        memcpy(&alpha, t->data, sizeof alpha);
        if (part == 2) assert_true(t->n_dims == 0 && alpha == 2);
        char *whence =
            xprintf("transformer.transformer_blocks.1.attn1.to_out.0.lora_%c.weight", "AB?"[part]);
        if (part < 2) assert_true(same_tensor(t, weights_find(&want, whence, NULL)));
        free(whence);
        free(name);
    }
    weights_close(&w);
    weights_close(&want);
    free(file);
}

static void test_scalars(void **state) {
    (void)state;
    check_scalars("comfy", "diffusion_model.blocks.1.attn_out", ".lora_A.weight", ".lora_B.weight");
    check_scalars("kohya", "lora_unet__transformer_blocks_1_attn1_to_out_0", ".lora_down.weight",
                  ".lora_up.weight");
}

/* ---- where it comes from and goes ------------------------------------------------------------
 */

static char *read_card(const char *out) {
    char *path = xprintf("%s/README.md", out);
    size_t n;
    char *bytes = (char *)scratch_read(path, &n), *text = xcalloc(n + 1, 1);
    memcpy(text, bytes, n);
    free(bytes);
    free(path);
    return text;
}

/* A run folder: its result, or before that the latest checkpoint, named by a link or a text. */
static void test_run_folder(void **state) {
    (void)state;
    char *command = xprintf("mkdir -p '%s/run/checkpoints/step-000002' && cp -r %s "
                            "'%s/run/checkpoints/step-000002/adapter' && cp -r tests/golden/dit/2b "
                            "'%s/Some-Model'",
                            folder, ADAPTER, folder, folder);
    assert_int_equal(system(command), 0);
    free(command);
    char *config = xprintf("model:\n  path: %s/Some-Model\n", folder);
    write_text(in_folder("run/config.yaml"), config);
    free(config);
    write_text(in_folder("run/latest"), "step-000002\n");
    write_text(in_folder("Some-Model/README.md"), "---\nlicense: mit\n---\n# Mine\n");
    const char *const sources[] = {"run", "run/checkpoints/step-000002"};
    for (size_t i = 0; i < COUNT(sources); i++) {
        const Run *r = RUN("export", setting("export.checkpoint", in_folder(sources[i])),
                           "export.preset=merged", setting("export.out", in_folder("out")));
        if (r->code) fail_msg("%s", r->err);
        char *card = read_card(in_folder("out"));
        assert_parts(card, (const char *const[]){"license: mit\n", "Base model: Some-Model.\n",
                                                 "That of the base model: mit.", NULL});
        assert_null(strstr(card, "base_model:")); /* a folder's name is none of the hub's */
        free(card);
    }
}

/* The published models are known by their sizes, also in folders of other names. */
static void test_licences(void **state) {
    (void)state;
    static const char *const FOLDERS[] = {"2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v"};
    for (size_t i = 0; i < COUNT(FOLDERS); i++) {
        char *model = xprintf("tests/golden/published/%s", FOLDERS[i]);
        ExportSource s = {.model = model, .transformer = xprintf("%s/transformer", model)};
        BaseModel b = base_model(&s);
        assert_string_equal(b.name, FOLDERS[i]);
        assert_string_equal(b.licence, i ? "other" : "apache-2.0");
        assert_int_equal(b.licence_url != NULL, i > 0);
        base_model_free(&b);
        export_source_free(&s);
    }
    ExportSource named = {.model = xstrdup("somewhere/cogvideox-5b-i2v")};
    BaseModel b = base_model(&named);
    assert_string_equal(b.name, "THUDM/CogVideoX-5b-I2V");
    assert_string_equal(b.licence_name, "cogvideox-license");
    base_model_free(&b);
    export_source_free(&named);
}

/* Asked again, an export takes the place of the earlier one; anything else stays. */
static void test_again(void **state) {
    (void)state;
    const char *out = in_folder("deep/er/out");
    export_as("peft", out, "device=cpu", MODEL);
    export_as("diffusers", out, "device=cpu", MODEL);
    assert_int_equal(scratch_count(out), 3);
    assert_int_equal(scratch_count(in_folder("deep/er")), 1);
    write_text(in_folder("deep/er/out/notes.txt"), "mine");
    REFUSED(RUN("export", setting("export.adapter", ADAPTER), setting("export.out", out)),
            EXIT_USER, "deep/er/out", "earlier export");
    assert_int_equal(scratch_count(out), 4);
    write_text(in_folder("file"), "mine");
    REFUSED(
        RUN("export", setting("export.adapter", ADAPTER), setting("export.out", in_folder("file"))),
        EXIT_USER, "earlier export");
}

static void test_full_disk(void **state) {
    (void)state;
    const char *out = in_folder("out");
    export_as("diffusers", out, "device=cpu", MODEL);
    run_as.file_bytes = 8192;
    const Run *r = RUN("export", setting("export.adapter", ADAPTER), setting("export.out", out),
                       "export.preset=peft");
    REFUSED(r, EXIT_WORLD, "cannot write");
    r = RUN("export", setting("export.adapter", ADAPTER), setting("export.out", in_folder("new")),
            setting("model.path", MODEL), "export.preset=merged");
    run_as.file_bytes = 0;
    assert_int_equal(r->code, EXIT_WORLD);
    assert_int_equal(scratch_count(folder), 1);
    assert_int_equal(scratch_count(out), 3);
    Error e;
    Adapter *a = adapter_open(out, &e);
    assert_non_null(a);
    adapter_close(a);
}

static void test_refused(void **state) {
    (void)state;
    const char *from = setting("export.adapter", ADAPTER),
               *out = setting("export.out", in_folder("x"));
    REFUSED(RUN("export", from), EXIT_USER, "export.out");
    REFUSED(RUN("export", out), EXIT_USER, "export.adapter");
    REFUSED(RUN("export", from, out, "export.preset=kohia"), EXIT_USER, "did you mean 'kohya'");
    REFUSED(RUN("export", from, out, "export.preset=merged"), EXIT_USER, "model.path", "merged");
    REFUSED(RUN("export", from, out, "model.path=/nowhere"), EXIT_USER, "/nowhere");
    REFUSED(RUN("export", from, out, "export.checkpoint=x"), EXIT_USER, "not both");
    REFUSED(RUN("export", out, "export.adapter=/nowhere"), EXIT_USER, "/nowhere");
    REFUSED(RUN("export", out, "export.adapter=tests/golden/dit/2b"), EXIT_USER,
            "export.checkpoint");
    REFUSED(RUN("export", out, "export.adapter=tests/golden"), EXIT_USER, "expected an adapter");
    REFUSED(RUN("export", out, "export.checkpoint=tests/golden/dit/2b", "export.preset=comfy"),
            EXIT_USER, "export.preset", "merged");
    REFUSED(RUN("export", from, out, "model.path=tests/golden/dit/5b", "export.preset=merged"),
            EXIT_USER, "128 x 128", "64 x 64", "another model");
    assert_int_equal(scratch_count(folder), 0);
}

/* Small shards: every tensor in one of them, the index right, the bytes the same. */
static void test_shards(void **state) {
    (void)state;
    const char *from = "tests/golden/dit/2b/transformer", *out = in_folder("out");
    Error e;
    if (!export_merged(out, from, NULL, DT_COUNT, DT_COUNT, 100000, "card", &e))
        fail_msg("%s", e.text);
    Weights got = open_weights(out), want = open_weights(from);
    assert_true(got.n_shards > 4);
    assert_int_equal(got.n_tensors, want.n_tensors);
    for (size_t i = 0; i < want.n_tensors; i++)
        assert_true(same_tensor(&want.tensors[i], &got.tensors[i]));
    weights_close(&got);
    weights_close(&want);
}

/* A request to stop leaves nothing of what was half written. */
static void test_stop(void **state) {
    (void)state;
    const char *from = "tests/golden/dit/2b/transformer", *out = in_folder("out");
    pid_t child = fork();
    if (!child) {
        Error e = {0};
        stop_catch();
        raise(SIGINT);
        bool ok = export_merged(out, from, NULL, DT_COUNT, DT_COUNT, 100000, "card", &e);
        _exit(ok ? 1 : e.exit_code);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_STOPPED);
    assert_int_equal(scratch_count(folder), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_merged_f32, enter, leave),
        cmocka_unit_test_setup_teardown(test_merged_f32_golden, enter, leave),
        cmocka_unit_test_setup_teardown(test_merged_bf16, enter, leave),
        cmocka_unit_test_setup_teardown(test_metadata, enter, leave),
        cmocka_unit_test_setup_teardown(test_peft, enter, leave),
        cmocka_unit_test_setup_teardown(test_scalars, enter, leave),
        cmocka_unit_test_setup_teardown(test_run_folder, enter, leave),
        cmocka_unit_test_setup_teardown(test_licences, enter, leave),
        cmocka_unit_test_setup_teardown(test_again, enter, leave),
        cmocka_unit_test_setup_teardown(test_full_disk, enter, leave),
        cmocka_unit_test_setup_teardown(test_refused, enter, leave),
        cmocka_unit_test_setup_teardown(test_shards, enter, leave),
        cmocka_unit_test_setup_teardown(test_stop, enter, leave),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
