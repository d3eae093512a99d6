/* LayerNorm with modulation and RMS norm, over whole rows on CUDA: see kernels/norm.cuh. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/norm.cuh"

/* ---- forward ---------------------------------------------------------------------------------*/

/* A row in the registers of a block, in f32: pack r of a thread begins at column<V>(r). */
template <class T, int V, int R>
__device__ __forceinline__ void load_row(const T *x, int width, float (*row)[V]) {
    Pack<T, V> packs[R];
#pragma unroll
    for (int r = 0; r < R; r++) packs[r] = load_pack_if<V>(column<V>(r) < width, x + column<V>(r));
#pragma unroll
    for (int r = 0; r < R; r++) to_floats(packs[r], row[r]);
}

/* Over the block's row. */
template <int V, int R> __device__ __forceinline__ float row_sum(const float (*row)[V]) {
    float sum[R] = {}; /* zeros where there are no columns */
#pragma unroll
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V; j++) sum[r] += row[r][j];
    for (int r = 1; r < R; r++) sum[0] += sum[r];
    return block_sum(sum[0]);
}

template <int V, int R>
__device__ __forceinline__ float row_squares(const float (*row)[V], int width) {
    float sum = 0;
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (column<V>(r) >= width) break;
        float squares = 0;
        for (int j = 0; j < V; j++) squares += row[r][j] * row[r][j];
        sum += squares;
    }
    return block_sum(sum);
}

/* y = normal * gamma + beta, then modulated where MOD; V columns from `at` on. */
template <class T, int V, bool MOD>
__device__ __forceinline__ void finish_norm(const Norm &n, int at, const T *shift, float *y) {
    Pack<T, V> packs[4]; /* all on their way before one is used */
    packs[0] = load_pack<V>((const T *)n.gamma + at);
    packs[1] = load_pack<V>((const T *)n.beta + at);
    if (MOD) packs[2] = load_pack<V>(shift + n.width + at);
    if (MOD) packs[3] = load_pack<V>(shift + at);
    float factor[V], term[V];
    to_floats(packs[0], factor);
    to_floats(packs[1], term);
#pragma unroll
    for (int j = 0; j < V; j++) y[j] = y[j] * factor[j] + term[j];
    if (!MOD) return;
    to_floats(packs[2], factor);
    to_floats(packs[3], term);
#pragma unroll
    for (int j = 0; j < V; j++) y[j] = y[j] * (1 + factor[j]) + term[j];
}

/* inverse: 1 / width. */
template <class T, int V, bool MOD>
__global__ void __launch_bounds__(most_threads(V, false), 1)
    norm_kernel(Norm n, float inverse, T *y) {
    constexpr int R = held(V, false);
    int64_t at = blockIdx.x;
    int width = (int)n.width;
    const T *mod = MOD ? (const T *)n.mod + n.mod_row[at] * n.mod_width : NULL;
    float x[R][V];
    load_row<T, V, R>((const T *)n.x + at * width, width, x);
    float mean = row_sum<V, R>(x) * inverse;
#pragma unroll
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V; j++) x[r][j] -= mean;
    float rstd = rsqrtf(row_squares<V, R>(x, width) * inverse + n.eps);
    if (threadIdx.x == 0) {
        n.stats[2 * at] = mean;
        n.stats[2 * at + 1] = rstd;
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (column<V>(r) >= width) break;
        for (int j = 0; j < V; j++) x[r][j] *= rstd;
        finish_norm<T, V, MOD>(n, column<V>(r), mod, x[r]);
        store<V>(y + at * width + column<V>(r), x[r]);
    }
}

template <class T, int V> static void launch_norm(Stream *s, const Norm *n, void *y) {
    unsigned blocks = blocks_for(n->rows, 1);
    int threads = threads_for(n->width, V, false);
    float inverse = 1 / (float)n->width;
    if (n->mod_rows)
        LAUNCH((norm_kernel<T, V, true>), blocks, threads, 0, cuda_queue(s), *n, inverse, (T *)y);
    else
        LAUNCH((norm_kernel<T, V, false>), blocks, threads, 0, cuda_queue(s), *n, inverse, (T *)y);
}

static uintptr_t norm_addresses(const Norm *n) {
    return (uintptr_t)n->x | (uintptr_t)n->gamma | (uintptr_t)n->beta | (uintptr_t)n->mod;
}

