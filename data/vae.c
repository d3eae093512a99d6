/* Owns the autoencoder's jobs: plans for one size, whole or in tiles, and their runs. */
#include "data/vae_tiles.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One size of tile (or the whole), recorded, planned and placed. */
typedef struct {
    int64_t height, width;
    Graph *graph;
    VaeGraph io;
    Plan *plan;
    Run *run;
    char *bound; /* the arena that `run` knows */
} Shaped;

struct VaeJob {
    Vae *vae;
    VaeHalfName half;
    int64_t frames, height, width; /* of the input */
    bool tiled;
    TileAxis axes[2];
    Shaped *shaped; /* [n_shaped] inner tiles, and those at the right and lower border */
    int n_shaped;
};

/* ---- planning ---------------------------------------------------------------------------------
 */

static Shaped *shaped_of(VaeJob *j, int64_t height, int64_t width) {
    for (int i = 0; i < j->n_shaped; i++)
        if (j->shaped[i].height == height && j->shaped[i].width == width) return &j->shaped[i];
    Vae *v = j->vae;
    j->shaped = xrealloc(j->shaped, (size_t)(j->n_shaped + 1) * sizeof *j->shaped);
    Shaped *s = &j->shaped[j->n_shaped++];
    *s =
        (Shaped){.height = height, .width = width, .graph = graph_open(v->compute, v->net->params)};
    s->io = vae_record(v->net, j->half, s->graph, v->memory.k, j->frames, height, width);
    s->plan = plan_open(s->graph);
    plan_homes(s->plan, 1);
    plan_place(s->plan, &(Ctx){.k = v->memory.k, .stream = v->stream});
    return s;
}

static void drop_shaped(VaeJob *j) {
    for (int i = 0; i < j->n_shaped; i++) {
        run_close(j->shaped[i].run);
        plan_close(j->shaped[i].plan);
        graph_close(j->shaped[i].graph);
    }
    j->n_shaped = 0;
}

static int rows_of(const VaeJob *j) { return j->tiled ? tile_count(&j->axes[0], j->height) : 1; }

static int columns_of(const VaeJob *j) { return j->tiled ? tile_count(&j->axes[1], j->width) : 1; }

static int64_t row_height(const VaeJob *j, int i) {
    return j->tiled ? tile_size(&j->axes[0], j->height, i) : j->height;
}

static int64_t column_width(const VaeJob *j, int i) {
    return j->tiled ? tile_size(&j->axes[1], j->width, i) : j->width;
}

static void plan_all(VaeJob *j) {
    for (int r = 0; r < rows_of(j); r++)
        for (int c = 0; c < columns_of(j); c++) shaped_of(j, row_height(j, r), column_width(j, c));
}

static bool check_size(const VaeJob *j, Error *e) {
    int64_t multiple = j->half == VAE_ENCODER ? VAE_SPACE : 1;
    const int64_t most = 1 << 16; /* keeps every product of sizes in 64 bits */
    if (j->frames < 1 || j->frames > most || j->height < 1 || j->height > most || j->width < 1 ||
        j->width > most || j->height % multiple || j->width % multiple)
        return error_set(e, EXIT_USER,
                         "a %s of %lld x %lld x %lld: expected 1 to 65536 frames, and height and "
                         "width that are multiples of %lld",
                         j->half == VAE_ENCODER ? "video" : "latent", (long long)j->frames,
                         (long long)j->height, (long long)j->width, (long long)multiple);
    return true;
}

static VaeJob *give_up(VaeJob *j) {
    vae_job_close(j);
    return NULL;
}

VaeJob *vae_job_open(Vae *v, VaeHalfName half, int64_t frames, int64_t height, int64_t width,
                     const VaeTiling *tiling, int64_t available, Error *e) {
    if (!tiling) tiling = &VAE_TILING_DEFAULT;
    Error why;
    int64_t whole = 0; /* bytes without tiles, where that was tried */
    VaeJob *j = xcalloc(1, sizeof *j);
    *j = (VaeJob){.vae = v, .half = half, .frames = frames, .height = height, .width = width};
    if (!check_size(j, e)) return give_up(j);
    if (tiling->choice != VAE_TILE_ON) {
        plan_all(j);
        whole = vae_job_bytes(j);
        if (tiling->choice == VAE_TILE_OFF || whole <= available) return j;
        drop_shaped(j);
    }
    if (!tile_axes(&v->model, half, tiling, height, width, j->axes, &j->tiled, &why)) {
        *e = why;
        if (whole)
            error_set(e, EXIT_USER,
                      "the autoencoder needs %.0f MiB, more than the %.0f MiB of memory that it "
                      "may take, and it cannot work in tiles: %s",
                      (double)whole / (1 << 20), (double)MAX(available, 0) / (1 << 20), why.text);
        return give_up(j);
    }
    plan_all(j);
    return j;
}

