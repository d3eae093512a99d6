/* Owns the choice of a device. */
#include "trainer/device.h"

#include "kernels/comm.h"
#include "trainer/host_memory.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool on_cpu(const Backend *k) { return k == &BACKEND_CPU; }

/* The GPU that `auto` or `cuda` mean: ranks of one machine take one each. */
static int index_of(const Config *c) {
    return c->device.index >= 0 ? c->device.index : comm_local_rank();
}

/* With device=auto a GPU that cannot be used is told, once. */
static void tell_unused(const Error *e) {
    static bool told;
    if (!told && cuda_driver() && comm_local_rank() == 0)
        fprintf(stderr, "cogsmith: device=auto takes the CPU: %s\n", e->text);
    told = true;
}

const Backend *device_backend(const Config *c) {
    Error e;
    if (c->device.kind == DEVICE_CPU) return &BACKEND_CPU;
    const Backend *k = cuda_backend(index_of(c), &e);
    if (k) return k;
    if (c->device.kind == DEVICE_CUDA) config_die(c, "device", "%s", e.text);
    tell_unused(&e);
    return &BACKEND_CPU;
}

DType device_compute(const Config *c, const Backend *k, DType form) {
    static const DType TYPES[] = {
        [NUMBERS_F32] = DT_F32, [NUMBERS_BF16] = DT_BF16, [NUMBERS_F16] = DT_F16};
    NumbersChoice asked = c->train.precision;
    if (on_cpu(k) && asked != NUMBERS_AUTO && asked != NUMBERS_F32)
        config_die(c, "train.precision", "the CPU computes in f32; leave it out or say f32");
    if (on_cpu(k)) return DT_REAL;
    if (asked != NUMBERS_AUTO) return TYPES[asked];
    return form == DT_F16 ? DT_F16 : DT_BF16;
}

Device device_of_vae(const Config *c) {
    const Backend *k = device_backend(c);
    return (Device){k, on_cpu(k) ? DT_REAL : DT_BF16};
}

/* The GPU in use; false: it is the CPU. */
static bool gpu_of(const Config *c, CudaDevice *gpu) {
    if (on_cpu(device_backend(c))) return false;
    cuda_opened(gpu);
    return true;
}

/* "NVIDIA GeForce RTX 4090" has the name of the profile "rtx4090". */
static const Profile *profile_named(const char *device) {
    char plain[256], names[200];
    size_t n = 0;
    for (const char *p = device; *p && n + 1 < sizeof plain; p++)
        if (isalnum((unsigned char)*p)) plain[n++] = (char)tolower((unsigned char)*p);
    plain[n] = 0;
    profile_list(names, sizeof names);
    for (char *rest = names, *name; (name = strtok_r(rest, ", ", &rest));)
        if (strstr(plain, name) && profile_find(name)->cuda) return profile_find(name);
    return NULL;
}

int64_t device_context_bytes(const Config *c) {
    CudaDevice gpu;
    return gpu_of(c, &gpu) ? GPU_CONTEXT_BYTES : CPU_CONTEXT_BYTES;
}

int64_t device_available(const Config *c) {
    CudaDevice gpu;
    if (!gpu_of(c, &gpu)) return available_bytes(c->memory.budget, NULL);
    int64_t most = c->memory.budget ? c->memory.budget : (int64_t)gpu.free_bytes;
    return most - device_context_bytes(c);
}

Profile device_profile(const Config *c) {
    CudaDevice gpu;
    if (!gpu_of(c, &gpu)) return profile_measure();
    const Profile *named = profile_named(gpu.name);
    Profile p = named ? *named : *profile_find("a100");
    p.name = named ? named->name : "a GPU that is not in the table, taken for an a100";
    p.memory_bytes = (int64_t)gpu.total_bytes;
    p.host_bytes = host_free_bytes();
    p.host_ranks = comm_world_size() > 1 ? comm_local_size() : 0;
    return p;
}
