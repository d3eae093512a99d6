/* The norm of q and k over the channels of each head, with rotation, on CUDA.
 *
 * A head is shared by the fewest lanes (a power of two) that hold it in packs, `slots` heads at a
 * time by a block; the angles, gamma and beta of its columns stay in a lane's registers over the
 * heads of a row. Kernels know the size of heads, where that is USUAL, when they are compiled
 * (SIZE), and else 0.
 */
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda.cuh"

static const int64_t MAX_HEAD = 256, MAX_CHUNKS = 1056;
/* A row's heads are read AHEAD at a time of those that a lane has, so that as many reads are on
 * their way. */
enum { THREADS = 128, USUAL = 64, AHEAD = 3 };

/* Packs of a head that a lane has: one, or those of MAX_HEAD channels in 32 lanes. */
HD static constexpr int held(int V, int SIZE) { return SIZE ? 1 : (int)MAX_HEAD / V / WARP; }

/* Where a lane stands: pack r of its head begins at channel (lane + r lanes) V. */
typedef struct {
    int lanes, lane, slot, slots; /* of a head; which one; which head of the block, of how many */
} Seat;

template <int V, int SIZE> __device__ __forceinline__ Seat seat_of(int lanes) {
    int thread = (int)threadIdx.x, l = SIZE ? SIZE / V : lanes;
    return {l, thread % l, thread / l, THREADS / l};
}

/* Of q or of k. An index that is not known would bring all arguments of a kernel to memory. */
template <class P> __device__ __forceinline__ P pick(int z, const P (&of)[2]) {
    return z ? of[1] : of[0];
}

template <int V> __device__ __forceinline__ int channel(Seat s, int r) {
    return (s.lane + r * s.lanes) * V;
}

/* One head in registers, with zeros where it has no channels. */
template <int V, int R> struct Head { float x[R][V]; };
template <class T, int V, int R> struct HeadRead { Pack<T, V> pack[R]; };

template <int V, int R, class T>
__device__ __forceinline__ void read_head(Seat s, const T *x, int size, bool there,
                                          HeadRead<T, V, R> *head) {
#pragma unroll
    for (int r = 0; r < R; r++)
        head->pack[r] = load_pack_if<V>(there && channel<V>(s, r) < size, x + channel<V>(s, r));
}

template <class T, int V, int R>
__device__ __forceinline__ void head_floats(const HeadRead<T, V, R> &from, Head<V, R> *head) {
#pragma unroll
    for (int r = 0; r < R; r++) to_floats(from.pack[r], head->x[r]);
}

template <int V, int R, class T>
__device__ __forceinline__ void load_head(Seat s, const T *x, int size, Head<V, R> *head) {
    HeadRead<T, V, R> from;
    read_head<V, R, T>(s, x, size, true, &from);
    head_floats(from, head);
}

/* x = (x - mean) * rstd, where the head has channels; answers rstd. */
template <int V, int R>
__device__ __forceinline__ float normalise(Seat s, int size, float eps, Head<V, R> *head) {
    float sum = 0, square = 0;
#pragma unroll
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V; j++) sum += head->x[r][j];
    float inverse = 1 / (float)size, mean = warp_sum(sum, s.lanes) * inverse;
#pragma unroll
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V; j++) {
            head->x[r][j] = channel<V>(s, r) < size ? head->x[r][j] - mean : 0;
            square += head->x[r][j] * head->x[r][j];
        }
    float rstd = rsqrtf(warp_sum(square, s.lanes) * inverse + eps);
#pragma unroll
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V; j++) head->x[r][j] *= rstd;
    return rstd;
}

/* Pairs of channels turned by the pairs (cos, sin) of rope; direction -1 turns back. */
template <int V, int R>
__device__ __forceinline__ void turn(const Head<V, R> &rope, float direction, Head<V, R> *head) {
#pragma unroll
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V; j += 2) {
            float a = head->x[r][j], b = head->x[r][j + 1];
            float cosine = rope.x[r][j], sine = direction * rope.x[r][j + 1];
            head->x[r][j] = a * cosine - b * sine;
            head->x[r][j + 1] = b * cosine + a * sine;
        }
}

