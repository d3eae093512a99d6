/* Owns the way between pixels and scaled latents. */
#include "trainer/latents.h"
#include "trainer/device.h"

#include "trainer/folder.h"
#include "trainer/tiling.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

Vae *latents_vae(const Config *c, const DitConfig *model) {
    char *folder;
    Error e;
    if (!component_folder(c->model.path, "vae", "config.json", &folder, &e))
        config_die(c, "model.path", "%s", e.text);
    Vae *v = vae_open(folder, device_of_vae(c), &e);
    if (!v) die_error(&e);
    if (v->model.latent != model->out_channels)
        die("%s: expected %lld latent channels, as the transformer has, found %lld: the two are of "
            "different models",
            folder, (long long)model->out_channels, (long long)v->model.latent);
    free(folder);
    return v;
}

double latent_scale(const VaeModel *m) { return m->scaling_factor; }

double image_latent_scale(const VaeModel *m, ImageScaleChoice choice) {
    double own = m->invert_scale_latents ? 1 / m->scaling_factor : m->scaling_factor;
    switch (choice) {
    case IMAGE_SCALE_AUTO:
        return own;
    case IMAGE_SCALE_MULTIPLY:
        return m->scaling_factor;
    case IMAGE_SCALE_DIVIDE:
        return 1 / m->scaling_factor;
    case IMAGE_SCALE_NONE:
        break;
    }
    return 1;
}

/* out [b,a,n] = scale * in [a,b,n] */
static void swap_axes(const float *in, int64_t a, int64_t b, int64_t n, double scale, float *out) {
    float factor = (float)scale;
    for (int64_t i = 0; i < a; i++)
        for (int64_t j = 0; j < b; j++)
            for (int64_t k = 0; k < n; k++)
                out[(j * a + i) * n + k] = factor * in[(i * b + j) * n + k];
}

void latents_encode(const Config *c, Vae *v, const float *pixels, int64_t frames, int64_t height,
                    int64_t width, const float *noise, double scale, float *latents) {
    int64_t out[4];
    VaeJob *j = config_vae_job(c, v, VAE_ENCODER, frames, height, width, "encoding");
    vae_job_out(j, out);
    int64_t channels = out[0] / 2, area = out[2] * out[3], n = channels * out[1] * area;
    float *moments = xcalloc((size_t)(2 * n), sizeof *moments);
    float *z = xcalloc((size_t)n, sizeof *z);
    vae_run(j, pixels, moments);
    posterior_sample(moments, noise, n, z);
    swap_axes(z, channels, out[1], area, scale, latents);
    free(moments);
    free(z);
    vae_job_close(j);
}

void latents_decode(const Config *c, Vae *v, const ClipSize *size, const float *latents,
                    float *frames) {
    int64_t f = size->f - size->padding, channels = v->model.latent, area = size->h * size->w;
    int64_t pixels = size->height * size->width, n = VAE_COLORS * size->frames_out * pixels;
    VaeJob *j = config_vae_job(c, v, VAE_DECODER, f, size->h, size->w, "decoding");
    float *z = xcalloc((size_t)(f * channels * area), sizeof *z);
    float *planes = xcalloc((size_t)n, sizeof *planes);
    swap_axes(latents + size->padding * channels * area, f, channels, area,
              1 / latent_scale(&v->model), z);
    vae_run(j, z, planes);
    for (int64_t i = 0; i < n; i++) planes[i] = MIN(MAX(planes[i] * 0.5f + 0.5f, 0.0f), 1.0f);
    swap_axes(planes, VAE_COLORS, size->frames_out, pixels, 1, frames);
    free(planes);
    free(z);
    vae_job_close(j);
}

void frames_to_bytes(const ClipSize *size, const float *frames, uint8_t *rgb) {
    int64_t pixels = size->height * size->width;
    for (int64_t t = 0; t < size->frames_out; t++)
        for (int64_t c = 0; c < VAE_COLORS; c++)
            for (int64_t i = 0; i < pixels; i++)
                rgb[(t * pixels + i) * VAE_COLORS + c] =
                    (uint8_t)rintf(frames[(t * VAE_COLORS + c) * pixels + i] * 255);
}
