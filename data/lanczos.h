/* Pictures resized as Pillow does it (Image.resize with LANCZOS; up to version 12, which works on
 * rows before columns), bit for bit: so the published image-to-video pipeline prepares its images.
 * The two directions need not agree: the picture is stretched. */
#pragma once

#include "kernels/base.h"

/* out [h,w] of one plane in [H,W]. */
void lanczos_resize(const uint8_t *in, int64_t H, int64_t W, uint8_t *out, int64_t h, int64_t w);
