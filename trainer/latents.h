/* Between pixels and the latents that a transformer works on, [F,C,H,W]: the autoencoder, its
 * scaling factor, and the order of axes. */
#pragma once

#include "data/vae.h"
#include "trainer/clip_size.h"
#include "trainer/config.h"

/* The autoencoder of model.path, which must have the transformer's channels. Ends the program on
 * mistakes (exit 2). */
Vae *latents_vae(const Config *c, const DitConfig *model);

/* The factor of video latents on the way in; 1 / it on the way out. */
double latent_scale(const VaeModel *m);
/* The factor of image latents: by default latent_scale, or 1 / it where invert_scale_latents is set
 * (the published 1.5 pipeline, which was trained so by mistake). */
double image_latent_scale(const VaeModel *m, ImageScaleChoice choice);

/* Latents [F,C,h,w] = scale * (mean + deviation * noise) of pixels [3,T,height,width] in [-1,1];
 * noise [C,F,h,w]. Ends the program above memory.budget (exit 2). */
void latents_encode(const Config *c, Vae *v, const float *pixels, int64_t frames, int64_t height,
                    int64_t width, const float *noise, double scale, float *latents);

/* Frames [T,3,height,width] in [0,1], T = size->frames_out, of sampled latents [F,C,h,w], whose
 * padding is dropped. */
void latents_decode(const Config *c, Vae *v, const ClipSize *size, const float *latents,
                    float *frames);

/* The same frames as [T,H,W,3] bytes. */
void frames_to_bytes(const ClipSize *size, const float *frames, uint8_t *rgb);
