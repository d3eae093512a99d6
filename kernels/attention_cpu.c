/* Full attention inside each segment, in tiles (Dao et al. 2022, 2023); one head on one thread.
 *
 * Per head, keys and values are first packed: transposed, [E][COLS] for each panel of COLS keys,
 * where a product runs across keys; as rows [EP], where it runs across channels (EP is E rounded
 * up to COLS; what is added is zero). Queries come in tiles of TILE rows, counted from the
 * segment's start. Every product is then the one in `micro`.
 */
#include "kernels/cpu.h"
#include "kernels/math.h"

#include <omp.h>

enum {
    MAX_HEAD = 256,
    ROWS = 4, /* sums of `micro`: ROWS x COLS, which just fit the registers */
    COLS = VECTOR_BYTES / 16 * LANES,
    TILE = 64,   /* query rows of a tile */
    BLOCK = 256, /* keys between two rescalings of the forward's softmax */
};

/* One head of one segment. Pointers to [S,N*E] matrices begin at its first row and column. */
typedef struct {
    int64_t rows, padded, size, ep, ld; /* rows, rounded up to COLS; E, EP, N*E */
    real scale;
    const real *q, *k, *v;
    const real *bias; /* [L,L] of the head, or NULL */
    int64_t bias_ld;  /* L */
} Head;

static int64_t head_padded(int64_t size) { return align_up(size, COLS); }

static Head head_of(const Attention *a, int segment, int64_t head) {
    int64_t first = a->cu_rows[segment], ld = a->heads * a->head_size;
    int64_t at = first * ld + head * a->head_size;
    Head h = {.rows = a->cu_rows[segment + 1] - first, .size = a->head_size, .ld = ld};
    h.padded = align_up(h.rows, COLS);
    h.ep = head_padded(h.size);
    h.scale = a->scale;
    h.q = (const real *)a->q + at;
    h.k = (const real *)a->k + at;
    h.v = (const real *)a->v + at;
    h.bias_ld = a->bias_rows;
    h.bias = a->bias ? a->bias + head * a->bias_rows * a->bias_rows : NULL;
    return h;
}

/* c[i][j] (+)= sum over p < k of a[i*a_row + p*a_col] * b[p*ldb + j], i < ROWS, j < COLS. */
static inline void micro(int64_t k, const real *a, int64_t a_row, int64_t a_col,
                         const real *restrict b, int64_t ldb, bool add, real *restrict c,
                         int64_t ldc) {
    real sum[ROWS][COLS] = {{0}};
    for (int64_t p = 0; p < k; p++)
        for (int i = 0; i < ROWS; i++) {
            real x = a[i * a_row + p * a_col];
            for (int j = 0; j < COLS; j++) sum[i][j] = fma_real(x, b[p * ldb + j], sum[i][j]);
        }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLS; j++)
            c[i * ldc + j] = add ? c[i * ldc + j] + sum[i][j] : sum[i][j];
}

/* C[rows,cols] = A[rows,k] B[k,cols]; rows and cols are rounded up to ROWS and COLS. */
static void multiply(int64_t rows, int64_t cols, int64_t k, const real *a, int64_t lda,
                     const real *b, int64_t ldb, real *c, int64_t ldc) {
    for (int64_t j = 0; j < cols; j += COLS)
        for (int64_t i = 0; i < rows; i += ROWS)
            micro(k, a + i * lda, lda, 1, b + j, ldb, false, c + i * ldc + j, ldc);
}

/* The same, added to C. */
static void multiply_add(int64_t rows, int64_t cols, int64_t k, const real *a, int64_t lda,
                         const real *b, int64_t ldb, real *c, int64_t ldc) {
    for (int64_t j = 0; j < cols; j += COLS)
        for (int64_t i = 0; i < rows; i += ROWS)
            micro(k, a + i * lda, lda, 1, b + j, ldb, true, c + i * ldc + j, ldc);
}

/* C[rows,cols] += A[k,rows]^T B[k,cols]. */
static void multiply_add_t(int64_t rows, int64_t cols, int64_t k, const real *a, int64_t lda,
                           const real *b, int64_t ldb, real *c, int64_t ldc) {
    for (int64_t j = 0; j < cols; j += COLS)
        for (int64_t i = 0; i < rows; i += ROWS)
            micro(k, a + i, 1, lda, b + j, ldb, true, c + i * ldc + j, ldc);
}

