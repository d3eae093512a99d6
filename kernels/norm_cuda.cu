/* LayerNorm with modulation, RMS norm, and the gate of a residual, over whole rows on CUDA.
 *
 * A block has one row, and keeps it in registers between the passes over it. The gradients of
 * gamma, beta and the modulation are sums over rows: there a block has all rows of one chunk that
 * use one row of the modulation (or of all rows without one), and a second kernel adds the chunks'
 * sums.
 */
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda.cuh"

static const int64_t MAX_WIDTH = 8192, MAX_CHUNKS = 528, MAX_GROUP = 64, MAX_GRID_Y = 65535;

/* Packs of V elements that a thread keeps; fewer where it keeps sums, too. */
HD static constexpr int held(int V, bool sums) { return V == 1 ? 8 : sums ? 2 : 4; }
/* Threads of a block that has a row of MAX_WIDTH. */
static constexpr int most_threads(int V, bool sums) { return (int)MAX_WIDTH / V / held(V, sums); }

static int threads_for(int64_t width, int V, bool sums) {
    int64_t each = (int64_t)V * held(V, sums);
    return (int)align_up((width + each - 1) / each, WARP);
}

static void check_width(int64_t width, const char *entry) {
    CHECK(width > 0 && width <= MAX_WIDTH, "%s: width %lld", entry, (long long)width);
}

/* ---- forward ---------------------------------------------------------------------------------*/

/* The sum of x - shift over a pack, or of its square. */
template <class T, int V>
__device__ __forceinline__ float pack_sum(Pack<T, V> pack, float shift, bool square) {
    float x[V], sum = 0;
    to_floats(pack, x);
#pragma unroll
    for (int j = 0; j < V; j++) sum += square ? (x[j] - shift) * (x[j] - shift) : x[j] - shift;
    return sum;
}

/* A row of T in the registers of a block: pack r of a thread begins at column
 * (threadIdx.x + r blockDim.x) V. */
template <class T, int V, int R> struct Row { Pack<T, V> pack[R]; };

template <int V> __device__ __forceinline__ int column(int r) {
    return ((int)threadIdx.x + r * (int)blockDim.x) * V;
}

template <class T, int V, int R>
__device__ __forceinline__ void load_row(const T *x, int width, Row<T, V, R> *row) {
#pragma unroll
    for (int r = 0; r < R; r++)
        if (column<V>(r) < width) row->pack[r] = load_pack<V>(x + column<V>(r));
}

template <class T, int V, int R>
__device__ __forceinline__ float row_sum(const Row<T, V, R> &row, int width, float shift,
                                         bool square) {
    float sum = 0;
#pragma unroll
    for (int r = 0; r < R; r++)
        if (column<V>(r) < width) sum += pack_sum(row.pack[r], shift, square);
    return block_sum(sum);
}

/* y = normal * gamma + beta, then modulated unless shift is NULL; V columns from `at` on. */
template <class T, int V>
__device__ __forceinline__ void finish_norm(const Norm &n, int at, const T *shift, float *y) {
    float gamma[V], beta[V];
    load<V>((const T *)n.gamma + at, gamma);
    load<V>((const T *)n.beta + at, beta);
#pragma unroll
    for (int j = 0; j < V; j++) y[j] = y[j] * gamma[j] + beta[j];
    if (!shift) return;
    float scale[V], offset[V];
    load<V>(shift + n.width + at, scale);
    load<V>(shift + at, offset);
#pragma unroll
    for (int j = 0; j < V; j++) y[j] = y[j] * (1 + scale[j]) + offset[j];
}

