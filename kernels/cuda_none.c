/* In place of the CUDA backend where the toolkit was not found: no device. */
#include "kernels/kernels.h"

#include <unistd.h>

static bool refuse(Error *e) {
    return error_set(
        e, EXIT_WORLD,
        "this program was built without CUDA; install the CUDA toolkit (12.4 or later) "
        "with cuDNN 9 and build again, or use device=cpu");
}

const Backend *cuda_backend(int index, Error *e) {
    (void)index;
    refuse(e);
    return NULL;
}

bool cuda_driver(void) { return !access("/dev/nvidiactl", F_OK); }

void cuda_opened(CudaDevice *d) {
    (void)d;
    CHECK(false, "no GPU is open");
}

int cuda_devices(CudaDevice *list, int max, Error *e) {
    (void)list, (void)max;
    refuse(e);
    return 0;
}
