/* Bits do not depend on the number of threads, nor on what else is in a pack. */
#include "tests/kernels/fixture.h"

#include <omp.h>

enum { WORKSPACE = 64 << 20, MAX_THREADS = 3 };

/* A stream of its own for each number of threads. */
typedef struct {
    Stream *streams[MAX_THREADS + 1];
} Machine;

static Stream *with_threads(const Machine *m, int threads) {
    omp_set_num_threads(threads);
    return m->streams[threads];
}

static void run_gemm(const Machine *m, int threads, const Gemm *g, const real *a, const real *b,
                     const real *bias, real *c) {
    Stream *s = with_threads(m, threads);
    assert_true(BACKEND_CPU.gemm_workspace(s, g) <= WORKSPACE);
    BACKEND_CPU.gemm(s, g, a, b, bias, c);
}

typedef struct {
    real *a, *b, *bias, *whole, *part;
} Product;

/* Rows 0.. and rows 5.. of a product of `rows` rows, computed alone and on other threads. */
static void check_rows(const Machine *m, const Product *p, Gemm g, int64_t rows, int threads) {
    for (int64_t first = 0; first <= 5 && first + rows <= g.m; first += 5) {
        Gemm alone = g;
        alone.m = rows;
        size_t count = (size_t)(rows * g.n);
        for (size_t i = 0; i < count; i++) p->part[i] = 1;
        run_gemm(m, threads, &alone, p->a + first * g.lda, p->b, p->bias, p->part);
        if (!memcmp(p->part, p->whole + first * g.n, count * sizeof(real))) continue;
        fail_msg("rows [%d,+%d) of %d x %d x %d on %d threads, bias %d, beta %g", (int)first,
                 (int)rows, (int)g.m, (int)g.n, (int)g.k, threads, g.has_bias, (double)g.beta);
    }
}

static void check_product(const Machine *m, const Product *p, Gemm g) {
    static const int64_t rows[] = {1, 2, 3, 10, 16, 34, 68, 226, 300};
    for (int64_t i = 0; i < g.m * g.n; i++) p->whole[i] = 1;
    run_gemm(m, 2, &g, p->a, p->b, p->bias, p->whole);
    for (size_t i = 0; i < COUNT(rows); i++)
        for (int threads = 1; threads <= MAX_THREADS; threads++)
            check_rows(m, p, g, rows[i], threads);
}

static void rows_of_a_product_stand_alone(void **state) {
    static const int64_t ks[] = {3, 16, 32, 64, 128, 192, 512, 1920};
    static const int64_t ns[] = {1, 7, 16, 64, 100, 192, 512};
    enum { ROWS = 305 };
    Product p = {numbers(ROWS * 1920, 1), numbers(1920 * 512, 2), numbers(512, 3),
                 output(ROWS * 512, 0, 4), output(ROWS * 512, 0, 5)};
    for (size_t i = 0; i < COUNT(ks); i++)
        for (size_t j = 0; j < COUNT(ns); j++)
            for (int flags = 0; flags < 3; flags++) {
                Gemm g = {.type = DT_REAL,
                          .type_c = DT_REAL,
                          .m = ROWS,
                          .n = ns[j],
                          .k = ks[i],
                          .batch = 1,
                          .lda = ks[i],
                          .ldb = flags ? ks[i] : ns[j],
                          .ldc = ns[j],
                          .b_transposed = flags > 0,
                          .alpha = 1,
                          .beta = flags == 0,
                          .has_bias = flags == 1};
                check_product(*state, &p, g);
            }
    release(5, p.a, p.b, p.bias, p.whole, p.part);
}

static void sums_over_rows_do_not_see_threads(void **state) {
    static const int64_t sizes[][3] = {{1, 64, 68},     {16, 1920, 512}, {64, 64, 2500},
                                       {16, 16, 5000},  {128, 512, 777}, {192, 7, 1024},
                                       {512, 512, 1023}};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        int64_t m = sizes[i][0], n = sizes[i][1], k = sizes[i][2];
        Gemm g = {.type = DT_REAL,
                  .type_c = DT_REAL,
                  .m = m,
                  .n = n,
                  .k = k,
                  .batch = 1,
                  .lda = m,
                  .ldb = n,
                  .ldc = n,
                  .a_transposed = true,
                  .alpha = 1,
                  .k_is_rows = true};
        real *a = numbers(m * k, 1), *b = numbers(n * k, 2), *c[MAX_THREADS + 1];
        for (int t = 1; t <= MAX_THREADS; t++) {
            c[t] = output(m * n, 0, 3);
            run_gemm(*state, t, &g, a, b, NULL, c[t]);
            expect_same("weight gradient", c[1], c[t], (size_t)(m * n) * sizeof(real));
        }
        release(5, a, b, c[1], c[2], c[3]);
    }
}

