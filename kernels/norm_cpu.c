/* LayerNorm with modulation and RMS norm over whole rows, and the q/k norm with rotation over
 * heads. */
#include "kernels/cpu.h"
#include "kernels/math.h"

#include <string.h>

enum { MAX_HEAD = 256 };

typedef struct {
    real mean, rstd;
} Moments;

/* Sum of x - shift, or of its square; four vectors of sums hide the latency of the addition. */
static inline real sum_shifted(const real *x, int64_t n, real shift, bool square) {
    Vec sums[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int k = 0; k < 4; k++) {
            Vec d = vec_load(x + i + k * LANES) - shift;
            sums[k] += square ? d * d : d;
        }
    real total = vec_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; i < n; i++) total += square ? (x[i] - shift) * (x[i] - shift) : x[i] - shift;
    return total;
}

static inline Moments moments(const real *x, int64_t n, real eps) {
    Moments m;
    m.mean = sum_shifted(x, n, 0, false) / (real)n;
    m.rstd = 1 / sqrt_real(sum_shifted(x, n, m.mean, true) / (real)n + eps);
    return m;
}

static const real *mod_of(const Norm *n, int64_t row) {
    return n->mod_rows ? (const real *)n->mod + n->mod_row[row] * n->mod_width : NULL;
}

/* Of a run of rows with the same modulation: y = xhat * scale + shift. */
typedef struct {
    real scale[MAX_WIDTH], shift[MAX_WIDTH];
} Affine;

static void affine_of(const Norm *n, int64_t row, Affine *a) {
    const real *gamma = n->gamma, *beta = n->beta, *shift = mod_of(n, row);
    const real *scale = shift ? shift + n->width : NULL;
    for (int64_t j = 0; j < n->width; j++) {
        a->scale[j] = gamma[j] * (scale ? 1 + scale[j] : 1);
        a->shift[j] = beta[j] * (scale ? 1 + scale[j] : 1) + (shift ? shift[j] : 0);
    }
}

static inline void norm_row(const Norm *n, int64_t row, const Affine *a, bool streamed, real *y) {
    const real *x = (const real *)n->x + row * n->width;
    const real *next = x + (row + 1 < n->rows ? n->width : 0);
    Moments m = moments(x, n->width, n->eps);
    n->stats[2 * row] = m.mean;
    n->stats[2 * row + 1] = m.rstd;
    int64_t j = 0;
    for (; j + LANES <= n->width; j += LANES) {
        __builtin_prefetch(next + j);
        Vec normal = (vec_load(x + j) - m.mean) * m.rstd;
        vec_put(streamed, y + j, normal * vec_load(a->scale + j) + vec_load(a->shift + j));
    }
    for (; j < n->width; j++) y[j] = (x[j] - m.mean) * m.rstd * a->scale[j] + a->shift[j];
}

void cpu_norm(Stream *s, const Norm *n, void *y) {
    (void)s;
    check_type(n->t, "norm");
    CHECK(n->width <= MAX_WIDTH, "norm: width %lld", (long long)n->width);
    int64_t width = n->width;
    const int32_t *mod_row = n->mod_rows ? n->mod_row : NULL;
    bool streamed = is_streamed(n->rows, width, y);
#pragma omp parallel if (n->rows * width >= PARALLEL_MIN)
    {
        Affine affine;
        for (int64_t first = 0, last; first < n->rows; first = last) {
            last = run_end(mod_row, first, n->rows);
            affine_of(n, first, &affine);
#pragma omp for schedule(static) nowait
            for (int64_t i = first; i < last; i++) {
                real *to = (real *)y + i * width;
                if (streamed)
                    norm_row(n, i, &affine, true, to);
                else
                    norm_row(n, i, &affine, false, to);
            }
        }
        STREAM_FENCE();
    }
}

/* g = dy * scale, the gradient at the normalised row; sums g and g * xhat. Unless they are NULL, dy
 * is added to p, and dy * xhat to q. */
static inline void sum_row_grad(const real *dy, const real *x, const real *scale, Moments m,
                                int64_t n, real *p, real *q, real *sum, real *product) {
    Vec sums[2] = {{0}}, products[2] = {{0}};
    int64_t j = 0;
    for (; j + 2 * LANES <= n; j += 2 * LANES)
        for (int k = 0; k < 2; k++) {
            int64_t at = j + k * LANES;
            Vec d = vec_load(dy + at), g = d * vec_load(scale + at);
            Vec normal = (vec_load(x + at) - m.mean) * m.rstd;
            sums[k] += g;
            products[k] += g * normal;
            if (p) vec_store(p + at, vec_load(p + at) + d);
            if (q) vec_store(q + at, vec_load(q + at) + d * normal);
        }
    *sum = vec_sum(sums[0] + sums[1]);
    *product = vec_sum(products[0] + products[1]);
    for (; j < n; j++) {
        real g = dy[j] * scale[j], normal = (x[j] - m.mean) * m.rstd;
        *sum += g;
        *product += g * normal;
        if (p) p[j] += dy[j];
        if (q) q[j] += dy[j] * normal;
    }
}

