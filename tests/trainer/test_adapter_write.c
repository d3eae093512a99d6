/* Writing adapters: the names of every runtime, settings of mixed ranks and alphas, the masters of
 * a model, and what a type cannot hold. */
#define _GNU_SOURCE
#include "trainer/adapter_write.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>

#include "tests/data/folder.h"
#include "tests/trainer/layers.h"
#include "tests/trainer/models.h"

static const char ADAPTER[] = "tests/golden/dit/2b/lora";

static Weights open_weights(const char *path) {
    Weights w;
    Error e;
    if (!weights_open(&w, path, &e)) fail_msg("%s", e.text);
    return w;
}

static bool same_tensor(const SafetensorsTensor *a, const SafetensorsTensor *b) {
    return b && a->dtype == b->dtype && a->n_dims == b->n_dims &&
           !memcmp(a->shape, b->shape, sizeof a->shape) && !memcmp(a->data, b->data, a->bytes);
}

static void test_names(void **state) {
    (void)state;
    static const struct {
        AdapterForm form;
        const char *module, *name;
    } CASES[] = {
        {ADAPTER_DIFFUSERS, "transformer_blocks.3.attn1.to_out.0",
         "transformer.transformer_blocks.3.attn1.to_out.0"},
        {ADAPTER_PEFT, "proj_out", "base_model.model.proj_out"},
        {ADAPTER_COMFY, "transformer_blocks.41.attn1.to_q", "diffusion_model.blocks.41.q"},
        {ADAPTER_COMFY, "transformer_blocks.0.attn1.to_k", "diffusion_model.blocks.0.k"},
        {ADAPTER_COMFY, "transformer_blocks.0.attn1.to_v", "diffusion_model.blocks.0.v"},
        {ADAPTER_COMFY, "transformer_blocks.0.attn1.to_out.0", "diffusion_model.blocks.0.attn_out"},
        {ADAPTER_COMFY, "transformer_blocks.0.ff.net.0.proj", "diffusion_model.blocks.0.ff_proj"},
        {ADAPTER_COMFY, "transformer_blocks.0.ff.net.2", "diffusion_model.blocks.0.ff_out"},
        {ADAPTER_COMFY, "transformer_blocks.0.norm1.linear",
         "diffusion_model.blocks.0.norm1.linear"},
        {ADAPTER_COMFY, "time_embedding.linear_1", "diffusion_model.time_embedding_linear_1"},
        {ADAPTER_COMFY, "patch_embed.text_proj", "diffusion_model.patch_embed.text_proj"},
        {ADAPTER_COMFY, "transformer_blocks.0.attn1.else", NULL},
        {ADAPTER_KOHYA, "transformer_blocks.0.attn1.to_out.0",
         "lora_unet__transformer_blocks_0_attn1_to_out_0"},
    };
    for (size_t i = 0; i < COUNT(CASES); i++) {
        char *name = adapter_layer_name(CASES[i].form, CASES[i].module);
        if (CASES[i].name)
            assert_string_equal(name, CASES[i].name);
        else
            assert_null(name);
        free(name);
    }
}

/* Layers of different rank and alpha, and not in every block, come back as they were. */
static void test_mixed(void **state) {
    (void)state;
    AdapterLayer layers[] = {make_layer("transformer_blocks.0.attn1.to_q", 4, 2),
                             make_layer("transformer_blocks.2.attn1.to_q", 4, 8),
                             make_layer("transformer_blocks.2.ff.net.2", 2, 2.5),
                             make_layer("proj_out", 4, 2)};
    for (int form = ADAPTER_DIFFUSERS; form <= ADAPTER_PEFT; form++) {
        char *path = xstrdup(in_folder(form ? "adapter_model.safetensors" : "mixed.safetensors"));
        Error e;
        if (!adapter_write(path, form, layers, 4, DT_F32, &e)) fail_msg("%s", e.text);
        if (form == ADAPTER_PEFT) {
            json_t *settings = adapter_settings_json(layers, 4);
            assert_int_equal(json_dump_file(settings, in_folder("adapter_config.json"), 0), 0);
            json_decref(settings);
        }
        Adapter *a = adapter_open(path, &e);
        if (!a) fail_msg("%s", e.text);
        assert_int_equal(adapter_count(a), 4);
        for (int i = 0; i < 4; i++) {
            AdapterLayer got = adapter_layer(a, i);
            int k = 0;
            while (k < 4 && strcmp(layers[k].module, got.module)) k++;
            assert_true(k < 4 && got.rank == layers[k].rank && got.alpha == layers[k].alpha);
        }
        adapter_close(a);
        free(path);
    }
    json_t *settings = adapter_settings_json(layers, 4);
    json_t *want =
        json_pack("{s:i, s:i, s:[s,s,s,s], s:{s:i}, s:{s:i, s:f}}", "r", 4, "lora_alpha", 2,
                  "target_modules", "proj_out", "transformer_blocks.0.attn1.to_q",
                  "transformer_blocks.2.attn1.to_q", "transformer_blocks.2.ff.net.2",
                  "rank_pattern", "transformer_blocks.2.ff.net.2", 2, "alpha_pattern",
                  "transformer_blocks.2.attn1.to_q", 8, "transformer_blocks.2.ff.net.2", 2.5);
    assert_true(json_equal(settings, want));
    json_decref(settings);
    json_decref(want);
    for (int i = 0; i < 4; i++) drop_layer(&layers[i]);
}