/* x[rows, E] as rows [padded, EP] times scale. */
static void pack_rows(const Head *h, const real *x, int64_t rows, int64_t padded, real scale,
                      real *to) {
    for (int64_t i = 0; i < padded; i++)
        for (int64_t e = 0; e < h->ep; e++)
            to[i * h->ep + e] = i < rows && e < h->size ? scale * x[i * h->ld + e] : 0;
}

/* x[rows, E] as panels [padded/COLS][E][COLS]. */
static void pack_panels(const Head *h, const real *x, real *to) {
    for (int64_t panel = 0; panel < h->padded; panel += COLS, to += h->size * COLS)
        for (int64_t e = 0; e < h->size; e++)
            for (int64_t j = 0; j < COLS; j++)
                to[e * COLS + j] = panel + j < h->rows ? x[(panel + j) * h->ld + e] : 0;
}

static void unpack_rows(const Head *h, const real *from, int64_t rows, real scale, real *x) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t e = 0; e < h->size; e++) x[i * h->ld + e] = scale * from[i * h->ep + e];
}

/* Adds the bias of rows [first, first + rows) and keys [key, key + keys) to their scores. */
static void add_bias(const Head *h, int64_t first, int64_t rows, int64_t key, int64_t keys,
                     real *scores, int64_t ld) {
    int64_t n = MIN(keys, h->rows - key);
    for (int64_t i = 0; i < rows; i++) {
        const real *bias = h->bias + (first + i) * h->bias_ld + key;
        for (int64_t j = 0; j < n; j++) scores[i * ld + j] += bias[j];
    }
}

/* Scores of keys beyond the segment become -infinity; columns begin at key `first`. */
static void mask_tail(const Head *h, int64_t first, int64_t rows, int64_t cols, real *scores,
                      int64_t ld) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = MAX(h->rows - first, 0); j < cols; j++) scores[i * ld + j] = -INFINITY;
}

/* Working memory of one thread. */
typedef struct {
    real *kt, *v;           /* panels; rows */
    real *q, *out, *scores; /* [TILE,EP], [TILE,EP], [TILE,BLOCK] */
    real max[TILE], sum[TILE];
} Forward;

static real row_max(const real *x, int64_t n) {
    real most = x[0];
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < n; j++) most = MAX(most, x[j]);
    return most;
}

static real row_sum(const real *x, int64_t n) {
    Vec sum = {0};
    for (int64_t j = 0; j < n; j += LANES) sum += vec_load(x + j);
    return vec_sum(sum);
}

/* One more block of n scores of a row: scores become exp(score - max), sum and out follow. */
static void softmax_row(int64_t n, real *scores, real *max, real *sum, int64_t ep, real *out) {
    real top = MAX(*max, row_max(scores, n)), correction = exp_real(*max - top);
    for (int64_t j = 0; j < n; j++) scores[j] = exp_real(scores[j] - top);
    *sum = *sum * correction + row_sum(scores, n);
    *max = top;
    for (int64_t e = 0; e < ep; e++) out[e] *= correction;
}

static void forward_tile(const Head *h, Forward *f, int64_t first, real *out, real *lse) {
    int64_t rows = MIN(TILE, h->rows - first), ep = h->ep;
    pack_rows(h, h->q + first * h->ld, rows, TILE, h->scale, f->q);
    memset(f->out, 0, (size_t)(TILE * ep) * sizeof(real));
    for (int i = 0; i < TILE; i++) f->max[i] = -INFINITY, f->sum[i] = 0;
    for (int64_t key = 0; key < h->padded; key += BLOCK) {
        int64_t keys = MIN(BLOCK, h->padded - key);
        for (int64_t j = 0; j < keys; j += COLS)
            multiply(rows, COLS, h->size, f->q, ep, f->kt + (key + j) * h->size, COLS,
                     f->scores + j, BLOCK);
        if (h->bias) add_bias(h, first, rows, key, keys, f->scores, BLOCK);
        mask_tail(h, key, rows, keys, f->scores, BLOCK);
        for (int64_t i = 0; i < rows; i++)
            softmax_row(keys, f->scores + i * BLOCK, f->max + i, f->sum + i, ep, f->out + i * ep);
        for (int64_t j = 0; j < keys; j += COLS)
            multiply_add(rows, ep, COLS, f->scores + j, BLOCK, f->v + (key + j) * ep, ep, f->out,
                         ep);
    }
    for (int64_t i = 0; i < rows; i++) {
        unpack_rows(h, f->out + i * ep, 1, 1 / f->sum[i], out + (first + i) * h->ld);
        lse[first + i] = f->max[i] + (real)log((double)f->sum[i]);
    }
}

