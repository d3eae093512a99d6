/* The kernels over frames of video against plain loops in double precision, and their bits on any
 * number of threads. */
#define _GNU_SOURCE
#include "tests/kernels/fixture.h"

#include <omp.h>

enum { MAX_THREADS = 3 };

/* ---- convolutions -----------------------------------------------------------------------------
 */

/* Shapes of every way to compute: few and many channels, few and many pixels, odd sizes. */
static const Conv CONVS[] = {
    {.frames = 3, .height = 5, .width = 7, .in = 3, .out = 8, .kt = 3},
    {.frames = 1, .height = 4, .width = 4, .in = 40, .out = 3, .kt = 3},
    {.frames = 2, .height = 12, .width = 9, .in = 33, .out = 70, .kt = 3},
    {.frames = 2, .height = 33, .width = 36, .in = 16, .out = 24, .kt = 3},
    {.frames = 2, .height = 33, .width = 31, .in = 32, .out = 16, .kt = 1},
    {.frames = 3, .height = 41, .width = 43, .in = 128, .out = 80, .kt = 3},
    {.frames = 2, .height = 8, .width = 6, .in = 12, .out = 12, .kt = 1, .stride = 2},
    {.frames = 3, .height = 32, .width = 48, .in = 32, .out = 20, .kt = 1, .stride = 2},
    {.frames = 1, .height = 4, .width = 6, .in = 20, .out = 20, .kt = 1, .enlarge = 2},
    {.frames = 3, .height = 4, .width = 3, .in = 7, .out = 5, .kt = 1, .enlarge = 2, .repeat = 1},
    {.frames = 2,
     .height = 17,
     .width = 19,
     .in = 24,
     .out = 16,
     .kt = 1,
     .enlarge = 2,
     .repeat = 1},
    {.frames = 3,
     .height = 16,
     .width = 18,
     .in = 16,
     .out = 17,
     .kt = 1,
     .enlarge = 2,
     .repeat = 1},
};

static Conv conv_at(size_t i, bool add) {
    Conv c = CONVS[i];
    c.t = DT_REAL;
    c.stride = MAX(c.stride, 1);
    c.enlarge = MAX(c.enlarge, 1);
    c.add = add && !c.repeat;
    return c;
}

static int64_t out_size(const Conv *c, int64_t size) {
    return c->stride == 2 ? size / 2 : size * c->enlarge;
}

/* One output, as the comment of Conv says, and the sum of sizes of what it adds. */
static double plain_conv(const Conv *c, const real *x, const real *w, int64_t t, int64_t h,
                         int64_t v, int64_t o, double *size) {
    double sum = 0;
    int64_t pad = c->stride == 1 ? 1 : 0;
    for (int64_t k = 0; k < c->kt * 9; k++) {
        int64_t row = h * c->stride + k / 3 % 3 - pad, col = v * c->stride + k % 3 - pad;
        if (row < 0 || col < 0 || row >= c->height * c->enlarge || col >= c->width * c->enlarge)
            continue;
        int64_t pixel = ((t + k / 9) * c->height + row / c->enlarge) * c->width + col / c->enlarge;
        for (int64_t i = 0; i < c->in; i++) {
            double term = (double)x[pixel * c->in + i] * (double)w[(o * c->in + i) * c->kt * 9 + k];
            sum += term;
            *size += fabs(term);
        }
    }
    return sum;
}

/* Which computed frame the output's frame t is. */
static int64_t source_frame(const Conv *c, int64_t t) {
    if (!c->repeat || c->frames == 1) return t;
    return c->frames % 2 ? (t + 1) / 2 : t / 2;
}

typedef struct {
    Conv conv;
    real *x, *w, *bias, *y, *old;
    int64_t frames, height, width, count; /* of y */
} Case;

static Case case_of(size_t i, bool add) {
    Conv c = conv_at(i, add);
    Case k = {.conv = c, .height = out_size(&c, c.height), .width = out_size(&c, c.width)};
    k.frames = c.repeat && c.frames > 1 ? 2 * c.frames - c.frames % 2 : c.frames;
    k.count = k.frames * k.height * k.width * c.out;
    k.x = numbers((c.frames + c.kt - 1) * c.height * c.width * c.in, 1);
    k.w = numbers(c.out * c.in * c.kt * 9, 2);
    k.bias = numbers(c.out, 3);
    k.y = output(k.count, c.add, 4);
    k.old = copy_of(k.y, k.count);
    return k;
}