template <class T, int V>
__global__ void __launch_bounds__(most_threads(V, false), 1) norm_kernel(Norm n, T *y) {
    constexpr int R = held(V, false);
    int64_t at = blockIdx.x;
    int width = (int)n.width;
    const T *mod = n.mod_rows ? (const T *)n.mod + n.mod_row[at] * n.mod_width : NULL;
    Row<T, V, R> row;
    load_row<T, V, R>((const T *)n.x + at * width, width, &row);
    float mean = row_sum(row, width, 0, false) / (float)width;
    float rstd = 1 / sqrtf(row_sum(row, width, mean, true) / (float)width + n.eps);
    if (threadIdx.x == 0) {
        n.stats[2 * at] = mean;
        n.stats[2 * at + 1] = rstd;
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (column<V>(r) >= width) break;
        float x[V];
        to_floats(row.pack[r], x);
#pragma unroll
        for (int j = 0; j < V; j++) x[j] = (x[j] - mean) * rstd;
        finish_norm<T, V>(n, column<V>(r), mod, x);
        store<V>(y + at * width + column<V>(r), x);
    }
}

template <class T, int V> static void launch_norm(Stream *s, const Norm *n, void *y) {
    LAUNCH((norm_kernel<T, V>), blocks_for(n->rows, 1), threads_for(n->width, V, false), 0,
           cuda_queue(s), *n, (T *)y);
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
__global__ void __launch_bounds__(most_threads(V, false), 1) rms_norm_kernel(RmsNorm n, T *y) {
    constexpr int R = held(V, false);
    int64_t at = blockIdx.x;
    int width = (int)n.width;
    Row<T, V, R> row;
    load_row<T, V, R>((const T *)n.x + at * width, width, &row);
    float scale = 1 / sqrtf(row_sum(row, width, 0, true) / (float)width + n.eps);
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (column<V>(r) >= width) break;
        float x[V], gamma[V];
        to_floats(row.pack[r], x);
        load<V>((const T *)n.gamma + column<V>(r), gamma);
#pragma unroll
        for (int j = 0; j < V; j++) x[j] = gamma[j] * (x[j] * scale);
        store<V>(y + at * width + column<V>(r), x);
    }
}

template <class T, int V> static void launch_rms_norm(Stream *s, const RmsNorm *n, void *y) {
    LAUNCH((rms_norm_kernel<T, V>), blocks_for(n->rows, 1), threads_for(n->width, V, false), 0,
           cuda_queue(s), *n, (T *)y);
}

void cuda_rms_norm(Stream *s, const RmsNorm *n, void *y) {
    check_width(n->width, "rms_norm");
    if (!n->rows) return;
    uintptr_t addresses = (uintptr_t)n->x | (uintptr_t)n->gamma | (uintptr_t)y;
    WITH_PACKS(n->t, packable(n->t, addresses, n->width), 1, "rms_norm", T, V,
               launch_rms_norm<T, V>(s, n, y));
    cuda_check_launch("rms_norm");
}

template <class T, int V>
__global__ void __launch_bounds__(most_threads(V, false), 1) gate_kernel(Gate g, const T *x, T *y) {
    int64_t at = blockIdx.x;
    int width = (int)g.width;
    const T *gate = (const T *)g.mod + g.mod_row[at] * g.mod_width + g.offset;
#pragma unroll
    for (int r = 0; r < held(V, false); r++) {
        int c = column<V>(r);
        if (c >= width) break;
        float from[V], a[V], by[V];
        load<V>(x + at * width + c, from);
        load<V>((const T *)g.a + at * width + c, a);
        load<V>(gate + c, by);
#pragma unroll
        for (int j = 0; j < V; j++) from[j] += by[j] * a[j];
        store<V>(y + at * width + c, from);
    }
}

template <class T, int V>
static void launch_gate(Stream *s, const Gate *g, const void *x, void *y) {
    LAUNCH((gate_kernel<T, V>), blocks_for(g->rows, 1), threads_for(g->width, V, false), 0,
           cuda_queue(s), *g, (const T *)x, (T *)y);
}

