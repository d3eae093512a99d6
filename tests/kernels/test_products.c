/* Matrix products, column sums and attention against plain loops in double precision. */
#include "tests/kernels/fixture.h"

enum { WORKSPACE = 64 << 20 };

static double at(const real *x, bool transposed, int64_t ld, int64_t row, int64_t col) {
    return (double)(transposed ? x[col * ld + row] : x[row * ld + col]);
}

static void expect_product(const Gemm *g, const real *a, const real *b, const real *bias,
                           const real *old, const real *c) {
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t j = 0; j < g->n; j++) {
            double sum = 0, size = 0, add = bias ? (double)bias[j] : 0;
            for (int64_t p = 0; p < g->k; p++) {
                double term =
                    at(a, g->a_transposed, g->lda, i, p) * at(b, g->b_transposed, g->ldb, p, j);
                sum += term;
                size += fabs(term);
            }
            int64_t o = i * g->ldc + j;
            double want = plus_kept(g->beta, old[o], (double)g->alpha * sum + add);
            expect_near("c", o, (double)c[o], want, (double)g->k + 4,
                        fabs((double)g->alpha) * size + fabs(add) + (g->beta != 0 ? 2 : 0));
        }
}

/* Leading dimensions are wider than the matrices; what lies between stays as it was. */
static void check_gemm(Stream *s, Gemm g) {
    int64_t a_rows = g.a_transposed ? g.k : g.m, b_rows = g.b_transposed ? g.n : g.k;
    g.type = g.type_c = DT_REAL;
    g.lda = (g.a_transposed ? g.m : g.k) + 3;
    g.ldb = (g.b_transposed ? g.k : g.n) + 1;
    g.ldc = g.n + 2;
    g.stride_a = g.stride_a ? a_rows * g.lda : 0;
    g.stride_b = g.stride_b ? b_rows * g.ldb : 0;
    g.stride_c = g.m * g.ldc;
    g.stride_bias = g.n;
    real *a = numbers(g.batch * a_rows * g.lda + 1, 1),
         *b = numbers(g.batch * b_rows * g.ldb + 1, 2);
    real *bias = numbers(g.batch * g.n + 1, 3), *c = output(g.batch * g.stride_c + 1, g.beta, 4);
    real *old = copy_of(c, g.batch * g.stride_c);
    assert_true(BACKEND_CPU.gemm_workspace(s, &g) <= WORKSPACE);
    BACKEND_CPU.gemm(s, &g, a, b, g.has_bias ? bias : NULL, c);
    for (int64_t i = 0; i < g.batch; i++) {
        expect_product(&g, a + i * g.stride_a, b + i * g.stride_b,
                       g.has_bias ? bias + i * g.stride_bias : NULL, old + i * g.stride_c,
                       c + i * g.stride_c);
        for (int64_t r = 0; r < g.m; r++)
            expect_same("between rows", c + i * g.stride_c + r * g.ldc + g.n,
                        old + i * g.stride_c + r * g.ldc + g.n, 2 * sizeof *c);
    }
    release(5, a, b, bias, c, old);
}

static void gemm_is_the_plain_sum(void **state) {
    static const int64_t sizes[][3] = {{1, 1, 1},    {1, 64, 512}, {2, 7, 3},     {3, 5, 33},
                                       {17, 33, 65}, {68, 96, 64}, {34, 128, 16}, {226, 31, 100}};
    Stream *s = *state;
    for (size_t i = 0; i < COUNT(sizes); i++)
        for (int flags = 0; flags < 16; flags++) {
            Gemm g = {.m = sizes[i][0], .n = sizes[i][1], .k = sizes[i][2], .batch = 1, .alpha = 1};
            g.a_transposed = flags & 1;
            g.b_transposed = flags & 2;
            g.beta = flags >> 2 == 1 ? 1 : 0;
            g.has_bias = flags >> 2 == 2;
            if (flags >> 2 == 3) g.alpha = (real)-0.375;
            check_gemm(s, g);
        }
}

