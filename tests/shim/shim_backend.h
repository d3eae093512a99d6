/* A device whose own kernels are those of CUDA, over the shim, and whose library calls are the
 * CPU's between conversions to float. */
#pragma once

#include "kernels/kernels.h"

C_BEGIN

extern const Backend BACKEND_SHIM;

C_END
