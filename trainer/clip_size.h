/* The size of a video and of its latents, and what a model allows. */
#pragma once

#include "trainer/dit_config.h"

typedef struct {
    int64_t frames, height, width; /* of the video, in frames and pixels, as asked for */
    int64_t f, h, w;               /* of the latents, padding included */
    int64_t padding;               /* latent frames in front that are dropped after sampling */
    int64_t frames_out;            /* that the decoder makes of the others */
    double fps;
} ClipSize;

/* Frames, height and width of 0 are the model's own. The 1.5 models take an even number of latent
 * frames: one more is sampled where it is odd. false: *e (EXIT_USER) says what was expected, *key
 * which size is wrong: "frames", "height" or "width". */
bool clip_size(ClipSize *s, const DitConfig *model, int64_t frames, int64_t height, int64_t width,
               const char **key, Error *e);

/* Latent elements of a frame, and of the clip, padding included. */
int64_t clip_frame_elements(const ClipSize *s, const DitConfig *model);
int64_t clip_elements(const ClipSize *s, const DitConfig *model);