void cuda_norm(Stream *s, const Norm *n, void *y) {
    check_width(n->width, "norm");
    if (!n->rows) return;
    bool wide = packable(n->t, norm_addresses(n) | (uintptr_t)y, n->width | n->mod_width);
    WITH_PACKS(n->t, wide, 1, "norm", T, V, launch_norm<T, V>(s, n, y));
    cuda_check_launch("norm");
}

template <class T, int V>
__global__ void __launch_bounds__(most_threads(V, false), 1)
    rms_norm_kernel(RmsNorm n, float inverse, T *y) {
    constexpr int R = held(V, false);
    int64_t at = blockIdx.x;
    int width = (int)n.width;
    float x[R][V];
    load_row<T, V, R>((const T *)n.x + at * width, width, x);
    float scale = rsqrtf(row_squares<V, R>(x, width) * inverse + n.eps);
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (column<V>(r) >= width) break;
        float gamma[V];
        load<V>((const T *)n.gamma + column<V>(r), gamma);
        for (int j = 0; j < V; j++) x[r][j] = gamma[j] * (x[r][j] * scale);
        store<V>(y + at * width + column<V>(r), x[r]);
    }
}

template <class T, int V> static void launch_rms_norm(Stream *s, const RmsNorm *n, void *y) {
    LAUNCH((rms_norm_kernel<T, V>), blocks_for(n->rows, 1), threads_for(n->width, V, false), 0,
           cuda_queue(s), *n, 1 / (float)n->width, (T *)y);
}

void cuda_rms_norm(Stream *s, const RmsNorm *n, void *y) {
    check_width(n->width, "rms_norm");
    if (!n->rows) return;
    uintptr_t addresses = (uintptr_t)n->x | (uintptr_t)n->gamma | (uintptr_t)y;
    WITH_PACKS(n->t, packable(n->t, addresses, n->width), 1, "rms_norm", T, V,
               launch_rms_norm<T, V>(s, n, y));
    cuda_check_launch("rms_norm");
}

/* ---- the gradient of LayerNorm ----------------------------------------------------------------*/

typedef struct {
    Norm n;
    const void *dy;
    void *dx;               /* NULL: not wanted */
    float keep_dx, inverse; /* 1 / width */
} NormRows;

/* One row as it lies in memory, in the registers of a block; zeros where it has no columns. */
template <class T, int V, int R> struct RowRead {
    Pack<T, V> x[R], dy[R];
    float mean, rstd;
};

template <class T, int V, int R>
__device__ __forceinline__ void read_pack(const NormRows &a, int64_t at, int r,
                                          RowRead<T, V, R> *row) {
    int64_t width = a.n.width;
    bool there = column<V>(r) < width;
    row->x[r] = load_pack_if<V>(there, (const T *)a.n.x + at * width + column<V>(r));
    row->dy[r] = load_pack_if<V>(there, (const T *)a.dy + at * width + column<V>(r));
}

/* Without its packs unless EARLY: they are read one after another where registers are few. */
template <bool EARLY, class T, int V, int R>
__device__ __forceinline__ void read_row(const NormRows &a, int64_t at, RowRead<T, V, R> *row) {
#pragma unroll
    for (int r = 0; r < R && EARLY; r++) read_pack(a, at, r, row);
    row->mean = a.n.stats[2 * at];
    row->rstd = a.n.stats[2 * at + 1];
}

/* gamma * (1 + scale), without scale unless MOD, of pack r; zeros where it has no columns. */
template <class T, int V, bool MOD>
__device__ __forceinline__ void row_factor(const Norm &n, const T *scale, int r, float *factor) {
    int at = column<V>(r);
    Pack<T, V> gamma = load_pack_if<V>(at < n.width, (const T *)n.gamma + at), pack;
    if (MOD) pack = load_pack_if<V>(at < n.width, scale + at);
    to_floats(gamma, factor);
    if (!MOD) return;
    float by[V];
    to_floats(pack, by);
#pragma unroll
    for (int j = 0; j < V; j++) factor[j] *= 1 + by[j];
}

/* What becomes of a row: its normal, and g = the gradient there. */
template <int V, int R> struct RowGrad { float normal[R][V], g[R][V]; };

/* Pack r of it, its share of the sums of g and g * normal over the row; where SUMS dy and
 * dy * normal are added to p and q. */