void cuda_gate(Stream *s, const Gate *g, const void *x, void *y) {
    check_width(g->width, "gate");
    if (!g->rows) return;
    uintptr_t addresses = (uintptr_t)g->a | (uintptr_t)g->mod | (uintptr_t)x | (uintptr_t)y;
    bool wide = packable(g->t, addresses, g->width | g->mod_width | g->offset);
    WITH_PACKS(g->t, wide, 1, "gate", T, V, launch_gate<T, V>(s, g, x, y));
    cuda_check_launch("gate");
}

/* ---- sums over the rows of each modulation row ------------------------------------------------*/

/* How rows are cut into chunks, and modulation rows [first, first + group) are summed by one launch
 * of blocks (chunk, modulation row - first). Block (c, i) leaves its sums, `floats` of them, at
 * sums[(c * group + i) * floats], and used[c * group + i] = 1; 0 if none of its rows uses the
 * modulation row. */
typedef struct {
    int64_t chunks, rows_per;
    int first, group, floats;
    float *sums;
    int32_t *used;
} Chunks;

static Chunks plan_chunks(Stream *s, int64_t rows, int64_t mod_rows, int floats) {
    Chunks c = {};
    c.group = (int)MIN(MAX(mod_rows, 1), MAX_GROUP);
    c.floats = floats;
    int64_t bytes = c.group * (floats * (int64_t)sizeof(float) + (int64_t)sizeof(int32_t));
    int64_t most = MIN((SCRATCH_BYTES - 256) / bytes, MAX_CHUNKS);
    c.rows_per = MAX((rows + most - 1) / most, 1);
    c.chunks = (rows + c.rows_per - 1) / c.rows_per;
    c.sums = (float *)cuda_scratch(s);
    c.used = (int32_t *)(c.sums + align_up(c.chunks * c.group * floats, 4));
    return c;
}

/* The sum over chunks of float `at` of modulation row first + i. */
__device__ __forceinline__ float sum_over_chunks(const Chunks &c, int i, int at, bool active) {
    return sum_chunks(c.sums + (int64_t)i * c.floats + at, c.chunks, (int64_t)c.group * c.floats,
                      c.used + i, c.group, active);
}

/* Column `to` of a row of dmod. */
template <class T> __device__ __forceinline__ void put(T *to, float keep, float x) {
    *to = from_float<T>(kept(keep, to, x));
}

/* Zero in columns [0, from) and [to, width) of dmod. */
template <class T> __global__ void clear_kernel(T *dmod, int64_t width, int64_t from, int64_t to) {
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (at < width && (at < from || at >= to)) dmod[row * width + at] = from_float<T>(0);
}

template <class T>
static void clear_others(Stream *s, void *dmod, int64_t rows, int64_t width, int64_t from,
                         int64_t to) {
    for (int64_t first = 0; first < rows; first += MAX_GRID_Y) {
        dim3 grid(blocks_for(width, 256), (unsigned)MIN(rows - first, MAX_GRID_Y));
        LAUNCH(clear_kernel<T>, grid, 256, 0, cuda_queue(s), (T *)dmod + first * width, width, from,
               to);
    }
}

/* ---- the gradient of LayerNorm ----------------------------------------------------------------*/

typedef struct {
    Norm n;
    const void *dy;
    void *dx; /* NULL: not wanted */
    float keep_dx;
} NormRows;

/* What a block keeps of one row: g = the gradient at the normalised row, and x. */
template <class T, int V, int R> struct RowGrad {
    float g[R][V];
    Row<T, V, R> x;
};

