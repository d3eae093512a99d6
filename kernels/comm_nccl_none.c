/* In place of comm_nccl.c and nccl_library.c where NCCL was not found: one GPU. */
#include "kernels/comm_watch.h"

bool nccl_library(char version[16], Error *e) {
    *version = 0;
    return error_set(e, EXIT_WORLD,
                     "this program was built without NCCL, which several ranks on GPUs need: "
                     "install libnccl-dev and build again");
}

Comm *comm_nccl(Comm *ranks, const Backend *k) {
    Error e;
    (void)k;
    error_set(&e, EXIT_WORLD,
              "this program was built without NCCL, and %d ranks on GPUs need it; install "
              "libnccl-dev and build again, or use one GPU, or device=cpu",
              ranks->size);
    die_error(&e);
}
