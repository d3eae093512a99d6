/* Attention as cogsmith's own CUDA kernels (Dao et al. 2022, 2023): in f32 whatever the type, with
 * or without a bias, for any number of rows and head sizes up to MAX_SIZE.
 *
 * A block of 16 x 16 threads works on a tile of R rows of one head and walks over all tiles of R
 * rows of the other side. Thread (y, x) has the M = R/16 rows y*M + i of its own tile, of scores
 * the columns x + 16 j, of results the channels x + 16 c. Tiles lie in shared memory in f32, a row
 * every E + 1 words. Nothing of S x S is ever stored.
 */
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/attention_cuda.h"
#include "kernels/cuda.cuh"

#include <math.h>

enum { SIDE = 16, THREADS = SIDE * SIDE, MAX_SIZE = 128, WIDE_SIZE = 64 };

/* One segment; pointers begin at its first row, of head 0. */
template <class T> struct Segment {
    int64_t rows, row_stride, lse_stride; /* L; N*E; S */
    int size;                             /* E */
    float scale;
    const T *q, *k, *v, *out, *dout;
    const float *bias; /* [N,L',L'] or NULL */
    int64_t bias_rows;
    const float *lse;
};

/* The channels of a thread's results. */
template <int R> struct Tile {
    enum { M = R / SIDE, C = R == SIDE ? MAX_SIZE / SIDE : WIDE_SIZE / SIDE };
};

__device__ __forceinline__ int side_y() { return (int)threadIdx.x / SIDE; }
__device__ __forceinline__ int side_x() { return (int)threadIdx.x % SIDE; }

/* Rows [first, first + R) of x, zeros beyond the segment. */
template <class T, int R>
__device__ __forceinline__ void load_tile(const Segment<T> &s, const T *x, int64_t first,
                                          float *tile) {
    for (int i = (int)threadIdx.x; i < R * s.size; i += THREADS) {
        int row = i / s.size, e = i % s.size;
        tile[row * (s.size + 1) + e] =
            first + row < s.rows ? to_float(x[(first + row) * s.row_stride + e]) : 0;
    }
}

/* product[i][j] = row y*M + i of a times row x + 16 j of b. */
template <int R>
__device__ __forceinline__ void multiply_rows(int size, const float *a, const float *b,
                                              float (*product)[Tile<R>::M]) {
    const int M = Tile<R>::M;
    const float *ay = a + side_y() * M * (size + 1), *bx = b + side_x() * (size + 1);
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int j = 0; j < M; j++) product[i][j] = 0;
    for (int e = 0; e < size; e++)
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int j = 0; j < M; j++)
                product[i][j] += ay[i * (size + 1) + e] * bx[SIDE * j * (size + 1) + e];
}

/* sum[i][c] += row y*M + i of weights [R][R+1] times channel x + 16 c of the tile's rows. */
template <int R>
__device__ __forceinline__ void add_weighed(int size, const float *weights, const float *tile,
                                            float (*sum)[Tile<R>::C]) {
    const int M = Tile<R>::M, C = Tile<R>::C;
    for (int k = 0; k < R; k++)
#pragma unroll
        for (int c = 0; c < C; c++) {
            float x = side_x() + SIDE * c < size ? tile[k * (size + 1) + side_x() + SIDE * c] : 0;
#pragma unroll
            for (int i = 0; i < M; i++) sum[i][c] += weights[(side_y() * M + i) * (R + 1) + k] * x;
        }
}

template <int R>
__device__ __forceinline__ void keep_weights(const float (*x)[Tile<R>::M], float *weights) {
    const int M = Tile<R>::M;
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int j = 0; j < M; j++)
            weights[(side_y() * M + i) * (R + 1) + side_x() + SIDE * j] = x[i][j];
}

template <class T, int R>
__device__ __forceinline__ void store_rows(const Segment<T> &s, int64_t first,
                                           const float (*sum)[Tile<R>::C], const float *factor,
                                           T *to) {
    const int M = Tile<R>::M, C = Tile<R>::C;
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int c = 0; c < C; c++) {
            int64_t row = first + side_y() * M + i;
            int e = side_x() + SIDE * c;
            if (row < s.rows && e < s.size)
                to[row * s.row_stride + e] = from_float<T>(sum[i][c] * factor[i]);
        }
}

