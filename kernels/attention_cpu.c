/* Full attention inside each segment, in tiles (Dao et al. 2022, 2023); one head on one thread.
 *
 * Per head, keys and values are first packed: transposed, [E][TILE_COLS] for each panel of
 * TILE_COLS keys, where a product runs across keys; as rows [EP], where it runs across channels
 * (EP is E rounded up to TILE_COLS; what is added is zero). Queries come in tiles of TILE rows,
 * counted from the segment's start.
 */
#include "kernels/math.h"
#include "kernels/tile.h"

#include <omp.h>
#include <string.h>

enum {
    MAX_HEAD = 256,
    TILE = 16 * TILE_ROWS, /* query rows of a tile */
    BLOCK = 256,           /* keys between two rescalings of the forward's softmax */
    GRAD_BLOCK = 128,      /* keys of a block of the backward */
};

/* One head of one segment. Pointers to [S,N*E] matrices begin at its first row and column. */
typedef struct {
    int64_t rows, padded, size, ep, ld; /* rows, rounded up to TILE_COLS; E, EP, N*E */
    real scale;
    const real *q, *k, *v;
    const real *bias; /* [L,L] of the head, or NULL */
    int64_t bias_ld;  /* L */
} Head;

static int64_t head_padded(int64_t size) { return align_up(size, TILE_COLS); }

static Head head_of(const Attention *a, int segment, int64_t head) {
    int64_t first = a->cu_rows[segment], ld = a->heads * a->head_size;
    int64_t at = first * ld + head * a->head_size;
    Head h = {.rows = a->cu_rows[segment + 1] - first, .size = a->head_size, .ld = ld};
    h.padded = align_up(h.rows, TILE_COLS);
    h.ep = head_padded(h.size);
    h.scale = a->scale;
    h.q = (const real *)a->q + at;
    h.k = (const real *)a->k + at;
    h.v = (const real *)a->v + at;
    h.bias_ld = a->bias_rows;
    h.bias = a->bias ? a->bias + head * a->bias_rows * a->bias_rows : NULL;
    return h;
}

/* x[rows, E] as rows [padded, EP] times scale. */
static void pack_rows(const Head *h, const real *x, int64_t rows, int64_t padded, real scale,
                      real *to) {
    memset(to, 0, (size_t)(padded * h->ep) * sizeof *to);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t e = 0; e < h->size; e++) to[i * h->ep + e] = scale * x[i * h->ld + e];
}

/* x[rows, E] as panels [padded/TILE_COLS][E][TILE_COLS]. */
static void pack_panels(const Head *h, const real *x, real *to) {
    memset(to, 0, (size_t)(h->padded * h->size) * sizeof *to);
    for (int64_t i = 0; i < h->rows; i += LANES) {
        real *panel = to + i / TILE_COLS * TILE_COLS * h->size + i % TILE_COLS;
        for (int64_t e = 0; e < h->size; e += LANES)
            transpose(x + i * h->ld + e, h->ld, MIN(LANES, h->rows - i), MIN(LANES, h->size - e),
                      panel + e * TILE_COLS, TILE_COLS);
    }
}

static void unpack_rows(const Head *h, const real *from, int64_t rows, real scale, real *x) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t e = 0; e < h->size; e++) x[i * h->ld + e] = scale * from[i * h->ep + e];
}

/* scores[m,n] = A[m,E] times n packed keys (or values) from `first` on. */
static void multiply_panels(const Head *h, int64_t m, int64_t n, const real *a, const real *panels,
                            int64_t first, real *scores, int64_t ld) {
    TileProduct t = {.m = m, .n = n, .k = h->size, .a_row = h->ep, .a_col = 1, .ldc = ld};
    t.panel = h->size * TILE_COLS;
    t.ldb = TILE_COLS;
    t.alpha = 1;
    multiply_tiles(&t, a, panels + first * h->size, scores);
}