/* Sums g and g * xhat over the row; adds dy to p and dy * xhat to q where SUMS. */
template <class T, int V, int R, bool SUMS>
__device__ __forceinline__ void read_row(const NormRows &a, int64_t at, const T *scale, float mean,
                                         float rstd, RowGrad<T, V, R> *row, float *sums,
                                         float (*p)[V], float (*q)[V]) {
    int width = (int)a.n.width;
    load_row<T, V, R>((const T *)a.n.x + at * width, width, &row->x);
    sums[0] = sums[1] = 0;
#pragma unroll
    for (int r = 0; r < R; r++) {
        int c = column<V>(r);
        if (c >= width) break;
        float x[V], gamma[V], by[V] = {};
        to_floats(row->x.pack[r], x);
        load<V>((const T *)a.dy + at * width + c, row->g[r]);
        load<V>((const T *)a.n.gamma + c, gamma);
        if (scale) load<V>(scale + c, by);
#pragma unroll
        for (int j = 0; j < V; j++) {
            float normal = (x[j] - mean) * rstd;
            if (SUMS) p[r][j] += row->g[r][j];
            if (SUMS) q[r][j] += row->g[r][j] * normal;
            row->g[r][j] *= gamma[j] * (1 + by[j]);
            sums[0] += row->g[r][j];
            sums[1] += row->g[r][j] * normal;
        }
    }
}

/* dx = keep * dx + rstd * (g - mean(g) - xhat * mean(g * xhat)). */
template <class T, int V, int R>
__device__ __forceinline__ void write_row(const NormRows &a, int64_t at, float mean, float rstd,
                                          const RowGrad<T, V, R> &row, const float *sums) {
    int width = (int)a.n.width;
    float sum = sums[0] / (float)width, product = sums[1] / (float)width;
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (column<V>(r) >= width) break;
        float x[V];
        to_floats(row.x.pack[r], x);
#pragma unroll
        for (int j = 0; j < V; j++)
            x[j] = rstd * (row.g[r][j] - sum - (x[j] - mean) * rstd * product);
        store_kept<V>((T *)a.dx + at * width + column<V>(r), a.keep_dx, x);
    }
}

template <class T, int V, int R, bool SUMS>
__device__ __forceinline__ void row_grad(const NormRows &a, int64_t at, float (*p)[V],
                                         float (*q)[V]) {
    const Norm &n = a.n;
    const T *mod = n.mod_rows ? (const T *)n.mod + n.mod_row[at] * n.mod_width : NULL;
    float mean = n.stats[2 * at], rstd = n.stats[2 * at + 1], sums[2];
    RowGrad<T, V, R> row;
    read_row<T, V, R, SUMS>(a, at, mod ? mod + n.width : NULL, mean, rstd, &row, sums, p, q);
    if (!a.dx) return;
    block_sums<2>(sums);
    write_row<T, V, R>(a, at, mean, rstd, row, sums);
}

/* Only dx: a block has one row. */
template <class T, int V>
__global__ void __launch_bounds__(most_threads(V, false), 1) norm_grad_kernel(NormRows a) {
    row_grad<T, V, held(V, false), false>(a, blockIdx.x, NULL, NULL);
}

/* Also the sums of a chunk: over its rows with one modulation row, P = sum of dy [D] and Q = sum of
 * dy * xhat [D]. */
template <class T, int V>
__global__ void __launch_bounds__(most_threads(V, true), 1) norm_sums_kernel(NormRows a, Chunks c) {
    constexpr int R = held(V, true);
    float p[R][V] = {}, q[R][V] = {};
    int width = (int)a.n.width, used = 0, mod = c.first + (int)blockIdx.y;
    int64_t first = blockIdx.x * c.rows_per, last = MIN(first + c.rows_per, a.n.rows);
    for (int64_t at = first; at < last; at++) {
        if (a.n.mod_rows && a.n.mod_row[at] != mod) continue;
        row_grad<T, V, R, true>(a, at, p, q);
        used = 1;
    }
    int64_t slot = (int64_t)blockIdx.x * c.group + blockIdx.y;
    if (threadIdx.x == 0) c.used[slot] = used;
    float *to = c.sums + slot * c.floats;
#pragma unroll
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V && used && column<V>(r) < width; j++) {
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
        float p = sum_over_chunks(c, i, at, active), q = sum_over_chunks(c, i, width + at, active);
        if (!active || threadIdx.y) continue;
        int64_t row = (c.first + i) * n.mod_width;
        float scale = n.mod_rows ? 1 + to_float(((const T *)n.mod)[row + width + at]) : 1;
        dgamma += scale * q;
        dbeta += scale * p;
        if (!g.dmod) continue;
        T *dmod = (T *)g.dmod + row;
        float gamma = to_float(((const T *)n.gamma)[at]), beta = to_float(((const T *)n.beta)[at]);
        put(dmod + at, g.keep_dmod, p);
        put(dmod + width + at, g.keep_dmod, gamma * q + beta * p);
    }
    if (!active || threadIdx.y) return;
    if (g.dgamma) g.dgamma[at] = kept(g.keep_dgamma, g.dgamma + at, dgamma);
    if (g.dbeta) g.dbeta[at] = kept(g.keep_dbeta, g.dbeta + at, dbeta);
}