/* The greatest over the 16 threads of a row, in all of them. */
__device__ __forceinline__ float row_max(float x) {
    for (int m = SIDE / 2; m; m /= 2) x = fmaxf(x, __shfl_xor_sync(FULL, x, m));
    return x;
}

/* Scores of keys from `key` on, scaled and biased; -infinity beyond the segment. */
template <class T, int R>
__device__ __forceinline__ void finish_scores(const Segment<T> &s, const float *bias, int64_t first,
                                              int64_t key, float (*x)[Tile<R>::M]) {
    const int M = Tile<R>::M;
    for (int i = 0; i < M; i++)
        for (int j = 0; j < M; j++) {
            int64_t row = first + side_y() * M + i, column = key + side_x() + SIDE * j;
            x[i][j] *= s.scale;
            if (bias && row < s.rows && column < s.rows)
                x[i][j] += bias[row * s.bias_rows + column];
            if (column >= s.rows) x[i][j] = -INFINITY;
        }
}

/* Scores become exp(score - most); most, sum and out follow. */
template <int R>
__device__ __forceinline__ void soften(float (*x)[Tile<R>::M], float *most, float *sum,
                                       float (*out)[Tile<R>::C]) {
    const int M = Tile<R>::M, C = Tile<R>::C;
#pragma unroll
    for (int i = 0; i < M; i++) {
        float top = most[i], fresh = 0;
        for (int j = 0; j < M; j++) top = fmaxf(top, x[i][j]);
        top = row_max(top);
        float correction = expf(most[i] - top);
        for (int j = 0; j < M; j++) fresh += x[i][j] = expf(x[i][j] - top);
        sum[i] = sum[i] * correction + warp_sum(fresh, SIDE);
        most[i] = top;
        for (int c = 0; c < C; c++) out[i][c] *= correction;
    }
}

template <class T, int R> __global__ void attend(Segment<T> s, T *out, float *lse) {
    const int M = Tile<R>::M, C = Tile<R>::C;
    DYN_SHARED(float, shared);
    float *q = shared, *k = q + R * (s.size + 1), *v = k + R * (s.size + 1);
    float *weights = v + R * (s.size + 1);
    int64_t first = (int64_t)blockIdx.x * R, head = blockIdx.y;
    const float *bias = s.bias ? s.bias + head * s.bias_rows * s.bias_rows : NULL;
    float most[M], sum[M], result[M][C] = {}, scores[M][M];
    for (int i = 0; i < M; i++) most[i] = -INFINITY, sum[i] = 0;
    load_tile<T, R>(s, s.q + head * s.size, first, q);
    for (int64_t key = 0; key < s.rows; key += R) {
        __syncthreads(); /* the tiles may still be read */
        load_tile<T, R>(s, s.k + head * s.size, key, k);
        load_tile<T, R>(s, s.v + head * s.size, key, v);
        __syncthreads();
        multiply_rows<R>(s.size, q, k, scores);
        finish_scores<T, R>(s, bias, first, key, scores);
        soften<R>(scores, most, sum, result);
        keep_weights<R>(scores, weights);
        __syncthreads();
        add_weighed<R>(s.size, weights, v, result);
    }
    for (int i = 0; i < M; i++) {
        int64_t row = first + side_y() * M + i;
        if (row < s.rows && side_x() == 0) lse[head * s.lse_stride + row] = most[i] + logf(sum[i]);
        sum[i] = 1 / sum[i];
    }
    store_rows<T, R>(s, first, result, sum, out + head * s.size);
}

/* delta[i] = sum over channels of dout * out at row first + y*M + i, whose dout is in the tile. */
template <class T, int R>
__device__ __forceinline__ void row_delta(const Segment<T> &s, int64_t head, int64_t first,
                                          const float *dout, float *delta) {
    const int M = Tile<R>::M;
    const T *out = s.out + head * s.size;
    for (int i = 0; i < M; i++) {
        int tile_row = side_y() * M + i;
        int64_t row = first + tile_row;
        delta[i] = 0;
        for (int e = side_x(); e < s.size && row < s.rows; e += SIDE)
            delta[i] += dout[tile_row * (s.size + 1) + e] * to_float(out[row * s.row_stride + e]);
        delta[i] = warp_sum(delta[i], SIDE);
    }
}

