/* What cuDNN is asked to compute, computed by plain loops (tests/kernels/dnn_on_cpu.c) and compared
 * with the CPU backend: attention in packs and slices of heads, convolutions of every kind; and the
 * plans' files. Graphs, operands, workspace, own kernels and copies are the program's own. */
#define _GNU_SOURCE
#include "kernels/attention_cuda.h"
#include "kernels/conv_cuda.h"
#include "tests/kernels/fixture.h"

#include <ftw.h>
#include <stdio.h>
#include <unistd.h>

extern int dnn_plans_made;

/* The reference's, one for all. */
static Stream *cpu_stream(void) {
    static Stream *s;
    if (!s) s = open_stream(64 << 20);
    return s;
}

static double unit_of(DType t) { return t == DT_F32 ? 0x1p-20 : t == DT_BF16 ? 0x1p-8 : 0x1p-11; }

/* x as its type stores it; x itself becomes what that holds. */
static void *stored(DType t, int64_t n, real *x, Stream *cpu) {
    void *y = BACKEND_CPU.alloc((size_t)n * sizeof(real));
    BACKEND_CPU.cast(cpu, DT_F32, t, n, x, y);
    BACKEND_CPU.cast(cpu, t, DT_F32, n, y, x);
    return y;
}

/* Within a few roundings of the type, as norms and at the worst. */
static void compare(const char *what, DType t, int64_t n, const void *got, const real *want,
                    Stream *cpu) {
    real *x = BACKEND_CPU.alloc((size_t)n * sizeof *x);
    double error = 0, norm = 0, worst = 0, most = 0;
    BACKEND_CPU.cast(cpu, t, DT_F32, n, got, x);
    for (int64_t i = 0; i < n; i++) {
        double off = (double)x[i] - (double)want[i];
        if (isnan(off)) fail_msg("%s[%lld] is %g, not %g", what, (long long)i, x[i], want[i]);
        error += off * off;
        norm += (double)want[i] * (double)want[i];
        worst = fmax(worst, fabs(off));
        most = fmax(most, fabs((double)want[i]));
    }
    if (sqrt(error) > 4 * unit_of(t) * sqrt(norm) || worst > 16 * unit_of(t) * most)
        fail_msg("%s: off by %.3g of %.3g, at the worst %.3g of %.3g", what, sqrt(error),
                 sqrt(norm), worst, most);
    BACKEND_CPU.release(x);
}

/* A stream as the CUDA backend's, with workspace that begins as NaN. */
static Stream *gpu_open(size_t bytes) {
    Stream *s = xcalloc(1, sizeof *s);
    s->workspace = BACKEND_CPU.alloc(bytes);
    s->workspace_bytes = bytes;
    memset(s->workspace, 0xff, bytes);
    return s;
}

static void gpu_close(Stream *s) {
    dnn_plans_close(s->attentions.plans);
    dnn_plans_close(s->convs.plans);
    BACKEND_CPU.release(s->workspace);
    free(s);
}

/* ---- attention --------------------------------------------------------------------------------
 */