/* The masters of a model that goes on from an adapter, written out, are that adapter. */
static void test_masters(void **state) {
    (void)state;
    Config *c = tiny_config("2b");
    set(c, "lora.start", ADAPTER);
    Model *m = model_open(c, TRAIN_LORA, MODEL_WEIGHTS, false);
    const real **values = xcalloc((size_t)m->params->n_buckets, sizeof *values);
    for (int i = 0; i < m->params->n_buckets; i++) {
        const Bucket *b = &m->params->bucket[i];
        if (!b->trained) continue;
        real *host = xcalloc((size_t)b->count, sizeof *host);
        bucket_read(m->params, i, PART_MASTER, host, &m->memory, m->stream);
        values[i] = host;
    }
    int n;
    AdapterLayer *layers = adapter_layers_of(m->dit, values, &n);
    assert_int_equal(n, 8);
    Error e;
    const char *path = in_folder("masters.safetensors");
    if (!adapter_write(path, ADAPTER_DIFFUSERS, layers, n, DT_F32, &e)) fail_msg("%s", e.text);
    Weights got = open_weights(path), want = open_weights(ADAPTER);
    assert_int_equal(got.n_tensors, want.n_tensors);
    for (size_t i = 0; i < want.n_tensors; i++) {
        assert_string_equal(got.tensors[i].name, want.tensors[i].name);
        assert_true(same_tensor(&want.tensors[i], &got.tensors[i]));
    }
    for (int i = 0; i < n; i++) assert_true(layers[i].alpha == 2 && layers[i].rank == 4);
    for (int i = 0; i < m->params->n_buckets; i++) free((void *)values[i]);
    free(values);
    free(layers);
    weights_close(&got);
    weights_close(&want);
    model_close(m);
    config_free(c);
}

/* What a type cannot hold is an error, and no infinity. */
static void test_too_large(void **state) {
    (void)state;
    AdapterLayer layer = make_layer("proj_out", 1, 1);
    ((float *)layer.a->data)[3] = 1e6f;
    Error e;
    assert_false(adapter_write(in_folder("x"), ADAPTER_DIFFUSERS, &layer, 1, DT_F16, &e));
    assert_int_equal(e.exit_code, EXIT_USER);
    assert_non_null(strstr(e.text, "F16"));
    assert_int_equal(scratch_count(folder), 0);
    drop_layer(&layer);
}

/* What a runtime has no name for is refused, by the layer's name. */
static void test_no_name(void **state) {
    (void)state;
    AdapterLayer convolution = make_layer("patch_embed.proj", 4, 2);
    ((SafetensorsTensor *)convolution.a)->n_dims = 4;
    ((SafetensorsTensor *)convolution.a)->shape[1] = 2;
    ((SafetensorsTensor *)convolution.a)->shape[2] = 2;
    ((SafetensorsTensor *)convolution.a)->shape[3] = 2;
    AdapterLayer unknown = make_layer("transformer_blocks.0.attn2.to_q", 4, 2);
    Error e;
    assert_false(adapter_write(in_folder("x"), ADAPTER_KOHYA, &convolution, 1, DT_F32, &e));
    assert_non_null(strstr(e.text, "patch_embed.proj: convolutions"));
    assert_true(adapter_write(in_folder("x"), ADAPTER_COMFY, &convolution, 1, DT_F32, &e));
    assert_false(adapter_write(in_folder("y"), ADAPTER_COMFY, &unknown, 1, DT_F32, &e));
    assert_int_equal(e.exit_code, EXIT_USER);
    assert_non_null(strstr(e.text, "attn2.to_q"));
    assert_int_equal(scratch_count(folder), 1);
    drop_layer(&convolution);
    drop_layer(&unknown);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test_setup_teardown(test_mixed, enter, leave),
        cmocka_unit_test_setup_teardown(test_masters, enter, leave),
        cmocka_unit_test_setup_teardown(test_too_large, enter, leave),
        cmocka_unit_test_setup_teardown(test_no_name, enter, leave),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