static void gemm_of_samples_is_the_plain_sum(void **state) {
    static const int64_t sizes[][3] = {{1, 1, 1}, {1, 130, 512}, {2, 7, 300}, {3, 257, 65},
                                       {512, 96, 1}, {300, 200, 3}, {2, 600, 5000}};
    for (size_t i = 0; i < COUNT(sizes); i++)
        for (int flags = 0; flags < 12; flags++) {
            Gemm g = {.m = sizes[i][0], .n = sizes[i][1], .k = sizes[i][2], .batch = 1};
            g.of_samples = true;
            g.a_transposed = flags % 3 == 1;
            g.b_transposed = flags % 3 == 2;
            g.k_is_rows = g.a_transposed;
            g.alpha = flags / 3 == 3 ? (real)-0.375 : 1;
            g.beta = flags / 3 == 1;
            g.has_bias = flags / 3 >= 2 && g.b_transposed;
            check_gemm(*state, g);
        }
}

/* What a sample becomes depends on nothing else. */
static void gemm_of_samples_takes_each_alone(void **state) {
    enum { SAMPLES = 5, N = 700, K = 900 };
    real *a = numbers(SAMPLES * K, 1), *b = numbers(N * K, 2), *c = output(SAMPLES * N, 0, 3),
         *one = output(N, 0, 4);
    for (int flags = 0; flags < 2; flags++) {
        Gemm g = {.m = SAMPLES, .n = N, .k = K, .batch = 1, .lda = K, .ldc = N, .alpha = 1};
        g.type = g.type_c = DT_REAL;
        g.of_samples = true;
        g.b_transposed = flags;
        g.ldb = flags ? K : N;
        BACKEND_CPU.gemm(*state, &g, a, b, NULL, c);
        g.m = 1;
        for (int i = 0; i < SAMPLES; i++) {
            BACKEND_CPU.gemm(*state, &g, a + i * K, b, NULL, one);
            expect_same("a sample alone", one, c + i * N, N * sizeof *one);
        }
    }
    release(4, a, b, c, one);
}

static void gemm_scales_then_adds(void **state) {
    Gemm g = {.m = 5, .n = 9, .k = 20, .batch = 1, .b_transposed = true, .alpha = (real)0.7};
    Gemm with_bias = g, with_beta = g;
    with_bias.has_bias = true;
    with_beta.beta = 1;
    check_gemm(*state, with_bias);
    check_gemm(*state, with_beta);
}

static void gemm_repeats_what_has_stride_zero(void **state) {
    for (int flags = 0; flags < 4; flags++) {
        Gemm g = {.m = 9, .n = 20, .k = 31, .batch = 3, .b_transposed = true, .alpha = 1};
        g.stride_a = flags & 1;
        g.stride_b = flags >> 1;
        g.has_bias = true;
        check_gemm(*state, g);
    }
}

static void gemm_sums_rows_by_chunks(void **state) {
    static const int64_t rows[] = {1, 1023, 1024, 1025, 2500};
    for (size_t i = 0; i < COUNT(rows); i++)
        for (int beta = 0; beta < 2; beta++)
            check_gemm(*state, (Gemm){.m = 12,
                                      .n = 10,
                                      .k = rows[i],
                                      .batch = 2,
                                      .stride_a = 1,
                                      .stride_b = 1,
                                      .a_transposed = true,
                                      .alpha = (real)0.5,
                                      .beta = (real)beta,
                                      .k_is_rows = true});
}

static void gemm_of_nothing(void **state) {
    for (int flags = 0; flags < 3; flags++) {
        Gemm g = {.m = 4, .n = 5, .k = 0, .batch = 2, .alpha = 1};
        g.beta = flags == 1;
        g.has_bias = flags == 2;
        g.k_is_rows = flags == 1;
        check_gemm(*state, g);
    }
    check_gemm(*state, (Gemm){.m = 0, .n = 5, .k = 3, .batch = 1, .alpha = 1});
    check_gemm(*state, (Gemm){.m = 5, .n = 0, .k = 3, .batch = 1, .alpha = 1});
}

