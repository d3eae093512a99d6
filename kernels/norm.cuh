/* What the CUDA kernels of LayerNorm and of the gate share: how a block holds a row, and sums over
 * the rows of each modulation row.
 *
 * A block has one row, and keeps it in registers between the passes over it. The gradients of
 * gamma, beta and the modulation are sums over rows: there a block has all rows of one chunk that
 * use one row of the modulation (or of all rows without one), and a second kernel adds the chunks'
 * sums.
 */
#pragma once

#include "kernels/cuda.cuh"

static const int64_t MAX_WIDTH = 8192, MAX_CHUNKS = 512, MAX_GROUP = 64;

/* Packs of V elements that a thread keeps; fewer where it keeps sums, too. */
HD static constexpr int held(int V, bool sums) { return sums ? 16 / V : V == 1 ? 8 : 4; }
/* Threads of a block that has a row of MAX_WIDTH. */
static constexpr int most_threads(int V, bool sums) { return (int)MAX_WIDTH / V / held(V, sums); }

static inline int threads_for(int64_t width, int V, bool sums) {
    int64_t each = (int64_t)V * held(V, sums);
    return (int)align_up((width + each - 1) / each, WARP);
}

static inline void check_width(int64_t width, const char *entry) {
    CHECK(width > 0 && width <= MAX_WIDTH, "%s: width %lld", entry, (long long)width);
}

/* Where pack r of a thread begins in the row. */
template <int V> __device__ __forceinline__ int column(int r) {
    return ((int)threadIdx.x + r * (int)blockDim.x) * V;
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

static inline Chunks plan_chunks(Stream *s, int64_t rows, int64_t mod_rows, int floats) {
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

/* The sums over chunks of floats `at` and at + width, ..., N of them, of modulation row first + i.
 */
template <int N>
__device__ __forceinline__ void sum_over_chunks(const Chunks &c, int i, int at, int width,
                                                bool active, float *sum) {
    sum_chunks<N>(c.sums + i * c.floats + at, (int)c.chunks, c.group * c.floats, width, c.used + i,
                  c.group, active, sum);
}

/* Column `to` of a row of dmod. */
template <class T> __device__ __forceinline__ void put(T *to, float keep, float x) {
    *to = from_float<T>(kept(keep, to, x));
}

/* Zeros outside [from, to) of a row of dmod: columns at, at + step, ... */
template <class T>
__device__ __forceinline__ void clear_others(T *row, int64_t width, int64_t from, int64_t to,
                                             int64_t at, int64_t step) {
    for (; at < width; at += step)
        if (at < from || at >= to) row[at] = from_float<T>(0);
}

/* Of the rows of a chunk, which begin at `first`: the first from `at` on that uses modulation row
 * `mod`, or `rows`, how many there are. mod_row NULL: all do. */
__device__ __forceinline__ int next_row(const int32_t *mod_row, int64_t first, int mod, int at,
                                        int rows) {
    while (mod_row && at < rows && mod_row[first + at] != mod) at++;
    return at;
}
