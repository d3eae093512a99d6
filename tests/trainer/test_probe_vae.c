/* The autoencoder's rows of `probe`: the program against the published moments and frames, and
 * mistakes. Needs ../shared/golden/vae. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/data/golden.h"
#include "tests/trainer/program.h"

#include <math.h>

static char *folder, *out_path, *out_set;

static bool absent(void) { return access("../shared/golden/vae", F_OK) != 0; }

static const Run *probe(const char *model, const char *inputs, bool tiled) {
    char *model_arg = xprintf("model.path=%s", model), *in = xprintf("probe.inputs=%s", inputs);
    const Run *r =
        tiled ? RUN("probe", model_arg, in, out_set, "vae.tiling=on", "vae.tile_height=32",
                    "vae.tile_width=40", "vae.overlap_height=0.25", "vae.overlap_width=0.4")
              : RUN("probe", model_arg, in, out_set);
    free(model_arg);
    free(in);
    return r;
}

/* A golden file is the inputs and what must come of them. */
static void expect(const char *model, const char *name, const char *output) {
    char *path = xprintf("%s/%s.safetensors", model, name);
    const Run *r = probe(model, path, strstr(name, "tiled") != NULL);
    Safetensors got, want;
    Error e;
    if (r->code) fail_msg("%s: %s", name, r->err);
    assert_true(safetensors_open(&got, out_path, &e) && safetensors_open(&want, path, &e));
    const SafetensorsTensor *a = safetensors_find(&got, output);
    const SafetensorsTensor *b = safetensors_find(&want, output);
    assert_true(a && b && got.n_tensors == 1 && a->dtype == DT_F32 && a->bytes == b->bytes);
    assert_memory_equal(a->shape, b->shape, 5 * sizeof *a->shape);
    float worst = 0;
    for (size_t k = 0; k < a->bytes / 4; k++)
        worst = fmaxf(worst, fabsf(((const float *)a->data)[k] - ((const float *)b->data)[k]));
    if (!(worst <= 3e-5f)) fail_msg("%s: %g away", name, worst);
    safetensors_close(&got);
    safetensors_close(&want);
    free(path);
}

static void moments_come_out(void **state) {
    static const char *const NAMES[] = {"encode_1",     "encode_9",      "encode_13",
                                        "encode_25",    "encode_batch2", "encode_stages",
                                        "encode_tiled", "encode_8"};
    (void)state;
    if (absent()) skip();
    for (size_t i = 0; i < COUNT(NAMES); i++) expect("../shared/golden/vae", NAMES[i], "moments");
    expect("../shared/golden/vae/layers3", "encode_17", "moments");
}

static void frames_come_out(void **state) {
    static const char *const NAMES[] = {"decode_1", "decode_2", "decode_5", "decode_7",
                                        "decode_tiled"};
    (void)state;
    if (absent()) skip();
    for (size_t i = 0; i < COUNT(NAMES); i++) expect("../shared/golden/vae", NAMES[i], "frames");
    expect("../shared/golden/vae/layers3", "decode_5", "frames");
}

static const Run *probe_item(SafetensorsItem item) {
    Error e;
    char *path = xprintf("%s/in.safetensors", folder);
    SafetensorsFile file = {.items = &item, .n_items = 1};
    if (!safetensors_write(path, &file, &e)) fail_msg("%s", e.text);
    const Run *r = probe("../shared/golden/vae", path, false);
    free(path);
    return r;
}

static void mistakes_are_said(void **state) {
    static float values[3 * 12 * 16];
    (void)state;
    if (absent()) skip();
    REFUSED(probe_item((SafetensorsItem){"video", DT_F32, 4, {1, 3, 8, 8}, values}), EXIT_USER,
            "video", "[B,3,T,H,W]");
    REFUSED(probe_item((SafetensorsItem){"video", DT_F32, 5, {1, 3, 1, 12, 16}, values}), EXIT_USER,
            "video", "multiples of 8");
    REFUSED(probe_item((SafetensorsItem){"z", DT_F32, 5, {1, 4, 1, 2, 2}, values}), EXIT_USER, "z",
            "[B,16,T,H,W]");
    REFUSED(probe_item((SafetensorsItem){"z", DT_I32, 5, {1, 16, 1, 2, 2}, values}), EXIT_USER, "z",
            "I32");
    values[5] = NAN;
    REFUSED(probe_item((SafetensorsItem){"video", DT_F32, 5, {1, 3, 1, 8, 8}, values}), EXIT_USER,
            "video", "value 5");
    values[5] = 0;
    char *in = xprintf("probe.inputs=%s/in.safetensors", folder);
    REFUSED(RUN("probe", "model.path=/nowhere", in, out_set), EXIT_USER, "/nowhere");
    free(in);
}

static int setup(void **state) {
    (void)state;
    folder = scratch_make();
    out_path = xprintf("%s/out.safetensors", folder);
    out_set = xprintf("probe.out=%s", out_path);
    if (absent()) print_message("SKIPPED: there is no ../shared/golden/vae\n");
    return 0;
}

static int teardown(void **state) {
    (void)state;
    scratch_remove(folder);
    free(out_path);
    free(out_set);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(moments_come_out),
        cmocka_unit_test(frames_come_out),
        cmocka_unit_test(mistakes_are_said),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
