/* The gate of a residual, over whole rows on CUDA: see kernels/norm.cuh. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/norm.cuh"

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

typedef struct {
    Gate g;
    const void *dy;
    void *da; /* NULL: not wanted */
    float keep_da;
} GateRows;

/* Only da: a block has one row. */
template <class T, int V>
__global__ void __launch_bounds__(most_threads(V, false), 1) gate_grad_kernel(GateRows a) {
    int64_t at = blockIdx.x;
    int width = (int)a.g.width;
    const T *gate = (const T *)a.g.mod + a.g.mod_row[at] * a.g.mod_width + a.g.offset;
    const T *dy = (const T *)a.dy + at * width;
    T *da = (T *)a.da + at * width;
#pragma unroll
    for (int r = 0; r < held(V, false); r++) {
        int c = column<V>(r);
        if (c >= width) break;
        float x[V], by[V];
        load<V>(dy + c, x);
        load<V>(gate + c, by);
        for (int j = 0; j < V; j++) x[j] *= by[j];
        store_kept<V>(da + c, a.keep_da, x);
    }
}

/* dy and a of one row, in the registers of a block; zeros where it has no columns. */
template <class T, int V, int R> struct GateRead { Pack<T, V> dy[R], a[R]; };

template <class T, int V, int R>
__device__ __forceinline__ void read_gate(const GateRows &a, int64_t at, GateRead<T, V, R> *row) {
    int width = (int)a.g.width;
    const T *dy = (const T *)a.dy + at * width, *x = (const T *)a.g.a + at * width;
#pragma unroll
    for (int r = 0; r < R; r++) {
        row->dy[r] = load_pack_if<V>(column<V>(r) < width, dy + column<V>(r));
        row->a[r] = load_pack_if<V>(column<V>(r) < width, x + column<V>(r));
    }
}

/* Adds dy * a to p; da = dy * gate, unless it is NULL. */
template <class T, int V, int R>
__device__ __forceinline__ void gate_row(const GateRows &a, const GateRead<T, V, R> &row,
                                         const float (*gate)[V], T *da, float (*p)[V]) {
#pragma unroll
    for (int r = 0; r < R; r++) {
        float dy[V], x[V];
        to_floats(row.dy[r], dy);
        to_floats(row.a[r], x);
        for (int j = 0; j < V; j++) p[r][j] += dy[j] * x[j];
        for (int j = 0; j < V; j++) dy[j] *= gate[r][j];
        if (da && column<V>(r) < a.g.width) store_kept<V>(da + column<V>(r), a.keep_da, dy);
    }
}

/* Also the sums of a chunk over its rows with one modulation row. */
template <class T, int V>
__global__ void __launch_bounds__(most_threads(V, true), 1) gate_sums_kernel(GateRows a, Chunks c) {
    constexpr int R = held(V, true);
    float p[R][V] = {}, gate[R][V];
    int width = (int)a.g.width, mod = c.first + (int)blockIdx.y;
    int64_t first = blockIdx.x * c.rows_per, slot = (int64_t)blockIdx.x * c.group + blockIdx.y;
    int rows = (int)MIN(c.rows_per, a.g.rows - first);
    int at = next_row(a.g.mod_row, first, mod, 0, rows);
    if (threadIdx.x == 0) c.used[slot] = at < rows;
    if (at == rows) return;
    const T *by = (const T *)a.g.mod + mod * a.g.mod_width + a.g.offset;
#pragma unroll
    for (int r = 0; r < R; r++)
        to_floats(load_pack_if<V>(column<V>(r) < width, by + column<V>(r)), gate[r]);
    for (; at < rows; at = next_row(a.g.mod_row, first, mod, at + 1, rows)) {
        GateRead<T, V, R> row;
        read_gate(a, first + at, &row);
        gate_row<T, V, R>(a, row, gate, a.da ? (T *)a.da + (first + at) * width : NULL, p);
    }
#pragma unroll
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V && column<V>(r) < width; j++)
            c.sums[slot * c.floats + column<V>(r) + j] = p[r][j];
}

template <class T>
__global__ void __launch_bounds__(SUM_COLUMNS *SUM_GROUPS, 1)
    gate_finish_kernel(Gate g, T *dmod, float keep, Chunks c) {
    int at = (int)(blockIdx.x * SUM_COLUMNS + threadIdx.x), i = (int)blockIdx.y;
    bool active = at < g.width;
    float p;
    sum_over_chunks<1>(c, i, at, 0, active, &p);
    if (!active || threadIdx.y) return;
    dmod += (c.first + i) * g.mod_width;
    put(dmod + g.offset + at, keep, p);
    if (keep == 0) clear_others(dmod, g.mod_width, g.offset, g.offset + g.width, at, g.width);
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