void vae_job_close(VaeJob *j) {
    if (!j) return;
    drop_shaped(j);
    free(j->shaped);
    free(j);
}

static int64_t arena_bytes(const VaeJob *j) {
    int64_t bytes = 0;
    for (int i = 0; i < j->n_shaped; i++)
        bytes = MAX(bytes, j->shaped[i].plan->arena_bytes + j->shaped[i].plan->workspace_bytes);
    return bytes;
}

int64_t vae_job_bytes(const VaeJob *j) {
    int64_t bytes = arena_bytes(j);
    for (int i = 0; i < j->n_shaped; i++) bytes += j->shaped[i].plan->const_bytes;
    return bytes;
}

/* 0: it cannot be. */
static int64_t bytes_with(Vae *v, VaeTileChoice choice, const VaeJob *want,
                          const VaeTiling *tiling) {
    VaeTiling t = *tiling;
    Error ignored;
    t.choice = choice;
    VaeJob *j =
        vae_job_open(v, want->half, want->frames, want->height, want->width, &t, 0, &ignored);
    int64_t bytes = j ? vae_job_bytes(j) : 0;
    vae_job_close(j);
    return bytes;
}

int64_t vae_least_bytes(const VaeModel *m, Device device, VaeHalfName half, int64_t frames,
                        int64_t height, int64_t width, const VaeTiling *tiling) {
    Vae v = {.model = *m, .net = vae_net_open(m), .compute = device.compute};
    VaeJob want = {.half = half, .frames = frames, .height = height, .width = width};
    v.memory.k = device.k;
    if (device.k->stream_open) v.stream = device.k->stream_open();
    params_rest(v.net->params, HOME_FILE, DT_F32);
    int64_t whole = 0, tiles = 0;
    if (tiling->choice != VAE_TILE_ON) whole = bytes_with(&v, VAE_TILE_OFF, &want, tiling);
    if (tiling->choice != VAE_TILE_OFF) tiles = bytes_with(&v, VAE_TILE_ON, &want, tiling);
    params_close(v.net->params, &v.memory);
    vae_net_close(v.net);
    if (v.stream) device.k->stream_close(v.stream);
    return whole && tiles ? MIN(whole, tiles) : MAX(whole, tiles);
}

bool vae_job_tiled(const VaeJob *j) { return j->tiled; }

void vae_job_out(const VaeJob *j, int64_t size[4]) {
    bool encoder = j->half == VAE_ENCODER;
    size[0] = encoder ? 2 * j->vae->model.latent : VAE_COLORS;
    size[1] = vae_frames_out(j->half, j->frames);
    size[2] = encoder ? j->height / VAE_SPACE : j->height * VAE_SPACE;
    size[3] = encoder ? j->width / VAE_SPACE : j->width * VAE_SPACE;
}

Cost vae_job_cost(const VaeJob *j) {
    Cost sum = {0};
    for (int r = 0; r < rows_of(j); r++)
        for (int c = 0; c < columns_of(j); c++) {
            Cost one =
                plan_cost(shaped_of((VaeJob *)j, row_height(j, r), column_width(j, c))->plan, -1);
            sum.flops += one.flops;
            sum.bytes += one.bytes;
        }
    return sum;
}

/* ---- one tile ---------------------------------------------------------------------------------
 */

static void bind(VaeJob *j, Shaped *s) {
    Vae *v = j->vae;
    size_t bytes = (size_t)arena_bytes(j);
    if (bytes > v->arena_bytes) {
        memory_release(&v->memory, v->arena, v->arena_bytes);
        v->arena = memory_alloc(&v->memory, bytes, "autoencoder");
        v->arena_bytes = bytes;
    }
    if (s->bound == v->arena) return;
    run_close(s->run);
    s->run = run_open(s->plan, &v->memory, v->stream, v->arena);
    s->bound = v->arena;
}

/* A chunk of frames [T,H,W,C] into planes [C,total,H,W], from frame `first` on. */
static void put_frames(const float *rows, Shape shape, int64_t total, int64_t first,
                       float *planes) {
    int64_t channels = shape.dim[3], area = shape.dim[1] * shape.dim[2];
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < channels; c++)
        for (int64_t t = 0; t < shape.dim[0]; t++) {
            float *to = planes + (c * total + first + t) * area;
            for (int64_t i = 0; i < area; i++) to[i] = rows[(t * area + i) * channels + c];
        }
}