static void run_case(const Case *k, real *y) {
    const Backend *b = &BACKEND_CPU;
    Stream *s = b->stream_open();
    real *packed = output(b->conv_packed(&k->conv), 0, 5);
    size_t bytes = b->conv_workspace(s, &k->conv);
    void *workspace = b->alloc(bytes);
    memset(workspace, 0xff, bytes);
    b->stream_workspace(s, workspace, bytes);
    Conv packing = k->conv; /* other frames, and not adding, as in a clip of chunks */
    packing.frames += 2;
    b->conv_pack(s, &packing, k->w, packed);
    b->conv(s, &k->conv, k->x, packed, k->bias, y);
    release(2, packed, workspace);
    b->stream_close(s);
}

static void check_case(const Case *k) {
    const Conv *c = &k->conv;
    for (int64_t i = 0; i<k->count; i += k->count> 20000 ? 31 : 1) {
        int64_t o = i % c->out, v = i / c->out % k->width, h = i / c->out / k->width % k->height;
        int64_t t = source_frame(c, i / c->out / k->width / k->height);
        double size = fabs((double)k->bias[o]);
        double want = plain_conv(c, k->x, k->w, t, h, v, o, &size) + (double)k->bias[o];
        if (c->add) want += (double)k->old[i], size += fabs((double)k->old[i]);
        /* Errors of sums grow with the root of their length; Winograd's sums are of other terms. */
        expect_near("conv", i, (double)k->y[i], want, 4 + sqrt((double)(c->in * c->kt)), size);
    }
}

static void free_case(const Case *k) { release(5, k->x, k->w, k->bias, k->y, k->old); }

static void convolutions_are_right(void **state) {
    for (size_t i = 0; i < COUNT(CONVS); i++)
        for (int add = 0; add < 2; add++) {
            Case k = case_of(i, add);
            run_case(&k, k.y);
            check_case(&k);
            free_case(&k);
        }
    (void)state;
}

static void convolutions_have_one_result(void **state) {
    for (size_t i = 0; i < COUNT(CONVS); i++) {
        Case k = case_of(i, true);
        real *first = NULL;
        for (int threads = 1; threads <= MAX_THREADS; threads++) {
            omp_set_num_threads(threads);
            real *y = copy_of(k.old, k.count);
            run_case(&k, y);
            if (!first) first = copy_of(y, k.count);
            expect_same("conv", y, first, (size_t)k.count * sizeof *y);
            release(1, y);
        }
        release(1, first);
        free_case(&k);
    }
    (void)state;
}

/* A frame's bits do not depend on the frames beside it. */
static void frames_stand_alone(void **state) {
    for (size_t i = 0; i < COUNT(CONVS); i++) {
        Case k = case_of(i, false);
        if (k.conv.repeat || k.conv.frames < 2) {
            free_case(&k);
            continue;
        }
        int64_t frame = k.count / k.frames, in = k.conv.height * k.conv.width * k.conv.in;
        run_case(&k, k.y);
        Case last = k;
        last.conv.frames = 1;
        last.x += (k.frames - 1) * in;
        real *y = output(frame, 0, 6);
        run_case(&last, y);
        expect_same("frame", y, k.y + (k.frames - 1) * frame, (size_t)frame * sizeof *y);
        release(1, y);
        free_case(&k);
    }
    (void)state;
}

/* ---- group norm -------------------------------------------------------------------------------
 */

static const struct {
    int64_t size[4], groups, grid[3]; /* T, H, W, C; grid F 0: no scale and shift */
} NORMS[] = {
    {{1, 3, 4, 8}, 4, {0}},          {{2, 5, 3, 12}, 2, {0}},       {{9, 16, 20, 32}, 8, {0}},
    {{1, 4, 6, 8}, 4, {1, 2, 3}},    {{3, 6, 4, 6}, 2, {3, 3, 2}},  {{5, 8, 8, 12}, 4, {3, 2, 2}},
    {{9, 12, 16, 16}, 4, {3, 3, 4}}, {{8, 8, 8, 40}, 8, {2, 2, 2}},
};

