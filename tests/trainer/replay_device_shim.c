/* Owns the shim as the device of test_replay.c. */
#include "tests/shim/shim_backend.h"
#include "tests/trainer/guarded_device.h"
#include "tests/trainer/replay_device.h"

void replay_device(Config *c, DType compute) {
    (void)c;
    guarded_device = (Device){shim_capturing(), compute};
}

bool replay_refuse(bool refuse) {
    shim_refuse(refuse);
    return true;
}