/* The angles of a row, or none. Rows of rope are as long as heads: in float they go in packs of 4
 * where heads go in packs of more. */
template <int V, int R>
__device__ __forceinline__ void load_rope(Seat s, const float *rope, int64_t row, int size,
                                          Head<V, R> *to) {
    constexpr int STEP = V < 4 ? V : 4;
#pragma unroll
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V; j += STEP) {
            int at = channel<V>(s, r) + j;
            for (int k = 0; k < STEP; k++) to->x[r][j + k] = k % 2 == 0;
            if (rope && at < size) load<STEP>(rope + row * size + at, to->x[r] + j);
        }
}

template <class T, int V, int SIZE>
__global__ void __launch_bounds__(THREADS) qk_norm_kernel(QkNorm q, T *y, int lanes) {
    constexpr int R = held(V, SIZE);
    Seat s = seat_of<V, SIZE>(lanes);
    int size = SIZE ? SIZE : (int)q.head_size, z = (int)blockIdx.y, heads = (int)q.heads;
    int64_t row = blockIdx.x, from = (z * q.rows + row) * heads * size + s.slot * size;
    const T *x = (const T *)q.x + from;
    Head<V, R> rope = {}, gamma, beta;
    y += from;
    for (int h = 0; h < heads; h += AHEAD * s.slots) {
        HeadRead<T, V, R> read[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            read_head<V, R, T>(s, x + (h + k * s.slots) * size, size,
                               h + k * s.slots + s.slot < heads, &read[k]);
        if (h == 0) {
            load_rope(s, q.rope, row, size, &rope);
            load_head(s, (const T *)pick(z, q.gamma), size, &gamma);
            load_head(s, (const T *)pick(z, q.beta), size, &beta);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            int at = h + k * s.slots;
            if (at >= heads) break;
            Head<V, R> head;
            head_floats(read[k], &head);
            normalise(s, size, q.eps, &head);
#pragma unroll
            for (int r = 0; r < R; r++)
                for (int j = 0; j < V; j++)
                    head.x[r][j] = head.x[r][j] * gamma.x[r][j] + beta.x[r][j];
            turn(rope, 1, &head);
#pragma unroll
            for (int r = 0; r < R; r++)
                if (at + s.slot < heads && channel<V>(s, r) < size)
                    store<V>(y + at * size + channel<V>(s, r), head.x[r]);
        }
    }
}

/* ---- backward --------------------------------------------------------------------------------*/

/* Rows [chunk * rows_per, ...) belong to block (chunk, q or k). Where sums is not NULL the block
 * leaves 2E floats at sums[(chunk * 2 + z) * 2E]: what gamma, then what beta gets. */
typedef struct {
    QkNorm q;
    const void *dy;
    void *dx; /* NULL: not wanted */
    float keep_dx;
    int lanes;
    int64_t rows_per, chunks;
    float *sums;
} QkRows;

/* dx of one head from grad, its gradient at the normalised head, as LayerNorm's. */
template <class T, int V, int R>
__device__ __forceinline__ void head_grad(Seat s, const QkRows &a, int size,
                                          const Head<V, R> &normal, const Head<V, R> &gamma,
                                          Head<V, R> *grad, float rstd, T *dx) {
    float sum = 0, product = 0, inverse = 1 / (float)size;
#pragma unroll
    for (int r = 0; r < R; r++)
        for (int j = 0; j < V; j++) {
            grad->x[r][j] *= gamma.x[r][j];
            sum += grad->x[r][j];
            product += grad->x[r][j] * normal.x[r][j];
        }
    sum = warp_sum(sum, s.lanes) * inverse;
    product = warp_sum(product, s.lanes) * inverse;
#pragma unroll
    for (int r = 0; r < R; r++) {
        float g[V];
        for (int j = 0; j < V; j++) g[j] = rstd * (grad->x[r][j] - sum - normal.x[r][j] * product);
        if (dx && channel<V>(s, r) < size) store_kept<V>(dx + channel<V>(s, r), a.keep_dx, g);
    }
}

/* The heads of one row; what gamma and beta get is added where SUMS. */
template <class T, int V, int SIZE, bool SUMS, int R>
__device__ __forceinline__ void qk_row_grad(Seat s, const QkRows &a, int64_t row,
                                            const Head<V, R> &gamma, Head<V, R> *dgamma,
                                            Head<V, R> *dbeta) {
    int size = SIZE ? SIZE : (int)a.q.head_size, z = (int)blockIdx.y, heads = (int)a.q.heads;
    int64_t from = (z * a.q.rows + row) * heads * size + s.slot * size;
    const T *x = (const T *)a.q.x + from, *dy = (const T *)a.dy + from;
    Head<V, R> rope = {};
    for (int h = 0; h < heads; h += AHEAD * s.slots) {
        HeadRead<T, V, R> read[AHEAD], read_dy[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            int at = h + k * s.slots;
            read_head<V, R, T>(s, x + at * size, size, at + s.slot < heads, &read[k]);
            read_head<V, R, T>(s, dy + at * size, size, at + s.slot < heads, &read_dy[k]);
        }
        if (h == 0) load_rope(s, a.q.rope, row, size, &rope);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            int at = h + k * s.slots;
            if (at >= heads) break;
            Head<V, R> normal, grad;
            head_floats(read[k], &normal);
            head_floats(read_dy[k], &grad);
            float rstd = normalise(s, size, a.q.eps, &normal);
            turn(rope, -1, &grad);
#pragma unroll
            for (int r = 0; r < R && SUMS; r++)
                for (int j = 0; j < V; j++) {
                    dgamma->x[r][j] += grad.x[r][j] * normal.x[r][j];
                    dbeta->x[r][j] += grad.x[r][j];
                }
            T *dx = at + s.slot < heads ? (T *)a.dx + from + at * size : (T *)NULL;
            if (a.dx) head_grad(s, a, size, normal, gamma, &grad, rstd, dx);
        }
    }
}

