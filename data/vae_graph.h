/* The two halves of the CogVideoX video autoencoder (Yang et al. 2024; diffusers'
 * AutoencoderKLCogVideoX): parameters, and the graph of one clip.
 *
 *     resnet    x + conv2(silu(norm2(conv1(silu(norm1(x))))))      x through 1x1x1 where widths
 * differ encoder   conv_in, 4 levels (resnets; half the size), 2 resnets, norm, conv_out -> mean |
 * logvar decoder   conv_in, 2 resnets, 4 levels (resnets; twice the size), norm, conv_out -> frames
 * Convolutions are causal in time. The decoder's norms are scaled and shifted by 1x1x1 maps of z.
 *
 * A clip is worked on in chunks of 8 frames (2 latents) that the first chunk's remainder precedes;
 * norms see one chunk, convolutions the two frames before it too. All chunks are one graph: what a
 * convolution keeps for the next chunk is a tensor with a lifetime. A weight is brought to the
 * convolution's own form where the first chunk meets it, and lives until the last chunk has.
 */
#pragma once

#include "autograd/ops.h"
#include "data/vae_config.h"

typedef enum { VAE_ENCODER, VAE_DECODER, VAE_HALVES } VaeHalfName;

/* 3 x 3 convolutions, kt taps in time. */
typedef struct {
    int id;     /* among the half's convolutions */
    int w, b;   /* parameters: [O,I,3,3,3] or [O,I,3,3], and [O] */
    int64_t kt; /* 3, or 1 of a sampler */
    int64_t in, out;
} VaeConv;

/* A 1x1x1 convolution; w -1: there is none. */
typedef struct {
    int w, b;
    int64_t in, out;
} VaeMap;

typedef struct {
    int id; /* among the half's norms */
    int gamma, beta;
    int64_t channels;
    double eps;
    VaeMap scale, shift; /* conv_y, conv_b; of the decoder */
} VaeNorm;

typedef struct {
    VaeNorm norm1, norm2;
    VaeConv conv1, conv2;
    VaeMap shortcut;
} VaeResnet;

/* A level, or the middle. */
typedef struct {
    VaeResnet *resnets;
    int n;
    bool samples, time; /* a sampler comes after the resnets; it halves or doubles time, too */
    VaeConv sampler;
} VaeStage;

typedef struct {
    VaeConv conv_in, conv_out;
    VaeStage stages[VAE_LEVELS + 1];
    VaeNorm norm_out;
    int n_convs, n_norms;
} VaeHalf;

typedef struct {
    VaeModel model;
    ParamSet *params;
    VaeHalf halves[VAE_HALVES];
} VaeNet;

/* Registers every parameter, by its published name, and fixes the buckets: one for each
 * convolution's weight, one for all else of a half. */
VaeNet *vae_net_open(const VaeModel *m);
/* The parameters stay. */
void vae_net_close(VaeNet *n);

/* Latents of a clip of so many frames; frames of so many latents. */
int64_t vae_frames_out(VaeHalfName half, int64_t frames);

typedef struct {
    Tensor *in;   /* input, planes: [3,T,H,W] pixels in [-1,1], or [latent,F,h,w] unscaled */
    Tensor **out; /* outputs [n], one a chunk: [T',H',W',C'] */
    int n;
} VaeGraph;

/* Records a half for one size, given in units of its input. Height and width of the encoder are
 * multiples of 8. `k` knows the form of convolutions' weights. */
VaeGraph vae_record(const VaeNet *v, VaeHalfName half, Graph *g, const Backend *k, int64_t frames,
                    int64_t height, int64_t width);
