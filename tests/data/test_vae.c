/* The video autoencoder against the published implementation's numbers, and against itself: any
 * number of threads, repeated, one job after another in the same arena. Every arena is poisoned. */
#define _XOPEN_SOURCE 700
#include "data/vae.h"
#include "kernels/math.h"
#include "tests/data/golden.h"

#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

/* Bounds of README_codec.md beside the data. */
static const double BOUND = 3e-5, STAGE_BOUND = 5e-5;
static const int64_t ROOMY = INT64_MAX;

typedef struct {
    const float *x;
    int64_t n, dim[5]; /* [B,C,T,H,W] */
} Array;

static Array array_of(const Safetensors *s, const char *name) {
    const SafetensorsTensor *t = safetensors_find(s, name);
    if (!t || t->dtype != DT_F32 || t->n_dims != 5) fail_msg("%s: %s is not there", s->path, name);
    Array a = {t->data, 1, {0}};
    for (int i = 0; i < 5; i++) a.n *= a.dim[i] = t->shape[i];
    return a;
}

/* The project's own copy leaves files out; beside the project they all are. */
static bool left_out(const char *name) {
    char *path = golden_find(name);
    bool missing = access(path, F_OK) != 0;
    free(path);
    return missing && access("../shared/golden/vae", F_OK) != 0;
}

static Vae *open_vae(const char *name) {
    char *folder = golden_find(name);
    Error e;
    Vae *v = vae_open(folder, (Device){&BACKEND_CPU, DT_REAL}, &e);
    if (!v) fail_msg("%s", e.text);
    v->poison = true;
    free(folder);
    return v;
}

static VaeJob *open_job(Vae *v, VaeHalfName half, const Array *in, const VaeTiling *tiling) {
    Error e;
    VaeJob *j = vae_job_open(v, half, in->dim[2], in->dim[3], in->dim[4], tiling, ROOMY, &e);
    if (!j) fail_msg("%s", e.text);
    return j;
}

static int64_t out_count(const VaeJob *j) {
    int64_t size[4];
    vae_job_out(j, size);
    return size[0] * size[1] * size[2] * size[3];
}

static double worst;

static void expect_near(const char *what, const float *got, const float *want, int64_t n,
                        double bound) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) {
        double off = fabs((double)got[i] - (double)want[i]);
        if (!(off <= bound)) fail_msg("%s: value %d is %g, not %g", what, (int)i, got[i], want[i]);
        most = fmax(most, off);
    }
    worst = fmax(worst, most);
}

/* ---- the published numbers --------------------------------------------------------------------
 */

static void check_case(Vae *v, const char *name, VaeHalfName half, const VaeTiling *tiling) {
    Safetensors s = golden_file(name);
    Array in = array_of(&s, half == VAE_ENCODER ? "video" : "z");
    Array want = array_of(&s, half == VAE_ENCODER ? "moments" : "frames");
    VaeJob *j = open_job(v, half, &in, tiling);
    int64_t n = out_count(j), batch = in.dim[0];
    assert_int_equal(n * batch, want.n);
    assert_int_equal(vae_job_tiled(j), tiling && tiling->choice == VAE_TILE_ON);
    float *got = xcalloc((size_t)n, sizeof *got);
    for (int64_t b = 0; b < batch; b++) {
        vae_run(j, in.x + b * in.n / batch, got);
        expect_near(name, got, want.x + b * n, n, BOUND);
    }
    free(got);
    vae_job_close(j);
    safetensors_close(&s);
}

