/* Owns the choice of a device where there is none to choose. */
#include "tests/trainer/guarded_device.h"
#include "trainer/device.h"

#include <stdlib.h>

Device guarded_device;

static Device first_device(void) {
    const char *name = getenv("COGSMITH_COMPUTE");
    DType t;
    if (!name) return (Device){guarded(&BACKEND_CPU), DT_F32};
    CHECK(dtype_from_name(name, &t), "COGSMITH_COMPUTE=%s", name);
    return device_to_test(t);
}

const Backend *device_backend(const Config *c) {
    (void)c;
    if (!guarded_device.k) guarded_device = first_device();
    return guarded_device.k;
}

DType device_compute(const Config *c, const Backend *k, DType form) {
    (void)c, (void)form;
    return k ? guarded_device.compute : DT_BF16;
}

Device device_of_vae(const Config *c) {
    device_backend(c);
    return guarded_device;
}

/* GUARDED_BYTES: what such a device has free, context apart. */
int64_t device_available(const Config *c) {
    const char *bytes = getenv("GUARDED_BYTES");
    return c->memory.budget || !bytes ? available_bytes(c->memory.budget, NULL) : atoll(bytes);
}

int64_t device_context_bytes(const Config *c) {
    (void)c;
    return CPU_CONTEXT_BYTES;
}

Profile device_profile(const Config *c) {
    (void)c;
    return profile_measure();
}