template <class T, int V, int R, bool SUMS>
__device__ __forceinline__ void pack_grad(const RowRead<T, V, R> &row, int r, const float *factor,
                                          RowGrad<V, R> *grad, float *sums, float *p, float *q) {
    float *normal = grad->normal[r], *g = grad->g[r];
    to_floats(row.x[r], normal);
    to_floats(row.dy[r], g);
#pragma unroll
    for (int j = 0; j < V; j++) {
        normal[j] = (normal[j] - row.mean) * row.rstd;
        if (SUMS) p[j] += g[j];
        if (SUMS) q[j] += g[j] * normal[j];
        g[j] *= factor[j];
        sums[0] += g[j];
        sums[1] += g[j] * normal[j];
    }
}

/* dx = keep * dx + rstd * (g - mean(g) - normal * mean(g * normal)), from the thread's sums. */
template <class T, int V, int R>
__device__ __forceinline__ void write_row(const NormRows &a, int64_t at, float rstd,
                                          const RowGrad<V, R> &grad, float *sums) {
    int width = (int)a.n.width;
    T *dx = (T *)a.dx + at * width;
    block_sums<2>(sums);
    float mean = sums[0] * a.inverse, product = sums[1] * a.inverse;
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (column<V>(r) >= width) break;
        float x[V];
        for (int j = 0; j < V; j++)
            x[j] = rstd * (grad.g[r][j] - mean - grad.normal[r][j] * product);
        store_kept<V>(dx + column<V>(r), a.keep_dx, x);
    }
}

/* Only dx: a block has one row. */
template <class T, int V, bool MOD>
__global__ void __launch_bounds__(most_threads(V, false), 1) norm_grad_kernel(NormRows a) {
    constexpr int R = held(V, false);
    constexpr bool EARLY = V > 1;
    int64_t at = blockIdx.x;
    const T *mod = MOD ? (const T *)a.n.mod + a.n.mod_row[at] * a.n.mod_width + a.n.width : NULL;
    RowRead<T, V, R> row;
    RowGrad<V, R> grad;
    float sums[2] = {};
    read_row<EARLY>(a, at, &row);
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (!EARLY && column<V>(r) >= a.n.width) break;
        float factor[V];
        if (!EARLY) read_pack(a, at, r, &row);
        row_factor<T, V, MOD>(a.n, mod, r, factor);
        pack_grad<T, V, R, false>(row, r, factor, &grad, sums, NULL, NULL);
    }
    write_row<T, V, R>(a, at, row.rstd, grad, sums);
}

/* Also the sums of a chunk: over its rows with one modulation row, P = sum of dy [D] and Q = sum of
 * dy * normal [D]. A row is read while the one before it is worked on, where EARLY. */
template <class T, int V, bool MOD>
__global__ void __launch_bounds__(most_threads(V, true), 1) norm_sums_kernel(NormRows a, Chunks c) {
    constexpr int R = held(V, true);
    constexpr bool EARLY = V == 8;
    float p[R][V] = {}, q[R][V] = {}, factor[R][V];
    int width = (int)a.n.width, mod = c.first + (int)blockIdx.y;
    const int32_t *mod_row = MOD ? a.n.mod_row : NULL;
    int64_t first = blockIdx.x * c.rows_per, slot = (int64_t)blockIdx.x * c.group + blockIdx.y;
    int rows = (int)MIN(c.rows_per, a.n.rows - first), at = next_row(mod_row, first, mod, 0, rows);
    if (threadIdx.x == 0) c.used[slot] = at < rows;
    if (at == rows) return;
    RowRead<T, V, R> row;
    read_row<EARLY>(a, first + at, &row);
    const T *scale = MOD ? (const T *)a.n.mod + mod * a.n.mod_width + width : NULL;
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (!EARLY && column<V>(r) >= width) break;
        row_factor<T, V, MOD>(a.n, scale, r, factor[r]);
    }
    while (at < rows) {
        int then = next_row(mod_row, first, mod, at + 1, rows);
        RowRead<T, V, R> next = row;
        if (then < rows) read_row<EARLY>(a, first + then, &next);
        RowGrad<V, R> grad;
        float sums[2] = {};
#pragma unroll
        for (int r = 0; r < R; r++) {
            if (!EARLY && column<V>(r) >= width) break;
            if (!EARLY) read_pack(a, first + at, r, &row);
            pack_grad<T, V, R, true>(row, r, factor[r], &grad, sums, p[r], q[r]);
        }
        if (a.dx) write_row<T, V, R>(a, first + at, row.rstd, grad, sums);
        row = next;
        at = then;
    }
    float *to = c.sums + slot * c.floats;
#pragma unroll
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V && column<V>(r) < width; j++) {
            to[column<V>(r) + j] = p[r][j];
            to[width + column<V>(r) + j] = q[r][j];
        }
}