/* Every epilogue has the bits of its steps, one after the other. */
static void gemm_epilogues_are_their_steps(void **state) {
    static const int64_t sizes[][3] = {{1, 1, 1}, {5, 9, 20}, {226, 31, 100}, {3, 7, 0}};
    const Backend *k = &BACKEND_CPU;
    for (size_t i = 0; i < COUNT(sizes); i++) {
        Gemm g = {.m = sizes[i][0], .n = sizes[i][1], .k = sizes[i][2], .batch = 1, .alpha = 1};
        int64_t n = g.m * g.n;
        size_t bytes = (size_t)n * sizeof(real);
        g.type = g.type_c = DT_REAL;
        g.lda = g.ldb = g.k;
        g.ldc = g.n;
        g.b_transposed = g.has_bias = true;
        real *a = numbers(g.m * g.k + 1, 1), *b = numbers(g.n * g.k + 1, 2),
             *bias = numbers(g.n, 3);
        real *u = output(n, 0, 4), *y = output(n, 0, 5), *aux = output(n, 0, 6),
             *c = output(n, 0, 7);
        k->gemm(*state, &g, a, b, bias, u);
        k->gelu(*state, DT_REAL, n, u, y);
        g.epilogue = EPILOGUE_GELU;
        k->gemm(*state, &g, a, b, bias, c);
        expect_same("gelu alone", c, y, bytes);
        g.aux = aux;
        k->gemm(*state, &g, a, b, bias, NULL);
        expect_same("its input alone", aux, u, bytes);
        memset(aux, 0xff, bytes);
        memset(c, 0xff, bytes);
        k->gemm(*state, &g, a, b, bias, c);
        expect_same("gelu", c, y, bytes);
        expect_same("its input", aux, u, bytes);
        g.epilogue = EPILOGUE_NONE;
        g.has_bias = false;
        k->gemm(*state, &g, a, b, NULL, y);
        k->gelu_grad(*state, DT_REAL, n, u, y, 0, y);
        g.epilogue = EPILOGUE_GELU_GRAD;
        memset(c, 0xff, bytes);
        k->gemm(*state, &g, a, b, NULL, c);
        expect_same("gradient", c, y, bytes);
        expect_same("what it reads", aux, u, bytes);
        release(7, a, b, bias, u, y, aux, c);
    }
}

static void gemm_sums_the_rows_of_a(void **state) {
    static const int64_t sizes[][3] = {{1, 1, 1}, {12, 10, 2500}, {33, 0, 9}, {4, 5, 0}};
    for (size_t i = 0; i < COUNT(sizes); i++)
        for (int keep = 0; keep < 2; keep++) {
            Gemm g = {.m = sizes[i][0], .n = sizes[i][1], .k = sizes[i][2], .batch = 2, .alpha = 3};
            g.type = g.type_c = DT_REAL;
            g.lda = g.m + 1;
            g.ldb = g.ldc = g.n;
            g.stride_a = g.k * g.lda;
            g.stride_c = g.m * g.n;
            g.a_transposed = g.k_is_rows = true;
            real *a = numbers(2 * g.stride_a + 1, 1), *b = numbers(g.n * g.k + 1, 2);
            real *c = output(2 * g.stride_c + 1, 0, 3), *sums = output(2 * g.m, (real)keep, 4);
            real *want = copy_of(sums, 2 * g.m);
            g.sums = sums;
            g.keep_sums = (real)keep;
            BACKEND_CPU.gemm(*state, &g, a, b, NULL, c);
            for (int j = 0; j < 2; j++)
                BACKEND_CPU.column_sum(*state, DT_REAL, g.k, g.m, g.lda, a + j * g.stride_a,
                                       (real)keep, want + j * g.m);
            expect_same("sums", sums, want, (size_t)(2 * g.m) * sizeof(real));
            release(5, a, b, c, sums, want);
        }
}