static void encodes_and_decodes_as_published(void **state) {
    static const int FRAMES[] = {1, 5, 8, 9, 13, 17, 25}, LATENTS[] = {1, 2, 3, 4, 5, 7};
    Vae *v = open_vae("vae");
    worst = 0;
    for (size_t i = 0; i < COUNT(FRAMES) + COUNT(LATENTS); i++) {
        bool decode = i >= COUNT(FRAMES);
        char *name = decode ? xprintf("vae/decode_%d.safetensors", LATENTS[i - COUNT(FRAMES)])
                            : xprintf("vae/encode_%d.safetensors", FRAMES[i]);
        if (!left_out(name)) check_case(v, name, decode ? VAE_DECODER : VAE_ENCODER, NULL);
        free(name);
    }
    check_case(v, "vae/encode_batch2.safetensors", VAE_ENCODER, NULL);
    vae_close(v);
    print_message("largest difference: %.2g\n", worst);
    (void)state;
}

static void three_layers_are_as_published(void **state) {
    Vae *v = open_vae("vae/layers3");
    worst = 0;
    check_case(v, "vae/layers3/encode_17.safetensors", VAE_ENCODER, NULL);
    check_case(v, "vae/layers3/decode_5.safetensors", VAE_DECODER, NULL);
    vae_close(v);
    print_message("largest difference: %.2g\n", worst);
    (void)state;
}

static const VaeTiling GOLDEN_TILES = {VAE_TILE_ON, 32, 40, 0.25, 0.4};

static void tiles_are_blended_as_published(void **state) {
    Vae *v = open_vae("vae");
    worst = 0;
    if (!left_out("vae/encode_tiled.safetensors"))
        check_case(v, "vae/encode_tiled.safetensors", VAE_ENCODER, &GOLDEN_TILES);
    check_case(v, "vae/decode_tiled.safetensors", VAE_DECODER, &GOLDEN_TILES);
    vae_close(v);
    print_message("largest difference: %.2g\n", worst);
    (void)state;
}

static void the_posterior_is_as_published(void **state) {
    Safetensors s = golden_file("vae/posterior.safetensors");
    Array moments = array_of(&s, "moments"), mean = array_of(&s, "mean");
    Array deviation = array_of(&s, "std"), noise = array_of(&s, "noise");
    Array sample = array_of(&s, "sample");
    float *got = xcalloc((size_t)mean.n, sizeof *got);
    assert_memory_equal(moments.x, mean.x, (size_t)mean.n * sizeof *got);
    posterior_deviation(moments.x, mean.n, got);
    for (int64_t i = 0; i < mean.n; i++) /* up to e^10 */
        assert_true(fabsf(got[i] - deviation.x[i]) <= 4e-7f * deviation.x[i]);
    posterior_sample(moments.x, noise.x, mean.n, got);
    for (int64_t i = 0; i < mean.n; i++)
        assert_true(fabsf(got[i] - sample.x[i]) <=
                    4e-7f * (deviation.x[i] * fabsf(noise.x[i]) + fabsf(mean.x[i])));
    free(got);
    safetensors_close(&s);
    (void)state;
}

/* ---- module by module -------------------------------------------------------------------------
 */

/* The tensor of ours that is the output of a published module: the weight's name of its last
 * convolution or its norm. *normed: ours has gone through silu, behind frames of context. */
static char *own_name(const Vae *v, const char *half, const char *module, bool *normed) {
    const char *leaf = strrchr(module, '.') ? strrchr(module, '.') + 1 : module;
    int level, layers = (int)v->model.layers;
    *normed = !strncmp(leaf, "norm", 4);
    if (*normed) return xprintf("%s.%s.%sweight", half, module, *half == 'd' ? "norm_layer." : "");
    if (!strncmp(leaf, "conv_", 5) || strstr(module, "samplers"))
        return xprintf("%s.%s.conv.weight", half, module);
    if (strstr(module, "resnets")) return xprintf("%s.%s.conv2.conv.weight", half, module);
    if (!strcmp(module, "mid_block"))
        return xprintf("%s.mid_block.resnets.1.conv2.conv.weight", half);
    if (sscanf(module, "down_blocks.%d", &level) == 1 && level < 3)
        return xprintf("encoder.%s.downsamplers.0.conv.weight", module);
    if (sscanf(module, "up_blocks.%d", &level) == 1 && level < 3)
        return xprintf("decoder.%s.upsamplers.0.conv.weight", module);
    return xprintf("%s.%s.resnets.%d.conv2.conv.weight", half, module,
                   *half == 'd' ? layers : layers - 1);
}

