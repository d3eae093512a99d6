/* Winograd's minimal filtering F(2x2,3x3) (Lavin and Gray 2016): 16 products where 36 would be.
 *
 *     y = A^T [ sum over taps in time (G w G^T) * (B^T x B) ] A      * element by element
 *
 * Inputs are cut into tiles of 4 x 4 pixels that overlap by 2, outputs into tiles of 2 x 2. Each
 * of the 16 places in a tile is one matrix product over channels and taps in time. The taps of one
 * output frame are neighbours in V [16, tiles, frames, I], so that a product's rows are
 * kt * I long and begin every frames * I elements: the frames are transformed once for all.
 * Each thread works on blocks of tiles of its own, from V to y, whose V stays in a cache.
 */
#include "kernels/conv.h"

#include <omp.h>
#include <string.h>

enum {
    PLACES = 16,
    MIN_TILES = 128,       /* of a frame: fewer do not pay for the transformed weights */
    MIN_CHANNELS = 16,     /* likewise for the products */
    BLOCK_BYTES = 4 << 20, /* of V, if that is enough for MIN_BLOCK tiles */
    MIN_BLOCK = 96,        /* tiles: fewer would read the weights too often */
    PIECE = 64             /* channels of an output that are computed together */
};

typedef struct {
    int64_t across, tiles; /* tiles in a line of the frame, and in the frame */
    int64_t frames;        /* of the input */
    int64_t block;         /* tiles of a block */
} Tiling;

static Tiling tiling_of(const Conv *c) {
    Tiling t = {.across = (c->width * c->enlarge + 1) / 2, .frames = c->frames + c->kt - 1};
    t.tiles = t.across * ((c->height * c->enlarge + 1) / 2);
    int64_t tile_bytes = PLACES * t.frames * c->in * (int64_t)sizeof(real);
    int64_t block = MAX(MIN_BLOCK, BLOCK_BYTES / tile_bytes),
            blocks = (t.tiles + block - 1) / block;
    t.block = (t.tiles + blocks - 1) / blocks;
    return t;
}

bool winograd_suits(const Conv *c) {
    return c->stride == 1 && tiling_of(c).tiles >= MIN_TILES && c->in >= MIN_CHANNELS &&
           c->out >= MIN_CHANNELS;
}

int64_t winograd_packed(const Conv *c) { return PLACES * c->kt * c->in * c->out; }

/* u = G w G^T of one 3 x 3 filter, each element to u[place * step]. */
static inline void transform_filter(const real *w, real *u, int64_t step) {
    real half[4][3];
    for (int j = 0; j < 3; j++) {
        real outer = w[j] + w[6 + j], middle = w[3 + j];
        half[0][j] = w[j];
        half[1][j] = (outer + middle) / 2;
        half[2][j] = (outer - middle) / 2;
        half[3][j] = w[6 + j];
    }
    for (int i = 0; i < 4; i++) {
        real outer = half[i][0] + half[i][2], middle = half[i][1];
        u[(4 * i) * step] = half[i][0];
        u[(4 * i + 1) * step] = (outer + middle) / 2;
        u[(4 * i + 2) * step] = (outer - middle) / 2;
        u[(4 * i + 3) * step] = half[i][2];
    }
}

/* Packed weights are [16, kt, I, O]. */
void winograd_pack(const Conv *c, const real *w, real *packed) {
    int64_t taps = 9 * c->kt, step = c->kt * c->in * c->out;
    enum { LINE = 16 }; /* outputs that share a cache line of the packed weights */
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < c->out; first += LINE)
        for (int64_t i = 0; i < c->in; i++)
            for (int64_t o = first; o < MIN(first + LINE, c->out); o++)
                for (int64_t t = 0; t < c->kt; t++)
                    transform_filter(w + (o * c->in + i) * taps + 9 * t,
                                     packed + (t * c->in + i) * c->out + o, step);
}