static void column_sum_adds_rows(void **state) {
    static const int64_t sizes[][2] = {{1, 1},      {3, 70}, {1025, 33},
                                       {2049, 130}, {0, 4},  {40, 1100}};
    for (size_t i = 0; i < COUNT(sizes); i++)
        for (int keep = 0; keep < 2; keep++) {
            int64_t rows = sizes[i][0], cols = sizes[i][1], ld = cols + 5;
            real *x = numbers(rows * ld + 1, 5), *y = output(cols, (real)keep, 6);
            real *old = copy_of(y, cols);
            BACKEND_CPU.column_sum(*state, DT_REAL, rows, cols, ld, x, (real)keep, y);
            for (int64_t j = 0; j < cols; j++) {
                double sum = 0, size = 2;
                for (int64_t r = 0; r < rows; r++) {
                    sum += (double)x[r * ld + j];
                    size += fabs((double)x[r * ld + j]);
                }
                expect_near("y", j, (double)y[j], plus_kept((real)keep, old[j], sum),
                            (double)MIN(rows, ROW_CHUNK + 4), size);
            }
            release(3, x, y, old);
        }
}

/* One head of one segment by the book, with what bounds the rounding errors. */
typedef struct {
    const Attention *a;
    const real *dout;
    int64_t first, rows, ld, head; /* segment's first row; N*E; h*E */
    double *p, *dp, *score_error;  /* [rows,rows]: softmax, dout v^T, bound of a score's error */
} Plain;

static double element(const Plain *s, const void *x, int64_t row, int64_t e) {
    return (double)((const real *)x)[(s->first + row) * s->ld + s->head + e];
}

static double dot(const Plain *s, const void *x, int64_t i, const void *y, int64_t j, bool sizes) {
    double sum = 0;
    for (int64_t e = 0; e < s->a->head_size; e++) {
        double term = element(s, x, i, e) * element(s, y, j, e);
        sum += sizes ? fabs(term) : term;
    }
    return sum;
}

static double bias_of(const Plain *s, int64_t i, int64_t j) {
    const Attention *a = s->a;
    int64_t plane = a->bias_rows * a->bias_rows, head = s->head / a->head_size;
    return a->bias ? (double)a->bias[head * plane + i * a->bias_rows + j] : 0;
}

static double plain_softmax_row(const Plain *s, int64_t i) {
    double *p = s->p + i * s->rows, top = -INFINITY, sum = 0;
    for (int64_t j = 0; j < s->rows; j++) {
        p[j] = (double)s->a->scale * dot(s, s->a->q, i, s->a->k, j, false) + bias_of(s, i, j);
        top = fmax(top, p[j]);
    }
    for (int64_t j = 0; j < s->rows; j++) sum += exp(p[j] - top);
    for (int64_t j = 0; j < s->rows; j++) p[j] = exp(p[j] - top) / sum;
    return top + log(sum);
}

/* Rounding errors of a score: of its E products, and of the difference to the maximum or lse. */
static double score_roundings(const Plain *s, int64_t i) {
    double most = 0;
    for (int64_t j = 0; j < s->rows; j++)
        most = fmax(most, (double)s->a->scale * dot(s, s->a->q, i, s->a->k, j, true) +
                              fabs(bias_of(s, i, j)));
    return 2 * ((double)s->a->head_size + 4) * most + log((double)s->rows) + 4;
}