/* dq = scale dS k, of the queries' tile. */
template <class T, int R> __global__ void attend_grad_q(Segment<T> s, T *dq) {
    const int M = Tile<R>::M, C = Tile<R>::C;
    DYN_SHARED(float, shared);
    int step = R * (s.size + 1);
    float *q = shared, *dout = q + step, *k = dout + step, *v = k + step, *weights = v + step;
    int64_t first = (int64_t)blockIdx.x * R, head = blockIdx.y;
    float delta[M], lse[M], factor[M], result[M][C] = {}, scores[M][M], dscores[M][M];
    load_tile<T, R>(s, s.q + head * s.size, first, q);
    load_tile<T, R>(s, s.dout + head * s.size, first, dout);
    __syncthreads();
    row_delta<T, R>(s, head, first, dout, delta);
    for (int i = 0; i < M; i++) {
        int64_t row = first + side_y() * M + i;
        lse[i] = row < s.rows ? s.lse[head * s.lse_stride + row] : 0;
        factor[i] = s.scale;
    }
    for (int64_t key = 0; key < s.rows; key += R) {
        __syncthreads(); /* the tiles may still be read */
        load_tile<T, R>(s, s.k + head * s.size, key, k);
        load_tile<T, R>(s, s.v + head * s.size, key, v);
        __syncthreads();
        multiply_rows<R>(s.size, q, k, scores);
        multiply_rows<R>(s.size, dout, v, dscores);
        finish_scores<T, R>(s, NULL, first, key, scores);
        for (int i = 0; i < M; i++)
            for (int j = 0; j < M; j++)
                dscores[i][j] = expf(scores[i][j] - lse[i]) * (dscores[i][j] - delta[i]);
        keep_weights<R>(dscores, weights);
        __syncthreads();
        add_weighed<R>(s.size, weights, k, result);
    }
    store_rows<T, R>(s, first, result, factor, dq + head * s.size);
}

/* dk = scale dS^T q and dv = P^T dout, of the keys' tile. */
template <class T, int R> __global__ void attend_grad_kv(Segment<T> s, T *dk, T *dv) {
    const int M = Tile<R>::M, C = Tile<R>::C;
    DYN_SHARED(float, shared);
    int step = R * (s.size + 1);
    float *k = shared, *v = k + step, *q = v + step, *dout = q + step, *weights = dout + step;
    float *dweights = weights + R * (R + 1), *lse = dweights + R * (R + 1), *delta = lse + R;
    int64_t first = (int64_t)blockIdx.x * R, head = blockIdx.y;
    float one[M], factor[M], sum_k[M][C] = {}, sum_v[M][C] = {}, p[M][M], dp[M][M], own[M];
    for (int i = 0; i < M; i++) one[i] = 1, factor[i] = s.scale;
    load_tile<T, R>(s, s.k + head * s.size, first, k);
    load_tile<T, R>(s, s.v + head * s.size, first, v);
    for (int64_t query = 0; query < s.rows; query += R) {
        __syncthreads(); /* the tiles may still be read */
        load_tile<T, R>(s, s.q + head * s.size, query, q);
        load_tile<T, R>(s, s.dout + head * s.size, query, dout);
        __syncthreads();
        row_delta<T, R>(s, head, query, dout, own);
        for (int i = 0; i < M && side_x() == 0; i++) {
            int64_t row = query + side_y() * M + i;
            delta[side_y() * M + i] = own[i];
            lse[side_y() * M + i] = row < s.rows ? s.lse[head * s.lse_stride + row] : 0;
        }
        __syncthreads();
        multiply_rows<R>(s.size, k, q, p);
        multiply_rows<R>(s.size, v, dout, dp);
        finish_scores<T, R>(s, NULL, first, query, p);
        for (int i = 0; i < M; i++)
            for (int j = 0; j < M; j++) {
                int column = side_x() + SIDE * j;
                p[i][j] = expf(p[i][j] - lse[column]);
                dp[i][j] = p[i][j] * (dp[i][j] - delta[column]);
            }
        keep_weights<R>(p, weights);
        keep_weights<R>(dp, dweights);
        __syncthreads();
        add_weighed<R>(s.size, weights, dout, sum_v);
        add_weighed<R>(s.size, dweights, q, sum_k);
    }
    store_rows<T, R>(s, first, sum_k, factor, dk + head * s.size);
    store_rows<T, R>(s, first, sum_v, one, dv + head * s.size);
}