/* dx = keep * dx + rstd * (g - mean(g) - xhat * mean(g * xhat)), unless dx is NULL. */
static inline void norm_row_grad(const real *dy, const real *x, const real *scale, Moments m,
                                 int64_t n, real *p, real *q, real keep, real *dx) {
    real sum, product;
    sum_row_grad(dy, x, scale, m, n, p, q, &sum, &product);
    sum /= (real)n;
    product /= (real)n;
#pragma omp simd
    for (int64_t j = 0; j < (dx ? n : 0); j++) {
        real g = dy[j] * scale[j];
        dx[j] = kept(keep, dx + j, m.rstd * (g - sum - (x[j] - m.mean) * m.rstd * product));
    }
}

/* Over a run of rows with the same modulation let P = sum of dy and Q = sum of dy * xhat. Then
 * dshift = P, dscale = gamma Q + beta P, and gamma and beta get (1 + scale) Q and (1 + scale) P. */
typedef struct {
    real p[MAX_WIDTH], q[MAX_WIDTH];
} ColumnSums;

static void add_sums(const Norm *n, const NormGrad *g, int64_t row, const ColumnSums *sums) {
    const real *gamma = n->gamma, *beta = n->beta, *p = sums->p, *q = sums->q;
    const real *shift = mod_of(n, row), *scale = shift ? shift + n->width : NULL;
    real *dshift = g->dmod ? (real *)g->dmod + n->mod_row[row] * n->mod_width : NULL;
    for (int64_t j = 0; g->dgamma && j < n->width; j++)
        g->dgamma[j] += (scale ? 1 + scale[j] : 1) * q[j];
    for (int64_t j = 0; g->dbeta && j < n->width; j++)
        g->dbeta[j] += (scale ? 1 + scale[j] : 1) * p[j];
    for (int64_t j = 0; dshift && j < n->width; j++) {
        dshift[j] += p[j];
        dshift[n->width + j] += gamma[j] * q[j] + beta[j] * p[j];
    }
}

/* Rows [first, last), which share their modulation; without sums only dx. */
static void norm_rows_grad(const Norm *n, const NormGrad *g, int64_t first, int64_t last,
                           ColumnSums *sums) {
    int64_t width = n->width;
    Affine affine;
    affine_of(n, first, &affine);
    for (int64_t i = first; i < last; i++) {
        const real *dy = (const real *)g->dy + i * width, *x = (const real *)n->x + i * width;
        real *dx = g->dx ? (real *)g->dx + i * width : NULL;
        Moments m = {n->stats[2 * i], n->stats[2 * i + 1]};
        if (sums)
            norm_row_grad(dy, x, affine.scale, m, width, sums->p, sums->q, g->keep_dx, dx);
        else
            norm_row_grad(dy, x, affine.scale, m, width, NULL, NULL, g->keep_dx, dx);
    }
}

static void begin_sums(const Norm *n, const NormGrad *g) {
    real *dmod = g->dmod;
    for (int64_t i = 0; dmod && i < n->mod_rows * n->mod_width; i++)
        dmod[i] = kept(g->keep_dmod, dmod + i, 0);
    for (int64_t j = 0; g->dgamma && j < n->width; j++)
        g->dgamma[j] = kept(g->keep_dgamma, g->dgamma + j, 0);
    for (int64_t j = 0; g->dbeta && j < n->width; j++)
        g->dbeta[j] = kept(g->keep_dbeta, g->dbeta + j, 0);
}

void cpu_norm_grad(Stream *s, const Norm *n, const NormGrad *g) {
    (void)s;
    check_type(n->t, "norm_grad");
    CHECK(n->width <= MAX_WIDTH, "norm_grad: width %lld", (long long)n->width);
    const int32_t *mod_row = n->mod_rows ? n->mod_row : NULL;
    bool summed = g->dgamma || g->dbeta || g->dmod;
    begin_sums(n, g);
#pragma omp parallel if (n->rows * n->width >= PARALLEL_MIN)
    for (int64_t first = 0, last; first < n->rows; first = last) {
        last = run_end(mod_row, first, n->rows);
#pragma omp for ordered schedule(static, 1)
        for (int64_t i = first; i < last; i += SUM_ROWS) {
            ColumnSums sums;
            memset(sums.p, 0, (size_t)n->width * sizeof(real));
            memset(sums.q, 0, (size_t)n->width * sizeof(real));
            norm_rows_grad(n, g, i, MIN(i + SUM_ROWS, last), summed ? &sums : NULL);
#pragma omp ordered
            if (summed) add_sums(n, g, first, &sums);
        }
    }
}

void cpu_rms_norm(Stream *s, const RmsNorm *n, void *y) {
    (void)s;
    check_type(n->t, "rms_norm");
    const real *gamma = n->gamma;
#pragma omp parallel for schedule(static) if (n->rows * n->width >= PARALLEL_MIN)
    for (int64_t i = 0; i < n->rows; i++) {
        const real *x = (const real *)n->x + i * n->width;
        real *to = (real *)y + i * n->width;
        real square = sum_shifted(x, n->width, 0, true) / (real)n->width;
        real scale = 1 / sqrt_real(square + n->eps);
        for (int64_t j = 0; j < n->width; j++) to[j] = gamma[j] * (x[j] * scale);
    }
}