/* torch.nn.functional.interpolate of a size that is a multiple. */
static int64_t grid_cell(const GroupNorm *n, int64_t t, int64_t h, int64_t w) {
    int64_t f = t * n->grid[0] / n->frames;
    if (n->frames > 1 && n->frames % 2)
        f = t ? 1 + (t - 1) * (n->grid[0] - 1) / (n->frames - 1) : 0;
    return (f * n->grid[1] + h * n->grid[1] / n->height) * n->grid[2] + w * n->grid[2] / n->width;
}

static void group_stats(const GroupNorm *n, int64_t group, double *mean, double *variance) {
    int64_t rows = n->frames * n->height * n->width, width = n->channels / n->groups;
    double sum = 0, squares = 0, count = (double)(rows * width);
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < rows * width; i++) {
            double x =
                (double)((const real *)n->x)[i / width * n->channels + group * width + i % width];
            sum += pass ? 0 : x;
            squares += pass ? (x - *mean) * (x - *mean) : 0;
        }
        *mean = sum / count;
    }
    *variance = squares / count;
}

static void check_norm(const GroupNorm *n, const real *y) {
    int64_t c = n->channels, frame = n->height * n->width * c;
    double *mean = xcalloc((size_t)n->groups, sizeof *mean);
    double *variance = xcalloc((size_t)n->groups, sizeof *variance);
    for (int64_t g = 0; g < n->groups; g++) group_stats(n, g, &mean[g], &variance[g]);
    for (int64_t i = 0; i < n->frames * frame; i++) {
        int64_t j = i % c, g = j / (c / n->groups), w = i / c % n->width;
        int64_t h = i / c / n->width % n->height, t = i / frame;
        double z = ((double)((const real *)n->x)[i] - mean[g]) / sqrt(variance[g] + (double)n->eps);
        z = z * (double)((const real *)n->gamma)[j] + (double)((const real *)n->beta)[j];
        if (n->scale) {
            int64_t at = grid_cell(n, t, h, w) * c + j;
            z = z * (double)((const real *)n->scale)[at] + (double)((const real *)n->shift)[at];
        }
        /* f64 holds the squares of f32 exactly, but not its own. */
        double lost = sizeof(real) == sizeof(double) ? mean[g] * mean[g] / variance[g] : 0;
        expect_near("norm", i, (double)y[CONTEXT * frame + i], z / (1 + exp(-z)), 64 + 4 * lost,
                    4 + fabs(z) * 4);
    }
    free(mean);
    free(variance);
}

/* What stands before y's frames, and what is left for the next chunk. */
static void check_context(const GroupNorm *n, const real *y) {
    int64_t frame = n->height * n->width * n->channels;
    size_t bytes = (size_t)frame * sizeof *y;
    for (int k = 0; k < CONTEXT; k++) {
        const real *want = n->past ? (const real *)n->past + k * frame : y + CONTEXT * frame;
        expect_same("past", y + k * frame, want, bytes);
    }
    expect_same("next", n->next, y + n->frames * frame, CONTEXT * bytes);
}

static void run_norm(GroupNorm *n, real *y) {
    Stream *s = BACKEND_CPU.stream_open();
    size_t bytes = BACKEND_CPU.group_norm_workspace(s, n);
    void *workspace = BACKEND_CPU.alloc(bytes);
    memset(workspace, 0xff, bytes);
    BACKEND_CPU.stream_workspace(s, workspace, bytes);
    BACKEND_CPU.group_norm(s, n, y);
    release(1, workspace);
    BACKEND_CPU.stream_close(s);
}

