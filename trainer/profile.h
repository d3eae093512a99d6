/* What a device can do, for predicting a step's time: measured here, or from a small table of named
 * devices. Rates are attainable ones for this work, not datasheet peaks. */
#pragma once

#include "autograd/memory.h"
#include "autograd/plan.h"

typedef struct {
    const char *name;
    bool cuda;
    int64_t memory_bytes;  /* of the device; 0: ask the machine */
    int64_t context_bytes; /* driver context and library workspaces, outside every arena */
    double matmul_flops;   /* per second, in the type that steps compute in */
    double attention_forward_flops, attention_backward_flops;
    double memory_rate;      /* bytes per second, reads and writes together */
    double link_rate;        /* bytes per second that a rank sends to others */
    double host_rate;        /* bytes per second between host and device, one way */
    int64_t host_bytes;      /* of its host's memory, for all ranks there; 0: ask the machine */
    double host_memory_rate; /* of the host's memory, reads and writes together */
    int host_ranks;          /* ranks that one host has room for; 0: one for each of its cores */
} Profile;

/* Stated, not planned. On a CPU: the program itself, its libraries' code and threads' stacks. On a
 * GPU: CUDA's context, kernels and libraries' code there, and 32 MiB of scratch for each of three
 * streams; and what the program takes of its host beside a plan: code, CUDA's and libraries' own
 * memory there, pages that are rounded up. */
enum { CPU_CONTEXT_BYTES = 40 << 20, GPU_CONTEXT_BYTES = 768 << 20, GPU_HOST_BYTES = 512 << 20 };

/* What plans may use of a device: memory.budget where it is set, else what the device has (of this
 * machine, this rank's part of what is free now), less the context. profile NULL: this machine. */
int64_t available_bytes(int64_t budget, const Profile *profile);
/* Of so many ranks, those that share a host: which of such devices have room there. */
int profile_host_ranks(const Profile *p, int world);

/* A named device, or NULL. */
const Profile *profile_find(const char *name);
/* "h200, h100, ..." into the caller's buffer. */
void profile_list(char *text, size_t size);
/* Times a product, a small attention and a copy on this machine's CPU (about 0.2 s). */
Profile profile_measure(void);

/* What bounds every step on a device, in the type that it computes in: the rates of a large square
 * product and of a copy that no cache holds (reads and writes together). Measured. */
typedef struct {
    double matmul_flops, memory_rate;
} Limits;
Limits profile_limits(Device d);
