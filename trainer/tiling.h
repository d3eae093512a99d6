/* The autoencoder as a config asks for it: its tiles and its memory. */
#pragma once

#include "data/vae.h"
#include "trainer/config.h"

VaeTiling config_tiling(const Config *c);
/* vae_job_open with the config's tiles within memory.budget, or within what is free. Ends the
 * program where the size cannot be (naming `what`), or needs more than memory.budget even so (exit
 * 2). */
VaeJob *config_vae_job(const Config *c, Vae *v, VaeHalfName half, int64_t frames, int64_t height,
                       int64_t width, const char *what);
/* The same where `beside` bytes of memory.budget are in use already. */
VaeJob *config_vae_job_beside(const Config *c, int64_t beside, Vae *v, VaeHalfName half,
                              int64_t frames, int64_t height, int64_t width, const char *what);