/* v = B^T x B for n channels; x[16] point at pixels in the order of rows. */
static void transform_input(const real *const x[PLACES], int64_t n, real *restrict v,
                            int64_t step) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        real d[4][4];
        for (int k = 0; k < 4; k++) {
            real a = x[k][j], b = x[4 + k][j], e = x[8 + k][j], f = x[12 + k][j];
            d[0][k] = a - e;
            d[1][k] = b + e;
            d[2][k] = e - b;
            d[3][k] = b - f;
        }
        for (int i = 0; i < 4; i++) {
            v[(4 * i) * step + j] = d[i][0] - d[i][2];
            v[(4 * i + 1) * step + j] = d[i][1] + d[i][2];
            v[(4 * i + 2) * step + j] = d[i][2] - d[i][1];
            v[(4 * i + 3) * step + j] = d[i][1] - d[i][3];
        }
    }
}

/* One tile of one frame of x, from `zeros` outside of it. */
static void gather_tile(const Conv *c, const Tiling *t, const real *x, const real *zeros,
                        int64_t tile, real *v, int64_t step) {
    const real *pixels[PLACES];
    int64_t top = tile / t->across * 2 - 1, left = tile % t->across * 2 - 1;
    for (int k = 0; k < PLACES; k++) {
        int64_t h = top + k / 4, w = left + k % 4;
        bool inside = h >= 0 && w >= 0 && h < c->height * c->enlarge && w < c->width * c->enlarge;
        pixels[k] = inside ? x + (h / c->enlarge * c->width + w / c->enlarge) * c->in : zeros;
    }
    transform_input(pixels, c->in, v, step);
}

/* out = A^T m A for n <= PIECE channels. */
static inline void transform_output(const real *m, int64_t step, int64_t n, real out[4][PIECE]) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        real top[4], bottom[4];
        for (int k = 0; k < 4; k++) {
            const real *column = m + k * step + j;
            real a = column[0], b = column[4 * step], e = column[8 * step], f = column[12 * step];
            top[k] = a + b + e;
            bottom[k] = b - e - f;
        }
        out[0][j] = top[0] + top[1] + top[2];
        out[1][j] = top[1] - top[2] - top[3];
        out[2][j] = bottom[0] + bottom[1] + bottom[2];
        out[3][j] = bottom[1] - bottom[2] - bottom[3];
    }
}

/* One tile of one output frame y, to two frames where copies is 2. */
static void put_tile(const Conv *c, const Tiling *t, const real *m, int64_t step, int64_t tile,
                     const real *bias, int copies, real *y) {
    int64_t height = c->height * c->enlarge, width = c->width * c->enlarge;
    int64_t top = tile / t->across * 2, left = tile % t->across * 2;
    for (int64_t o = 0; o < c->out; o += PIECE) {
        real out[4][PIECE];
        int64_t n = MIN(PIECE, c->out - o);
        transform_output(m + o, step, n, out);
        for (int k = 0; k < 4 * copies; k++) {
            int64_t h = top + k % 4 / 2, w = left + k % 2;
            if (h >= height || w >= width) continue;
            real *to = y + ((k / 4 * height + h) * width + w) * c->out + o;
            for (int64_t j = 0; j < n; j++)
                to[j] = (c->add ? to[j] : 0) + (out[k % 4][j] + bias[o + j]);
        }
    }
}

/* The product of one output frame: [16] of [tiles, kt * I] by [kt * I, O]. */
static Gemm product_of(const Conv *c, const Tiling *t, int64_t tiles) {
    int64_t k = c->kt * c->in;
    return (Gemm){.type = DT_REAL,
                  .type_c = DT_REAL,
                  .m = tiles,
                  .n = c->out,
                  .k = k,
                  .batch = PLACES,
                  .lda = t->frames * c->in,
                  .ldb = c->out,
                  .ldc = c->out,
                  .stride_a = tiles * t->frames * c->in,
                  .stride_b = k * c->out,
                  .stride_c = tiles * c->out,
                  .alpha = 1};
}

