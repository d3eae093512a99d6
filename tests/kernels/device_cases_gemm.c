/* Matrix products: every layout, bias, accumulation and epilogue, in batches, at awkward sizes. */
#include "tests/kernels/device_cases.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Leading dimensions are wider by `wider`; what lies between the rows stays as it was. With beta 0
 * C begins as NaN. Parameter gradients are F32 whatever the type. */
static void check_gemm(Trial *c, Gemm g, int64_t wider, bool gradient) {
    int64_t a_rows = g.a_transposed ? g.k : g.m, b_rows = g.b_transposed ? g.n : g.k;
    g.lda = (g.a_transposed ? g.m : g.k) + 3 * wider;
    g.ldb = (g.b_transposed ? g.k : g.n) + wider;
    g.ldc = g.n + 2 * wider;
    g.stride_a = g.stride_a ? a_rows * g.lda : 0;
    g.stride_b = g.stride_b ? b_rows * g.ldb : 0;
    g.stride_c = g.m * g.ldc;
    g.stride_bias = g.n;
    g.type = c->t;
    g.type_c = gradient ? DT_F32 : c->t;
    Array *a = input(c, c->t, g.batch * a_rows * g.lda, 1, 1);
    Array *b = input(c, c->t, g.batch * b_rows * g.ldb, 2, 1);
    Array *bias = g.has_bias ? input(c, c->t, g.batch * g.n, 3, 1) : NULL;
    Array *y = output(c, g.type_c, g.batch * g.stride_c, 1, 4, 1);
    Array *sums = gradient ? output(c, DT_F32, g.batch * g.m, g.keep_sums, 5, 1) : NULL;
    if (sums) g.sums = sums->at;
    for (int64_t i = 0; g.beta == 0 && i < y->n; i++)
        if (i % g.ldc < g.n) values(y)[i] = NAN;
    upload_again(c, y);
    c->device->gemm(c->stream, &g, a->at, b->at, bias ? bias->at : NULL, y->at);
    g.type = g.type_c = DT_F32;
    if (sums) g.sums = sums->host;
    c->cpu->gemm(c->cpu_stream, &g, a->host, b->host, bias ? bias->host : NULL, y->host);
    expect(c, "c", y, (double)g.k + 4, fabs((double)g.alpha) * (double)g.k + 2);
    if (sums) expect(c, "sums", sums, (double)g.k + 1, (double)g.k + 1);
}

static void check_layouts(Trial *c, int64_t m, int64_t n, int64_t k, int64_t wider) {
    for (int flags = 0; flags < 4; flags++) {
        Gemm g = {.m = m, .n = n, .k = k, .batch = 1, .alpha = 1};
        g.a_transposed = flags & 1;
        g.b_transposed = flags & 2;
        check_gemm(c, g, wider, false);
    }
}

static void small_case(Trial *c) {
    check_layouts(c, 1, 1, 1, 0);
    check_layouts(c, 2, 7, 3, 1);
    check_layouts(c, 3, 5, 33, 1);
    check_layouts(c, 1, 64, 512, 0);
}

static void odd_case(Trial *c) {
    check_layouts(c, 17, 33, 65, 1);
    check_layouts(c, 226, 31, 100, 0);
    check_layouts(c, 67, 97, 64, 3);
}

static void even_case(Trial *c) {
    check_layouts(c, 128, 64, 64, 0);
    check_layouts(c, 64, 192, 128, 8);
    check_layouts(c, 136, 256, 320, 0);
}

/* Bias, scale and sum, alone and together, for aligned and odd widths. */
static void epilogue_case(Trial *c) {
    static const int64_t sizes[][3] = {{5, 9, 20}, {96, 64, 128}, {1, 3, 1}};
    for (size_t i = 0; i < COUNT(sizes); i++)
        for (int flags = 1; flags < 6; flags++) {
            Gemm g = {.m = sizes[i][0], .n = sizes[i][1], .k = sizes[i][2], .batch = 1};
            g.alpha = flags & 1 ? -0.375f : 1;
            g.has_bias = (flags & 6) == 2;
            g.beta = (flags & 6) == 4 ? 1 : 0;
            g.b_transposed = true;
            check_gemm(c, g, 1, false);
        }
}

/* q, k and v of one input, as one product. */
static void batch_case(Trial *c) {
    Gemm g = {.m = 50, .n = 48, .k = 96, .batch = 3, .alpha = 1, .b_transposed = true};
    g.stride_b = 1;
    check_gemm(c, g, 0, false);
    g.has_bias = true;
    check_gemm(c, g, 0, false);
    g.n = 31;
    check_gemm(c, g, 1, false);
    g.has_bias = false;
    g.beta = 1;
    g.alpha = 0.5f;
    g.stride_a = 1;
    check_gemm(c, g, 1, false);
}

/* Gradients of weights: long sums over rows, into F32. */
static void gradient_case(Trial *c) {
    for (int flags = 0; flags < 4; flags++) {
        Gemm g = {.m = 32, .n = flags & 1 ? 47 : 64, .k = 1100, .batch = 1, .alpha = 1};
        g.a_transposed = g.k_is_rows = true;
        g.beta = flags & 2 ? 1 : 0;
        g.keep_sums = flags == 3;
        check_gemm(c, g, 0, true);
    }
    Gemm g = {.m = 24, .n = 40, .k = 1030, .batch = 3, .alpha = 0.25f, .beta = 1};
    g.a_transposed = g.k_is_rows = true;
    g.stride_a = 1;
    check_gemm(c, g, 0, true);
    g.keep_sums = 1;
    check_gemm(c, g, 1, true);
    g.alpha = 1;
    g.beta = g.keep_sums = 0;
    check_gemm(c, g, 1, true);
    check_gemm(c, g, 4, true);
}

