/* NCCL, looked for when several ranks on GPUs first want it: a program linked to it would not start
 * where it is missing. The functions below stand for the library's own, by the declarations of its
 * header, and hand their arguments on. */
#include "kernels/comm_watch.h"

#include <dlfcn.h>
#include <nccl.h>
#include <stdio.h>

static const char SOURCE[] = "NVIDIA's package is called libnccl2";

static void *handle; /* NULL: not opened yet */

static bool library_open(Error *e) {
    if (!handle) handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    return handle || error_set(e, EXIT_WORLD,
                               "NCCL, which several ranks on GPUs need, cannot be loaded (%s): "
                               "install NCCL %d.%d or a later %d.x, or put its folder into "
                               "LD_LIBRARY_PATH, or use one GPU; %s",
                               dlerror(), NCCL_MAJOR, NCCL_MINOR, NCCL_MAJOR, SOURCE);
}

/* The library's own function; ends the program where there is none. */
static void *function(const char *name) {
    Error e = {0};
    void *found = library_open(&e) ? dlsym(handle, name) : NULL;
    if (!found && !e.exit_code)
        error_set(&e, EXIT_WORLD, "the NCCL here has no %s: install version %d.%d or later; %s",
                  name, NCCL_MAJOR, NCCL_MINOR, SOURCE);
    if (!found) die_error(&e);
    return found;
}

bool nccl_library(char version[16], Error *e) {
    int code;
    if (!library_open(e)) return false;
    if (ncclGetVersion(&code) != ncclSuccess) code = 0;
    int major = code / 10000, minor = code / 100 % 100;
    snprintf(version, 16, "%d.%d.%d", major, minor, code % 100);
    if (major == NCCL_MAJOR && minor >= NCCL_MINOR) return true;
    return error_set(e, EXIT_WORLD,
                     "NCCL %s is here, and this program was built with %d.%d: install that or a "
                     "later %d.x, or build again with this one; %s",
                     version, NCCL_MAJOR, NCCL_MINOR, NCCL_MAJOR, SOURCE);
}

#define FORWARD(result, name, parameters, arguments)                                               \
    result name parameters {                                                                       \
        static result(*to) parameters;                                                             \
        if (!to) to = (result(*) parameters)function(#name);                                       \
        return to arguments;                                                                       \
    }

FORWARD(ncclResult_t, ncclGetVersion, (int *version), (version))
FORWARD(const char *, ncclGetErrorString, (ncclResult_t result), (result))
FORWARD(const char *, ncclGetLastError, (ncclComm_t comm), (comm))
FORWARD(ncclResult_t, ncclGetUniqueId, (ncclUniqueId * id), (id))
FORWARD(ncclResult_t, ncclCommInitRankConfig,
        (ncclComm_t * comm, int size, ncclUniqueId id, int rank, ncclConfig_t *config),
        (comm, size, id, rank, config))
FORWARD(ncclResult_t, ncclCommGetAsyncError, (ncclComm_t comm, ncclResult_t *result),
        (comm, result))
FORWARD(ncclResult_t, ncclCommFinalize, (ncclComm_t comm), (comm))
FORWARD(ncclResult_t, ncclCommDestroy, (ncclComm_t comm), (comm))
FORWARD(ncclResult_t, ncclCommAbort, (ncclComm_t comm), (comm))
FORWARD(ncclResult_t, ncclGroupStart, (void), ())
FORWARD(ncclResult_t, ncclGroupEnd, (void), ())
FORWARD(ncclResult_t, ncclAllGather,
        (const void *mine, void *all, size_t count, ncclDataType_t type, ncclComm_t comm,
         cudaStream_t queue),
        (mine, all, count, type, comm, queue))
FORWARD(ncclResult_t, ncclSend,
        (const void *from, size_t count, ncclDataType_t type, int rank, ncclComm_t comm,
         cudaStream_t queue),
        (from, count, type, rank, comm, queue))
FORWARD(ncclResult_t, ncclRecv,
        (void *into, size_t count, ncclDataType_t type, int rank, ncclComm_t comm,
         cudaStream_t queue),
        (into, count, type, rank, comm, queue))