static real *take(real **from, int64_t count) {
    real *p = *from;
    *from += count;
    return p;
}

static void forward_head(const Head *h, real *work, real *out, real *lse) {
    Forward f;
    f.kt = take(&work, h->padded * h->size);
    f.v = take(&work, h->padded * h->ep);
    f.q = take(&work, TILE * h->ep);
    f.out = take(&work, TILE * h->ep);
    f.scores = take(&work, TILE * BLOCK);
    pack_panels(h, h->k, f.kt);
    pack_rows(h, h->v, h->rows, h->padded, 1, f.v);
    for (int64_t first = 0; first < h->rows; first += TILE) forward_tile(h, &f, first, out, lse);
}

typedef struct {
    real *kt, *vt, *k, *dk, *dv;            /* panels, panels, rows, rows, rows */
    real *q, *dout, *dq, *scores, *dscores; /* [TILE,EP] three times, [TILE,COLS] twice */
    real lse[TILE], delta[TILE];            /* delta: sum over channels of dout * out */
} Backward;

/* scores become P = exp(score - lse), dscores become P * (dscores - delta). */
static void softmax_grad(Backward *b, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) {
        real *p = b->scores + i * COLS, *dp = b->dscores + i * COLS;
        for (int64_t j = 0; j < COLS; j++) {
            p[j] = exp_real(p[j] - b->lse[i]);
            dp[j] = p[j] * (dp[j] - b->delta[i]);
        }
    }
}

static void begin_tile(const Head *h, Backward *b, int64_t first, int64_t rows, const real *out,
                       const real *lse, const real *dout) {
    pack_rows(h, h->q + first * h->ld, rows, TILE, h->scale, b->q);
    pack_rows(h, dout + first * h->ld, rows, TILE, 1, b->dout);
    memset(b->dq, 0, (size_t)(TILE * h->ep) * sizeof(real));
    for (int64_t i = 0; i < TILE; i++) {
        b->lse[i] = i < rows ? lse[first + i] : INFINITY;
        b->delta[i] = 0;
        for (int64_t e = 0; i < rows && e < h->size; e++)
            b->delta[i] += b->dout[i * h->ep + e] * out[(first + i) * h->ld + e];
    }
}

static void backward_tile(const Head *h, Backward *b, int64_t first, const real *out,
                          const real *lse, const real *dout, real *dq) {
    int64_t rows = MIN(TILE, h->rows - first), ep = h->ep;
    begin_tile(h, b, first, rows, out, lse, dout);
    int64_t padded = align_up(rows, ROWS);
    for (int64_t key = 0; key < h->padded; key += COLS) {
        multiply(padded, COLS, h->size, b->q, ep, b->kt + key * h->size, COLS, b->scores, COLS);
        multiply(padded, COLS, h->size, b->dout, ep, b->vt + key * h->size, COLS, b->dscores, COLS);
        mask_tail(h, key, padded, COLS, b->scores, COLS);
        softmax_grad(b, padded);
        multiply_add(padded, ep, COLS, b->dscores, COLS, b->k + key * ep, ep, b->dq, ep);
        multiply_add_t(COLS, ep, padded, b->dscores, COLS, b->q, ep, b->dk + key * ep, ep);
        multiply_add_t(COLS, ep, padded, b->scores, COLS, b->dout, ep, b->dv + key * ep, ep);
    }
    unpack_rows(h, b->dq, rows, h->scale, dq + first * h->ld);
}

/* Outputs and gradients begin, as in Head, at the head's first row and column. */
typedef struct {
    const real *out, *dout, *lse;
    real *dq, *dk, *dv;
} HeadGrad;

