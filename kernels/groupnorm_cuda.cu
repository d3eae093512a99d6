/* Group norm of channels-last rows on CUDA, with all that follows it before a causal convolution:
 * the spatial norm's scale and shift, silu, and the frames of context. Two passes over the input:
 * sums, then everything else. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/packs.cuh"

/* A block's threads lie over the channels, a pack each, then over pixels. A thread sums RUN pixels,
 * more where there would be over MOST_CHUNKS blocks; in the second pass it takes STEPS. */
enum { THREADS = 256, RUN = 64, MOST_CHUNKS = 4096, STEPS = 8, BATCH = 2 };

/* Where a thread stands. Blocks in y take the channels that are more than THREADS packs. */
typedef struct {
    int64_t channel;  /* of its pack */
    int across, deep; /* threads over the channels; pixels side by side */
    int pixel;        /* which of those; none where it is `deep` or more */
} Stand;

template <int V> __device__ __forceinline__ Stand stand(int64_t channels) {
    int64_t tile = (int64_t)blockIdx.y * THREADS * V;
    Stand s;
    s.across = (int)MIN((channels - tile) / V, (int64_t)THREADS);
    s.deep = THREADS / s.across;
    s.pixel = (int)threadIdx.x / s.across;
    s.channel = tile + (int)threadIdx.x % s.across * V;
    return s;
}

/* The pixels side by side in a block, whatever its place in y. */
static int64_t deep_of(int64_t channels, int64_t pack) {
    return THREADS / MIN(channels / pack, (int64_t)THREADS);
}

/* The layout of the scratch: factor and term [C], then sums and sums of squares [chunks,2,C]. */
typedef struct {
    int64_t rows, chunk_rows, chunks;
    float *factor, *term;
    double *partial;
} Sums;

static Sums sums_of(Stream *s, const GroupNorm *n, int64_t pack) {
    int64_t rows = n->frames * n->height * n->width, c = n->channels;
    int64_t run = RUN * deep_of(c, pack), runs = (rows + run - 1) / run;
    int64_t room = (SCRATCH_BYTES / (int64_t)sizeof(double) - c) / (2 * c);
    CHECK(room > 0, "group_norm: %lld channels are too many", (long long)c);
    int64_t most = MIN(room, (int64_t)MOST_CHUNKS);
    Sums sums = {rows, (runs + most - 1) / most * run, 0, NULL, NULL, NULL};
    sums.chunks = (rows + sums.chunk_rows - 1) / sums.chunk_rows;
    sums.partial = (double *)cuda_scratch(s) + c;
    sums.factor = (float *)cuda_scratch(s);
    sums.term = sums.factor + c;
    return sums;
}

/* The sums of a chunk of rows, in f32 of what x differs from its first row, which keeps the
 * variance of numbers far from zero; in f64 from there on. */
template <class T, int V>
__global__ void sum_channels(int64_t rows, int64_t channels, int64_t chunk_rows, const T *x,
                             double *partial) {
    __shared__ float cells[2][THREADS * V];
    Stand s = stand<V>(channels);
    int64_t first = (int64_t)blockIdx.x * chunk_rows, last = MIN(first + chunk_rows, rows);
    float origin[V], sum[V] = {}, squares[V] = {};
    load<V>(x + s.channel, origin);
#pragma unroll 4
    for (int64_t i = first + s.pixel; i < last && s.pixel < s.deep; i += s.deep) {
        float v[V];
        load<V>(x + i * channels + s.channel, v);
#pragma unroll
        for (int j = 0; j < V; j++) {
            float d = v[j] - origin[j];
            sum[j] += d;
            squares[j] += d * d;
        }
    }
#pragma unroll
    for (int j = 0; j < V; j++) {
        cells[0][j * THREADS + threadIdx.x] = sum[j];
        cells[1][j * THREADS + threadIdx.x] = squares[j];
    }
    __syncthreads();
    for (int e = (int)threadIdx.x; e < s.across * V; e += THREADS) {
        int lane = e % s.across, j = e / s.across; /* neighbours read other banks */
        int64_t c = (int64_t)blockIdx.y * THREADS * V + lane * V + j;
        double from = to_float(x[c]), count = (double)(last - first), a = 0, b = 0;
        for (int at = lane; at < s.across * s.deep; at += s.across) {
            a += cells[0][j * THREADS + at];
            b += cells[1][j * THREADS + at];
        }
        double *to = partial + (int64_t)blockIdx.x * 2 * channels + c;
        to[0] = a + count * from;
        to[channels] = b + from * (2 * a + count * from);
    }
}

