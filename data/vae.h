/* The CogVideoX video autoencoder: clips to latents, latents to clips.
 *
 *     Error e;
 *     Vae *v = vae_open("CogVideoX-2b/vae", device, &e);
 *     VaeJob *job = v ? vae_job_open(v, VAE_ENCODER, 49, 480, 720, NULL, budget, &e) : NULL;
 *     if (!job) die_error(&e);
 *     ... vae_job_bytes(job): what it will need on the device ...
 *     vae_run(job, video, moments);               as often as there are clips of that size
 *     vae_job_close(job);
 *     vae_close(v);
 *
 * A job is a graph and its plan for one size; jobs of one autoencoder share one arena, as large as
 * the largest that has run. The weights' home is the mapped file; whatever type they are stored in,
 * arithmetic is in the device's. All numbers are planes: pixels [3,T,H,W] in [-1,1], moments
 * [2C,F,h,w] (mean, then log-variance), latents [C,F,h,w] as the decoder takes them, not scaled.
 */
#pragma once

#include "autograd/run.h"
#include "data/vae_graph.h"
#include "data/weights.h"

typedef struct {
    VaeModel model;
    VaeNet *net;
    Weights weights; /* mapped; parameters point into it. Zeroed: random numbers are in `drawn` */
    float *drawn;
    DType compute; /* the type that it computes in */
    Memory memory;
    Stream *stream;
    char *arena;
    size_t arena_bytes;
    bool poison; /* tests: see Run */
} Vae;

/* Opens a vae folder: config.json and the weights; every tensor must be one of the autoencoder's,
 * with its shape and finite numbers, and none may be missing. NULL: *e says what to do. */
Vae *vae_open(const char *folder, Device device, Error *e);
/* One with random weights, for benchmarks. */
Vae *vae_open_random(const VaeModel *model, Device device);
void vae_close(Vae *v);

typedef enum { VAE_TILE_AUTO, VAE_TILE_ON, VAE_TILE_OFF } VaeTileChoice;

/* Spatial tiling as diffusers does it. */
typedef struct {
    VaeTileChoice choice;  /* auto: only when the whole does not fit */
    int64_t height, width; /* of a tile, pixels; 0: half of the model's sample size */
    double overlap_height, overlap_width; /* share of a tile that the next covers again */
} VaeTiling;

/* diffusers' own. */
extern const VaeTiling VAE_TILING_DEFAULT;

typedef struct VaeJob VaeJob;

/* Plans one direction for a size given in units of its input: frames and pixels, or latents.
 * tiling NULL: the default. `available` bytes decide with VAE_TILE_AUTO. NULL: *e (EXIT_USER) says
 * why the size or the tiling cannot be. Nothing is allocated on the device. */
VaeJob *vae_job_open(Vae *v, VaeHalfName half, int64_t frames, int64_t height, int64_t width,
                     const VaeTiling *tiling, int64_t available, Error *e);
void vae_job_close(VaeJob *j);
/* The least device memory for that, whole or in tiles as `tiling` leaves open, on a device that
 * need not be here (cuda_table). 0: there is no such job. */
int64_t vae_least_bytes(const VaeModel *m, Device device, VaeHalfName half, int64_t frames,
                        int64_t height, int64_t width, const VaeTiling *tiling);

/* Device memory while it runs: arena, workspace and constants. */
int64_t vae_job_bytes(const VaeJob *j);
bool vae_job_tiled(const VaeJob *j);
/* Channels, frames, height and width of the output. */
void vae_job_out(const VaeJob *j, int64_t size[4]);
/* Work of one run. */
Cost vae_job_cost(const VaeJob *j);

void vae_run(VaeJob *j, const float *in, float *out);
/* The executor of the whole, or of the first tile: to time its steps. NULL before vae_run. */
Run *vae_job_run(const VaeJob *j);

/* The posterior of n = C*F*h*w latents from moments [2n]: its standard deviation
 * exp(logvar / 2), logvar kept within [-30, 20]; a sample mean + deviation * noise. The mode is
 * the mean, the moments' first half. */
void posterior_deviation(const float *moments, int64_t n, float *deviation);
void posterior_sample(const float *moments, const float *noise, int64_t n, float *z);
