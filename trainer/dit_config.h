/* The shape of a CogVideoX transformer, from its transformer/config.json. Names are diffusers'.
 * Missing keys take the defaults of diffusers' CogVideoXTransformer3DModel. */
#pragma once

#include "kernels/base.h"

typedef struct {
    int64_t heads, head_size, width; /* N, E, D = N * E */
    int64_t layers;
    int64_t in_channels,
        out_channels;              /* in = out, or 2 * out: image latents behind the noisy ones */
    int64_t patch, patch_t;        /* p; 1 where patch_size_t is null */
    bool temporal_patch;           /* patch_size_t is given: the 1.5 models */
    int64_t time_dim, ofs_dim;     /* ofs_dim 0: no ofs embedding */
    int64_t text_dim, text_length; /* of an embedding; most rows of a caption */
    int64_t sample_frames;         /* video frames of the native size */
    int64_t sample_height, sample_width;  /* latent rows and columns of the native size */
    int64_t temporal_ratio;               /* video frames per latent frame */
    bool rotary, learned;                 /* positions; neither: 3-D sincos */
    double spatial_scale, temporal_scale; /* of sincos coordinates */
    double norm_eps;
    double freq_shift; /* of the timestep sinusoid */
    bool flip_sin_to_cos;
    bool attention_bias;
} DitConfig;

/* Reads and checks the file. false: *e says which key, what was expected. */
bool dit_config_read(DitConfig *c, const char *path, Error *e);

/* Latent frames of the native size, and the rows of a sample of F x H x W latents. */
int64_t dit_native_frames(const DitConfig *c);
int64_t dit_video_rows(const DitConfig *c, int64_t f, int64_t h, int64_t w);
/* "CogVideoX-2b", "CogVideoX1.5-5b-I2V", or a description for sizes that were not published. */
const char *dit_variant(const DitConfig *c);
