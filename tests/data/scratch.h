/* Files of the tests of data/: a folder of their own, whole files in and out. */
#pragma once

#include "kernels/base.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A new folder; scratch_remove ends it. */
static inline char *scratch_make(void) {
    char *folder = xstrdup("/tmp/cogsmith-test-XXXXXX");
    CHECK(mkdtemp(folder), "%s", folder);
    return folder;
}

static inline void scratch_remove(char *folder) {
    char *command = xprintf("rm -rf '%s'", folder);
    CHECK(!system(command), "%s", command);
    free(command);
    free(folder);
}

static inline void scratch_write(const char *path, const void *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(bytes, 1, n, f) == n && !fclose(f), "%s", path);
}

/* The bytes of a file in memory of exactly their number, and *n. */
static inline uint8_t *scratch_read(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    CHECK(f && !fseek(f, 0, SEEK_END), "%s", path);
    *n = (size_t)ftell(f);
    rewind(f);
    uint8_t *bytes = xcalloc(*n, 1);
    CHECK(fread(bytes, 1, *n, f) == *n && !fclose(f), "%s", path);
    return bytes;
}

/* How many entries a folder has. */
static inline int scratch_count(const char *folder) {
    int n = -2; /* . and .. */
    DIR *d = opendir(folder);
    CHECK(d, "%s", folder);
    while (readdir(d)) n++;
    closedir(d);
    return n;
}
