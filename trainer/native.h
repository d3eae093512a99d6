/* The pack that a config asks for: data.frames x data.height x data.width, where unset the model's
 * own, train.batch times. */
#pragma once

#include "trainer/config.h"
#include "trainer/pack.h"

enum { VAE_SCALE = 8 }; /* pixels per latent row and column, in every CogVideoX VAE */

typedef struct {
    int64_t frames, height, width; /* of the video, in frames and pixels */
    Pack pack;                     /* owns its arrays */
} NativePack;

/* Ends the program where the model cannot take the size (exit 2). */
NativePack native_pack(const Config *c, const DitConfig *model);
void native_pack_free(NativePack *n);
