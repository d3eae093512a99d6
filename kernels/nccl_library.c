/* NCCL, looked for when several ranks on GPUs first want it. */
#include "kernels/comm_watch.h"
#include "kernels/cuda_open.h"

#include <nccl.h>

static Library nccl = {.name = "NCCL",
                       .need = ", which several ranks on GPUs need,",
                       .file = "libnccl.so",
                       .major = NCCL_MAJOR,
                       .minor = NCCL_MINOR,
                       .source = "NVIDIA's package is called libnccl2; one GPU needs none"};

bool nccl_library(char version[16], Error *e) {
    int code;
    *version = 0;
    if (!cuda_library_open(&nccl, e)) return false;
    if (ncclGetVersion(&code) != ncclSuccess) code = 0;
    return cuda_library_version(&nccl, code, version, e);
}

/* ---- the functions ---------------------------------------------------------------------------
 */

FORWARD(nccl, ncclResult_t, ncclGetVersion, (int *version), (version))
FORWARD(nccl, const char *, ncclGetErrorString, (ncclResult_t result), (result))
FORWARD(nccl, const char *, ncclGetLastError, (ncclComm_t comm), (comm))
FORWARD(nccl, ncclResult_t, ncclGetUniqueId, (ncclUniqueId * id), (id))
FORWARD(nccl, ncclResult_t, ncclCommInitRankConfig,
        (ncclComm_t * comm, int size, ncclUniqueId id, int rank, ncclConfig_t *config),
        (comm, size, id, rank, config))
FORWARD(nccl, ncclResult_t, ncclCommGetAsyncError, (ncclComm_t comm, ncclResult_t *result),
        (comm, result))
FORWARD(nccl, ncclResult_t, ncclCommFinalize, (ncclComm_t comm), (comm))
FORWARD(nccl, ncclResult_t, ncclCommDestroy, (ncclComm_t comm), (comm))
FORWARD(nccl, ncclResult_t, ncclCommAbort, (ncclComm_t comm), (comm))
FORWARD(nccl, ncclResult_t, ncclGroupStart, (void), ())
FORWARD(nccl, ncclResult_t, ncclGroupEnd, (void), ())
FORWARD(nccl, ncclResult_t, ncclAllGather,
        (const void *mine, void *all, size_t count, ncclDataType_t type, ncclComm_t comm,
         cudaStream_t queue),
        (mine, all, count, type, comm, queue))
FORWARD(nccl, ncclResult_t, ncclSend,
        (const void *from, size_t count, ncclDataType_t type, int rank, ncclComm_t comm,
         cudaStream_t queue),
        (from, count, type, rank, comm, queue))
FORWARD(nccl, ncclResult_t, ncclRecv,
        (void *into, size_t count, ncclDataType_t type, int rank, ncclComm_t comm,
         cudaStream_t queue),
        (into, count, type, rank, comm, queue))