/* dshift = P, dscale = gamma Q + beta P; gamma and beta get (1 + scale) Q and (1 + scale) P of
 * every modulation row, in order. */
template <class T>
__global__ void __launch_bounds__(SUM_COLUMNS *SUM_GROUPS, 1)
    norm_finish_kernel(Norm n, NormGrad g, Chunks c) {
    int width = (int)n.width, at = (int)(blockIdx.x * SUM_COLUMNS + threadIdx.x);
    bool active = at < width;
    float dgamma = 0, dbeta = 0;
    for (int i = 0; i < c.group; i++) {
        float pq[2];
        sum_over_chunks<2>(c, i, at, width, active, pq);
        if (!active || threadIdx.y) continue;
        float p = pq[0], q = pq[1];
        int64_t row = (c.first + i) * n.mod_width;
        float scale = n.mod_rows ? 1 + to_float(((const T *)n.mod)[row + width + at]) : 1;
        dgamma += scale * q;
        dbeta += scale * p;
        if (!g.dmod) continue;
        T *dmod = (T *)g.dmod + row;
        float gamma = to_float(((const T *)n.gamma)[at]), beta = to_float(((const T *)n.beta)[at]);
        put(dmod + at, g.keep_dmod, p);
        put(dmod + width + at, g.keep_dmod, gamma * q + beta * p);
        if (g.keep_dmod == 0) clear_others(dmod, n.mod_width, 0, 2 * n.width, at, n.width);
    }
    if (!active || threadIdx.y) return;
    if (g.dgamma) g.dgamma[at] = kept(g.keep_dgamma, g.dgamma + at, dgamma);
    if (g.dbeta) g.dbeta[at] = kept(g.keep_dbeta, g.dbeta + at, dbeta);
}

template <class T, int V> static void launch_norm_sums(Stream *s, const NormRows *a, Chunks c) {
    dim3 grid(blocks_for(c.chunks, 1), (unsigned)c.group);
    int threads = threads_for(a->n.width, V, true);
    if (a->n.mod_rows)
        LAUNCH((norm_sums_kernel<T, V, true>), grid, threads, 0, cuda_queue(s), *a, c);
    else
        LAUNCH((norm_sums_kernel<T, V, false>), grid, threads, 0, cuda_queue(s), *a, c);
}

template <class T, int V> static void launch_norm_grad(Stream *s, const NormRows *a) {
    unsigned blocks = blocks_for(a->n.rows, 1);
    int threads = threads_for(a->n.width, V, false);
    if (a->n.mod_rows)
        LAUNCH((norm_grad_kernel<T, V, true>), blocks, threads, 0, cuda_queue(s), *a);
    else
        LAUNCH((norm_grad_kernel<T, V, false>), blocks, threads, 0, cuda_queue(s), *a);
}

template <class T> static void launch_norm_finish(Stream *s, const Norm *n, NormGrad g, Chunks c) {
    if (c.first > 0) g.keep_dgamma = g.keep_dbeta = 1; /* what the groups before have come to */
    LAUNCH(norm_finish_kernel<T>, blocks_for(n->width, SUM_COLUMNS), dim3(SUM_COLUMNS, SUM_GROUPS),
           0, cuda_queue(s), *n, g, c);
}

void cuda_norm_grad(Stream *s, const Norm *n, const NormGrad *g) {
    check_width(n->width, "norm_grad");
    NormRows a = {*n, g->dy, g->dx, g->keep_dx, 1 / (float)n->width};
    uintptr_t addresses = norm_addresses(n) | (uintptr_t)g->dy | (uintptr_t)g->dx;
    bool wide = packable(n->t, addresses, n->width | n->mod_width);
    if (!g->dgamma && !g->dbeta && !g->dmod) {
        if (n->rows && g->dx)
            WITH_PACKS(n->t, wide, 1, "norm_grad", T, V, launch_norm_grad<T, V>(s, &a));
        return cuda_check_launch("norm_grad");
    }
    Chunks c = plan_chunks(s, n->rows, n->mod_rows, 2 * (int)n->width);
    for (int64_t mods = MAX(n->mod_rows, 1); c.first < mods; c.first += c.group) {
        c.group = (int)MIN(c.group, mods - c.first);
        if (c.chunks)
            WITH_PACKS(n->t, wide, 1, "norm_grad", T, V, launch_norm_sums<T, V>(s, &a, c));
        WITH_TYPE(n->t, "norm_grad", T, launch_norm_finish<T>(s, n, *g, c));
    }
    cuda_check_launch("norm_grad");
}
