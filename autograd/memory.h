/* Device memory by account, and the seal: after a plan is placed nothing may allocate. */
#pragma once

#include "kernels/kernels.h"

/* Where steps run, and the type that they compute in. */
typedef struct {
    const Backend *k;
    DType compute;
} Device;

typedef struct Memory {
    const Backend *k;
    bool on_host; /* an account of the device's page-locked host memory */
    bool sealed;
    size_t bytes; /* alive now */
    size_t peak_bytes;
    int allocations; /* calls of memory_alloc so far */
    /* The account of host memory, with copies between it and the device counted; NULL: this one. */
    struct Memory *host;
    int64_t copied_bytes; /* of a host account: to and from the device */
} Memory;

Memory *memory_host(Memory *m);

/* Zeroed device memory, aligned to 256 bytes. Ends the program (exit 1) when the device has none
 * left. A CHECK failure once sealed. */
void *memory_alloc(Memory *m, size_t bytes, const char *what);
void memory_release(Memory *m, void *p, size_t bytes);
void memory_seal(Memory *m, bool sealed);