/* C[m,EP] += A B, B being k packed rows; A's element (i,p) is a[i*a_row + p*a_col]. */
static void add_product(const Head *h, int64_t m, int64_t k, const real *a, int64_t a_row,
                        int64_t a_col, const real *rows, real *c) {
    TileProduct t = {.m = m, .n = h->ep, .k = k, .a_row = a_row, .a_col = a_col, .ldc = h->ep};
    t.panel = TILE_COLS;
    t.ldb = h->ep;
    t.alpha = 1;
    t.add = true;
    multiply_tiles(&t, a, rows, c);
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

/* n is a multiple of TILE_COLS. */
static real row_max(const real *x, int64_t n) {
    real most[TILE_COLS];
    memcpy(most, x, sizeof most);
    for (int64_t j = TILE_COLS; j < n; j += TILE_COLS)
        for (int64_t i = 0; i < TILE_COLS; i++) most[i] = MAX(most[i], x[j + i]);
    for (int64_t i = 1; i < TILE_COLS; i++) most[0] = MAX(most[0], most[i]);
    return most[0];
}

/* x becomes exp(x - top); returns the sum. n is a multiple of TILE_COLS. */
static real row_exp(real *x, int64_t n, real top) {
    Vec sum[TILE_VECS] = {{0}};
    for (int64_t j = 0; j < n; j++) x[j] = exp_real(x[j] - top);
    for (int64_t j = 0; j < n; j += TILE_COLS)
        for (int i = 0; i < TILE_VECS; i++) sum[i] += vec_load(x + j + i * LANES);
    return vec_sum(sum[0] + sum[1]);
}

/* One more block of n scores of a row: scores become exp(score - max), sum and out follow. */
static void softmax_row(int64_t n, real *scores, real *max, real *sum, int64_t ep, real *out) {
    real top = MAX(*max, row_max(scores, n)), correction = exp_real(*max - top);
    *sum = *sum * correction + row_exp(scores, n, top);
    if (*max == top) return;
    *max = top;
    for (int64_t e = 0; e < ep; e++) out[e] *= correction;
}

static void forward_tile(const Head *h, Forward *f, int64_t first, real *out, real *lse) {
    int64_t rows = MIN(TILE, h->rows - first), ep = h->ep;
    pack_rows(h, h->q + first * h->ld, rows, rows, h->scale, f->q);
    memset(f->out, 0, (size_t)(rows * ep) * sizeof(real));
    for (int i = 0; i < TILE; i++) f->max[i] = -INFINITY, f->sum[i] = 0;
    for (int64_t key = 0; key < h->padded; key += BLOCK) {
        int64_t keys = MIN(BLOCK, h->padded - key);
        multiply_panels(h, rows, keys, f->q, f->kt, key, f->scores, BLOCK);
        if (h->bias) add_bias(h, first, rows, key, keys, f->scores, BLOCK);
        mask_tail(h, key, rows, keys, f->scores, BLOCK);
        for (int64_t i = 0; i < rows; i++)
            softmax_row(keys, f->scores + i * BLOCK, f->max + i, f->sum + i, ep, f->out + i * ep);
        add_product(h, rows, keys, f->scores, BLOCK, 1, f->v + key * ep, f->out);
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
    real *q, *dout, *dq, *scores, *dscores; /* [TILE,EP] three times, [TILE,GRAD_BLOCK] twice */
    real lse[TILE], delta[TILE];            /* delta: sum over channels of dout * out */
} Backward;

/* Of one row: scores become P = exp(score - lse), dscores become P * (dscores - delta). */
static void softmax_grad(int64_t n, real lse, real delta, real *restrict scores,
                         real *restrict dscores) {
    for (int64_t j = 0; j < n; j++) {
        scores[j] = exp_real(scores[j] - lse);
        dscores[j] = scores[j] * (dscores[j] - delta);
    }
}

static void begin_tile(const Head *h, Backward *b, int64_t first, int64_t rows, const real *out,
                       const real *lse, const real *dout) {
    pack_rows(h, h->q + first * h->ld, rows, rows, h->scale, b->q);
    pack_rows(h, dout + first * h->ld, rows, rows, 1, b->dout);
    memset(b->dq, 0, (size_t)(rows * h->ep) * sizeof(real));
    for (int64_t i = 0; i < rows; i++) {
        b->lse[i] = lse[first + i];
        b->delta[i] = 0;
        for (int64_t e = 0; e < h->size; e++)
            b->delta[i] += b->dout[i * h->ep + e] * out[(first + i) * h->ld + e];
    }
}

static void backward_tile(const Head *h, Backward *b, int64_t first, const real *out,
                          const real *lse, const real *dout, real *dq) {
    int64_t rows = MIN(TILE, h->rows - first), ep = h->ep, ld = GRAD_BLOCK;
    begin_tile(h, b, first, rows, out, lse, dout);
    for (int64_t key = 0; key < h->padded; key += GRAD_BLOCK) {
        int64_t keys = MIN(GRAD_BLOCK, h->padded - key);
        multiply_panels(h, rows, keys, b->q, b->kt, key, b->scores, ld);
        multiply_panels(h, rows, keys, b->dout, b->vt, key, b->dscores, ld);
        mask_tail(h, key, rows, keys, b->scores, ld);
        for (int64_t i = 0; i < rows; i++)
            softmax_grad(keys, b->lse[i], b->delta[i], b->scores + i * ld, b->dscores + i * ld);
        add_product(h, rows, keys, b->dscores, ld, 1, b->k + key * ep, b->dq);
        add_product(h, keys, rows, b->dscores, 1, ld, b->q, b->dk + key * ep);
        add_product(h, keys, rows, b->scores, 1, ld, b->dout, b->dv + key * ep);
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
    b.scores = take(&work, TILE * GRAD_BLOCK);
    b.dscores = take(&work, TILE * GRAD_BLOCK);
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
        padded = MAX(padded, align_up(a->cu_rows[b + 1] - a->cu_rows[b], TILE_COLS));
    if (backward) return padded * (2 * a->head_size + 3 * ep) + TILE * (3 * ep + 2 * GRAD_BLOCK);
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