/* y = pairs of x turned by the angles of rope (cos, sin); direction -1 turns back. */
static inline void rotate(const real *restrict x, const real *rope, int64_t n, real direction,
                          real *restrict y) {
    for (int64_t j = 0; j < n; j += 2) {
        real cosine = rope ? rope[j] : 1, sine = rope ? direction * rope[j + 1] : 0;
        y[j] = x[j] * cosine - x[j + 1] * sine;
        y[j + 1] = x[j + 1] * cosine + x[j] * sine;
    }
}

static void qk_norm_row(const QkNorm *q, int z, int64_t row, real *y) {
    int64_t size = q->head_size, width = q->heads * size;
    const real *x = (const real *)q->x + (z * q->rows + row) * width;
    const real *gamma = q->gamma[z], *beta = q->beta[z];
    const real *rope = q->rope ? q->rope + row * size : NULL;
    for (int64_t h = 0; h < width; h += size) {
        real normal[MAX_HEAD];
        Moments m = moments(x + h, size, q->eps);
        for (int64_t j = 0; j < size; j++)
            normal[j] = (x[h + j] - m.mean) * m.rstd * gamma[j] + beta[j];
        rotate(normal, rope, size, 1, y + (z * q->rows + row) * width + h);
    }
}

void cpu_qk_norm(Stream *s, const QkNorm *q, void *y) {
    (void)s;
    check_type(q->t, "qk_norm");
    CHECK(q->head_size <= MAX_HEAD && q->head_size % 2 == 0, "qk_norm: head size %lld",
          (long long)q->head_size);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < 2 * q->rows; i++) qk_norm_row(q, i >= q->rows, i % q->rows, y);
}

/* Sums over the heads of one row, then over the rows of a chunk. */
typedef struct {
    real gamma[MAX_HEAD], beta[MAX_HEAD];
} HeadSums;

static void qk_norm_row_grad(const QkNorm *q, const QkNormGrad *g, int z, int64_t row,
                             HeadSums *chunk) {
    int64_t size = q->head_size, width = q->heads * size, at = (z * q->rows + row) * width;
    const real *rope = q->rope ? q->rope + row * size : NULL;
    bool summed = g->dgamma[z] || g->dbeta[z];
    HeadSums sums = {{0}, {0}};
    for (int64_t h = at; h < at + width; h += size) {
        const real *x = (const real *)q->x + h;
        real dnormal[MAX_HEAD];
        Moments m = moments(x, size, q->eps);
        rotate((const real *)g->dy + h, rope, size, -1, dnormal);
        for (int64_t j = 0; summed && j < size; j++) {
            sums.gamma[j] += dnormal[j] * ((x[j] - m.mean) * m.rstd);
            sums.beta[j] += dnormal[j];
        }
        if (g->dx)
            norm_row_grad(dnormal, x, q->gamma[z], m, size, NULL, NULL, g->keep_dx,
                          (real *)g->dx + h);
    }
    for (int64_t j = 0; summed && j < size; j++) {
        chunk->gamma[j] += sums.gamma[j];
        chunk->beta[j] += sums.beta[j];
    }
}

static void add_chunk(const QkNorm *q, const QkNormGrad *g, int z, const HeadSums *chunk) {
    for (int64_t j = 0; j < q->head_size; j++) {
        if (g->dgamma[z]) g->dgamma[z][j] += chunk->gamma[j];
        if (g->dbeta[z]) g->dbeta[z][j] += chunk->beta[j];
    }
}

void cpu_qk_norm_grad(Stream *s, const QkNorm *q, const QkNormGrad *g) {
    (void)s;
    check_type(q->t, "qk_norm_grad");
    CHECK(q->head_size <= MAX_HEAD && q->head_size % 2 == 0, "qk_norm_grad: head size %lld",
          (long long)q->head_size);
    for (int z = 0; z < 2; z++)
        for (int64_t j = 0; j < q->head_size; j++) {
            if (g->dgamma[z]) g->dgamma[z][j] = kept(g->keep_dgamma[z], g->dgamma[z] + j, 0);
            if (g->dbeta[z]) g->dbeta[z][j] = kept(g->keep_dbeta[z], g->dbeta[z] + j, 0);
        }
    int64_t chunks = (q->rows + ROW_CHUNK - 1) / ROW_CHUNK;
#pragma omp parallel for ordered schedule(static, 1)
    for (int64_t c = 0; c < 2 * chunks; c++) {
        HeadSums chunk = {{0}, {0}};
        int z = c >= chunks;
        int64_t first = (c - z * chunks) * ROW_CHUNK;
        for (int64_t i = first; i < MIN(first + ROW_CHUNK, q->rows); i++)
            qk_norm_row_grad(q, g, z, i, &chunk);
#pragma omp ordered
        add_chunk(q, g, z, &chunk);
    }
}