static void backward_head(const Head *h, real *work, const HeadGrad *g) {
    Backward b;
    b.kt = take(&work, h->padded * h->size);
    b.vt = take(&work, h->padded * h->size);
    b.k = take(&work, h->padded * h->ep);
    b.dk = take(&work, h->padded * h->ep);
    b.dv = take(&work, h->padded * h->ep);
    b.q = take(&work, TILE * h->ep);
    b.dout = take(&work, TILE * h->ep);
    b.dq = take(&work, TILE * h->ep);
    b.scores = take(&work, TILE * COLS);
    b.dscores = take(&work, TILE * COLS);
    pack_panels(h, h->k, b.kt);
    pack_panels(h, h->v, b.vt);
    pack_rows(h, h->k, h->rows, h->padded, 1, b.k);
    memset(b.dk, 0, (size_t)(h->padded * h->ep) * sizeof(real));
    memset(b.dv, 0, (size_t)(h->padded * h->ep) * sizeof(real));
    for (int64_t first = 0; first < h->rows; first += TILE)
        backward_tile(h, &b, first, g->out, g->lse, g->dout, g->dq);
    unpack_rows(h, b.dk, h->rows, 1, g->dk);
    unpack_rows(h, b.dv, h->rows, 1, g->dv);
}

/* Working memory of one thread, in elements: the longest segment's. */
static int64_t thread_elements(const Attention *a, bool backward) {
    int64_t padded = 0, ep = head_padded(a->head_size);
    for (int b = 0; b < a->segments; b++)
        padded = MAX(padded, align_up(a->cu_rows[b + 1] - a->cu_rows[b], COLS));
    if (backward) return padded * (2 * a->head_size + 3 * ep) + TILE * (3 * ep + 2 * COLS);
    return padded * (a->head_size + ep) + TILE * (2 * ep + BLOCK);
}

size_t cpu_attention_workspace(Stream *s, const Attention *a, bool backward) {
    (void)s;
    return (size_t)(omp_get_max_threads() * thread_elements(a, backward)) * sizeof(real);
}

static int threads_for(const Stream *s, const Attention *a, bool backward) {
    check_type(a->t, "attention");
    CHECK(a->head_size > 0 && a->head_size <= MAX_HEAD, "attention: head size %lld",
          (long long)a->head_size);
    for (int b = 0; a->bias && b < a->segments; b++)
        CHECK(!backward && a->cu_rows[b + 1] - a->cu_rows[b] <= a->bias_rows,
              "attention: segment %d with a bias of %lld rows", b, (long long)a->bias_rows);
    size_t one = (size_t)thread_elements(a, backward) * sizeof(real);
    CHECK(s->workspace_bytes >= one, "attention: needs %zu bytes of workspace, has %zu", one,
          s->workspace_bytes);
    return (int)MIN((size_t)omp_get_max_threads(), s->workspace_bytes / one);
}

void cpu_attention(Stream *s, const Attention *a, void *out, real *lse) {
    int64_t elements = thread_elements(a, false);
#pragma omp parallel for schedule(dynamic) num_threads(threads_for(s, a, false))
    for (int64_t i = 0; i < a->segments * a->heads; i++) {
        int segment = (int)(i / a->heads);
        int64_t n = i % a->heads, first = a->cu_rows[segment];
        Head h = head_of(a, segment, n);
        forward_head(&h, (real *)s->workspace + omp_get_thread_num() * elements,
                     (real *)out + first * h.ld + n * h.size, lse + n * a->rows + first);
    }
}

void cpu_attention_grad(Stream *s, const Attention *a, const void *out, const real *lse,
                        const void *dout, void *dq, void *dk, void *dv) {
    int64_t elements = thread_elements(a, true);
#pragma omp parallel for schedule(dynamic) num_threads(threads_for(s, a, true))
    for (int64_t i = 0; i < a->segments * a->heads; i++) {
        int segment = (int)(i / a->heads);
        int64_t n = i % a->heads, first = a->cu_rows[segment];
        Head h = head_of(a, segment, n);
        int64_t at = first * h.ld + n * h.size;
        HeadGrad g = {(const real *)out + at, (const real *)dout + at, lse + n * a->rows + first,
                      (real *)dq + at,        (real *)dk + at,         (real *)dv + at};
        backward_head(&h, (real *)s->workspace + omp_get_thread_num() * elements, &g);
    }
}