static void check_attention(DType t, int64_t heads, int64_t size, int segments, const int64_t *cu) {
    Stream *cpu = cpu_stream();
    int64_t rows = cu[segments], n = rows * heads * size;
    real *x[4], *want[4], *lse = output(heads * rows, 0, 0), *got_lse = output(heads * rows, 0, 0);
    void *device[4], *got[4];
    for (uint32_t i = 0; i < 4; i++) {
        x[i] = numbers(n, i);
        device[i] = stored(t, n, x[i], cpu);
        want[i] = output(n, 0, 0);
        got[i] = output(n, 0, 0);
    }
    Attention a = {.t = DT_F32, .rows = rows, .heads = heads, .head_size = size};
    a.scale = (real)(1 / sqrt((double)size));
    a.segments = segments;
    a.cu_rows = cu;
    Attention own = a;
    own.t = t;
    a.q = x[0], a.k = x[1], a.v = x[2];
    own.q = device[0], own.k = device[1], own.v = device[2];
    Stream *s = gpu_open(MAX(cuda_attention_workspace(NULL, &own, false),
                             cuda_attention_workspace(NULL, &own, true)));
    BACKEND_CPU.attention(cpu, &a, want[0], lse);
    cuda_attention(s, &own, got[0], got_lse);
    compare("out", t, n, got[0], want[0], cpu);
    compare("lse", DT_F32, heads * rows, got_lse, lse, cpu);
    BACKEND_CPU.attention_grad(cpu, &a, want[0], lse, x[3], want[1], want[2], want[3]);
    cuda_attention_grad(s, &own, got[0], got_lse, device[3], got[1], got[2], got[3]);
    compare("dq", t, n, got[1], want[1], cpu);
    compare("dk", t, n, got[2], want[2], cpu);
    compare("dv", t, n, got[3], want[3], cpu);
    for (int i = 0; i < 4; i++) release(4, x[i], device[i], want[i], got[i]);
    release(2, lse, got_lse);
    gpu_close(s);
}

static void attention_is_as_cpu(void **state) {
    static const int64_t CU[] = {0, 9, 9, 26, 38};
    const int64_t score_bytes = 2 * 128 * 128; /* of one head of up to 128 rows */
    (void)state;
    for (int heads = 0; heads < 3; heads++) {
        /* All heads at once; then in slices of two and one, and one by one. */
        cuda_attention_deterministic(heads * score_bytes);
        check_attention(DT_F16, 3, 8, 4, CU);
        check_attention(DT_BF16, 3, 16, 1, CU);
        check_attention(DT_F16, 2, 12, 4, CU); /* cogsmith's own */
        check_attention(DT_F32, 2, 8, 4, CU);
    }
    cuda_attention_deterministic(0);
}

/* ---- convolutions -----------------------------------------------------------------------------
 */

static void check_conv(Conv c, DType t) {
    Stream *cpu = cpu_stream();
    int64_t in = (c.frames + c.kt - 1) * c.height * c.width * c.in;
    int64_t weights = c.out * c.in * c.kt * 9, frames = c.frames;
    if (c.repeat && frames > 1) frames = 2 * frames - frames % 2;
    int64_t n = frames * conv_size_out(&c, c.height) * conv_size_out(&c, c.width) * c.out;
    real *x = numbers(in, 1), *w = numbers(weights, 2), *b = numbers(c.out, 3);
    real *y = output(n, c.add, 4);
    void *device_x = stored(t, in, x, cpu), *device_w = stored(t, weights, w, cpu);
    void *device_b = stored(t, c.out, b, cpu), *device_y = stored(t, n, y, cpu);
    c.t = DT_F32;
    real *packed = output(BACKEND_CPU.conv_packed(&c), 0, 0);
    BACKEND_CPU.conv_pack(cpu, &c, w, packed);
    BACKEND_CPU.conv(cpu, &c, x, packed, b, y);
    c.t = t;
    Stream *s = gpu_open(cuda_conv_workspace(NULL, &c));
    real *form = output(cuda_conv_packed(&c), 0, 0);
    cuda_conv_pack(s, &c, device_w, form);
    cuda_conv(s, &c, device_x, form, device_b, device_y);
    char what[96];
    snprintf(what, sizeof what, "conv %s %lldx%lldx%lld %lld-%lld kt %lld", dtype_name(t),
             (long long)c.frames, (long long)c.height, (long long)c.width, (long long)c.in,
             (long long)c.out, (long long)c.kt);
    compare(what, t, n, device_y, y, cpu);
    release(10, x, w, b, y, device_x, device_w, device_b, device_y, packed, form);
    gpu_close(s);
}