/* ---- epilogues --------------------------------------------------------------------------------
 */

/* Roundings of u, and of what is done to it: by the library from f32, or after one to the type. */
static void expect_after(Trial *c, const char *what, const Array *y, const Array *u, double k) {
    double *sizes = malloc((size_t)y->n * sizeof *sizes),
           unit = type_unit(c->t) / type_unit(DT_F32);
    for (int64_t i = 0; i < y->n; i++)
        sizes[i] = 1.2 * ((k + 12) * (k + 2) + unit / 2 * fabs((double)values(u)[i]));
    expect_sizes(c, what, y, 1, sizes);
    free(sizes);
}

/* The same bits on the device. */
static void expect_equal(Trial *c, const char *what, const Array *a, const Array *b) {
    size_t bytes = (size_t)a->n * dtype_size(a->t);
    char *x = malloc(2 * bytes);
    c->device->download(c->stream, x, a->at, bytes);
    c->device->download(c->stream, x + bytes, b->at, bytes);
    c->device->stream_sync(c->stream);
    if (memcmp(x, x + bytes, bytes)) refuse(c, "%s has other bits alone", what);
    free(x);
}

static void check_gelu(Trial *c, int64_t m, int64_t n, int64_t k, bool has_bias) {
    Gemm g = {.m = m, .n = n, .k = k, .batch = 1, .lda = k, .ldb = k, .ldc = n, .alpha = 1};
    g.b_transposed = true;
    g.has_bias = has_bias;
    g.type = g.type_c = c->t;
    g.epilogue = EPILOGUE_GELU;
    Array *a = input(c, c->t, m * k, 1, 1), *b = input(c, c->t, n * k, 2, 1);
    Array *bias = has_bias ? input(c, c->t, n, 3, 1) : NULL, *u[2], *y[2];
    for (int i = 0; i < 2; i++) {
        u[i] = output(c, c->t, m * n, 0, 4, 1);
        y[i] = output(c, c->t, m * n, 0, 5, 1);
    }
    const void *at = bias ? bias->at : NULL;
    g.aux = u[0]->at;
    c->device->gemm(c->stream, &g, a->at, b->at, at, y[0]->at);
    g.aux = NULL;
    c->device->gemm(c->stream, &g, a->at, b->at, at, y[1]->at);
    g.aux = u[1]->at;
    c->device->gemm(c->stream, &g, a->at, b->at, at, NULL);
    expect_equal(c, "u", u[0], u[1]);
    expect_equal(c, "gelu(u)", y[0], y[1]);
    g.type = g.type_c = DT_F32;
    for (int i = 0; i < 2; i++) {
        g.aux = u[i]->host;
        c->cpu->gemm(c->cpu_stream, &g, a->host, b->host, bias ? bias->host : NULL, y[i]->host);
        expect(c, "u", u[i], (double)k + 4, (double)k + 2);
        expect_after(c, "gelu(u)", y[i], u[i], (double)k);
    }
}

static void check_gelu_grad(Trial *c, int64_t m, int64_t n, int64_t k) {
    Gemm g = {.m = m, .n = n, .k = k, .batch = 1, .lda = k, .ldb = n, .ldc = n, .alpha = 1};
    g.type = g.type_c = c->t;
    Array *a = input(c, c->t, m * k, 1, 1), *b = input(c, c->t, n * k, 2, 1);
    Array *aux = input(c, c->t, m * n, 3, 4), *y = output(c, c->t, m * n, 0, 4, 1);
    Array *product = output(c, DT_F32, m * n, 0, 5, 1);
    Gemm plain = g;
    plain.type = plain.type_c = DT_F32;
    c->cpu->gemm(c->cpu_stream, &plain, a->host, b->host, NULL, product->host);
    g.epilogue = plain.epilogue = EPILOGUE_GELU_GRAD;
    g.aux = aux->at;
    c->device->gemm(c->stream, &g, a->at, b->at, NULL, y->at);
    plain.aux = aux->host;
    c->cpu->gemm(c->cpu_stream, &plain, a->host, b->host, NULL, y->host);
    expect_after(c, "gelu'(aux) u", y, product, (double)k);
}

/* Rows that the library likes (of 8 elements), and others. */
static void gelu_case(Trial *c) {
    static const int64_t sizes[][3] = {{1, 8, 8}, {5, 9, 20}, {96, 64, 24}, {33, 40, 17}};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        check_gelu(c, sizes[i][0], sizes[i][1], sizes[i][2], false);
        check_gelu(c, sizes[i][0], sizes[i][1], sizes[i][2], true);
        check_gelu_grad(c, sizes[i][0], sizes[i][1], sizes[i][2]);
    }
}

static void empty_case(Trial *c) {
    for (int flags = 0; flags < 3; flags++) {
        Gemm g = {.m = 7, .n = 10, .k = 0, .batch = 2, .alpha = 1};
        g.has_bias = flags == 1;
        g.beta = flags == 2 ? 1 : 0;
        check_gemm(c, g, 1, false);
    }
}

const DeviceCase GEMM_CASES[] = {
    {"gemm small", small_case},
    {"gemm odd", odd_case},
    {"gemm even", even_case},
    {"gemm epilogue", epilogue_case},
    {"gemm batch", batch_case},
    {"gemm gradient", gradient_case},
    {"gemm gelu", gelu_case},
    {"gemm empty sum", empty_case},
    {NULL, NULL},
};
