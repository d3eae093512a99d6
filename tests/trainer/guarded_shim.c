/* Owns the device of tests that run without a GPU: CUDA's own kernels over the shim. */
#include "tests/shim/shim_backend.h"
#include "tests/trainer/guarded_device.h"

Device device_to_test(DType compute) { return (Device){guarded(&BACKEND_SHIM), compute}; }