static void expect_forward(const Plain *s, const real *out, const real *lse) {
    const Attention *a = s->a;
    for (int64_t i = 0; i < s->rows; i++) {
        double want = plain_softmax_row(s, i), error = score_roundings(s, i);
        s->score_error[i] = error;
        expect_near("lse", s->first + i,
                    (double)lse[s->head / a->head_size * a->rows + s->first + i], want, 1,
                    error + (double)s->rows);
        for (int64_t e = 0; e < a->head_size; e++) {
            double sum = 0, size = 0;
            for (int64_t j = 0; j < s->rows; j++) {
                sum += s->p[i * s->rows + j] * element(s, a->v, j, e);
                size += s->p[i * s->rows + j] * fabs(element(s, a->v, j, e));
            }
            expect_near("out", i, element(s, out, i, e), sum, 2 * (double)s->rows + 2 * error,
                        size);
        }
    }
}

/* dS = P * (dP - delta); `size` is what its errors are relative to. */
static double score_grad(const Plain *s, int64_t i, int64_t j, double *size) {
    double delta = 0, sizes = 0;
    for (int64_t l = 0; l < s->rows; l++) {
        delta += s->p[i * s->rows + l] * s->dp[i * s->rows + l];
        sizes += s->p[i * s->rows + l] * dot(s, s->dout, i, s->a->v, l, true);
    }
    double p = s->p[i * s->rows + j], dp = s->dp[i * s->rows + j];
    *size = p * (dot(s, s->dout, i, s->a->v, j, true) + sizes);
    return p * (dp - delta);
}

static void expect_backward(const Plain *s, const real *dq, const real *dk, const real *dv) {
    int64_t n = s->rows, size = s->a->head_size;
    double scale = (double)s->a->scale, error = 0;
    double *sum = xcalloc((size_t)(6 * n * size), sizeof *sum), *bound = sum + 3 * n * size;
    for (int64_t i = 0; i < n; i++) error = fmax(error, s->score_error[i]);
    for (int64_t i = 0; i < n * n; i++) s->dp[i] = dot(s, s->dout, i / n, s->a->v, i % n, false);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double ds_size, ds = score_grad(s, i, j, &ds_size), p = s->p[i * n + j];
            for (int64_t e = 0; e < size; e++) {
                double k = scale * element(s, s->a->k, j, e), q = scale * element(s, s->a->q, i, e);
                double terms[3] = {ds * k, ds * q, p * element(s, s->dout, i, e)};
                double sizes[3] = {ds_size * fabs(k), ds_size * fabs(q), fabs(terms[2])};
                for (int z = 0; z < 3; z++) {
                    sum[(z * n + (z ? j : i)) * size + e] += terms[z];
                    bound[(z * n + (z ? j : i)) * size + e] += sizes[z];
                }
            }
        }
    const real *got[3] = {dq, dk, dv};
    for (int64_t i = 0; i < 3 * n * size; i++)
        expect_near("dq, dk, dv", i, element(s, got[i / size / n], i / size % n, i % size), sum[i],
                    2 * (double)n + 2 * (double)size + 2 * error, bound[i]);
    free(sum);
}

static void check_head(const Attention *a, int segment, int64_t head, real *const x[]) {
    int64_t first = a->cu_rows[segment], own = a->cu_rows[segment + 1] - first;
    double *work = xcalloc((size_t)(own * (2 * own + 1) + 1), sizeof *work);
    Plain p = {a,
               x[3],
               first,
               own,
               a->heads * a->head_size,
               head * a->head_size,
               work,
               work + own * own,
               work + 2 * own * own};
    expect_forward(&p, x[4], x[8]);
    if (!a->bias) expect_backward(&p, x[5], x[6], x[7]);
    free(work);
}