/* The sum of a head's channels over the block's slots, in order, into `to`. */
template <int V, int R>
__device__ __forceinline__ void sum_slots(Seat s, const Head<V, R> &head, int size, float *to) {
    __shared__ float part[THREADS * V];
#pragma unroll
    for (int r = 0; r < R; r++) {
        __syncthreads(); /* `part` may still be read by an earlier turn */
        for (int j = 0; j < V; j++) part[j * THREADS + (int)threadIdx.x] = head.x[r][j];
        __syncthreads();
        for (int j = 0; j < V && s.slot == 0 && channel<V>(s, r) < size; j++) {
            float sum = 0;
            for (int i = 0; i < s.slots; i++) sum += part[j * THREADS + i * s.lanes + s.lane];
            to[channel<V>(s, r) + j] = sum;
        }
    }
}

template <class T, int V, int SIZE, bool SUMS>
__global__ void __launch_bounds__(THREADS) qk_norm_grad_kernel(QkRows a) {
    constexpr int R = held(V, SIZE);
    Seat s = seat_of<V, SIZE>(a.lanes);
    int size = SIZE ? SIZE : (int)a.q.head_size, z = (int)blockIdx.y;
    int64_t first = blockIdx.x * a.rows_per, last = MIN(first + a.rows_per, a.q.rows);
    Head<V, R> gamma, dgamma = {}, dbeta = {};
    load_head(s, (const T *)pick(z, a.q.gamma), size, &gamma);
    for (int64_t row = first; row < last; row++)
        qk_row_grad<T, V, SIZE, SUMS>(s, a, row, gamma, &dgamma, &dbeta);
    if (!SUMS) return;
    float *to = a.sums + ((int64_t)blockIdx.x * 2 + z) * 2 * size;
    sum_slots(s, dgamma, size, to);
    sum_slots(s, dbeta, size, to + size);
}

__global__ void __launch_bounds__(SUM_COLUMNS *SUM_GROUPS, 1)
    qk_finish_kernel(QkRows a, QkNormGrad g) {
    int size = (int)a.q.head_size, z = (int)blockIdx.y;
    int at = (int)(blockIdx.x * SUM_COLUMNS + threadIdx.x);
    bool active = at < 2 * size;
    float sum;
    sum_chunks<1>(a.sums + z * 2 * size + at, (int)a.chunks, 4 * size, 0, NULL, 0, active, &sum);
    if (!active || threadIdx.y) return;
    float *to = at < size ? pick(z, g.dgamma) : pick(z, g.dbeta);
    float keep = at < size ? pick(z, g.keep_dgamma) : pick(z, g.keep_dbeta);
    if (to) to[at % size] = kept(keep, to + at % size, sum);
}

