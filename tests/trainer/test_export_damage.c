/* No flipped bit of an exported file goes unseen, by `inspect` or by who opens an adapter: each bit
 * of the header (of a full model's each fifth, unless COGSMITH_FLIPS is set), and COGSMITH_FLIPS
 * [100] random others. */
#define _GNU_SOURCE
#include "trainer/inspect.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/trainer/exports.h"
#include "tests/trainer/layers.h"

static bool detected(const char *path, bool adapter) {
    Error e = {0};
    if (adapter) {
        Adapter *a = adapter_open(path, &e);
        adapter_close(a);
        if (a) return false;
    }
    json_t *report = inspect_path(path, &e);
    json_decref(report);
    return !report && e.exit_code == EXIT_USER && *e.text;
}

/* Flips every step-th bit of the header and `random` others, one at a time. */
static void flip_bits(const char *path, bool adapter, size_t step, int random) {
    size_t n;
    uint8_t *bytes = scratch_read(path, &n);
    uint64_t header = 0;
    for (int i = 7; i >= 0; i--) header = header << 8 | bytes[i];
    size_t header_bits = 8 * (8 + header), bit = 0;
    uint64_t draw = 42;
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    setvbuf(f, NULL, _IONBF, 0);
    for (int left = random; left > 0;) {
        size_t at = bit;
        if (bit >= header_bits) {
            draw = draw * 6364136223846793005u + 1442695040888963407u;
            at = header_bits + (size_t)(draw >> 16) % (8 * n - header_bits);
            left--;
        } else {
            bit += step;
        }
        fseek(f, (long)(at / 8), SEEK_SET);
        fputc(bytes[at / 8] ^ 1 << at % 8, f);
        if (!detected(path, adapter)) fail_msg("%s: bit %zu flipped, and not seen", path, at);
        fseek(f, (long)(at / 8), SEEK_SET);
        fputc(bytes[at / 8], f);
    }
    fclose(f);
    free(bytes);
    assert_false(detected(path, adapter));
}

static void test_flipped_bits(void **state) {
    (void)state;
    const char *given = getenv("COGSMITH_FLIPS");
    int random = given ? atoi(given) : 100;
    AdapterLayer layer = make_layer("transformer_blocks.0.attn1.to_q", 4, 2);
    Error e;
    assert_true(
        adapter_write(in_folder("one.safetensors"), ADAPTER_DIFFUSERS, &layer, 1, DT_F32, &e));
    drop_layer(&layer);
    flip_bits(in_folder("one.safetensors"), true, 1, random);
    static const char *const PRESETS[] = {"diffusers", "peft", "comfy", "kohya", "merged"};
    static const char *const FILES[] = {"diffusers/pytorch_lora_weights.safetensors",
                                        "peft/adapter_model.safetensors", "comfy/comfy.safetensors",
                                        "kohya/kohya.safetensors",
                                        "merged/diffusion_pytorch_model.safetensors"};
    for (size_t i = 0; i < COUNT(PRESETS); i++) {
        export_as(PRESETS[i], in_folder(PRESETS[i]), "device=cpu", MODEL);
        flip_bits(in_folder(FILES[i]), i < 2, i == 4 && !given ? 5 : 1, random);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_flipped_bits, enter, leave),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
