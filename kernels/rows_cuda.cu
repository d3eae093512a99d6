/* CUDA kernels that move rows and patches to other places. What is moved keeps its bits. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/packs.cuh"

/* A warp moves a row, BATCH packs a lane at a time, so that as many reads are on their way. */
enum { ROWS_PER_BLOCK = 8, ROW_THREADS = ROWS_PER_BLOCK * WARP, BATCH = 4 };

__device__ __forceinline__ int64_t row_of_warp() {
    return (int64_t)blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP;
}

template <class T, int V>
__device__ __forceinline__ void put_pack(Pack<T, V> pack, float keep, T *to) {
    if (keep == 0) {
        store_pack(to, pack);
    } else {
        float x[V];
        to_floats(pack, x);
        store_kept<V>(to, keep, x);
    }
}

/* to = keep * to + from over one row; from NULL stands for zeros. */
template <class T, int V>
__device__ __forceinline__ void put_row(const T *from, int64_t width, float keep, T *to) {
    for (int64_t j0 = threadIdx.x % WARP * V; j0 < width; j0 += BATCH * WARP * V) {
        Pack<T, V> packs[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            bool there = from && j0 + k * WARP * V < width;
            packs[k] = load_pack_if<V>(there, there ? from + j0 + k * WARP * V : from);
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (j0 + k * WARP * V < width) put_pack(packs[k], keep, to + j0 + k * WARP * V);
    }
}

/* y[i] = source[i] >= 0 ? text[source[i]] : video[-1 - source[i]]; without video: zeros. */
template <class T, int V>
__global__ void pull_rows(int64_t rows, int64_t width, const int32_t *source, const T *text,
                          const T *video, T *y) {
    int64_t i = row_of_warp();
    if (i >= rows) return;
    int64_t at = source[i];
    const T *from = at >= 0 ? text + at * width : video ? video + (-1 - at) * width : NULL;
    put_row<T, V>(from, width, 0, y + i * width);
}

/* The adjoint; NULL gradients are not wanted. */
template <class T, int V>
__global__ void push_rows(int64_t rows, int64_t width, const int32_t *source, const T *dy,
                          float keep_text, T *dtext, float keep_video, T *dvideo) {
    int64_t i = row_of_warp();
    if (i >= rows) return;
    int64_t at = source[i];
    T *to = at >= 0 ? dtext : dvideo;
    if (!to) return;
    to += (at >= 0 ? at : -1 - at) * width;
    put_row<T, V>(dy + i * width, width, at >= 0 ? keep_text : keep_video, to);
}

void cuda_join(Stream *s, DType t, int64_t rows, int64_t width, const int32_t *source,
               const void *text, const void *video, void *y) {
    if (rows == 0 || width == 0) return;
    bool wide = packable(t, (uintptr_t)text | (uintptr_t)video | (uintptr_t)y, width);
    unsigned blocks = blocks_for(rows, ROWS_PER_BLOCK);
    WITH_PACKS(t, wide, 1, "join", T, V,
               LAUNCH((pull_rows<T, V>), blocks, ROW_THREADS, 0, cuda_queue(s), rows, width, source,
                      (const T *)text, (const T *)video, (T *)y));
    cuda_check_launch("join");
}

void cuda_split(Stream *s, DType t, int64_t rows, int64_t width, const int32_t *source,
                const void *dy, real keep_text, void *dtext, real keep_video, void *dvideo) {
    if (rows == 0 || width == 0) return;
    bool wide = packable(t, (uintptr_t)dy | (uintptr_t)dtext | (uintptr_t)dvideo, width);
    unsigned blocks = blocks_for(rows, ROWS_PER_BLOCK);
    WITH_PACKS(t, wide, 1, "split", T, V,
               LAUNCH((push_rows<T, V>), blocks, ROW_THREADS, 0, cuda_queue(s), rows, width, source,
                      (const T *)dy, keep_text, (T *)dtext, keep_video, (T *)dvideo));
    cuda_check_launch("split");
}

void cuda_gather_rows(Stream *s, DType t, int64_t n, int64_t width, const int32_t *index,
                      const void *x, void *y) {
    cuda_join(s, t, n, width, index, x, NULL, y);
}

enum { THREADS = 256 };

/* inverse[i] = -1: no row of dy goes to row i. */
__global__ void no_rows(int64_t rows, int32_t *inverse) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < rows) inverse[i] = -1;
}