static void check_norm_case(size_t i, bool past) {
    const int64_t *size = NORMS[i].size, *grid = NORMS[i].grid;
    int64_t c = size[3], frame = size[1] * size[2] * c, cells = grid[0] * grid[1] * grid[2] * c;
    real *x = numbers(size[0] * frame, 1), *y = output((CONTEXT + size[0]) * frame, 0, 2);
    real *gamma = numbers(c, 3), *beta = numbers(c, 4), *before = numbers(CONTEXT * frame, 5);
    real *scale = numbers(MAX(cells, 1), 6), *shift = numbers(MAX(cells, 1), 7);
    real *next = output(CONTEXT * frame, 0, 8);
    for (int64_t j = 0; j < size[0] * frame; j++) x[j] = x[j] * (real)0.1 + (real)3;
    GroupNorm n = {.t = DT_REAL,
                   .frames = size[0],
                   .height = size[1],
                   .width = size[2],
                   .channels = c,
                   .groups = NORMS[i].groups,
                   .eps = (real)1e-6,
                   .x = x,
                   .gamma = gamma,
                   .beta = beta,
                   .grid = {grid[0], grid[1], grid[2]},
                   .scale = cells ? scale : NULL,
                   .shift = cells ? shift : NULL,
                   .past = past ? before : NULL,
                   .next = next};
    size_t bytes = (size_t)((CONTEXT + size[0]) * frame) * sizeof *y;
    run_norm(&n, y);
    check_norm(&n, y);
    check_context(&n, y);
    for (int threads = 1; threads <= MAX_THREADS; threads++) {
        real *again = output((CONTEXT + size[0]) * frame, 0, 9);
        omp_set_num_threads(threads);
        run_norm(&n, again);
        expect_same("norm", again, y, bytes);
        release(1, again);
    }
    release(8, x, y, gamma, beta, before, scale, shift, next);
}

static void group_norm_and_all_behind_it(void **state) {
    for (size_t i = 0; i < COUNT(NORMS); i++)
        for (int past = 0; past < 2; past++) check_norm_case(i, past);
    (void)state;
}

/* ---- frames -----------------------------------------------------------------------------------
 */

static void frames_are_taken_from_planes(void **state) {
    enum { C = 3, F = 7, H = 5, W = 4, AREA = H * W };
    real *planes = numbers(C * F * AREA, 1);
    for (int64_t first = 0; first < F; first += 2)
        for (int64_t frames = 1; first + frames <= F; frames += 2) {
            real *rows = output((CONTEXT + frames) * AREA * C, 0, 2);
            BACKEND_CPU.take_frames(*state, &(TakeFrames){DT_REAL, C, F, H, W, first, frames},
                                    planes, rows);
            for (int64_t i = 0; i < (CONTEXT + frames) * AREA * C; i++) {
                int64_t frame = MAX(first - CONTEXT + i / C / AREA, 0);
                real want = planes[(i % C * F + frame) * AREA + i / C % AREA];
                assert_true(rows[i] == want);
            }
            release(1, rows);
        }
    release(1, planes);
}

static void frames_are_pooled_in_pairs(void **state) {
    static const int64_t FRAME[] = {1, 60, 9000};
    for (int64_t frames = 1; frames <= 9; frames++)
        for (size_t k = 0; k < COUNT(FRAME); k++) {
            int64_t n = FRAME[k], out = (frames + 1) / 2;
            real *x = numbers(frames * n, 1), *y = output(out * n, 0, 2);
            BACKEND_CPU.pool_frames(*state, DT_REAL, frames, n, x, y);
            for (int64_t i = 0; i < out * n; i++) {
                int64_t t = i / n, a = frames % 2 ? MAX(2 * t - 1, 0) : 2 * t;
                int64_t b = frames % 2 && !t ? a : a + 1;
                assert_true(y[i] == (x[a * n + i % n] + x[b * n + i % n]) / 2);
            }
            release(2, x, y);
        }
}

static int open_workspace(void **state) {
    *state = open_stream(1);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convolutions_are_right),
        cmocka_unit_test(convolutions_have_one_result),
        cmocka_unit_test(frames_stand_alone),
        cmocka_unit_test(group_norm_and_all_behind_it),
        cmocka_unit_test(frames_are_taken_from_planes),
        cmocka_unit_test(frames_are_pooled_in_pairs),
    };
    return cmocka_run_group_tests_name("frames", tests, open_workspace, NULL);
}
