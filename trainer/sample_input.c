/* Owns the way of a picture or a video into latents. */
#include "trainer/sample_input.h"

#include "data/image.h"
#include "data/lanczos.h"
#include "trainer/latents.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const double VISIBLE_STRETCH = 0.02;

static VideoReader *open_reader(void) {
    Error e;
    VideoReader *r = video_reader_open(NULL, &e);
    if (!r) die_error(&e);
    return r;
}

static float *encode(const Config *c, const DitConfig *model, const ClipSize *size,
                     const SampleNoise *noise, const float *pixels, int64_t frames, bool image) {
    Vae *v = latents_vae(c, model);
    int64_t n = vae_frames_out(VAE_ENCODER, frames) * clip_frame_elements(size, model);
    float *epsilon = xcalloc((size_t)n, sizeof *epsilon);
    float *latents = xcalloc((size_t)clip_elements(size, model), sizeof *latents);
    sample_noise_posterior(noise, n, epsilon);
    latents_encode(c, v, pixels, frames, size->height, size->width, epsilon,
                   image ? image_latent_scale(&v->model, c->model.image_latent_scale)
                         : latent_scale(&v->model),
                   latents);
    free(epsilon);
    vae_close(v);
    return latents;
}

/* ---- a picture --------------------------------------------------------------------------------
 */

/* Planes [3,H,W] in [-1,1] resized to [3,height,width]. */
static float *resize(const float *planes, int64_t H, int64_t W, const ClipSize *size) {
    int64_t from = H * W, to = size->height * size->width;
    uint8_t *in = xcalloc((size_t)from, 1), *out = xcalloc((size_t)to, 1);
    float *pixels = xcalloc((size_t)(3 * to), sizeof *pixels);
    for (int c = 0; c < 3; c++) {
        for (int64_t i = 0; i < from; i++)
            in[i] = (uint8_t)lrintf((planes[c * from + i] + 1) * 127.5f);
        lanczos_resize(in, H, W, out, size->height, size->width);
        for (int64_t i = 0; i < to; i++)
            pixels[c * to + i] = 2.0f * ((float)out[i] / 255.0f) - 1.0f;
    }
    free(in);
    free(out);
    return pixels;
}

static void say_stretch(const char *path, const VideoInfo *info, const ClipSize *size) {
    double stretch =
        (double)size->width * (double)info->height / ((double)size->height * (double)info->width);
    if (fabs(stretch - 1) <= VISIBLE_STRETCH) return;
    fprintf(stderr,
            "cogsmith: %s: %lld x %lld pixels are stretched to %lld x %lld, as the published "
            "pipeline does; cut the picture to that shape first to keep its proportions\n",
            path, (long long)info->width, (long long)info->height, (long long)size->width,
            (long long)size->height);
}

float *sample_image(const Config *c, const DitConfig *model, const ClipSize *size,
                    const SampleNoise *noise) {
    const char *path = c->sample.image;
    VideoReader *r = open_reader();
    VideoInfo info;
    Error e;
    if (!image_probe(r, path, &info, &e)) die_error(&e);
    float *planes = xcalloc((size_t)(3 * info.height * info.width), sizeof *planes);
    if (!image_read(r, path, info.height, info.width, planes, &e)) die_error(&e);
    video_reader_close(r);
    say_stretch(path, &info, size);
    float *pixels = resize(planes, info.height, info.width, size);
    free(planes);
    float *latents = encode(c, model, size, noise, pixels, 1, true);
    free(pixels);
    return latents;
}

/* ---- a video ----------------------------------------------------------------------------------
 */

float *sample_video(const Config *c, const DitConfig *model, const ClipSize *size,
                    const SampleNoise *noise) {
    const VideoWant want = {size->frames, size->height, size->width, size->fps, 1};
    int64_t n = 3 * size->frames * size->height * size->width;
    float *pixels = xcalloc((size_t)n, sizeof *pixels);
    VideoReader *r = open_reader();
    Error e;
    if (!video_read(r, c->sample.video, &want, 0, pixels, NULL, &e)) die_error(&e);
    video_reader_close(r);
    float *latents = encode(c, model, size, noise, pixels, size->frames, false);
    free(pixels);
    return latents;
}
