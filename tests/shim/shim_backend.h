/* A device whose own kernels are those of CUDA, over the shim, and whose library calls are the
 * CPU's between conversions to float. */
#pragma once

#include "kernels/kernels.h"

C_BEGIN

extern const Backend BACKEND_SHIM;

/* The same with captures: kernels and copies are kept with the arguments that they have when they
 * are captured. What a capture forbids ends the program. */
const Backend *shim_capturing(void);
/* What it was asked for so far. */
typedef struct {
    int begun, replayed;
    bool refuse; /* captures fail, as from shim_refuse on */
} ShimCaptures;
ShimCaptures shim_captures(void);
void shim_refuse(bool refuse);

C_END
