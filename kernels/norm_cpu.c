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

/* Of one row, with g = dy * scale, the gradient at xhat. */
typedef struct {
    real mean, rstd, mean_grad, mean_product; /* of x; of g and of g * xhat */
} RowGrad;

static inline RowGrad row_grad(const real *dy, const real *x, const real *scale, Moments m,
                               int64_t n) {
    Vec sums[2] = {{0}}, products[2] = {{0}};
    int64_t j = 0;
    for (; j + 2 * LANES <= n; j += 2 * LANES)
        for (int k = 0; k < 2; k++) {
            int64_t at = j + k * LANES;
            Vec g = vec_load(dy + at) * vec_load(scale + at);
            sums[k] += g;
            products[k] += g * ((vec_load(x + at) - m.mean) * m.rstd);
        }
    real sum = vec_sum(sums[0] + sums[1]), product = vec_sum(products[0] + products[1]);
    for (; j < n; j++) {
        sum += dy[j] * scale[j];
        product += dy[j] * scale[j] * ((x[j] - m.mean) * m.rstd);
    }
    return (RowGrad){m.mean, m.rstd, sum / (real)n, product / (real)n};
}

/* rstd * (g - mean(g) - xhat * mean(g * xhat)) */
static inline real input_grad(const RowGrad *r, real g, real x) {
    return r->rstd * (g - r->mean_grad - (x - r->mean) * r->rstd * r->mean_product);
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

/* Rows whose columns are read and summed together. */
enum { TOGETHER = 8 };

/* Vector j of `rows` rows: dx unless NULL, and sums unless NULL. */
static inline void norm_columns_grad(const RowGrad *r, int64_t rows, int64_t width, int64_t j,
                                     const real *x, const real *dy, Vec scale, real keep, real *dx,
                                     bool streamed, ColumnSums *sums) {
    Vec p = {0}, q = {0};
    if (sums) p = vec_load(sums->p + j), q = vec_load(sums->q + j);
    for (int64_t i = 0, at = j; i < rows; i++, at += width) {
        Vec d = vec_load(dy + at), normal = (vec_load(x + at) - r[i].mean) * r[i].rstd;
        p += d;
        q += d * normal;
        if (!dx) continue;
        Vec to = r[i].rstd * (d * scale - r[i].mean_grad - normal * r[i].mean_product);
        vec_put(streamed, dx + at, keep != 0 ? keep * vec_load(dx + at) + to : to);
    }
    if (sums) vec_store(sums->p + j, p), vec_store(sums->q + j, q);
}

/* The columns behind the last whole vector. */
static void norm_tail_grad(const RowGrad *r, int64_t rows, int64_t width, const real *x,
                           const real *dy, const real *scale, real keep, real *dx,
                           ColumnSums *sums) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = width - width % LANES; j < width; j++) {
            int64_t at = i * width + j;
            real d = dy[at], from = x[at];
            if (sums) sums->p[j] += d, sums->q[j] += d * ((from - r[i].mean) * r[i].rstd);
            if (dx) dx[at] = kept(keep, dx + at, input_grad(r + i, d * scale[j], from));
        }
}

/* Rows [first, first + rows), which share their modulation. */
static inline void norm_rows_grad(const Norm *n, const NormGrad *g, int64_t first, int64_t rows,
                                  const real *scale, bool streamed, ColumnSums *sums) {
    int64_t width = n->width;
    const real *x = (const real *)n->x + first * width, *dy = (const real *)g->dy + first * width;
    real *dx = g->dx ? (real *)g->dx + first * width : NULL;
    RowGrad r[TOGETHER];
    for (int64_t i = 0; i < rows; i++) {
        Moments m = {n->stats[2 * (first + i)], n->stats[2 * (first + i) + 1]};
        r[i] = row_grad(dy + i * width, x + i * width, scale, m, width);
    }
    for (int64_t j = 0; j + LANES <= width; j += LANES)
        norm_columns_grad(r, rows, width, j, x, dy, vec_load(scale + j), g->keep_dx, dx, streamed,
                          sums);
    norm_tail_grad(r, rows, width, x, dy, scale, g->keep_dx, dx, sums);
}

