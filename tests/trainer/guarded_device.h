/* In place of trainer/device.c, for programs whose device is one of tests/shim: what the next model
 * is opened on. */
#pragma once

#include "autograd/memory.h"
#include "tests/shim/guarded.h"

/* Begins as BACKEND_CPU, guarded, in f32. */
extern Device guarded_device;
