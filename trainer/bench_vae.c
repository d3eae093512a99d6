/* Owns the autoencoder's rows of `bench`. Its widths are those of the model's vae/config.json, or
 * the published ones; its weights are random. */
#define _POSIX_C_SOURCE 200809L
#include "trainer/bench.h"
#include "trainer/device.h"

#include "data/vae.h"
#include "kernels/random.h"
#include "trainer/tiling.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Small enough to wait for, and no chunk has more frames. */
enum { FRAMES = 9, PIXELS = 96 };

static VaeModel model_of(const Config *c) {
    char *path = xprintf("%s/vae/config.json", c->model.path);
    VaeModel m = VAE_PUBLISHED;
    Error e;
    if (!access(path, F_OK) && !vae_model_read(&m, path, &e)) die_error(&e);
    free(path);
    return m;
}

static double run_once(VaeJob *j, const float *in, float *out) {
    double start = now_seconds();
    vae_run(j, in, out);
    return now_seconds() - start;
}

static void bench_half(Bench *b, Vae *v, VaeHalfName half, const int64_t size[4]) {
    int64_t to[4];
    VaeJob *j = config_vae_job(b->config, v, half, size[1], size[2], size[3], "bench");
    vae_job_out(j, to);
    int64_t n = size[0] * size[1] * size[2] * size[3];
    float *in = xcalloc((size_t)n, sizeof *in);
    float *out = xcalloc((size_t)(to[0] * to[1] * to[2] * to[3]), sizeof *out);
    random_normal((Draw){.purpose = PURPOSE_NOISE}, 0, n, in);
    run_once(j, in, out);
    char name[96];
    const int64_t *video = half == VAE_ENCODER ? size : to;
    snprintf(name, sizeof name, "vae %s %lldx%lldx%lld", half == VAE_ENCODER ? "encode" : "decode",
             (long long)video[1], (long long)video[2], (long long)video[3]);
    BenchRow *row = bench_row(b, name);
    row->cost = vae_job_cost(j);
    row->peak_bytes = vae_job_bytes(j) + device_context_bytes(b->config);
    for (int i = 0; i < b->repeat; i++) row->seconds[i] = run_once(j, in, out);
    Run *run = vae_job_run(j);
    run->seconds = xcalloc((size_t)run->plan->n_steps, sizeof *run->seconds);
    for (int i = 0; i < b->repeat; i++) {
        run_once(j, in, out);
        bench_add_steps(b, run->plan, run->seconds, i);
    }
    free(run->seconds);
    free(in);
    free(out);
    vae_job_close(j);
}

void bench_vae(Bench *b) {
    const DataConfig *d = &b->config->data;
    VaeModel model = model_of(b->config);
    Vae *v = vae_open_random(&model, device_of_vae(b->config));
    int64_t frames = d->frames ? d->frames : FRAMES, height = d->height ? d->height : PIXELS;
    int64_t width = d->width ? d->width : PIXELS;
    bench_half(b, v, VAE_ENCODER, (int64_t[]){VAE_COLORS, frames, height, width});
    bench_half(b, v, VAE_DECODER,
               (int64_t[]){model.latent, vae_frames_out(VAE_ENCODER, frames), height / VAE_SPACE,
                           width / VAE_SPACE});
    vae_close(v);
}