/* Rows [first, last), which share their modulation; without sums only dx. */
static inline void norm_run_grad(const Norm *n, const NormGrad *g, int64_t first, int64_t last,
                                 const real *scale, bool streamed, ColumnSums *sums) {
    int64_t i = first;
    for (; i + TOGETHER <= last; i += TOGETHER)
        norm_rows_grad(n, g, i, TOGETHER, scale, streamed, sums);
    for (; i < last; i++) norm_rows_grad(n, g, i, 1, scale, streamed, sums);
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
    bool streamed = g->dx && g->keep_dx == 0 && is_streamed(n->rows, n->width, g->dx);
    begin_sums(n, g);
#pragma omp parallel if (n->rows * n->width >= PARALLEL_MIN)
    for (int64_t first = 0, last; first < n->rows; first = last) {
        Affine affine;
        last = run_end(mod_row, first, n->rows);
        affine_of(n, first, &affine);
#pragma omp for ordered schedule(static, 1)
        for (int64_t i = first; i < last; i += SUM_ROWS) {
            ColumnSums sums;
            memset(sums.p, 0, (size_t)n->width * sizeof(real));
            memset(sums.q, 0, (size_t)n->width * sizeof(real));
            int64_t end = MIN(i + SUM_ROWS, last);
            if (summed)
                norm_run_grad(n, g, i, end, affine.scale, streamed, &sums);
            else
                norm_run_grad(n, g, i, end, affine.scale, streamed, NULL);
#pragma omp ordered
            if (summed) add_sums(n, g, first, &sums);
        }
        STREAM_FENCE();
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

/* The angles of one row as factors of an element and of the other one of its pair. */
typedef struct {
    real own[MAX_HEAD], other[MAX_HEAD];
} Turn;

/* rope: cos and sin of each pair; direction -1 turns back. */
static void turn_of(const real *rope, int64_t size, real direction, Turn *t) {
    for (int64_t j = 0; j < size; j += 2) {
        real sine = rope ? direction * rope[j + 1] : 0;
        t->own[j] = t->own[j + 1] = rope ? rope[j] : 1;
        t->other[j] = -sine;
        t->other[j + 1] = sine;
    }
}

/* y = x turned */
static inline void rotate(const real *restrict x, const Turn *t, int64_t n, real *restrict y) {
    for (int64_t j = 0; j < n; j += 2) {
        y[j] = x[j] * t->own[j] + x[j + 1] * t->other[j];
        y[j + 1] = x[j + 1] * t->own[j + 1] + x[j] * t->other[j + 1];
    }
}

/* Heads are taken HEADS at a time, one pass after the other: their sums do not wait for each other.
 * USUAL_HEAD is the size in all published models; loops of that known length are unrolled. */
enum { HEADS = 16, USUAL_HEAD = 64 };

typedef struct {
    real mean[HEADS], rstd[HEADS];
} HeadMoments;

static inline void head_moments(const real *x, int64_t heads, int64_t size, real eps,
                                HeadMoments *m) {
    for (int64_t h = 0; h < heads; h++)
        m->mean[h] = sum_shifted(x + h * size, size, 0, false) / (real)size;
    for (int64_t h = 0; h < heads; h++)
        m->rstd[h] = sum_shifted(x + h * size, size, m->mean[h], true);
    for (int64_t h = 0; h < heads; h++) m->rstd[h] = 1 / sqrt_real(m->rstd[h] / (real)size + eps);
}

static inline void qk_norm_row(const QkNorm *q, int64_t size, int z, int64_t row, real *y) {
    int64_t at = (z * q->rows + row) * q->heads * size;
    const real *gamma = q->gamma[z], *beta = q->beta[z];
    Turn turn;
    turn_of(q->rope ? q->rope + row * size : NULL, size, 1, &turn);
    for (int64_t first = 0; first < q->heads; first += HEADS) {
        int64_t heads = MIN(HEADS, q->heads - first);
        const real *x = (const real *)q->x + at + first * size;
        HeadMoments m;
        head_moments(x, heads, size, q->eps, &m);
        for (int64_t h = 0; h < heads; h++) {
            real normal[MAX_HEAD];
            for (int64_t j = 0; j < size; j++)
                normal[j] = (x[h * size + j] - m.mean[h]) * m.rstd[h] * gamma[j] + beta[j];
            rotate(normal, &turn, size, y + at + (first + h) * size);
        }
    }
}

void cpu_qk_norm(Stream *s, const QkNorm *q, void *y) {
    (void)s;
    check_type(q->t, "qk_norm");
    CHECK(q->head_size <= MAX_HEAD && q->head_size % 2 == 0, "qk_norm: head size %lld",
          (long long)q->head_size);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < 2 * q->rows; i++)
        if (q->head_size == USUAL_HEAD)
            qk_norm_row(q, USUAL_HEAD, i >= q->rows, i % q->rows, y);
        else
            qk_norm_row(q, q->head_size, i >= q->rows, i % q->rows, y);
}

/* Sums over the heads of one row, then over the rows of a chunk. */
typedef struct {
    real gamma[MAX_HEAD], beta[MAX_HEAD];
} HeadSums;

static inline void qk_norm_row_grad(const QkNorm *q, const QkNormGrad *g, int64_t size, int z,
                                    int64_t row, HeadSums *chunk) {
    int64_t at = (z * q->rows + row) * q->heads * size;
    bool summed = g->dgamma[z] || g->dbeta[z];
    const real *gamma = q->gamma[z];
    HeadSums sums = {{0}, {0}};
    Turn turn;
    turn_of(q->rope ? q->rope + row * size : NULL, size, -1, &turn);
    for (int64_t first = 0; first < q->heads; first += HEADS) {
        int64_t heads = MIN(HEADS, q->heads - first), from = at + first * size;
        const real *x = (const real *)q->x + from, *dy = (const real *)g->dy + from;
        HeadMoments m;
        head_moments(x, heads, size, q->eps, &m);
        for (int64_t h = 0; h < heads; h++, x += size, dy += size) {
            real dnormal[MAX_HEAD];
            rotate(dy, &turn, size, dnormal);
            for (int64_t j = 0; summed && j < size; j++) {
                sums.gamma[j] += dnormal[j] * ((x[j] - m.mean[h]) * m.rstd[h]);
                sums.beta[j] += dnormal[j];
            }
            RowGrad r = row_grad(dnormal, x, gamma, (Moments){m.mean[h], m.rstd[h]}, size);
            real *dx = g->dx ? (real *)g->dx + from + h * size : NULL;
#pragma omp simd
            for (int64_t j = 0; j < (dx ? size : 0); j++)
                dx[j] = kept(g->keep_dx, dx + j, input_grad(&r, dnormal[j] * gamma[j], x[j]));
        }
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
            if (q->head_size == USUAL_HEAD)
                qk_norm_row_grad(q, g, USUAL_HEAD, z, i, &chunk);
            else
                qk_norm_row_grad(q, g, q->head_size, z, i, &chunk);
#pragma omp ordered
        add_chunk(q, g, z, &chunk);
    }
}