/* All other kernels once, on a pack of SAMPLES samples of the same numbers. */
enum { ROWS = 1100, HEADS = 2, SIZE = 64, WIDTH = HEADS * SIZE, N = ROWS * WIDTH, SAMPLES = 2 };

typedef struct {
    real *x, *dy, *weights, *mod, *rope, *bias; /* inputs */
    real *out;                                  /* what the kernels wrote, end to end */
    int64_t used, kinds, ends[32];
    bool of_rows[32]; /* [rows,...] of the pack, sample by sample */
} Run;

static real *next_output(Run *r, int64_t n) {
    real *p = r->out + r->used;
    r->used += n;
    r->ends[r->kinds++] = r->used;
    return p;
}

static real *row_output(Run *r, int64_t n) {
    r->of_rows[r->kinds] = true;
    return next_output(r, n);
}

static void run_norms(Stream *s, Run *r, int64_t rows, int32_t *mod_row) {
    Norm n = {.t = DT_REAL,
              .rows = rows,
              .width = WIDTH,
              .eps = (real)1e-5,
              .mod_rows = 4,
              .mod_width = 3 * WIDTH,
              .x = r->x,
              .gamma = r->weights,
              .beta = r->weights + WIDTH,
              .mod = r->mod,
              .mod_row = mod_row,
              .stats = row_output(r, 2 * rows)};
    BACKEND_CPU.norm(s, &n, row_output(r, rows * WIDTH));
    NormGrad ng = {.dy = r->dy,
                   .dx = row_output(r, rows * WIDTH),
                   .dmod = row_output(r, 12 * WIDTH),
                   .dgamma = next_output(r, WIDTH),
                   .dbeta = next_output(r, WIDTH)};
    BACKEND_CPU.norm_grad(s, &n, &ng);
    RmsNorm rms = {DT_REAL, rows, WIDTH, (real)1e-6, r->x, r->weights};
    BACKEND_CPU.rms_norm(s, &rms, row_output(r, rows * WIDTH));
    Gate g = {DT_REAL, rows, WIDTH, 4, 3 * WIDTH, 2 * WIDTH, r->dy, r->mod, mod_row};
    BACKEND_CPU.gate(s, &g, r->x, row_output(r, rows * WIDTH));
    real *da = row_output(r, rows * WIDTH);
    BACKEND_CPU.gate_grad(s, &g, r->x, 0, da, 0, row_output(r, 12 * WIDTH));
    BACKEND_CPU.column_sum(s, DT_REAL, rows, WIDTH, WIDTH, r->x, 0, next_output(r, WIDTH));
    BACKEND_CPU.sum_squares(s, rows * WIDTH, r->x, (double *)next_output(r, rows * WIDTH / 256));
}

static void run_heads(Stream *s, Run *r, int64_t rows) {
    real *w = r->weights;
    QkNorm q = {DT_REAL,    rows / 2, HEADS,         SIZE,
                (real)1e-6, r->x,     {w, w + SIZE}, {w + 2 * SIZE, w + 3 * SIZE},
                r->rope};
    BACKEND_CPU.qk_norm(s, &q, next_output(r, rows * WIDTH));
    real *sums = next_output(r, 4 * SIZE);
    QkNormGrad g = {.dy = r->dy,
                    .dx = next_output(r, rows * WIDTH),
                    .dgamma = {sums, sums + SIZE},
                    .dbeta = {sums + 2 * SIZE, sums + 3 * SIZE}};
    BACKEND_CPU.qk_norm_grad(s, &q, &g);
}

static void run_attention(Stream *s, Run *r, int64_t rows) {
    const int64_t cu[] = {0, ROWS, 2 * ROWS};
    Attention a = {.t = DT_REAL,
                   .rows = rows,
                   .heads = HEADS,
                   .head_size = SIZE,
                   .scale = (real)0.125,
                   .segments = (int)(rows / ROWS),
                   .cu_rows = cu,
                   .q = r->x,
                   .k = r->dy,
                   .v = r->x};
    int64_t n = rows * WIDTH;
    real *out = row_output(r, n), *lse = next_output(r, rows * HEADS), *dq = row_output(r, n);
    real *dk = row_output(r, n), *dv = row_output(r, n);
    assert_true(BACKEND_CPU.attention_workspace(s, &a, true) <= WORKSPACE);
    BACKEND_CPU.attention(s, &a, out, lse);
    BACKEND_CPU.attention_grad(s, &a, out, lse, r->dy, dq, dk, dv);
    a.bias = r->bias, a.bias_rows = ROWS;
    BACKEND_CPU.attention(s, &a, row_output(r, n), next_output(r, rows * HEADS));
}