/* A thread's part of the workspace: V, the products M [16, tiles, O], and what a product needs. */
typedef struct {
    size_t m, gemm, end; /* bytes from the beginning */
} Room;

static Room room_of(Stream *s, const Conv *c, const Tiling *t) {
    size_t size = sizeof(real) * PLACES * (size_t)t->block;
    Gemm whole = product_of(c, t, t->block), rest = product_of(c, t, t->tiles % t->block);
    Stream *lane = conv_lanes(s, 1);
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    size_t gemm = MAX(cpu_gemm_workspace(lane, &whole), cpu_gemm_workspace(lane, &rest));
    omp_set_num_threads(threads);
    Room r = {.m = (size_t)align_up((int64_t)size * t->frames * c->in, 256)};
    r.gemm = (size_t)align_up((int64_t)(r.m + size * (size_t)c->out), 256);
    r.end = (size_t)align_up((int64_t)(r.gemm + gemm), 256);
    return r;
}

/* A pixel of zeros comes before the threads' parts. */
static size_t zeros_bytes(const Conv *c) {
    return (size_t)align_up(c->in * (int64_t)sizeof(real), 256);
}

size_t winograd_workspace(Stream *s, const Conv *c) {
    Tiling t = tiling_of(c);
    return zeros_bytes(c) + (size_t)omp_get_max_threads() * room_of(s, c, &t).end;
}

typedef struct {
    const Conv *c;
    Tiling t;
    Room room;
    const real *x, *packed, *bias, *zeros;
    real *y;
} Work;

/* Tiles [first, first + tiles) of all frames, on this thread. */
static void run_block(const Work *w, Stream *lane, char *base, int64_t first, int64_t tiles) {
    const Conv *c = w->c;
    real *v = (real *)base, *m = (real *)(base + w->room.m), *y = w->y;
    int64_t row = w->t.frames * c->in, frame = c->height * c->width * c->in;
    int64_t out = c->height * c->width * c->enlarge * c->enlarge * c->out;
    Gemm g = product_of(c, &w->t, tiles);
    for (int64_t i = 0; i < tiles * w->t.frames; i++)
        gather_tile(c, &w->t, w->x + i % w->t.frames * frame, w->zeros, first + i / w->t.frames,
                    v + i * c->in, tiles * row);
    lane->workspace = base + w->room.gemm;
    lane->workspace_bytes = w->room.end - w->room.gemm;
    for (int64_t f = 0; f < c->frames; f++) {
        int copies = conv_copies(c, f);
        cpu_gemm(lane, &g, v + f * c->in, w->packed, NULL, m);
        for (int64_t i = 0; i < tiles; i++)
            put_tile(c, &w->t, m + i * c->out, tiles * c->out, first + i, w->bias, copies, y);
        y += copies * out;
    }
}

void winograd_run(Stream *s, const Conv *c, const real *x, const real *packed, const real *bias,
                  real *y) {
    Tiling t = tiling_of(c);
    Work w = {c, t, room_of(s, c, &t), x, packed, bias, s->workspace, y};
    int threads = omp_get_max_threads();
    Stream *lanes = conv_lanes(s, threads);
    size_t zeros = zeros_bytes(c), bytes = zeros + (size_t)threads * w.room.end;
    CHECK(bytes <= s->workspace_bytes, "conv: needs %zu bytes of workspace, has %zu", bytes,
          s->workspace_bytes);
    memset(s->workspace, 0, zeros);
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num();
        char *base = (char *)s->workspace + zeros + (size_t)thread * w.room.end;
        omp_set_num_threads(1); /* of the products' own threads, within this region */
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < t.tiles; first += t.block)
            run_block(&w, &lanes[thread], base, first, MIN(t.block, t.tiles - first));
    }
}