/* in: planes of the tile's own size; out: planes that belong to the caller. */
static Tile run_tile(VaeJob *j, const float *in, int64_t height, int64_t width) {
    Shaped *s = shaped_of(j, height, width);
    int64_t size[4];
    vae_job_out(j, size);
    Tile out = {.n = size[0] * size[1],
                .height = s->io.out[0]->shape.dim[1],
                .width = s->io.out[0]->shape.dim[2]};
    out.x = xcalloc((size_t)(out.n * out.height * out.width), sizeof *out.x);
    bind(j, s);
    s->run->poison = j->vae->poison;
    run_input_f32(s->run, s->io.in, in);
    run_plan(s->run, &(RunArgs){0});
    int64_t first = 0;
    for (int i = 0; i < s->io.n; i++) {
        const Tensor *t = s->io.out[i];
        float *rows = xcalloc((size_t)tensor_count(t), sizeof *rows);
        run_output_f32(s->run, t, rows);
        put_frames(rows, t->shape, size[1], first, out.x);
        free(rows);
        first += t->shape.dim[0];
    }
    return out;
}

/* ---- the whole --------------------------------------------------------------------------------
 */

/* Lines and columns [top, top + height) x [left, left + width) of n planes [H,W]. */
static float *cut(const float *in, int64_t n, int64_t H, int64_t W, int64_t top, int64_t left,
                  int64_t height, int64_t width) {
    float *out = xcalloc((size_t)(n * height * width), sizeof *out);
    for (int64_t i = 0; i < n * height; i++)
        memcpy(out + i * width, in + ((i / height * H) + top + i % height) * W + left,
               (size_t)width * sizeof *out);
    return out;
}

/* Tiles of row r, each blended with its neighbours above and to the left, which were before. */
static void run_row(VaeJob *j, const float *in, int r, const Tile *above, Tile *row) {
    int64_t n = (j->half == VAE_ENCODER ? VAE_COLORS : j->vae->model.latent) * j->frames;
    int64_t height = row_height(j, r);
    for (int c = 0; c < columns_of(j); c++) {
        int64_t width = column_width(j, c);
        float *piece = cut(in, n, j->height, j->width, r * j->axes[0].stride, c * j->axes[1].stride,
                           height, width);
        row[c] = run_tile(j, piece, height, width);
        free(piece);
        if (r) tile_blend_down(&above[c], &row[c], j->axes[0].blend);
        if (c) tile_blend_right(&row[c - 1], &row[c], j->axes[1].blend);
    }
}

/* What is kept of a row's tiles goes side by side into the output. */
static void keep_row(const VaeJob *j, int r, const Tile *row, float *out) {
    int64_t size[4];
    vae_job_out(j, size);
    for (int c = 0; c < columns_of(j); c++) {
        const Tile *t = &row[c];
        int64_t lines = MIN(t->height, j->axes[0].keep), top = r * j->axes[0].keep;
        int64_t columns = MIN(t->width, j->axes[1].keep), left = c * j->axes[1].keep;
        for (int64_t i = 0; i < t->n * lines; i++)
            memcpy(out + ((i / lines * size[2]) + top + i % lines) * size[3] + left,
                   t->x + (i / lines * t->height + i % lines) * t->width,
                   (size_t)columns * sizeof *out);
    }
}

static void free_row(Tile *row, int columns) {
    for (int c = 0; row && c < columns; c++) free(row[c].x);
    free(row);
}

void vae_run(VaeJob *j, const float *in, float *out) {
    if (!j->tiled) {
        Tile whole = run_tile(j, in, j->height, j->width);
        memcpy(out, whole.x, (size_t)(whole.n * whole.height * whole.width) * sizeof *out);
        free(whole.x);
        return;
    }
    int columns = columns_of(j);
    Tile *above = NULL;
    for (int r = 0; r < rows_of(j); r++) {
        Tile *row = xcalloc((size_t)columns, sizeof *row);
        run_row(j, in, r, above, row);
        keep_row(j, r, row, out);
        free_row(above, columns);
        above = row;
    }
    free_row(above, columns);
}

Run *vae_job_run(const VaeJob *j) { return j->shaped[0].run; }

void posterior_deviation(const float *moments, int64_t n, float *deviation) {
    for (int64_t i = 0; i < n; i++)
        deviation[i] = expf(0.5f * MIN(MAX(moments[n + i], -30.0f), 20.0f));
}

void posterior_sample(const float *moments, const float *noise, int64_t n, float *z) {
    posterior_deviation(moments, n, z);
    for (int64_t i = 0; i < n; i++) z[i] = moments[i] + z[i] * noise[i];
}
