/* No flipped bit of an exported file goes unseen, by `inspect` or by who opens an adapter: each bit
 * of the header (of a full model's each fifth, unless COGSMITH_FLIPS is set), and COGSMITH_FLIPS
 * [100] random others; of every other file of the folder as many random ones, by `inspect` of the
 * folder. */
#define _GNU_SOURCE
#include "trainer/inspect.h"

#include <dirent.h>
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

static uint64_t next_draw(uint64_t *draw) {
    *draw = *draw * 6364136223846793005u + 1442695040888963407u;
    return *draw >> 16;
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
            at = header_bits + (size_t)next_draw(&draw) % (8 * n - header_bits);
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

/* Flips random bits of a text in an exported folder, one at a time. */
static void flip_text(const char *out, const char *name, int random) {
    char *path = xprintf("%s/%s", out, name);
    size_t n;
    uint8_t *bytes = scratch_read(path, &n);
    uint64_t draw = 7;
    for (int i = 0; i < random; i++) {
        size_t bit = (size_t)next_draw(&draw) % (8 * n);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        scratch_write(path, bytes, n);
        Error e = {0};
        json_t *report = inspect_path(out, &e);
        if (report || e.exit_code != EXIT_USER || !strstr(e.text, name))
            fail_msg("%s: bit %zu flipped, and inspect says: %s", path, bit, e.text);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    scratch_write(path, bytes, n);
    free(bytes);
    free(path);
}

/* All of a folder's files that do not carry their digest; returns how many. */
static int flip_texts(const char *out, int random) {
    int files = 0;
    DIR *d = opendir(out);
    assert_non_null(d);
    for (struct dirent *entry; (entry = readdir(d));) {
        const char *dot = strrchr(entry->d_name, '.');
        if (entry->d_name[0] == '.' || (dot && !strcmp(dot, ".safetensors"))) continue;
        flip_text(out, entry->d_name, random);
        files++;
    }
    closedir(d);
    assert_false(detected(out, false));
    return files;
}

static int count_flips(void) {
    const char *given = getenv("COGSMITH_FLIPS");
    return given ? atoi(given) : 100;
}

static void test_flipped_texts(void **state) {
    (void)state;
    static const struct {
        const char *preset;
        int files;
    } EXPORTS[] = {{"diffusers", 2}, {"peft", 3}, {"comfy", 2}, {"kohya", 2}, {"merged", 3}};
    for (size_t i = 0; i < COUNT(EXPORTS); i++) {
        export_as(EXPORTS[i].preset, in_folder(EXPORTS[i].preset), "device=cpu", MODEL);
        assert_int_equal(flip_texts(in_folder(EXPORTS[i].preset), count_flips()), EXPORTS[i].files);
    }
    Error e;
    if (!export_merged(in_folder("shards"), "tests/golden/dit/2b/transformer", NULL, DT_COUNT,
                       DT_COUNT, 200000, "card", &e))
        fail_msg("%s", e.text);
    assert_int_equal(flip_texts(in_folder("shards"), count_flips()), 4);
}

/* A file that is lost is damage too; a folder without digests is read as it is. */
static void test_lost_files(void **state) {
    (void)state;
    export_as("peft", in_folder("out"), "device=cpu", MODEL);
    assert_int_equal(unlink(in_folder("out/README.md")), 0);
    const Run *r = RUN("inspect", in_folder("out"));
    assert_int_equal(r->code, EXIT_USER);
    assert_non_null(strstr(r->err, "README.md: is not there"));
    Error e;
    const char *const starts[] = {"out", "out/adapter_model.safetensors"};
    for (size_t i = 0; i < COUNT(starts); i++) { /* lora.start, sample.adapter */
        assert_null(adapter_open(in_folder(starts[i]), &e));
        assert_non_null(strstr(e.text, "README.md: is not there"));
    }
    assert_int_equal(unlink(in_folder("out/digests.json")), 0);
    assert_int_equal(RUN("inspect", in_folder("out"))->code, 0);
}

static void test_flipped_bits(void **state) {
    (void)state;
    const char *given = getenv("COGSMITH_FLIPS");
    int random = count_flips();
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
        cmocka_unit_test_setup_teardown(test_flipped_texts, enter, leave),
        cmocka_unit_test_setup_teardown(test_lost_files, enter, leave),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
