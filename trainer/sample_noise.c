/* Owns where the noise of sampling comes from. */
#include "trainer/sample_noise.h"

#include "data/safetensors.h"
#include "kernels/random.h"
#include "trainer/call_files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool has_shape(const SafetensorsTensor *t, int n, const int64_t *dims) {
    bool same = t->n_dims == n;
    for (int i = 0; same && i < n; i++) same = t->shape[i] == dims[i];
    return same;
}

static void read_start(SampleNoise *n, const Safetensors *file, const int64_t dims[4]) {
    const SafetensorsTensor *t = safetensors_find(file, "latents");
    const int64_t want[5] = {1, dims[0], dims[1], dims[2], dims[3]};
    if (!t || !has_shape(t, 5, want))
        die("%s: latents: expected the start noise [1,%lld,%lld,%lld,%lld], and %s", file->path,
            (long long)dims[0], (long long)dims[1], (long long)dims[2], (long long)dims[3],
            t ? "its shape is another" : "it is not there");
    n->start = given_floats(file, t);
}

/* [n,F,C,H,W] or [n,1,F,C,H,W]. */
static void read_steps(SampleNoise *n, const Safetensors *file, const int64_t dims[4],
                       int64_t draws) {
    const SafetensorsTensor *t = safetensors_find(file, "noise");
    if (!t) return;
    n->n_steps = t->n_dims ? t->shape[0] : 0;
    const int64_t flat[5] = {n->n_steps, dims[0], dims[1], dims[2], dims[3]};
    const int64_t batched[6] = {n->n_steps, 1, dims[0], dims[1], dims[2], dims[3]};
    if (n->n_steps < draws || (!has_shape(t, 5, flat) && !has_shape(t, 6, batched)))
        die("%s: noise: expected [%lld,%lld,%lld,%lld,%lld]: what these steps draw, in order",
            file->path, (long long)draws, (long long)dims[0], (long long)dims[1],
            (long long)dims[2], (long long)dims[3]);
    if (n->n_steps > draws)
        fprintf(stderr, "cogsmith: %s: noise: these steps draw %lld of the %lld\n", file->path,
                (long long)draws, (long long)n->n_steps);
    n->steps = given_floats(file, t);
}

static void read_posterior(SampleNoise *n, const Safetensors *file, const int64_t dims[4],
                           int64_t frames) {
    const SafetensorsTensor *t = safetensors_find(file, "posterior_noise");
    const int64_t want[5] = {1, dims[1], frames, dims[2], dims[3]};
    if (!t) return;
    if (!frames) die("%s: posterior_noise: expected none: there is no image or video", file->path);
    if (!has_shape(t, 5, want))
        die("%s: posterior_noise: expected [1,%lld,%lld,%lld,%lld]", file->path, (long long)dims[1],
            (long long)frames, (long long)dims[2], (long long)dims[3]);
    n->posterior = given_floats(file, t);
}

void sample_noise_read(SampleNoise *n, const char *path, const ClipSize *size,
                       const DitConfig *model, int64_t draws, int64_t posterior_frames) {
    const int64_t dims[4] = {size->f, model->out_channels, size->h, size->w};
    Safetensors file;
    Error e;
    if (!safetensors_open(&file, path, &e)) die_error(&e);
    read_start(n, &file, dims);
    read_steps(n, &file, dims, draws);
    read_posterior(n, &file, dims, posterior_frames);
    safetensors_close(&file);
}

void sample_noise_free(SampleNoise *n) {
    free(n->start);
    free(n->steps);
    free(n->posterior);
    *n = (SampleNoise){0};
}

static void give(const float *given, Draw draw, int64_t count, float *out) {
    if (given)
        memcpy(out, given, (size_t)count * sizeof *out);
    else
        random_normal(draw, 0, count, out);
}

void sample_noise_start(const SampleNoise *n, int64_t count, float *out) {
    give(n->start, (Draw){n->seed, n->ordinal, 0, PURPOSE_SAMPLE_START}, count, out);
}

void sample_noise_step(const SampleNoise *n, int64_t draw, int64_t count, float *out) {
    CHECK(!n->steps || draw < n->n_steps, "draw %lld", (long long)draw);
    give(n->steps ? n->steps + draw * count : NULL,
         (Draw){n->seed, n->ordinal, (uint32_t)draw, PURPOSE_SAMPLE_STEP}, count, out);
}

void sample_noise_posterior(const SampleNoise *n, int64_t count, float *out) {
    give(n->posterior, (Draw){n->seed, 0, 0, PURPOSE_SAMPLE_POSTERIOR}, count, out);
}