__global__ void invert_index(int64_t n, const int32_t *index, int64_t first, int64_t rows,
                             int32_t *inverse) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n && index[i] >= first && index[i] < first + rows)
        inverse[index[i] - first] = (int32_t)i;
}

/* With keep 0 the rows of dx fetch what is theirs, which writes each of them once. */
void cuda_scatter_rows(Stream *s, DType t, int64_t n, int64_t rows, int64_t width,
                       const int32_t *index, const void *dy, real keep, void *dx) {
    if (keep != 0) {
        cuda_split(s, t, n, width, index, dy, keep, dx, 0, NULL);
        return;
    }
    const int64_t window = SCRATCH_BYTES / (int64_t)sizeof(int32_t);
    int32_t *inverse = (int32_t *)cuda_scratch(s);
    int64_t row_bytes = width * (int64_t)dtype_size(t);
    for (int64_t first = 0; first < rows; first += window) {
        int64_t count = MIN(window, rows - first);
        LAUNCH(no_rows, blocks_for(count, THREADS), THREADS, 0, cuda_queue(s), count, inverse);
        if (n > 0)
            LAUNCH(invert_index, blocks_for(n, THREADS), THREADS, 0, cuda_queue(s), n, index, first,
                   count, inverse);
        cuda_check_launch("scatter_rows");
        cuda_join(s, t, count, width, inverse, dy, NULL, (char *)dx + first * row_bytes);
    }
}

/* A Patch whose elements may be pairs of neighbours in a line. */
typedef struct {
    int64_t channels, height, width; /* of latents; width in elements */
    int64_t row_width, offset;
    uint32_t patch_t, patch, patch_w; /* patch_w columns of a patch's line, in elements */
    uint32_t across, down, columns;   /* patches side by side; columns of this tensor in a row */
} Grid;

/* Words of two elements are only ever moved. */
__device__ __forceinline__ void put(uint32_t x, float, uint32_t *to) { *to = x; }
__device__ __forceinline__ void put(uint2 x, float, uint2 *to) { *to = x; }
template <class T> __device__ __forceinline__ void put(T x, float keep, T *to) {
    *to = keep == 0 ? x : from_float<T>(kept(keep, to, to_float(x)));
}

/* A block moves one line of patches. Its threads follow what is written; what they read lies in as
 * many lines as a row has, which stay in the first cache. */
template <class T, bool TO_ROWS>
__global__ void move_patches(Grid g, const T *from, float keep, T *to) {
    uint32_t h = blockIdx.x % g.down, f = blockIdx.x / g.down;
    uint32_t line_width = g.across * g.patch_w, run = TO_ROWS ? g.columns : line_width;
    int64_t strip = (int64_t)blockIdx.x * g.across * g.row_width + g.offset;
    int64_t top = (int64_t)f * g.patch_t * g.channels * g.height + (int64_t)h * g.patch;
    for (uint32_t e = threadIdx.x; e < g.across * g.columns; e += THREADS) {
        uint32_t outer = e / run, inner = e % run;
        /* line: (c, a, i), which of the latents' lines; x: where in it. */
        uint32_t line = TO_ROWS ? inner / g.patch_w : outer;
        uint32_t x = TO_ROWS ? outer * g.patch_w + inner % g.patch_w : inner;
        uint32_t i = line % g.patch, plane = line / g.patch;
        uint32_t a = plane % g.patch_t, c = plane / g.patch_t;
        int64_t latent = (top + ((int64_t)a * g.channels + c) * g.height + i) * g.width + x;
        int64_t place = strip + x / g.patch_w * g.row_width + line * g.patch_w + x % g.patch_w;
        put(from[TO_ROWS ? latent : place], keep, to + (TO_ROWS ? place : latent));
    }
}

static Grid grid_of(const Patch *p, int64_t unit) {
    Grid g = {};
    g.channels = p->channels;
    g.height = p->height;
    g.width = p->width / unit;
    g.row_width = p->row_width / unit;
    g.offset = p->offset / unit;
    g.patch_t = (uint32_t)p->patch_t;
    g.patch = (uint32_t)p->patch;
    g.patch_w = (uint32_t)(p->patch / unit);
    g.across = (uint32_t)(p->width / p->patch);
    g.down = (uint32_t)(p->height / p->patch);
    g.columns = (uint32_t)(p->channels * p->patch_t * p->patch * p->patch / unit);
    return g;
}

