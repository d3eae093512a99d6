/* Owns tiles: where they lie and how they are blended. */
#include "data/vae_tiles.h"

/* Half of 480 x 720 pixels, unless the model says otherwise. */
const VaeTiling VAE_TILING_DEFAULT = {
    .choice = VAE_TILE_AUTO, .overlap_height = 1.0 / 6, .overlap_width = 1.0 / 5};

/* Products are cut off as Python's int() does. */
static TileAxis axis_of(VaeHalfName half, int64_t pixels, double overlap) {
    int64_t latents = pixels / VAE_SPACE;
    bool encoder = half == VAE_ENCODER;
    TileAxis a = {.tile = encoder ? pixels : latents};
    int64_t out = encoder ? latents : pixels;
    a.stride = (int64_t)((double)a.tile * (1 - overlap));
    a.blend = (int64_t)((double)out * overlap);
    a.keep = out - a.blend;
    return a;
}

/* Pieces that are kept must meet, and the encoder's must be whole latents. */
static bool check_axis(const TileAxis *a, VaeHalfName half, const char *axis, Error *e) {
    int64_t up = half == VAE_DECODER ? VAE_SPACE : 1, down = half == VAE_ENCODER ? VAE_SPACE : 1;
    if (a->tile >= 1 && a->tile % down == 0 && a->stride >= 1 && a->stride % down == 0 &&
        a->stride / down * up == a->keep)
        return true;
    return error_set(e, EXIT_USER,
                     "vae.tile_%s and vae.overlap_%s: tiles of %lld that begin every %lld do not "
                     "join; expected a tile and a stride, tile * (1 - overlap), of whole latents "
                     "(8 pixels)",
                     axis, axis, (long long)a->tile, (long long)a->stride);
}

bool tile_axes(const VaeModel *m, VaeHalfName half, const VaeTiling *t, int64_t height,
               int64_t width, TileAxis axes[2], bool *tiled, Error *e) {
    axes[0] = axis_of(half, t->height ? t->height : m->sample_height / 2, t->overlap_height);
    axes[1] = axis_of(half, t->width ? t->width : m->sample_width / 2, t->overlap_width);
    *tiled = height > axes[0].tile || width > axes[1].tile;
    return !*tiled ||
           (check_axis(&axes[0], half, "height", e) && check_axis(&axes[1], half, "width", e));
}

int tile_count(const TileAxis *a, int64_t size) {
    return (int)((size + a->stride - 1) / a->stride);
}

int64_t tile_size(const TileAxis *a, int64_t size, int i) {
    return MIN(a->tile, size - i * a->stride);
}

/* What stays of b at step i of `blend`. */
static float share(int64_t i, int64_t blend) { return (float)((double)i / (double)blend); }

static float rest(int64_t i, int64_t blend) { return (float)(1 - (double)i / (double)blend); }

void tile_blend_down(const Tile *above, Tile *b, int64_t blend) {
    blend = MIN(MIN(above->height, b->height), blend);
    for (int64_t p = 0; p < b->n; p++)
        for (int64_t i = 0; i < blend; i++) {
            const float *from =
                above->x + (p * above->height + above->height - blend + i) * above->width;
            float *to = b->x + (p * b->height + i) * b->width;
            for (int64_t j = 0; j < b->width; j++)
                to[j] = from[j] * rest(i, blend) + to[j] * share(i, blend);
        }
}

void tile_blend_right(const Tile *left, Tile *b, int64_t blend) {
    blend = MIN(MIN(left->width, b->width), blend);
    for (int64_t line = 0; line < b->n * b->height; line++) {
        const float *from = left->x + line * left->width + left->width - blend;
        float *to = b->x + line * b->width;
        for (int64_t i = 0; i < blend; i++)
            to[i] = from[i] * rest(i, blend) + to[i] * share(i, blend);
    }
}