/* ---- entries ---------------------------------------------------------------------------------*/

template <class T>
static Segment<T> segment_of(const Attention *a, int64_t first, int64_t rows, const void *out,
                             const real *lse, const void *dout) {
    int64_t stride = a->heads * a->head_size, offset = first * stride;
    CHECK(a->head_size <= MAX_SIZE && a->heads <= 65535, "attention: %lld heads of size %lld",
          (long long)a->heads, (long long)a->head_size);
    Segment<T> s = {};
    s.rows = rows;
    s.row_stride = stride;
    s.lse_stride = a->rows;
    s.size = (int)a->head_size;
    s.scale = a->scale;
    s.q = (const T *)a->q + offset;
    s.k = (const T *)a->k + offset;
    s.v = (const T *)a->v + offset;
    s.out = (const T *)out + offset;
    s.dout = dout ? (const T *)dout + offset : NULL;
    s.bias = a->bias;
    s.bias_rows = a->bias_rows;
    s.lse = lse + first;
    return s;
}

/* Shared memory of `tiles` tiles, `weights` matrices of scores and `vectors` of R. */
static size_t shared_bytes(int64_t r, int64_t size, int tiles, int weights, int vectors) {
    return (size_t)(tiles * r * (size + 1) + weights * r * (r + 1) + vectors * r) * sizeof(float);
}

template <class T, int R>
static void attend_start(Stream *s, const Segment<T> *g, int64_t heads, T *out, float *lse) {
    dim3 grid(blocks_for(g->rows, R), (unsigned)heads);
    LAUNCH((attend<T, R>), grid, THREADS, shared_bytes(R, g->size, 3, 1, 0), cuda_queue(s), *g, out,
           lse);
    cuda_check_launch("attention");
}

template <class T, int R>
static void grad_start(Stream *s, const Segment<T> *g, int64_t heads, T *dq, T *dk, T *dv) {
    dim3 grid(blocks_for(g->rows, R), (unsigned)heads);
    LAUNCH((attend_grad_q<T, R>), grid, THREADS, shared_bytes(R, g->size, 4, 1, 0), cuda_queue(s),
           *g, dq);
    cuda_check_launch("attention_grad");
    LAUNCH((attend_grad_kv<T, R>), grid, THREADS, shared_bytes(R, g->size, 4, 2, 2), cuda_queue(s),
           *g, dk, dv);
    cuda_check_launch("attention_grad");
}

template <class T>
static void attend_any(Stream *s, const Attention *a, int64_t first, int64_t rows, T *out,
                       real *lse) {
    Segment<T> g = segment_of<T>(a, first, rows, out, lse, NULL);
    out += first * g.row_stride;
    if (a->head_size <= WIDE_SIZE)
        attend_start<T, 2 * SIDE>(s, &g, a->heads, out, lse + first);
    else
        attend_start<T, SIDE>(s, &g, a->heads, out, lse + first);
}

template <class T>
static void grad_any(Stream *s, const Attention *a, const Segment<T> *g, int64_t offset, T *dq,
                     T *dk, T *dv) {
    if (a->head_size <= WIDE_SIZE)
        grad_start<T, 2 * SIDE>(s, g, a->heads, dq + offset, dk + offset, dv + offset);
    else
        grad_start<T, SIDE>(s, g, a->heads, dq + offset, dk + offset, dv + offset);
}

void attention_own(Stream *s, const Attention *a, int64_t first, int64_t rows, void *out,
                   real *lse) {
    WITH_TYPE(a->t, "attention", T, attend_any(s, a, first, rows, (T *)out, lse));
}

void attention_own_grad(Stream *s, const Attention *a, int64_t first, int64_t rows, const void *out,
                        const real *lse, const void *dout, void *dq, void *dk, void *dv) {
    int64_t offset = first * a->heads * a->head_size;
    WITH_TYPE(a->t, "attention_grad", T, {
        Segment<T> g = segment_of<T>(a, first, rows, out, lse, dout);
        grad_any(s, a, &g, offset, (T *)dq, (T *)dk, (T *)dv);
    });
}
