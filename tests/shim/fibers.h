/* How tests steer the shim. */
#pragma once

#include "kernels/base.h"

C_BEGIN

/* The order in which blocks and the threads of a block run, from now on: 0, in order of their
 * numbers; else shuffled by the seed. COGSMITH_SHIM_SEED in the environment says where it begins.
 */
void shim_shuffle(uint64_t seed);

C_END
