/* Random numbers: Philox4x32-10 (Salmon et al. 2011, as in Random123), stateless.
 *
 * Layout, for others to reproduce. Key words: {low, high} 32 bits of the run's seed. Counter words:
 * {element / 4, sample ordinal, step, purpose}; lane element % 4 of the four outputs belongs to the
 * element. The element counts within its sample, the ordinal is the index of consumption over the
 * whole run, so a draw does not depend on packs or ranks.
 *
 *   uniform(u)   = (u >> 9) * 2^-23 + 2^-24, in (0, 1) and exact in a float
 *   normals      : lanes (0,1) and (2,3) are Box-Muller pairs: r = sqrt(-2 log u0), a = 2 pi u1,
 *                  z0 = r cos a, z1 = r sin a, with the polynomials of kernels/math.h
 *   dropout      : elements take 16 bits, the lower half of a lane before the upper: counter
 *                  element / 8, lane element % 8 / 2. An element is zeroed where they are below
 *                  round(p * 2^16), and the others are scaled by what that leaves
 */
#pragma once

#include "kernels/base.h"

/* What a draw is for. Dropout nodes use PURPOSE_DROPOUT + their number in the graph. */
enum {
    PURPOSE_TIMESTEP = 1,
    PURPOSE_NOISE = 2,
    PURPOSE_POSTERIOR = 3,
    PURPOSE_CAPTION_DROPOUT = 4,
    PURPOSE_IMAGE_NOISE = 5,
    PURPOSE_IMAGE_DROPOUT = 6,
    PURPOSE_INIT = 7,
    PURPOSE_ORDER = 8,
    PURPOSE_SAMPLE_START = 9,      /* the noise that sampling starts from */
    PURPOSE_SAMPLE_STEP = 10,      /* what a stochastic scheduler draws: trainer/sample_noise.h */
    PURPOSE_SAMPLE_POSTERIOR = 11, /* of an image or video that sampling starts from */
    PURPOSE_IMAGE_SIGMA = 12,      /* how strong a cached image condition's noise is */
    PURPOSE_IMAGE_POSTERIOR = 13,  /* of a cached image condition */
    PURPOSE_DROPOUT = 1 << 16,
};

typedef struct {
    uint64_t seed;
    uint32_t ordinal, step, purpose;
} Draw;

void random_bits(Draw d, int64_t first, int64_t n, uint32_t *out);
/* 16 bits each; first is even. */
void random_halves(Draw d, int64_t first, int64_t n, uint16_t *out);
void random_uniform(Draw d, int64_t first, int64_t n, float *out);
/* n standard normals for elements [first, first + n). */
void random_normal(Draw d, int64_t first, int64_t n, float *out);

static inline uint32_t dropout_threshold(double p) { return (uint32_t)(p * 65536 + 0.5); }
