/* The picture or the video that sampling starts from, as latents. */
#pragma once

#include "trainer/clip_size.h"
#include "trainer/config.h"
#include "trainer/sample_noise.h"

/* Latents [F,C,H,W] of sample.image, behind which all frames are zero. The picture is resized to
 * the clip's size as the published pipeline does it: by Lanczos, and stretched where its shape is
 * another, which is said on stderr. Ends the program on mistakes. */
float *sample_image(const Config *c, const DitConfig *model, const ClipSize *size,
                    const SampleNoise *noise);

/* Latents [F,C,H,W] of sample.video at the clip's frame rate, cut to its size. Ends the program on
 * mistakes, and where the video cannot be used (exit 3). */
float *sample_video(const Config *c, const DitConfig *model, const ClipSize *size,
                    const SampleNoise *noise);