template <class T, bool TO_ROWS>
static void start_patches(Stream *s, const Patch *p, int64_t unit, const void *from, real keep,
                          void *to) {
    Grid g = grid_of(p, unit);
    unsigned strips = blocks_for(p->frames / p->patch_t * g.down, 1);
    LAUNCH((move_patches<T, TO_ROWS>), strips, THREADS, 0, cuda_queue(s), g, (const T *)from, keep,
           (T *)to);
}

template <bool TO_ROWS>
static void patches(Stream *s, const Patch *p, const void *from, real keep, void *to) {
    CHECK(p->frames % p->patch_t == 0 && p->height % p->patch == 0 && p->width % p->patch == 0,
          "patches of %lld x %lld do not tile [%lld,%lld,%lld]", (long long)p->patch_t,
          (long long)p->patch, (long long)p->frames, (long long)p->height, (long long)p->width);
    CHECK(p->channels * p->patch_t * p->patch * p->width <= INT32_MAX,
          "a line of patches has more than 2^31 elements");
    if (p->frames * p->channels * p->height * p->width == 0) return;
    uintptr_t bytes = 2 * dtype_size(p->t);
    bool pairs = keep == 0 && (p->patch | p->row_width | p->offset) % 2 == 0 &&
                 ((uintptr_t)from | (uintptr_t)to) % bytes == 0;
    const char *name = TO_ROWS ? "patchify" : "unpatchify";
    if (!pairs)
        WITH_TYPE(p->t, name, T, (start_patches<T, TO_ROWS>(s, p, 1, from, keep, to)));
    else if (bytes == sizeof(uint32_t))
        start_patches<uint32_t, TO_ROWS>(s, p, 2, from, keep, to);
    else
        start_patches<uint2, TO_ROWS>(s, p, 2, from, keep, to);
    cuda_check_launch(name);
}

void cuda_patchify(Stream *s, const Patch *p, const void *x, real keep, void *rows) {
    patches<true>(s, p, x, keep, rows);
}

void cuda_unpatchify(Stream *s, const Patch *p, const void *rows, real keep, void *x) {
    patches<false>(s, p, rows, keep, x);
}

typedef struct {
    int64_t frames, height, width; /* F, H, W */
    int64_t df, dw, dh;
    int64_t first, rows; /* those of the F*H*W that x and y hold */
} Axes;

template <class T, int V>
__global__ void add_tables(Axes a, const T *tf, const T *tw, const T *th, const T *x, T *y) {
    int64_t i = row_of_warp(), columns = a.df + a.dw + a.dh;
    if (i >= a.rows) return;
    int64_t at = a.first + i, w = at % a.width, line = at / a.width, h = line % a.height,
            f = line / a.height;
    for (int64_t j = threadIdx.x % WARP * V; j < columns; j += WARP * V) {
        float sum[V], add[V];
        load<V>(x + i * columns + j, sum);
        load<V>(j < a.df          ? tf + f * a.df + j
                : j < a.df + a.dw ? tw + w * a.dw + (j - a.df)
                                  : th + h * a.dh + (j - a.df - a.dw),
                add);
#pragma unroll
        for (int k = 0; k < V; k++) sum[k] += add[k];
        store<V>(y + i * columns + j, sum);
    }
}

void cuda_add_axes(Stream *s, DType t, const int64_t size[3], const int64_t widths[3],
                   const void *tf, const void *tw, const void *th, int64_t first, int64_t rows,
                   const void *x, void *y) {
    Axes a = {size[0], size[1], size[2], widths[0], widths[1], widths[2], first, rows};
    if (rows == 0) return;
    uintptr_t addresses = (uintptr_t)tf | (uintptr_t)tw | (uintptr_t)th | (uintptr_t)x;
    bool wide = packable(t, addresses | (uintptr_t)y, widths[0] | widths[1] | widths[2]);
    WITH_PACKS(t, wide, 1, "add_axes", T, V,
               LAUNCH((add_tables<T, V>), blocks_for(rows, ROWS_PER_BLOCK), ROW_THREADS, 0,
                      cuda_queue(s), a, (const T *)tf, (const T *)tw, (const T *)th, (const T *)x,
                      (T *)y));
    cuda_check_launch("add_axes");
}