/* The chunk-th value of that name that is frames. */
static Tensor *find_tensor(const Graph *g, const char *name, int chunk) {
    for (int i = 0; i < g->n_tensors; i++) {
        Tensor *t = g->tensors[i];
        if (t->role == ROLE_VALUE && t->shape.rank == 4 && !t->base && !strcmp(t->name, name) &&
            !chunk--)
            return t;
    }
    fail_msg("there is no tensor %s", name);
    return NULL;
}

static void check_stage(const Vae *v, Run *run, const Graph *g, const char *half,
                        const SafetensorsTensor *want) {
    bool normed;
    char *name = own_name(v, half, strchr(want->name, '.') + 1, &normed);
    Tensor *t = find_tensor(g, name, atoi(want->name + strlen("chunk")));
    float *rows = xcalloc((size_t)tensor_count(t), sizeof *rows);
    run_output(run, t, rows);
    int64_t channels = t->shape.dim[3], first = normed ? CONTEXT : 0;
    int64_t frames = t->shape.dim[0] - first, area = t->shape.dim[1] * t->shape.dim[2];
    assert_int_equal(want->shape[2], frames);
    assert_int_equal((size_t)(frames * area * channels) * sizeof *rows, want->bytes);
    for (int64_t c = 0; c < channels; c++)
        for (int64_t i = 0; i < frames * area; i++) {
            float value = ((const float *)want->data)[c * frames * area + i];
            if (normed) value = silu(value);
            expect_near(want->name, rows + (first * area + i) * channels + c, &value, 1,
                        STAGE_BOUND);
        }
    free(rows);
    free(name);
}

static void check_stages(Vae *v, VaeHalfName half, const char *file) {
    const char *name = half == VAE_ENCODER ? "encoder" : "decoder";
    Safetensors s = golden_file(file);
    Array in = array_of(&s, half == VAE_ENCODER ? "video" : "z");
    Graph *g = graph_open(DT_REAL, v->net->params);
    VaeGraph io = vae_record(v->net, half, g, v->memory.k, in.dim[2], in.dim[3], in.dim[4]);
    for (int i = 0; i < g->n_tensors; i++)
        g->tensors[i]->output |= g->tensors[i]->role == ROLE_VALUE;
    Plan *plan = plan_open(g);
    plan_homes(plan, 1);
    plan_place(plan, &(Ctx){.k = v->memory.k, .stream = v->stream});
    Run *run = run_open(plan, &v->memory, v->stream, NULL);
    run_input(run, io.in, in.x);
    run_plan(run, &(RunArgs){0});
    int stages = 0;
    for (size_t i = 0; i < s.n_tensors; i++) {
        if (strncmp(s.tensors[i].name, "chunk", 5)) continue;
        check_stage(v, run, g, name, &s.tensors[i]);
        stages++;
    }
    assert_true(stages >= 20);
    run_close(run);
    plan_close(plan);
    graph_close(g);
    safetensors_close(&s);
}

static void every_module_is_as_published(void **state) {
    Vae *v = open_vae("vae");
    worst = 0;
    if (!left_out("vae/encode_stages.safetensors"))
        check_stages(v, VAE_ENCODER, "vae/encode_stages.safetensors");
    if (!left_out("vae/decode_stages.safetensors"))
        check_stages(v, VAE_DECODER, "vae/decode_stages.safetensors");
    vae_close(v);
    print_message("largest difference: %.2g\n", worst);
    (void)state;
}

/* ---- bits and memory --------------------------------------------------------------------------
 */

