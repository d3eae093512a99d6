/* In place of trainer/device.c, for programs that choose their device: what the next model is
 * opened on. */
#pragma once

#include "autograd/memory.h"
#include "tests/shim/guarded.h"

/* Begins as $COGSMITH_COMPUTE says: F32, BF16 or F16 on device_to_test; unset: BACKEND_CPU,
 * guarded, in f32. */
extern Device guarded_device;

/* The device that a test is about, in a type: guarded_shim.c has the shim, gpu_device.c the GPU,
 * and ends the program (exit 1) where there is none. */
Device device_to_test(DType compute);