/* ---- launches --------------------------------------------------------------------------------*/

/* Lanes that share a head. */
static int lanes_for(int64_t size, int V) {
    int lanes = 1;
    while (lanes < WARP && lanes * V < size) lanes *= 2;
    return lanes;
}

static bool qk_packable(const QkNorm *q, uintptr_t more) {
    uintptr_t addresses = (uintptr_t)q->x | (uintptr_t)q->gamma[0] | (uintptr_t)q->gamma[1] |
                          (uintptr_t)q->beta[0] | (uintptr_t)q->beta[1] | (uintptr_t)q->rope;
    return packable(q->t, addresses | more, q->head_size);
}

static void check_head(const QkNorm *q, const char *entry) {
    CHECK(q->head_size > 0 && q->head_size <= MAX_HEAD && q->head_size % 2 == 0,
          "%s: head size %lld", entry, (long long)q->head_size);
}

template <class T, int V> static void launch_qk_norm(Stream *s, const QkNorm *q, void *y) {
    dim3 grid(blocks_for(q->rows, 1), 2);
    int lanes = lanes_for(q->head_size, V);
    if (q->head_size == USUAL)
        LAUNCH((qk_norm_kernel<T, V, USUAL>), grid, THREADS, 0, cuda_queue(s), *q, (T *)y, lanes);
    else
        LAUNCH((qk_norm_kernel<T, V, 0>), grid, THREADS, 0, cuda_queue(s), *q, (T *)y, lanes);
}

void cuda_qk_norm(Stream *s, const QkNorm *q, void *y) {
    check_head(q, "qk_norm");
    if (!q->rows || !q->heads) return;
    WITH_PACKS(q->t, qk_packable(q, (uintptr_t)y), 2, "qk_norm", T, V,
               launch_qk_norm<T, V>(s, q, y));
    cuda_check_launch("qk_norm");
}

template <class T, int V, bool SUMS> static void launch_qk_norm_grad(Stream *s, QkRows a) {
    dim3 grid(blocks_for(a.chunks, 1), 2);
    a.lanes = lanes_for(a.q.head_size, V);
    if (a.q.head_size == USUAL)
        LAUNCH((qk_norm_grad_kernel<T, V, USUAL, SUMS>), grid, THREADS, 0, cuda_queue(s), a);
    else
        LAUNCH((qk_norm_grad_kernel<T, V, 0, SUMS>), grid, THREADS, 0, cuda_queue(s), a);
}

void cuda_qk_norm_grad(Stream *s, const QkNorm *q, const QkNormGrad *g) {
    check_head(q, "qk_norm_grad");
    bool summed = g->dgamma[0] || g->dgamma[1] || g->dbeta[0] || g->dbeta[1];
    if (!summed && !g->dx) return;
    QkRows a = {*q, g->dy, g->dx, g->keep_dx, 0, 1, 0, NULL};
    if (summed) {
        a.sums = (float *)cuda_scratch(s);
        a.rows_per = MAX((q->rows + MAX_CHUNKS - 1) / MAX_CHUNKS, 1);
    }
    a.chunks = (q->rows + a.rows_per - 1) / a.rows_per;
    bool wide = qk_packable(q, (uintptr_t)g->dy | (uintptr_t)g->dx);
    if (a.chunks && summed)
        WITH_PACKS(q->t, wide, 2, "qk_norm_grad", T, V, (launch_qk_norm_grad<T, V, true>(s, a)));
    else if (a.chunks)
        WITH_PACKS(q->t, wide, 2, "qk_norm_grad", T, V, (launch_qk_norm_grad<T, V, false>(s, a)));
    if (summed)
        LAUNCH(qk_finish_kernel, dim3(blocks_for(2 * q->head_size, SUM_COLUMNS), 2),
               dim3(SUM_COLUMNS, SUM_GROUPS), 0, cuda_queue(s), a, *g);
    cuda_check_launch("qk_norm_grad");
}