static void convs_are_as_cpu(void **state) {
    static const int64_t CHANNELS[][2] = {{8, 16}, {3, 8}, {16, 3}, {5, 7}};
    static const DType TYPES[] = {DT_F32, DT_BF16, DT_F16};
    (void)state;
    for (size_t i = 0; i < COUNT(CHANNELS); i++)
        for (size_t j = 0; j < COUNT(TYPES); j++) {
            Conv c = {.frames = 3, .height = 6, .width = 7, .enlarge = 1, .stride = 1};
            c.in = CHANNELS[i][0];
            c.out = CHANNELS[i][1];
            c.kt = 3;
            check_conv(c, TYPES[j]);
            c.add = true;
            check_conv(c, TYPES[j]);
            c.kt = 1;
            check_conv(c, TYPES[j]);
            c.add = false;
            c.stride = 2;
            check_conv(c, TYPES[j]);
            c.stride = 1;
            c.enlarge = 2;
            check_conv(c, TYPES[j]);
            c.repeat = true;
            for (c.frames = 1; c.frames < 5; c.frames++) check_conv(c, TYPES[j]);
            c.enlarge = 1;
            c.kt = 3;
            for (c.frames = 1; c.frames < 4; c.frames++) check_conv(c, TYPES[j]);
        }
}

/* The shape of a video's largest convolution: its groups cover all frames once and keep their
 * bounds. */
static void groups_cover_all_frames(void **state) {
    (void)state;
    for (int64_t frames = 1; frames < 12; frames++) {
        Conv c = {.t = DT_BF16, .frames = frames, .height = 768, .width = 1360, .in = 256};
        c.out = 128;
        c.kt = 3;
        c.stride = c.enlarge = 1;
        int64_t covered = 0, first = conv_part(&c, 0).frames;
        while (covered < frames) {
            ConvPart p = conv_part(&c, covered);
            assert_in_range(p.frames, 1, first);
            assert_true((p.frames + 2) * 768 * 1360 * 256 <= (int64_t)1 << 31);
            covered += p.frames;
        }
        assert_int_equal(covered, frames);
    }
}

/* ---- files ------------------------------------------------------------------------------------
 */

static int plans_for(DType t) {
    static const int64_t CU[] = {0, 9};
    int before = dnn_plans_made;
    check_attention(t, 1, 8, 1, CU);
    return dnn_plans_made - before;
}

static char cache[] = "/tmp/cogsmith-plans-XXXXXX";

static void plans_are_kept_in_files(void **state) {
    char path[512];
    (void)state;
    snprintf(path, sizeof path, "%s/cogsmith/cudnn/A-GPU-of-loops-sm00-0-cudnn90000/%s", cache,
             "attention-BF16-1x9x8-8-9-16");
    assert_int_equal(plans_for(DT_BF16), 2);
    assert_int_equal(plans_for(DT_BF16), 0);
    assert_int_equal(truncate(path, 20), 0);
    assert_int_equal(plans_for(DT_BF16), 1);
    assert_int_equal(plans_for(DT_BF16), 0);
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    fseek(f, -1, SEEK_END);
    fputc('!', f);
    fclose(f);
    assert_int_equal(plans_for(DT_BF16), 1);
    assert_int_equal(plans_for(DT_BF16), 0);
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *place) {
    (void)info, (void)type, (void)place;
    if (strstr(path, ".tmp.")) fail_msg("%s was left", path);
    return remove(path);
}

/* Where no file can be written, plans are made each time. */
static void work_goes_on_without_files(void **state) {
    (void)state;
    setenv("XDG_CACHE_HOME", "/dev/null", 1);
    assert_int_equal(plans_for(DT_BF16), 2);
    assert_int_equal(plans_for(DT_BF16), 2);
    assert_int_equal(nftw(cache, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_are_kept_in_files), cmocka_unit_test(work_goes_on_without_files),
        cmocka_unit_test(attention_is_as_cpu),     cmocka_unit_test(convs_are_as_cpu),
        cmocka_unit_test(groups_cover_all_frames),
    };
    if (!mkdtemp(cache)) return EXIT_FAILURE;
    setenv("XDG_CACHE_HOME", cache, 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
