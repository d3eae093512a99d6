/* The geometry of spatial tiles, and how their seams are blended; as diffusers does both. */
#pragma once

#include "data/vae.h"

/* Along one axis: tiles of `tile` begin every `stride` (input units); of each, `keep` are kept and
 * the first `blend` mixed with its predecessor's last (output units). */
typedef struct {
    int64_t tile, stride, keep, blend;
} TileAxis;

/* How the axes of an input of height x width are tiled; tiled[i] false: one piece. false: *e says
 * which setting cannot be. */
bool tile_axes(const VaeModel *m, VaeHalfName half, const VaeTiling *t, int64_t height,
               int64_t width, TileAxis axes[2], bool *tiled, Error *e);

/* Tiles along an axis of `size` input units, and where tile i begins and how large it is. */
int tile_count(const TileAxis *a, int64_t size);
int64_t tile_size(const TileAxis *a, int64_t size, int i);

/* A tile's output: planes [n,H,W]. */
typedef struct {
    float *x;
    int64_t n, height, width;
} Tile;

/* Mixes the first lines of b with the last of `above`, the first columns with those of `left`. */
void tile_blend_down(const Tile *above, Tile *b, int64_t blend);
void tile_blend_right(const Tile *left, Tile *b, int64_t blend);
