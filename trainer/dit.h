/* The CogVideoX transformer (Yang et al. 2024; diffusers' CogVideoXTransformer3DModel): its
 * parameters, and the graph of one pack. It knows ops and parameters, nothing of devices or ranks.
 *
 * Notation: see autograd/tensor.h. c is the time width, P a patch's elements, Cin in_channels.
 */
#pragma once

#include "trainer/linear.h"
#include "trainer/pack.h"

/* Parameters of a layer norm with an affine part. */
typedef struct {
    char *module;
    int64_t width;
    int block;
    int gamma, beta;
} LayerNorm;

typedef struct {
    Linear mod1, mod2;        /* norm1.linear, norm2.linear: c -> 6D */
    LayerNorm norm1, norm2;   /* over D */
    Linear qkv[3], out;       /* attn1.to_q, to_k, to_v, to_out.0 */
    LayerNorm norm_q, norm_k; /* over E */
    Linear ff1, ff2;          /* ff.net.0.proj, ff.net.2 */
} DitBlock;

typedef struct {
    DitConfig config;
    ParamSet *params;
    Linear patch, text;  /* patch_embed.proj, patch_embed.text_proj */
    Linear time1, time2; /* time_embedding.linear_1, linear_2 */
    Linear ofs1, ofs2;   /* ofs_embedding; only where ofs_dim is set */
    int pos_embedding;   /* the learned table; -1: none */
    DitBlock *blocks;    /* [layers] */
    LayerNorm norm_final, norm_out;
    Linear mod_out, proj_out; /* norm_out.linear: c -> 2D */
    Linear **linears;         /* [n_linears] all of the above, in the order of the published file */
    int n_linears;
} Dit;

/* The modules, without parameters: adapters may be attached now. */
Dit *dit_open(const DitConfig *config);
void dit_close(Dit *d);

/* Registers every parameter and fixes the buckets. With train_base all but the learned position
 * table are trained, otherwise adapters alone. */
void dit_params(Dit *d, ParamSet *p, bool train_base, int world);

/* One pack's inputs, all of the graph's type unless said otherwise. */
typedef struct {
    PackTables tables;
    Tensor *latents;           /* noisy latents, flat: samples end to end, each [F,C,H,W] */
    Tensor *image;             /* image latents likewise; NULL unless in_channels = 2 C */
    Tensor *text;              /* [T, text_dim], all of it on every rank */
    Tensor *time;              /* [B,D] sinusoids of the timesteps */
    Tensor *ofs;               /* [B,ofs_dim] sinusoids; NULL: none */
    Tensor *ordinals;          /* [B] u32; NULL unless there is dropout, with the loss alone */
    Tensor *target;            /* f32, like latents: the velocity; NULL: forward only */
    Tensor *prediction;        /* like latents; an output */
    Tensor *loss, *per_sample; /* [1], [B] f32; outputs; NULL: forward only */
} DitGraph;

/* Records the transformer for one pack into g, with the loss where with_loss. Every sample must
 * pass dit_check_sample. */
DitGraph dit_record(const Dit *d, Graph *g, const Pack *pack, bool with_loss);

/* Whether the model can take a sample of F x H x W latents with `text` rows; false: *e says why. */
bool dit_check_sample(const DitConfig *c, int64_t f, int64_t h, int64_t w, int64_t text, Error *e);
