/* Every kernel but the products (test_products.c) against plain loops in double precision. */
#define _GNU_SOURCE
#include "tests/kernels/fixture.h"

static const int64_t SIZES[][2] = {{1, 1}, {1, 64}, {3, 70}, {37, 129}, {2050, 20}, {40, 1920}};

typedef double Formula(double x);
/* x/2 (1 + tanh u), without the difference of nearly equal numbers. */
static double plain_gelu(double x) {
    return x / (1 + exp(-2 * sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
static double plain_silu(double x) { return x / (1 + exp(-x)); }

/* Five points give the derivative to about 1e-13. */
static double slope(Formula *f, double x) {
    double h = 1e-3;
    return (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h);
}

typedef void Map(Stream *, DType, int64_t, const void *, void *);
typedef void MapGrad(Stream *, DType, int64_t, const void *, const void *, real, void *);

static void check_map(Stream *s, Map *map, MapGrad *grad, Formula *f, int64_t n) {
    real *x = numbers(n, 1), *dy = numbers(n, 2), *y = output(n, 0, 3);
    for (int64_t i = 0; i < n; i++) x[i] *= 6;
    map(s, DT_REAL, n, x, y);
    /* The exponential's argument, up to 60, carries four roundings into the result. */
    for (int64_t i = 0; i < n; i++) {
        double error = 8 + 8 * fmin(fabs((double)x[i]) * 8, 60);
        expect_near("y", i, (double)y[i], f((double)x[i]), error, fabs(f((double)x[i])) + 1e-30);
    }
    for (int keep = 0; keep < 2; keep++) {
        real *dx = output(n, (real)keep, 4), *old = copy_of(dx, n);
        grad(s, DT_REAL, n, x, dy, (real)keep, dx);
        for (int64_t i = 0; i < n; i++) {
            double want = plus_kept((real)keep, old[i], (double)dy[i] * slope(f, (double)x[i]));
            expect_near("dx", i, (double)dx[i], want, 64, 6 + 1e-12 / UNIT);
        }
        release(2, dx, old);
    }
    real *in_place = copy_of(x, n);
    map(s, DT_REAL, n, in_place, in_place);
    expect_same("in place", in_place, y, (size_t)n * sizeof *y);
    release(4, x, dy, y, in_place);
}

static void gelu_and_silu(void **state) {
    for (int64_t n = 1; n < 100000; n = 3 * n + 2) {
        check_map(*state, BACKEND_CPU.gelu, BACKEND_CPU.gelu_grad, plain_gelu, n);
        check_map(*state, BACKEND_CPU.silu, BACKEND_CPU.silu_grad, plain_silu, n);
    }
}

static void geglu_is_gelu_times_x(void **state) {
    for (int64_t n = 1; n < 50000; n = 5 * n + 3) {
        real *gate = numbers(n, 1), *x = numbers(n, 2), *y = output(n, 0, 3);
        for (int64_t i = 0; i < n; i++) gate[i] *= 6;
        BACKEND_CPU.geglu(*state, DT_REAL, n, gate, x, y);
        for (int64_t i = 0; i < n; i++) {
            double unit = plain_gelu((double)gate[i]), want = unit * (double)x[i];
            double error = 10 + 8 * fmin(fabs((double)gate[i]) * 8, 60); /* as for gelu */
            expect_near("y", i, (double)y[i], want, error, fabs(want) + 1e-30);
        }
        release(3, gate, x, y);
    }
}

static void axpy_scales_and_keeps(void **state) {
    enum { N = 1003 };
    for (int keep = 0; keep < 2; keep++) {
        real *x = numbers(N, 1), *y = output(N, (real)keep, 2), *old = copy_of(y, N);
        BACKEND_CPU.axpy(*state, DT_REAL, N, (real)-0.3, x, (real)keep, y);
        for (int i = 0; i < N; i++)
            expect_near("y", i, (double)y[i],
                        plus_kept((real)keep, old[i], (double)(real)-0.3 * (double)x[i]), 2, 4);
        release(3, x, y, old);
    }
}

/* Rows 0..: text, text, video, video ... of samples; one text row again at the end. */
static int32_t *mod_rows_of(int64_t rows) {
    int32_t *m = xcalloc((size_t)rows, sizeof *m);
    for (int64_t i = 0; i < rows; i++) m[i] = i == rows - 1 ? 0 : (int32_t)(3 * i / rows);
    return m;
}

typedef struct {
    double mean, rstd, mean_size;
} Stats;

static Stats stats_of(const real *x, int64_t n, double eps) {
    Stats s = {0, 0, 0};
    double variance = 0;
    for (int64_t j = 0; j < n; j++) s.mean += (double)x[j] / (double)n;
    for (int64_t j = 0; j < n; j++) s.mean_size += fabs((double)x[j]) / (double)n;
    for (int64_t j = 0; j < n; j++) variance += pow((double)x[j] - s.mean, 2) / (double)n;
    s.rstd = 1 / sqrt(variance + eps);
    return s;
}

static void expect_norm(const Norm *n, const real *y) {
    int64_t width = n->width;
    const real *gamma = n->gamma, *beta = n->beta, *mod = n->mod;
    for (int64_t i = 0; i < n->rows; i++) {
        const real *x = (const real *)n->x + i * width;
        Stats s = stats_of(x, width, (double)n->eps);
        expect_near("mean", i, (double)n->stats[2 * i], s.mean, (double)width, s.mean_size);
        expect_near("rstd", i, (double)n->stats[2 * i + 1], s.rstd,
                    (double)width + 8 + (double)width * s.mean_size * s.rstd, s.rstd);
        for (int64_t j = 0; j < width; j++) {
            const real *shift = mod ? mod + n->mod_row[i] * n->mod_width : NULL;
            double add = shift ? (double)shift[j] : 0;
            double factor = shift ? 1 + (double)shift[width + j] : 1;
            double xhat = ((double)x[j] - s.mean) * s.rstd;
            double want = (xhat * (double)gamma[j] + (double)beta[j]) * factor + add;
            double size = fabs(xhat * (double)gamma[j] * factor) * (1 + s.mean_size * s.rstd) +
                          s.mean_size * s.rstd * fabs((double)gamma[j] * factor) +
                          fabs((double)beta[j] * factor) + fabs(add);
            expect_near("y", i, (double)y[i * width + j], want, (double)width + 8, size);
        }
    }
}

/* Sums over rows, with the sums of their terms' sizes. */
typedef struct {
    double *sum, *size;
} Sums;

static Sums sums_open(int64_t n) {
    double *p = xcalloc((size_t)(2 * n), sizeof *p);
    return (Sums){p, p + n};
}

static void sums_add(Sums s, int64_t i, double term) {
    s.sum[i] += term;
    s.size[i] += fabs(term);
}

static void expect_sums(const char *what, Sums s, int64_t n, const real *got, const real *old,
                        real keep, double roundings) {
    for (int64_t i = 0; i < n; i++)
        expect_near(what, i, (double)got[i], plus_kept(keep, old[i], s.sum[i]), roundings,
                    s.size[i] + 4 * (keep != 0));
    free(s.sum);
}

static void expect_norm_dx(const Norm *n, const NormGrad *g, const real *old) {
    int64_t width = n->width;
    const real *gamma = n->gamma, *dx = g->dx;
    for (int64_t i = 0; i < n->rows; i++) {
        const real *dy = (const real *)g->dy + i * width, *x = (const real *)n->x + i * width;
        double mean = (double)n->stats[2 * i], rstd = (double)n->stats[2 * i + 1];
        double c[4] = {0};
        for (int pass = 0; pass < 2; pass++)
            for (int64_t j = 0; j < width; j++) {
                double factor =
                    n->mod ? 1 + (double)((const real *)
                                              n->mod)[n->mod_row[i] * n->mod_width + width + j]
                           : 1;
                double d = (double)dy[j] * (double)gamma[j] * factor;
                double xhat = ((double)x[j] - mean) * rstd;
                if (pass) {
                    double want = rstd * (d - c[0] - xhat * c[1]);
                    expect_near("dx", i * width + j, (double)dx[i * width + j],
                                plus_kept(g->keep_dx, old[i * width + j], want), (double)width + 10,
                                rstd * (fabs(d) + c[2] + fabs(xhat) * c[3]) +
                                    4 * (g->keep_dx != 0));
                    continue;
                }
                c[0] += d / (double)width;
                c[1] += d * xhat / (double)width;
                c[2] += fabs(d) / (double)width;
                c[3] += fabs(d * xhat) / (double)width;
            }
    }
}

static void expect_norm_sums(const Norm *n, const NormGrad *g, real *const old[3]) {
    int64_t width = n->width, mods = n->mod_rows * n->mod_width;
    Sums dgamma = sums_open(width), dbeta = sums_open(width), dmod = sums_open(mods + 1);
    for (int64_t i = 0; i < n->rows * width; i++) {
        int64_t row = i / width, j = i % width;
        double dy = (double)((const real *)g->dy)[i], gamma = (double)((const real *)n->gamma)[j];
        double xhat = ((double)((const real *)n->x)[i] - (double)n->stats[2 * row]) *
                      (double)n->stats[2 * row + 1];
        int64_t at = n->mod ? n->mod_row[row] * n->mod_width + j : 0;
        double factor = n->mod ? 1 + (double)((const real *)n->mod)[at + width] : 1;
        sums_add(dgamma, j, dy * factor * xhat);
        sums_add(dbeta, j, dy * factor);
        if (!n->mod) continue;
        sums_add(dmod, at, dy);
        sums_add(dmod, at + width, dy * xhat * gamma);
        sums_add(dmod, at + width, dy * (double)((const real *)n->beta)[j]);
    }
    double roundings = (double)MIN(n->rows, ROW_CHUNK) + 12;
    expect_sums("dgamma", dgamma, width, g->dgamma, old[0], g->keep_dgamma, roundings);
    expect_sums("dbeta", dbeta, width, g->dbeta, old[1], g->keep_dbeta, roundings);
    expect_sums("dmod", dmod, mods, g->dmod, old[2], g->keep_dmod, roundings);
}

static void check_norm(Stream *s, int64_t rows, int64_t width, bool mod, real keep) {
    int64_t n = rows * width, mod_width = 3 * width + 1, mods = mod ? 3 * mod_width : 0;
    real *x = numbers(n, 1), *gamma = numbers(width, 2), *beta = numbers(width, 3);
    real *table = numbers(mods + 1, 4), *y = output(n, 0, 5), *stats = output(2 * rows, 0, 6);
    real *dy = numbers(n, 7), *dx = output(n, keep, 8), *dgamma = output(width, keep, 9);
    real *dbeta = output(width, keep, 10), *dmod = output(mods + 1, keep, 11);
    real *old[] = {copy_of(dgamma, width), copy_of(dbeta, width), copy_of(dmod, mods + 1),
                   copy_of(dx, n)};
    int32_t *mod_row = mod_rows_of(rows);
    Norm norm = {.t = DT_REAL,
                 .rows = rows,
                 .width = width,
                 .eps = (real)1e-5,
                 .mod_rows = mod ? 3 : 0,
                 .mod_width = mod ? mod_width : 0,
                 .x = x,
                 .gamma = gamma,
                 .beta = beta,
                 .mod = mod ? table : NULL,
                 .mod_row = mod ? mod_row : NULL,
                 .stats = stats};
    NormGrad grad = {dy, dx, dgamma, dbeta, mod ? dmod : NULL, keep, keep, keep, keep};
    BACKEND_CPU.norm(s, &norm, y);
    expect_norm(&norm, y);
    BACKEND_CPU.norm_grad(s, &norm, &grad);
    expect_norm_dx(&norm, &grad, old[3]);
    expect_norm_sums(&norm, &grad, old);
    BACKEND_CPU.norm_grad(s, &norm, &(NormGrad){.dy = dy});
    release(11, x, gamma, beta, table, y, stats, dy, dx, dgamma, dbeta, dmod);
    release(5, old[0], old[1], old[2], old[3], mod_row);
}

static void norm_and_gradient(void **state) {
    for (size_t i = 0; i < COUNT(SIZES); i++)
        for (int flags = 0; flags < 4; flags++)
            check_norm(*state, SIZES[i][0], SIZES[i][1], flags & 1, (real)(flags >> 1));
}

static void check_rms_norm(Stream *s, int64_t rows, int64_t width, double eps) {
    int64_t n = rows * width;
    real *x = numbers(n, 1), *gamma = numbers(width, 2), *y = output(n, 0, 3);
    for (int64_t i = 0; i < n; i += 3) x[i] *= (real)1e-3; /* so that eps counts at width 1 */
    RmsNorm norm = {DT_REAL, rows, width, (real)eps, x, gamma};
    BACKEND_CPU.rms_norm(s, &norm, y);
    for (int64_t i = 0; i < n; i++) {
        double square = 0;
        const real *row = x + i / width * width;
        for (int64_t j = 0; j < width; j++) square += pow((double)row[j], 2) / (double)width;
        double want = (double)gamma[i % width] * (double)x[i] / sqrt(square + (double)(real)eps);
        expect_near("y", i, (double)y[i], want, (double)width / 2 + 6, fabs(want));
    }
    norm.x = memcpy(output(n, 0, 4), x, (size_t)n * sizeof *x);
    BACKEND_CPU.rms_norm(s, &norm, (void *)norm.x);
    expect_same("rms_norm in place", norm.x, y, (size_t)n * sizeof *y);
    release(4, x, gamma, y, norm.x);
}

static void rms_norm_of_rows(void **state) {
    for (size_t i = 0; i < COUNT(SIZES); i++)
        for (int small = 0; small < 2; small++)
            check_rms_norm(*state, SIZES[i][0], SIZES[i][1], small ? 1e-6 : 0.3);
}

static void check_gate(Stream *s, int64_t rows, int64_t width, real keep) {
    int64_t n = rows * width, mod_width = 2 * width + 3, mods = 3 * mod_width;
    real *x = numbers(n, 1), *a = numbers(n, 2), *mod = numbers(mods, 3), *y = output(n, 0, 4);
    real *da = output(n, keep, 5), *dmod = output(mods, keep, 6);
    real *old_da = copy_of(da, n), *old_dmod = copy_of(dmod, mods);
    int32_t *mod_row = mod_rows_of(rows);
    Gate g = {DT_REAL, rows, width, 3, mod_width, width + 1, a, mod, mod_row};
    BACKEND_CPU.gate(s, &g, x, y);
    BACKEND_CPU.gate_grad(s, &g, x, keep, da, keep, dmod);
    Sums sums = sums_open(mods);
    for (int64_t i = 0; i < n; i++) {
        int64_t at = mod_row[i / width] * mod_width + g.offset + i % width;
        double gate = (double)mod[at], dy = (double)x[i];
        expect_near("y", i, (double)y[i], dy + gate * (double)a[i], 2, 6);
        expect_near("da", i, (double)da[i], plus_kept(keep, old_da[i], gate * dy), 2, 6);
        sums_add(sums, at, dy * (double)a[i]);
    }
    expect_sums("dmod", sums, mods, dmod, old_dmod, keep, (double)MIN(rows, ROW_CHUNK) + 6);
    BACKEND_CPU.gate(s, &g, x, x);
    expect_same("gate in place", x, y, (size_t)n * sizeof *y);
    release(9, x, a, mod, y, da, dmod, old_da, old_dmod, mod_row);
}

static void gate_and_gradient(void **state) {
    for (size_t i = 0; i < COUNT(SIZES); i++)
        for (int keep = 0; keep < 2; keep++)
            check_gate(*state, SIZES[i][0], SIZES[i][1], (real)keep);
}

/* The rotation of channel j of a head: y[j] = c x[j] + s x[partner]. */
static void rotation(const QkNorm *q, int64_t row, int64_t j, double *c, double *s) {
    const real *pair = q->rope + row * q->head_size + j / 2 * 2;
    *c = q->rope ? (double)pair[0] : 1;
    *s = q->rope ? (j % 2 ? 1 : -1) * (double)pair[1] : 0;
}

static void expect_qk_head(const QkNorm *q, int z, int64_t row, int64_t at, const real *y) {
    int64_t size = q->head_size;
    const real *x = (const real *)q->x + at, *gamma = q->gamma[z], *beta = q->beta[z];
    Stats m = stats_of(x, size, (double)q->eps);
    for (int64_t j = 0; j < size; j++) {
        double c, s, normal[2], spread = m.mean_size * m.rstd, size_of = 0;
        rotation(q, row, j, &c, &s);
        for (int k = 0; k < 2; k++) {
            int64_t e = k ? j ^ 1 : j;
            double xhat = ((double)x[e] - m.mean) * m.rstd;
            normal[k] = xhat * (double)gamma[e] + (double)beta[e];
            size_of +=
                fabs(k ? s : c) * (fabs((double)gamma[e]) * (fabs(xhat) * (1 + spread) + spread) +
                                   fabs((double)beta[e]));
        }
        expect_near("y", at + j, (double)y[at + j], c * normal[0] + s * normal[1],
                    (double)size + 10, size_of);
    }
}

/* The gradient of one head; adds its terms to the sums of gamma and beta. */
static void expect_qk_head_grad(const QkNorm *q, const QkNormGrad *g, int z, int64_t row,
                                int64_t at, const real *old, Sums dgamma, Sums dbeta) {
    int64_t size = q->head_size;
    const real *x = (const real *)q->x + at, *dy = (const real *)g->dy + at;
    Stats m = stats_of(x, size, (double)q->eps);
    double d[256], c[4] = {0}, spread = m.mean_size * m.rstd;
    for (int64_t j = 0; j < size; j++) {
        double cosine, sine, xhat = ((double)x[j] - m.mean) * m.rstd;
        rotation(q, row, j, &cosine, &sine);
        d[j] = cosine * (double)dy[j] - sine * (double)dy[j ^ 1];
        sums_add(dbeta, j, d[j]);
        sums_add(dgamma, j, d[j] * xhat);
        dgamma.size[j] += 4 * (1 + spread) * (fabs((double)dy[j]) + fabs((double)dy[j ^ 1]));
        dbeta.size[j] += fabs((double)dy[j]) + fabs((double)dy[j ^ 1]);
        d[j] *= (double)((const real *)q->gamma[z])[j];
        c[0] += d[j] / (double)size;
        c[1] += d[j] * xhat / (double)size;
        c[2] += 4 / (double)size;
        c[3] += 4 * (fabs(xhat) + spread) / (double)size;
    }
    for (int64_t j = 0; j < size; j++) {
        double xhat = ((double)x[j] - m.mean) * m.rstd, want = m.rstd * (d[j] - c[0] - xhat * c[1]);
        expect_near("dx", at + j, (double)((real *)g->dx)[at + j],
                    plus_kept(g->keep_dx, old[at + j], want), (double)size + 16,
                    m.rstd * (1 + spread) * (4 + c[2] + (fabs(xhat) + spread) * c[3]) + 4);
    }
}

static void check_qk_norm(Stream *s, int64_t rows, int64_t heads, int64_t size, bool rope,
                          real keep) {
    int64_t width = heads * size, n = 2 * rows * width;
    real *x = numbers(n, 1), *p = numbers(4 * size, 2), *turn = numbers(rows * size, 3);
    real *y = output(n, 0, 4), *dy = numbers(n, 5), *dx = output(n, keep, 6);
    real *dp = output(4 * size, keep, 7), *old_dx = copy_of(dx, n), *old_dp = copy_of(dp, 4 * size);
    QkNorm q = {DT_REAL,           rows, heads,         size,
                (real)1e-6,        x,    {p, p + size}, {p + 2 * size, p + 3 * size},
                rope ? turn : NULL};
    QkNormGrad g = {dy,   dx,           {dp, dp + size}, {dp + 2 * size, dp + 3 * size},
                    keep, {keep, keep}, {keep, keep}};
    BACKEND_CPU.qk_norm(s, &q, y);
    BACKEND_CPU.qk_norm_grad(s, &q, &g);
    for (int z = 0; z < 2; z++) {
        Sums dgamma = sums_open(size), dbeta = sums_open(size);
        for (int64_t i = 0; i < rows * heads; i++) {
            int64_t at = (z * rows * heads + i) * size;
            expect_qk_head(&q, z, i / heads, at, y);
            expect_qk_head_grad(&q, &g, z, i / heads, at, old_dx, dgamma, dbeta);
        }
        double roundings = (double)(MIN(rows, ROW_CHUNK) + heads + size) + 16;
        expect_sums("dgamma", dgamma, size, dp + z * size, old_dp + z * size, keep, roundings);
        expect_sums("dbeta", dbeta, size, dp + (2 + z) * size, old_dp + (2 + z) * size, keep,
                    roundings);
    }
    BACKEND_CPU.qk_norm_grad(s, &q, &(QkNormGrad){.dy = dy, .dx = dx});
    release(9, x, p, turn, y, dy, dx, dp, old_dx, old_dp);
}

static void qk_norm_and_gradient(void **state) {
    static const int64_t sizes[][3] = {
        {1, 1, 2}, {3, 2, 16}, {5, 3, 64}, {1030, 2, 6}, {4, 1, 256}};
    for (size_t i = 0; i < COUNT(sizes); i++)
        for (int flags = 0; flags < 4; flags++)
            check_qk_norm(*state, sizes[i][0], sizes[i][1], sizes[i][2], flags & 1,
                          (real)(flags >> 1));
}

static void join_and_split(void **state) {
    static const int32_t source[] = {1, 0, -2, -1, 2, -4, -3};
    enum { ROWS = 7, WIDTH = 33, TEXT = 3 * WIDTH, VIDEO = 4 * WIDTH };
    real *text = numbers(TEXT, 1), *video = numbers(VIDEO, 2), *y = output(ROWS * WIDTH, 0, 3);
    BACKEND_CPU.join(*state, DT_REAL, ROWS, WIDTH, source, text, video, y);
    for (int keep = 0; keep < 2; keep++) {
        real *dtext = output(TEXT, (real)keep, 1), *dvideo = output(VIDEO, (real)keep, 2);
        BACKEND_CPU.split(*state, DT_REAL, ROWS, WIDTH, source, y, (real)keep, dtext, (real)keep,
                          dvideo);
        BACKEND_CPU.split(*state, DT_REAL, ROWS, WIDTH, source, y, 0, NULL, 0, NULL);
        for (int i = 0; i < ROWS * WIDTH; i++) {
            int32_t from = source[i / WIDTH], row = from >= 0 ? from : -1 - from;
            real want = (from >= 0 ? text : video)[row * WIDTH + i % WIDTH];
            assert_true(y[i] == want);
            assert_true((from >= 0 ? dtext : dvideo)[row * WIDTH + i % WIDTH] == (1 + keep) * want);
        }
        release(2, dtext, dvideo);
    }
    release(3, text, video, y);
}

static void gather_and_scatter_in(Stream *s, const int32_t index[3]) {
    enum { N = 3, ROWS = 6, WIDTH = 21 };
    real *x = numbers(ROWS * WIDTH, 1), *y = output(N * WIDTH, 0, 2);
    BACKEND_CPU.gather_rows(s, DT_REAL, N, WIDTH, index, x, y);
    for (int i = 0; i < N * WIDTH; i++)
        assert_true(y[i] == x[index[i / WIDTH] * WIDTH + i % WIDTH]);
    for (int keep = 0; keep < 2; keep++) {
        real *dx = output(ROWS * WIDTH, (real)keep, 1);
        BACKEND_CPU.scatter_rows(s, DT_REAL, N, ROWS, WIDTH, index, y, (real)keep, dx);
        for (int i = 0; i < ROWS * WIDTH; i++) {
            int row = i / WIDTH, named = row == index[0] || row == index[1] || row == index[2];
            assert_true(dx[i] == (named + keep) * x[i]);
        }
        release(1, dx);
    }
    release(2, x, y);
}

static void gather_and_scatter(void **state) {
    static const int32_t orders[2][3] = {{4, 0, 2}, {1, 2, 4}};
    for (int i = 0; i < 2; i++) gather_and_scatter_in(*state, orders[i]);
}

static void patches_there_and_back(void **state) {
    enum {
        F = 4,
        C = 3,
        H = 6,
        W = 8,
        P = 2,
        PT = 2,
        WIDTH = C * PT * P * P + 5,
        N = F * C * H * W
    };
    enum { ROWS = F / PT * (H / P) * (W / P) };
    Patch p = {DT_REAL, F, C, H, W, P, PT, WIDTH, 2};
    for (int keep = 0; keep < 2; keep++) {
        real *x = numbers(N, 1), *rows = output(ROWS * WIDTH, (real)keep, 2);
        real *old = copy_of(rows, ROWS * WIDTH), *back = output(N, (real)keep, 3);
        real *old_back = copy_of(back, N);
        BACKEND_CPU.patchify(*state, &p, x, (real)keep, rows);
        BACKEND_CPU.unpatchify(*state, &p, rows, (real)keep, back);
        for (int i = 0; i < N; i++) {
            int w = i % W, h = i / W % H, c = i / W / H % C, f = i / W / H / C;
            int row = (f / PT * (H / P) + h / P) * (W / P) + w / P;
            int at = row * WIDTH + 2 + ((c * PT + f % PT) * P + h % P) * P + w % P;
            assert_true(rows[at] == (real)plus_kept((real)keep, old[at], (double)x[i]));
            assert_true(back[i] == (real)plus_kept((real)keep, old_back[i], (double)rows[at]));
        }
        for (int r = 0; r < ROWS; r++)
            expect_same("other columns", rows + r * WIDTH, old + r * WIDTH, 2 * sizeof *rows);
        release(5, x, rows, old, back, old_back);
    }
}

static void add_axes_adds_three_tables(void **state) {
    enum { F = 3, H = 4, W = 5, DF = 4, DW = 3, DH = 2, D = DF + DW + DH, N = F * H * W * D };
    real *x = numbers(N, 1), *y = output(N, 0, 2);
    real *tf = numbers(F * DF, 3), *tw = numbers(W * DW, 4), *th = numbers(H * DH, 5);
    const int64_t size[] = {F, H, W}, widths[] = {DF, DW, DH};
    BACKEND_CPU.add_axes(*state, DT_REAL, size, widths, tf, tw, th, 0, F * H * W, x, y);
    for (int i = 0; i < N; i++) {
        int j = i % D, w = i / D % W, h = i / D / W % H, f = i / D / W / H;
        real add = j < DF        ? tf[f * DF + j]
                   : j < DF + DW ? tw[w * DW + j - DF]
                                 : th[h * DH + j - DF - DW];
        assert_true(y[i] == x[i] + add);
    }
    real *part = output(N, 0, 6);
    BACKEND_CPU.add_axes(*state, DT_REAL, size, widths, tf, tw, th, 7, 30, x + 7 * D, part);
    expect_same("rows 7 to 36", part, y + 7 * D, 30 * D * sizeof *y);
    release(1, part);
    BACKEND_CPU.add_axes(*state, DT_REAL, size, widths, tf, tw, th, 0, F * H * W, x, x);
    expect_same("add_axes in place", x, y, N * sizeof *y);
    release(5, x, y, tf, tw, th);
}

static void mse_and_gradient(void **state) {
    const int64_t cu[] = {0, 1, 1000, 40003};
    enum { B = 3, N = 40003 };
    real *x = numbers(N, 1), *target = numbers(N, 2), loss[1], per_sample[B];
    const real dloss[] = {(real)0.7};
    BACKEND_CPU.mse(*state, DT_REAL, B, cu, x, target, loss, per_sample);
    double total = 0;
    for (int b = 0; b < B; b++) {
        double mean = 0;
        for (int64_t i = cu[b]; i < cu[b + 1]; i++)
            mean += pow((double)x[i] - (double)target[i], 2) / (double)(cu[b + 1] - cu[b]);
        expect_near("per_sample", b, (double)per_sample[b], mean, 1 + N * 0x1p-53 / UNIT, mean);
        total += mean / B;
    }
    expect_near("loss", 0, (double)loss[0], total, 2 + N * 0x1p-53 / UNIT, total);
    for (int keep = 0; keep < 2; keep++) {
        real *dx = output(N, (real)keep, 3), *old = copy_of(dx, N);
        BACKEND_CPU.mse_grad(*state, DT_REAL, B, cu, x, target, dloss, (real)keep, dx);
        for (int b = 0; b < B; b++)
            for (int64_t i = cu[b]; i < cu[b + 1]; i++) {
                double scale = (double)dloss[0] * 2 / (double)(B * (cu[b + 1] - cu[b]));
                double d = scale * ((double)x[i] - (double)target[i]);
                expect_near("dx", i, (double)dx[i], plus_kept((real)keep, old[i], d), 4,
                            fabs(d) + 2 * keep);
            }
        release(2, dx, old);
    }
    release(2, x, target);
}

/* torch.optim.AdamW over three steps, written as its documentation has it. */
static void adamw_is_as_published(void **state) {
    enum { N = 517 };
    real *w = numbers(N, 1), *m = numbers(N, 2), *v = numbers(N, 3), *g = numbers(N, 4);
    double want[N][3];
    for (int i = 0; i < N; i++) {
        m[i] = v[i] = 0;
        want[i][0] = (double)w[i];
        want[i][1] = want[i][2] = 0;
    }
    for (int step = 1; step <= 3; step++) {
        AdamW a = {(real)0.01, (real)0.9, (real)0.95, (real)1e-8, (real)0.1, 0, 0, (real)0.5};
        a.correction1 = (real)(1 - pow((double)a.beta1, step));
        a.correction2 = (real)(1 - pow((double)a.beta2, step));
        BACKEND_CPU.adamw(*state, &a, N, g, w, m, v);
        for (int i = 0; i < N; i++) {
            double *p = want[i], grad = 0.5 * (double)g[i];
            p[0] -= (double)a.learning_rate * (double)a.weight_decay * p[0];
            p[1] = (double)a.beta1 * p[1] + (1 - (double)a.beta1) * grad;
            p[2] = (double)a.beta2 * p[2] + (1 - (double)a.beta2) * grad * grad;
            double root = sqrt(p[2] / (1 - pow((double)a.beta2, step))) + (double)a.eps;
            p[0] -= (double)a.learning_rate * p[1] / (1 - pow((double)a.beta1, step)) / root;
            /* 1 - beta^step loses up to 20 units, for beta is 0.95 or less. */
            expect_near("w", i, (double)w[i], p[0], 3 * step, 2 + 0.01 * 60);
            expect_near("m", i, (double)m[i], p[1], 8 * step, 2);
            expect_near("v", i, (double)v[i], p[2], 8 * step, p[2] * 20);
        }
    }
    release(4, w, m, v, g);
}

static void sum_squares_by_chunks(void **state) {
    enum { N = 5 * 1024 + 3, CHUNKS = 6 };
    real *x = numbers(N, 1);
    double partial[CHUNKS + 1] = {[CHUNKS] = 7};
    BACKEND_CPU.sum_squares(*state, N, x, partial);
    for (int c = 0; c < CHUNKS; c++) {
        double sum = 0;
        for (int i = c * 1024; i < MIN(N, (c + 1) * 1024); i++) sum += (double)x[i] * (double)x[i];
        assert_true(fabs(partial[c] - sum) <= 1024 * 0x1p-53 * sum);
    }
    assert_true(partial[CHUNKS] == 7);
    release(1, x);
}

static int setup(void **state) {
    *state = open_stream(1 << 20);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gelu_and_silu),
        cmocka_unit_test(geglu_is_gelu_times_x),
        cmocka_unit_test(axpy_scales_and_keeps),
        cmocka_unit_test(norm_and_gradient),
        cmocka_unit_test(rms_norm_of_rows),
        cmocka_unit_test(gate_and_gradient),
        cmocka_unit_test(qk_norm_and_gradient),
        cmocka_unit_test(join_and_split),
        cmocka_unit_test(gather_and_scatter),
        cmocka_unit_test(patches_there_and_back),
        cmocka_unit_test(add_axes_adds_three_tables),
        cmocka_unit_test(mse_and_gradient),
        cmocka_unit_test(adamw_is_as_published),
        cmocka_unit_test(sum_squares_by_chunks),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
