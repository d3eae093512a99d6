/* Owns digests as keys: XXH3-128 over fields, each with its name and length, so that no two lists
 * of fields run together. */
#define _GNU_SOURCE
#include "data/cache_index.h"

#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct CacheKey {
    XXH3_state_t *state;
};

CacheKey *cache_key_open(const char *kind) {
    CacheKey *k = xcalloc(1, sizeof *k);
    k->state = XXH3_createState();
    CHECK(k->state, "no memory for a digest");
    XXH3_128bits_reset(k->state);
    cache_key_text(k, "kind", kind);
    return k;
}

void cache_key_bytes(CacheKey *k, const void *bytes, size_t n) {
    if (n) XXH3_128bits_update(k->state, bytes, n);
}

static void field(CacheKey *k, const char *name, const void *bytes, uint64_t n) {
    cache_key_bytes(k, name, strlen(name) + 1);
    cache_key_bytes(k, &n, sizeof n);
    cache_key_bytes(k, bytes, n);
}

void cache_key_text(CacheKey *k, const char *name, const char *value) {
    field(k, name, value, strlen(value));
}

void cache_key_number(CacheKey *k, const char *name, double value) {
    field(k, name, &value, sizeof value);
}

bool cache_key_file(CacheKey *k, const char *path, Error *e) {
    enum { BUFFER = 1 << 20 };
    FILE *in = fopen(path, "r");
    if (!in) return error_set(e, EXIT_DATA, "%.900s: %s", path, strerror(errno));
    char *buffer = xcalloc(BUFFER, 1);
    uint64_t total = 0;
    for (size_t n; (n = fread(buffer, 1, BUFFER, in)) > 0; total += n)
        cache_key_bytes(k, buffer, n);
    bool ok = !ferror(in);
    if (!ok) error_set(e, EXIT_DATA, "%.900s: %s", path, strerror(errno));
    field(k, "file", &total, sizeof total);
    fclose(in);
    free(buffer);
    return ok;
}

/* n bytes at an offset; false: they are not there. */
static bool sample(CacheKey *k, int fd, int64_t offset, int64_t n) {
    char *bytes = xcalloc((size_t)n, 1);
    bool ok = pread(fd, bytes, (size_t)n, offset) == n;
    if (ok) cache_key_bytes(k, bytes, (size_t)n);
    free(bytes);
    return ok;
}

/* How many bytes a file begins with that say what is in it: safetensors has 8 + N. */
static int64_t head_bytes(int fd, int64_t size) {
    enum { HEAD = 1 << 16, MOST = 1 << 24 };
    uint8_t raw[8] = {0};
    int64_t n = 0;
    if (pread(fd, raw, sizeof raw, 0) == sizeof raw)
        for (int i = 7; i >= 0; i--) n = (n & INT32_MAX) << 8 | raw[i];
    return MIN(size, MAX(HEAD, MIN(n + 8, MOST)));
}

bool cache_key_sample(CacheKey *k, const char *path, int blocks, Error *e) {
    enum { BLOCK = 1 << 14 };
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 && !fstat(fd, &info);
    int64_t size = ok ? (int64_t)info.st_size : 0, last = size - BLOCK;
    cache_key_number(k, "bytes", (double)size);
    ok = ok && sample(k, fd, 0, head_bytes(fd, size));
    for (int i = 1; ok && last > 0 && i <= blocks; i++)
        ok = sample(k, fd, last / blocks * i + last % blocks * i / blocks, BLOCK);
    if (!ok) error_set(e, EXIT_DATA, "%.900s: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    return ok;
}

void cache_key_close(CacheKey *k, char key[CACHE_KEY_CHARS]) {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(k->state));
    for (size_t i = 0; i < sizeof canonical.digest; i++)
        snprintf(key + 2 * i, 3, "%02x", canonical.digest[i]);
    XXH3_freeState(k->state);
    free(k);
}