/* factor = rstd gamma and term = beta - mean rstd gamma of each channel; a block to a group. */
template <class T>
__global__ void finish_stats(int64_t channels, int64_t rows, int64_t chunks, float eps,
                             const double *partial, const T *gamma, const T *beta, float *factor,
                             float *term) {
    uint32_t width = (uint32_t)channels / gridDim.x, terms = (uint32_t)chunks * width;
    int64_t first = (int64_t)blockIdx.x * width;
    double sum = 0, squares = 0;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < terms; i += THREADS) {
        const double *from = partial + (int64_t)(i / width) * 2 * channels + first + i % width;
        sum += from[0];
        squares += from[channels];
    }
    double count = (double)(rows * (int64_t)width), mean = block_sum_f64(sum) / count;
    double variance = block_sum_f64(squares) / count - mean * mean;
    double rstd = 1 / sqrt((variance < 0 ? 0 : variance) + (double)eps);
    for (int64_t j = first + threadIdx.x; j < first + width; j += THREADS) {
        double scaled = rstd * (double)to_float(gamma[j]);
        factor[j] = (float)scaled;
        term[j] = (float)((double)to_float(beta[j]) - mean * scaled);
    }
}

/* The cell of the small grid that frame t, line h takes: its first column. */
__device__ __forceinline__ int64_t cell_line(const GroupNorm *n, int64_t t, int64_t h) {
    const int64_t *grid = n->grid;
    int64_t frame = t * grid[0] / n->frames;
    if (n->frames > 1 && n->frames % 2 == 1)
        frame = t ? 1 + (t - 1) * (grid[0] - 1) / (n->frames - 1) : 0;
    return (frame * grid[1] + h * grid[1] / n->height) * grid[2];
}

/* Besides its place in y, z may be context: the frames before the first of y, or `next`. */
template <class T, int V>
__device__ __forceinline__ void put_context(const GroupNorm *n, int64_t t, int64_t at,
                                            int64_t frame, Pack<T, V> z, T *y) {
    T *next = (T *)n->next;
    if (next && t >= n->frames - CONTEXT)
        store_pack(next + (t - (n->frames - CONTEXT)) * frame + at, z);
    if (t > 0) return;
    for (int k = 0; k < CONTEXT; k++) {
        Pack<T, V> before = n->past ? load_pack<V>((const T *)n->past + k * frame + at) : z;
        store_pack(y + k * frame + at, before);
        /* What precedes a single frame stays what precedes the next. */
        if (next && n->frames == 1 && k == CONTEXT - 1) store_pack(next + at, before);
    }
}

/* silu within two units in the last place; where it is rounded to 16 bits by the GPU's own
 * exponential, which errs by no more than 2^-22. */
template <class T> __device__ __forceinline__ float silu_for(float x) {
    return __fdividef(x, 1 + (sizeof(T) == sizeof(float) ? exp_float(-x) : __expf(-x)));
}

/* z = silu of a pack, which is at `cell` of the tables. */
template <class T, int V, bool TABLES>
__device__ __forceinline__ void norm_pack(const GroupNorm *n, int64_t cell, const float *factor,
                                          const float *term, float *z) {
    float scale[V], shift[V];
    if (TABLES) {
        load<V>((const T *)n->scale + cell, scale);
        load<V>((const T *)n->shift + cell, shift);
    }
#pragma unroll
    for (int j = 0; j < V; j++) {
        float v = z[j] * factor[j] + term[j];
        z[j] = silu_for<T>(TABLES ? v * scale[j] + shift[j] : v);
    }
}

/* A block takes STEPS runs of pixels of one line, BATCH of them at a time, so that as many reads
 * are on their way; three blocks at once keep a multiprocessor busy. */
