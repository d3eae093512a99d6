/* Owns a GPU as the device of test_replay.c. */
#include "tests/trainer/models.h"
#include "tests/trainer/replay_device.h"

void replay_device(Config *c, DType compute) {
    static const char *const NAMES[] = {[DT_F32] = "f32", [DT_BF16] = "bf16", [DT_F16] = "f16"};
    set(c, "device", "cuda");
    set(c, "train.precision", NAMES[compute]);
    set(c, "train.deterministic", "true"); /* else attention's backward has new bits each time */
}

bool replay_refuse(bool refuse) {
    (void)refuse;
    return false;
}
