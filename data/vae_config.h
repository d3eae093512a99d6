/* The shape of a CogVideoX video autoencoder, from its vae/config.json. Missing keys take the
 * defaults of diffusers' AutoencoderKLCogVideoX. */
#pragma once

#include "kernels/base.h"

/* Levels of resolution; pixels a side and frames that a latent stands for. */
enum { VAE_LEVELS = 4, VAE_SPACE = 8, VAE_TIME = 4, VAE_COLORS = 3 };

typedef struct {
    int64_t channels[VAE_LEVELS]; /* block_out_channels */
    int64_t layers;               /* resnets of a down block; an up block has one more */
    int64_t latent;               /* latent_channels */
    int64_t groups;
    double norm_eps;                     /* of the encoder's resnets; all others have 1e-6 */
    int64_t sample_height, sample_width; /* pixels; tiles are half as large */
    double scaling_factor;               /* latents of the transformer = this * z */
    bool invert_scale_latents;           /* image conditions are divided by it instead */
} VaeModel;

/* The sizes of every published CogVideoX: the defaults. */
extern const VaeModel VAE_PUBLISHED;

/* Reads and checks the file. false: *e says which key, what was expected. */
bool vae_model_read(VaeModel *m, const char *path, Error *e);
