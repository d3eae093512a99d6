/* The device of test_replay.c: a GPU, or the shim. */
#pragma once

#include "autograd/memory.h"
#include "trainer/config.h"

/* Makes models of this config open on it, computing in `compute`. Ends the test where there is
 * none. */
void replay_device(Config *c, DType compute);
/* From now on its captures fail, or no longer; false: it cannot be told. */
bool replay_refuse(bool refuse);
