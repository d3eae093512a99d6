/* The device that a config asks for: `device`, and the type to compute in there. */
#pragma once

#include "autograd/memory.h"
#include "trainer/config.h"
#include "trainer/profile.h"

/* `auto` is the GPU, for ranks of one machine one each, where this program can use one, else the
 * CPU. Ends the program where the config names one that cannot be used, saying why (exit 2). */
const Backend *device_backend(const Config *c);

/* The type that steps on `k` compute in, for weights that rest in `form`: f32 on the CPU; on a GPU
 * (NULL: one that is not here) train.precision, or the weights' 16-bit type (bf16 for f32). Ends
 * the program where the CPU is asked for another. */
DType device_compute(const Config *c, const Backend *k, DType form);

/* Where the autoencoder works, in bf16 on a GPU. */
Device device_of_vae(const Config *c);

/* What plans may use of it: memory.budget, or what it has free now, less the context. */
int64_t device_available(const Config *c);
/* What of its memory is outside every plan: the program, driver and libraries. */
int64_t device_context_bytes(const Config *c);
/* Its figures: of the table's device that has its name, else those measured here. */
Profile device_profile(const Config *c);