/* bias_rows 0: no bias, and gradients too. */
static void check_attention(Stream *s, int64_t heads, int64_t size, int segments, const int64_t *cu,
                            int64_t bias_rows) {
    int64_t rows = cu[segments], n = rows * heads * size;
    real *x[9], *bias = numbers(heads * bias_rows * bias_rows + 1, 10);
    for (uint32_t i = 0; i < 9; i++) x[i] = i < 4 ? numbers(n, i) : output(n + rows * heads, 0, i);
    Attention a = {.t = DT_REAL,
                   .rows = rows,
                   .heads = heads,
                   .head_size = size,
                   .scale = bias_rows ? 1 : (real)(1 / sqrt((double)size)),
                   .segments = segments,
                   .cu_rows = cu,
                   .q = x[0],
                   .k = x[1],
                   .v = x[2],
                   .bias = bias_rows ? bias : NULL,
                   .bias_rows = bias_rows};
    assert_true(BACKEND_CPU.attention_workspace(s, &a, !bias_rows) <= WORKSPACE);
    BACKEND_CPU.attention(s, &a, x[4], x[8]);
    if (!bias_rows) BACKEND_CPU.attention_grad(s, &a, x[4], x[8], x[3], x[5], x[6], x[7]);
    for (int b = 0; b < segments; b++)
        for (int64_t h = 0; h < heads; h++) check_head(&a, b, h, x);
    for (int i = 0; i < 9; i++) BACKEND_CPU.release(x[i]);
    BACKEND_CPU.release(bias);
}

static void attention_is_softmax(void **state) {
    check_attention(*state, 2, 64, 2, (const int64_t[]){0, 67, 68}, 0);
    check_attention(*state, 3, 16, 3, (const int64_t[]){0, 0, 34, 102}, 0);
    check_attention(*state, 1, 2, 1, (const int64_t[]){0, 5}, 0);
    check_attention(*state, 2, 66, 1, (const int64_t[]){0, 130}, 0);
    check_attention(*state, 1, 64, 1, (const int64_t[]){0, 290}, 0);
    check_attention(*state, 1, 256, 1, (const int64_t[]){0, 65}, 0);
}

static void attention_adds_a_bias(void **state) {
    check_attention(*state, 2, 64, 2, (const int64_t[]){0, 67, 134}, 67);
    check_attention(*state, 3, 8, 3, (const int64_t[]){0, 0, 34, 102}, 70);
    check_attention(*state, 1, 2, 1, (const int64_t[]){0, 1}, 1);
    check_attention(*state, 2, 16, 1, (const int64_t[]){0, 290}, 291);
}

/* Scores of many thousands: the maximum must be taken out before the exponential. */
static void attention_takes_out_the_maximum(void **state) {
    enum { N = 300 };
    real *q = numbers(N, 1), *out = output(4 * N, 0, 2);
    for (int i = 0; i < N; i++) q[i] = (real)i;
    Attention a = {.t = DT_REAL,
                   .rows = N / 2,
                   .heads = 1,
                   .head_size = 2,
                   .scale = 1,
                   .segments = 1,
                   .cu_rows = (const int64_t[]){0, N / 2},
                   .q = q,
                   .k = q,
                   .v = q};
    BACKEND_CPU.attention(*state, &a, out, out + N);
    for (int i = 16; i < N; i++)
        expect_near("out", i, (double)out[i], (double)q[N - 2 + i % 2], 4, N);
    release(2, q, out);
}

static int setup(void **state) {
    *state = open_stream(WORKSPACE);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gemm_is_the_plain_sum),
        cmocka_unit_test(gemm_of_samples_is_the_plain_sum),
        cmocka_unit_test(gemm_of_samples_takes_each_alone),
        cmocka_unit_test(gemm_scales_then_adds),
        cmocka_unit_test(gemm_repeats_what_has_stride_zero),
        cmocka_unit_test(gemm_sums_rows_by_chunks),
        cmocka_unit_test(gemm_of_nothing),
        cmocka_unit_test(gemm_epilogues_are_their_steps),
        cmocka_unit_test(gemm_sums_the_rows_of_a),
        cmocka_unit_test(column_sum_adds_rows),
        cmocka_unit_test(attention_is_softmax),
        cmocka_unit_test(attention_adds_a_bias),
        cmocka_unit_test(attention_takes_out_the_maximum),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