static float *noise_of(int64_t n) {
    float *x = xcalloc((size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = sinf((float)(i % 1009) * 1.7f);
    return x;
}

/* Widths at which every way of computing a convolution is taken. */
static Vae *middling(void) {
    VaeModel m = {.channels = {16, 32, 32, 48},
                  .layers = 1,
                  .latent = 16,
                  .groups = 4,
                  .norm_eps = 1e-6,
                  .sample_height = 96,
                  .sample_width = 96,
                  .scaling_factor = 1};
    Vae *v = vae_open_random(&m, (Device){&BACKEND_CPU, DT_REAL});
    v->poison = true;
    return v;
}

static const int64_t SIZES[VAE_HALVES][3] = {{9, 72, 88}, {3, 9, 11}};

static void bits_depend_on_nothing_else(void **state) {
    for (int half = 0; half < VAE_HALVES; half++) {
        float *first = NULL;
        const int64_t *size = SIZES[half];
        for (int threads = 1; threads <= 3; threads++) {
            omp_set_num_threads(threads);
            Vae *v = middling();
            Array in = {NULL, 0, {1, 0, size[0], size[1], size[2]}};
            VaeJob *j = open_job(v, (VaeHalfName)half, &in, NULL);
            int64_t n = out_count(j);
            float *x = noise_of(size[0] * size[1] * size[2] * 16), *y = xcalloc((size_t)n, 4);
            for (int turn = 0; turn < 2; turn++) {
                vae_run(j, x, y);
                if (!first) first = memcpy(xcalloc((size_t)n, 4), y, (size_t)n * sizeof *y);
                for (int64_t i = 0; i < n; i++) assert_true(isfinite(y[i]));
                assert_memory_equal(y, first, (size_t)n * sizeof *y);
            }
            free(x);
            free(y);
            vae_job_close(j);
            vae_close(v);
        }
        free(first);
    }
    (void)state;
}

/* Two jobs take turns in one arena, which grows for the second. */
static void jobs_share_an_arena(void **state) {
    static const int64_t FRAMES[] = {1, 17};
    Vae *v = middling();
    VaeJob *jobs[2];
    float *x = noise_of(3 * 17 * 32 * 48), *y[2], *again;
    for (int i = 0; i < 2; i++) {
        Array in = {NULL, 0, {1, 3, FRAMES[i], 32, 48}};
        jobs[i] = open_job(v, VAE_ENCODER, &in, NULL);
        y[i] = xcalloc((size_t)out_count(jobs[i]), sizeof *y[i]);
        vae_run(jobs[i], x, y[i]);
        assert_int_equal(v->arena_bytes, vae_job_bytes(jobs[i]));
    }
    assert_true(vae_job_bytes(jobs[0]) < vae_job_bytes(jobs[1]));
    for (int i = 0; i < 2; i++) {
        size_t bytes = (size_t)out_count(jobs[i]) * sizeof *x;
        again = xcalloc(1, bytes);
        vae_run(jobs[i], x, again);
        assert_memory_equal(again, y[i], bytes);
        free(again);
        free(y[i]);
        vae_job_close(jobs[i]);
    }
    assert_int_equal(v->memory.bytes, v->arena_bytes);
    free(x);
    vae_close(v);
    (void)state;
}

static void tiles_come_when_the_whole_does_not_fit(void **state) {
    Vae *v = middling();
    VaeTiling tiling = VAE_TILING_DEFAULT;
    tiling.overlap_height = tiling.overlap_width = 1.0 / 3;
    Error e;
    VaeJob *whole = vae_job_open(v, VAE_ENCODER, 9, 96, 144, &tiling, ROOMY, &e);
    assert_true(whole && !vae_job_tiled(whole));
    int64_t bytes = vae_job_bytes(whole);
    VaeJob *fits = vae_job_open(v, VAE_ENCODER, 9, 96, 144, &tiling, bytes, &e);
    assert_true(fits && !vae_job_tiled(fits));
    VaeJob *tiled = vae_job_open(v, VAE_ENCODER, 9, 96, 144, &tiling, bytes - 1, &e);
    assert_true(tiled && vae_job_tiled(tiled));
    assert_true(vae_job_bytes(tiled) < bytes / 2);
    vae_job_close(whole);
    vae_job_close(fits);
    vae_job_close(tiled);
    vae_close(v);
    (void)state;
}

/* ---- mistakes ---------------------------------------------------------------------------------
 */

static void expect_refused(Vae *v, const int64_t size[3], const VaeTiling *t, const char *part) {
    Error e = {0};
    VaeJob *j = vae_job_open(v, VAE_ENCODER, size[0], size[1], size[2], t, ROOMY, &e);
    if (j || e.exit_code != EXIT_USER || !strstr(e.text, part))
        fail_msg("expected '%s' in: %s", part, e.text);
}

static void sizes_that_cannot_be_are_refused(void **state) {
    Vae *v = middling();
    static const int64_t ODD[] = {9, 60, 64}, NONE[] = {0, 64, 64}, GOOD[] = {9, 96, 96};
    expect_refused(v, ODD, NULL, "multiples of 8");
    expect_refused(v, NONE, NULL, "1 to 65536 frames");
    expect_refused(v, GOOD, &(VaeTiling){VAE_TILE_ON, 48, 48, 0.3, 0.3}, "vae.tile_height");
    expect_refused(v, GOOD, &(VaeTiling){VAE_TILE_ON, 48, 44, 0.5, 0.5}, "vae.tile_width");
    vae_close(v);
    (void)state;
}

/* A config.json with one key changed from the golden one. */
static void expect_config_refused(const char *from, const char *to, const char *part) {
    char *folder = scratch_make(), *source = golden_find("vae/config.json");
    char *path = xprintf("%s/config.json", folder);
    size_t n;
    uint8_t *bytes = scratch_read(source, &n);
    char *text = memcpy(xcalloc(n + 1, 1), bytes, n), *at = strstr(text, from);
    assert_non_null(at);
    char *changed = xprintf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    scratch_write(path, changed, strlen(changed));
    VaeModel m;
    Error e = {0};
    if (vae_model_read(&m, path, &e) || e.exit_code != EXIT_USER || !strstr(e.text, part))
        fail_msg("%s: expected '%s' in: %s", to, part, e.text);
    free(bytes);
    free(text);
    free(changed);
    free(path);
    free(source);
    scratch_remove(folder);
}

static void configs_of_other_models_are_refused(void **state) {
    expect_config_refused("AutoencoderKLCogVideoX", "AutoencoderKL", "\"_class_name\"");
    expect_config_refused("\"silu\"", "\"relu\"", "\"act_fn\"");
    expect_config_refused("\"use_quant_conv\": false", "\"use_quant_conv\": true", "use_quant");
    expect_config_refused("\"shift_factor\": null", "\"shift_factor\": 0.1", "\"shift_factor\"");
    expect_config_refused("ratio\": 4", "ratio\": 8", "expected 4");
    expect_config_refused("num_groups\": 4", "num_groups\": 5", "multiples of norm_num_groups");
    expect_config_refused("sample_height", "sample_hight", "nearest is \"sample_height\"");
    expect_config_refused("CogVideoXUpBlock3D", "UpBlock3D", "\"up_block_types\"");
    (void)state;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(encodes_and_decodes_as_published),
        cmocka_unit_test(three_layers_are_as_published),
        cmocka_unit_test(tiles_are_blended_as_published),
        cmocka_unit_test(the_posterior_is_as_published),
        cmocka_unit_test(every_module_is_as_published),
        cmocka_unit_test(bits_depend_on_nothing_else),
        cmocka_unit_test(jobs_share_an_arena),
        cmocka_unit_test(tiles_come_when_the_whole_does_not_fit),
        cmocka_unit_test(sizes_that_cannot_be_are_refused),
        cmocka_unit_test(configs_of_other_models_are_refused),
    };
    return cmocka_run_group_tests_name("vae", tests, NULL, NULL);
}