template <class T, int V> static void launch_norm_sums(Stream *s, const NormRows *a, Chunks c) {
    LAUNCH((norm_sums_kernel<T, V>), dim3(blocks_for(c.chunks, 1), (unsigned)c.group),
           threads_for(a->n.width, V, true), 0, cuda_queue(s), *a, c);
}

template <class T, int V> static void launch_norm_grad(Stream *s, const NormRows *a) {
    LAUNCH((norm_grad_kernel<T, V>), blocks_for(a->n.rows, 1), threads_for(a->n.width, V, false), 0,
           cuda_queue(s), *a);
}

template <class T> static void launch_norm_finish(Stream *s, const Norm *n, NormGrad g, Chunks c) {
    if (c.first > 0) g.keep_dgamma = g.keep_dbeta = 1; /* what the groups before have come to */
    LAUNCH(norm_finish_kernel<T>, blocks_for(n->width, SUM_COLUMNS), dim3(SUM_COLUMNS, SUM_GROUPS),
           0, cuda_queue(s), *n, g, c);
    if (g.dmod && g.keep_dmod == 0 && c.first == 0)
        clear_others<T>(s, g.dmod, n->mod_rows, n->mod_width, 0, 2 * n->width);
}

void cuda_norm_grad(Stream *s, const Norm *n, const NormGrad *g) {
    check_width(n->width, "norm_grad");
    NormRows a = {*n, g->dy, g->dx, g->keep_dx};
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

/* ---- the gradient of the gate -----------------------------------------------------------------*/

typedef struct {
    Gate g;
    const void *dy;
    void *da; /* NULL: not wanted */
    float keep_da;
} GateRows;

/* da of one row; adds dy * a to p where SUMS. */
template <class T, int V, int R, bool SUMS>
__device__ __forceinline__ void gate_row_grad(const GateRows &a, int64_t at, float (*p)[V]) {
    int width = (int)a.g.width;
    const T *gate = (const T *)a.g.mod + a.g.mod_row[at] * a.g.mod_width + a.g.offset;
#pragma unroll
    for (int r = 0; r < R; r++) {
        int c = column<V>(r);
        if (c >= width) break;
        float dy[V], x[V];
        load<V>((const T *)a.dy + at * width + c, dy);
        if (SUMS) {
            load<V>((const T *)a.g.a + at * width + c, x);
#pragma unroll
            for (int j = 0; j < V; j++) p[r][j] += dy[j] * x[j];
        }
        if (!a.da) continue;
        load<V>(gate + c, x);
#pragma unroll
        for (int j = 0; j < V; j++) x[j] *= dy[j];
        store_kept<V>((T *)a.da + at * width + c, a.keep_da, x);
    }
}

template <class T, int V>
__global__ void __launch_bounds__(most_threads(V, false), 1) gate_grad_kernel(GateRows a) {
    gate_row_grad<T, V, held(V, false), false>(a, blockIdx.x, NULL);
}

template <class T, int V>
__global__ void __launch_bounds__(most_threads(V, true), 1) gate_sums_kernel(GateRows a, Chunks c) {
    constexpr int R = held(V, true);
    float p[R][V] = {};
    int width = (int)a.g.width, used = 0, mod = c.first + (int)blockIdx.y;
    int64_t first = blockIdx.x * c.rows_per, last = MIN(first + c.rows_per, a.g.rows);
    for (int64_t at = first; at < last; at++) {
        if (a.g.mod_row[at] != mod) continue;
        gate_row_grad<T, V, R, true>(a, at, p);
        used = 1;
    }
    int64_t slot = (int64_t)blockIdx.x * c.group + blockIdx.y;
    if (threadIdx.x == 0) c.used[slot] = used;
#pragma unroll
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V && used && column<V>(r) < width; j++)
            c.sums[slot * c.floats + column<V>(r) + j] = p[r][j];
}