static void run_pointwise(Stream *s, Run *r, int64_t rows) {
    const int64_t cu[] = {0, ROWS, 2 * ROWS}, n = rows * WIDTH, ends[] = {0, N, 2 * N};
    const uint32_t ordinals[] = {3, 3};
    const DropoutState state = {1, 2};
    BACKEND_CPU.gelu(s, DT_REAL, n, r->x, row_output(r, n));
    BACKEND_CPU.gelu_grad(s, DT_REAL, n, r->x, r->dy, 0, row_output(r, n));
    BACKEND_CPU.silu(s, DT_REAL, n, r->x, row_output(r, n));
    BACKEND_CPU.geglu(s, DT_REAL, n, r->x, r->dy, row_output(r, n));
    BACKEND_CPU.silu_grad(s, DT_REAL, n, r->x, r->dy, 0, row_output(r, n));
    Dropout d = {.t = DT_REAL,
                 .width = WIDTH,
                 .segments = (int)(rows / ROWS),
                 .cu_rows = cu,
                 .ordinals = ordinals,
                 .p = (real)0.2,
                 .state = &state,
                 .purpose = 3};
    BACKEND_CPU.dropout(s, &d, r->x, 0, row_output(r, n));
    real *losses = next_output(r, 1 + SAMPLES);
    BACKEND_CPU.mse(s, DT_REAL, (int)(rows / ROWS), ends, r->x, r->dy, losses, losses + 1);
}

static Run run_all(const Machine *m, int threads, int64_t samples) {
    int64_t rows = samples * ROWS;
    Run r = {.x = numbers(2 * N, 1),
             .dy = numbers(2 * N, 2),
             .weights = numbers(4 * WIDTH, 3),
             .mod = numbers(12 * WIDTH, 4),
             .rope = numbers(2 * ROWS * SIZE, 5),
             .bias = numbers(HEADS * ROWS * ROWS, 7),
             .out = numbers(2 * 28 * N, 6)};
    memcpy(r.x + N, r.x, N * sizeof(real));
    memcpy(r.dy + N, r.dy, N * sizeof(real));
    memcpy(r.mod + 6 * WIDTH, r.mod, 6 * WIDTH * sizeof(real));
    int32_t *mod_row = xcalloc((size_t)rows, sizeof *mod_row);
    for (int64_t i = 0; i < rows; i++) mod_row[i] = (int32_t)(2 * (i / ROWS) + (i % ROWS < 30));
    Stream *s = with_threads(m, threads);
    run_norms(s, &r, rows, mod_row);
    run_heads(s, &r, rows);
    run_attention(s, &r, rows);
    run_pointwise(s, &r, rows);
    assert_true(r.used <= 2 * 28 * N);
    release(7, r.x, r.dy, r.weights, r.mod, r.rope, r.bias, mod_row);
    return r;
}

static void kernels_do_not_see_threads(void **state) {
    Run one = run_all(*state, 1, SAMPLES);
    for (int threads = 2; threads <= MAX_THREADS; threads++) {
        Run many = run_all(*state, threads, SAMPLES);
        for (int64_t i = 0, begin = 0; i < one.kinds; begin = one.ends[i++])
            if (memcmp(one.out + begin, many.out + begin,
                       (size_t)(one.ends[i] - begin) * sizeof(real)))
                fail_msg("output %d differs on %d threads", (int)i, threads);
        release(1, many.out);
    }
    release(1, one.out);
}

/* Two equal samples: what belongs to a row, or to a sample's modulation, is the same in both and
 * the same as alone. Sums over the pack (dgamma, ...) are left out, and so are the q and k of
 * qk_norm and lse, which a pack lays out otherwise. */
static void a_sample_does_not_see_its_pack(void **state) {
    Run alone = run_all(*state, 2, 1), pack = run_all(*state, 2, SAMPLES);
    for (int64_t i = 0, a = 0, p = 0; i < alone.kinds; a = alone.ends[i], p = pack.ends[i], i++) {
        int64_t n = alone.ends[i] - a, second = pack.ends[i] - p - n;
        if (!alone.of_rows[i]) continue;
        if (!second) n = second = n / 2; /* dmod has four rows always: two for each sample */
        if (memcmp(alone.out + a, pack.out + p, (size_t)n * sizeof(real)) ||
            memcmp(alone.out + a, pack.out + p + second, (size_t)n * sizeof(real)))
            fail_msg("output %d of a sample depends on its pack", (int)i);
    }
    release(2, alone.out, pack.out);
}

static int setup(void **state) {
    Machine *m = xcalloc(1, sizeof *m);
    for (int t = 1; t <= MAX_THREADS; t++) {
        omp_set_num_threads(t);
        m->streams[t] = open_stream(WORKSPACE);
    }
    *state = m;
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_of_a_product_stand_alone),
        cmocka_unit_test(sums_over_rows_do_not_see_threads),
        cmocka_unit_test(kernels_do_not_see_threads),
        cmocka_unit_test(a_sample_does_not_see_its_pack),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
