/* Owns the device of tests that need a GPU: the first that is here. */
#include "tests/trainer/guarded_device.h"

Device device_to_test(DType compute) {
    Error e;
    const Backend *k = cuda_backend(0, &e);
    if (!k) die_error(&e);
    return (Device){k, compute};
}