template <class T, int V, bool TABLES>
__global__ void __launch_bounds__(THREADS, 3)
    norm_silu(GroupNorm n, uint32_t segments, const float *factors, const float *terms, T *y) {
    Stand s = stand<V>(n.channels);
    if (s.pixel >= s.deep) return;
    int64_t line = blockIdx.x / segments, t = line / n.height, h = line % n.height;
    int64_t c = n.channels, frame = n.height * n.width * c, cell = TABLES ? cell_line(&n, t, h) : 0;
    bool context = t == 0 || (n.next && t >= n.frames - CONTEXT);
    const T *x = (const T *)n.x + t * frame;
    T *to = y + (CONTEXT + t) * frame;
    float factor[V], term[V];
    load_reals<V>(factors + s.channel, factor);
    load_reals<V>(terms + s.channel, term);
    int first = (int)(blockIdx.x % segments) * s.deep * STEPS + s.pixel, end = (int)n.width;
    int64_t begin = h * n.width * c + s.channel; /* of the line, in a frame */
    for (int w0 = first; w0 < MIN(first + s.deep * STEPS, end); w0 += s.deep * BATCH) {
        Pack<T, V> packs[BATCH] = {};
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            int w = w0 + k * s.deep;
            if (w < end) packs[k] = load_pack<V>(x + begin + w * c);
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            int w = w0 + k * s.deep;
            if (w >= end) break;
            uint32_t column = TABLES ? (uint32_t)w * (uint32_t)n.grid[2] / (uint32_t)end : 0;
            float z[V];
            to_floats(packs[k], z);
            norm_pack<T, V, TABLES>(&n, (cell + column) * c + s.channel, factor, term, z);
            packs[k] = pack_of<T, V>(z);
            store_pack(to + begin + w * c, packs[k]);
        }
        if (!context) continue;
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            int w = w0 + k * s.deep;
            if (w < end) put_context(&n, t, begin + w * c, frame, packs[k], y);
        }
    }
}

template <class T, int V> static void start(Stream *s, const GroupNorm *n, T *y) {
    Sums sums = sums_of(s, n, V);
    int64_t c = n->channels, run = deep_of(c, V) * STEPS;
    uint32_t segments = blocks_for(n->width, run);
    unsigned tiles = blocks_for(c, THREADS * V);
    dim3 chunks(blocks_for(sums.chunks, 1), tiles);
    LAUNCH((sum_channels<T, V>), chunks, THREADS, 0, cuda_queue(s), sums.rows, c, sums.chunk_rows,
           (const T *)n->x, sums.partial);
    LAUNCH((finish_stats<T>), blocks_for(n->groups, 1), THREADS, 0, cuda_queue(s), c, sums.rows,
           sums.chunks, n->eps, sums.partial, (const T *)n->gamma, (const T *)n->beta, sums.factor,
           sums.term);
    dim3 lines(blocks_for(n->frames * n->height * segments, 1), tiles);
    if (n->scale)
        LAUNCH((norm_silu<T, V, true>), lines, THREADS, 0, cuda_queue(s), *n, segments, sums.factor,
               sums.term, y);
    else
        LAUNCH((norm_silu<T, V, false>), lines, THREADS, 0, cuda_queue(s), *n, segments,
               sums.factor, sums.term, y);
    cuda_check_launch("group_norm");
}

void cuda_group_norm(Stream *s, const GroupNorm *n, void *y) {
    CHECK(n->width * MAX(n->grid[2], 1) <= INT32_MAX - THREADS * STEPS,
          "group_norm: lines of %lld pixels are too long", (long long)n->width);
    if (n->frames * n->height * n->width * n->channels == 0) return;
    uintptr_t addresses = (uintptr_t)n->x | (uintptr_t)n->scale | (uintptr_t)n->shift;
    addresses |= (uintptr_t)n->past | (uintptr_t)n->next | (uintptr_t)y;
    WITH_PACKS(n->t, packable(n->t, addresses, n->channels), 1, "group_norm", T, V,
               (start<T, V>(s, n, (T *)y)));
}
