/* Files that a call names: tensors given as inputs, and results to be written. Mistakes end the
 * program (exit 2). */
#pragma once

#include "data/safetensors.h"
#include "trainer/config.h"

/* All values of a tensor as f32: it must be of F32, BF16 or F16, and every value finite. The caller
 * frees them. */
float *given_floats(const Safetensors *file, const SafetensorsTensor *t);

/* `path`, which the key names, must be possible to write: its folder is there and allows it, and no
 * folder has its name. Asked before the work, so that it is not done for nothing. */
void check_writable(const Config *c, const char *key, const char *path);