template <class T>
__global__ void __launch_bounds__(SUM_COLUMNS *SUM_GROUPS, 1)
    gate_finish_kernel(Gate g, T *dmod, float keep, Chunks c) {
    int at = (int)(blockIdx.x * SUM_COLUMNS + threadIdx.x), i = (int)blockIdx.y;
    bool active = at < g.width;
    float p = sum_over_chunks(c, i, at, active);
    if (active && !threadIdx.y) put(dmod + (c.first + i) * g.mod_width + g.offset + at, keep, p);
}

template <class T, int V> static void launch_gate_grad(Stream *s, const GateRows *a) {
    LAUNCH((gate_grad_kernel<T, V>), blocks_for(a->g.rows, 1), threads_for(a->g.width, V, false), 0,
           cuda_queue(s), *a);
}

template <class T, int V> static void launch_gate_sums(Stream *s, const GateRows *a, Chunks c) {
    LAUNCH((gate_sums_kernel<T, V>), dim3(blocks_for(c.chunks, 1), (unsigned)c.group),
           threads_for(a->g.width, V, true), 0, cuda_queue(s), *a, c);
}

template <class T>
static void launch_gate_finish(Stream *s, const Gate *g, void *dmod, float keep, Chunks c) {
    LAUNCH(gate_finish_kernel<T>, dim3(blocks_for(g->width, SUM_COLUMNS), (unsigned)c.group),
           dim3(SUM_COLUMNS, SUM_GROUPS), 0, cuda_queue(s), *g, (T *)dmod, keep, c);
    if (keep == 0 && c.first == 0)
        clear_others<T>(s, dmod, g->mod_rows, g->mod_width, g->offset, g->offset + g->width);
}

void cuda_gate_grad(Stream *s, const Gate *g, const void *dy, real keep_da, void *da,
                    real keep_dmod, void *dmod) {
    check_width(g->width, "gate_grad");
    GateRows a = {*g, dy, da, keep_da};
    uintptr_t addresses = (uintptr_t)g->a | (uintptr_t)g->mod | (uintptr_t)dy | (uintptr_t)da;
    bool wide = packable(g->t, addresses, g->width | g->mod_width | g->offset);
    if (!dmod) {
        if (g->rows && da)
            WITH_PACKS(g->t, wide, 1, "gate_grad", T, V, launch_gate_grad<T, V>(s, &a));
        return cuda_check_launch("gate_grad");
    }
    Chunks c = plan_chunks(s, g->rows, g->mod_rows, (int)g->width);
    for (; c.first < g->mod_rows; c.first += c.group) {
        c.group = (int)MIN(c.group, g->mod_rows - c.first);
        if (c.chunks)
            WITH_PACKS(g->t, wide, 1, "gate_grad", T, V, launch_gate_sums<T, V>(s, &a, c));
        WITH_TYPE(g->t, "gate_grad", T, launch_gate_finish<T>(s, g, dmod, keep_dmod, c));
    }
    cuda_check_launch("gate_grad");
}
