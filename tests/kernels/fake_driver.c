/* A libcuda.so.1 that starts as it is told: FAKE_INIT is what cuInit answers, FAKE_VERSION the
 * newest CUDA that it runs. There is no device. */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int number(const char *name) { return getenv(name) ? atoi(getenv(name)) : 0; }

static int answer(void) { return number("FAKE_INIT"); }

int cuInit(unsigned flags);
int cuInit(unsigned flags) {
    (void)flags;
    return answer();
}

int cuDriverGetVersion(int *version);
int cuDriverGetVersion(int *version) {
    *version = number("FAKE_VERSION");
    return 0;
}

/* A table of functions that the runtime asks for; the first entry is its size. */
int cuGetExportTable(const void **table, const void *id);
int cuGetExportTable(const void **table, const void *id) {
    static int (*entries[64])(void);
    (void)id;
    for (size_t i = 0; i < 64; i++) entries[i] = answer;
    size_t bytes = sizeof entries;
    memcpy(entries, &bytes, sizeof bytes);
    *table = entries;
    return 0;
}

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found);
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags,
                        int *found) {
    int (*start)(void) = answer;
    (void)version, (void)flags;
    *function = dlsym(dlopen("libcuda.so.1", RTLD_NOW), name);
    if (!*function) memcpy(function, &start, sizeof start);
    if (found) *found = 0;
    return 0;
}

int cuGetProcAddress(const char *name, void **function, int version, uint64_t flags);
int cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
