/* In place of comm_cuda.c and comm_nccl.c where CUDA is not built: no memory but the host's. */
#include "kernels/comm_watch.h"

bool nccl_library(char version[16], Error *e) {
    *version = 0;
    return error_set(e, EXIT_WORLD,
                     "not built in, for it is without CUDA; ranks on CPUs need Open MPI alone");
}

Comm *comm_cuda(Comm *ranks, const Backend *k) {
    (void)k;
    return ranks;
}

Comm *comm_nccl(Comm *ranks, const Backend *k) {
    (void)k;
    return ranks;
}
