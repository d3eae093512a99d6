/* Owns what is asked of the system about its memory. */
#define _DEFAULT_SOURCE
#include "trainer/host_memory.h"

#include "kernels/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A number of bytes after `key` in a file of the system; `none`: it is not there. */
static int64_t read_bytes(const char *path, const char *key, int64_t unit, int64_t none) {
    FILE *f = fopen(path, "r");
    char line[256];
    int64_t bytes = none;
    size_t n = strlen(key);
    while (f && fgets(line, sizeof line, f)) {
        char *end = line;
        if (strncmp(line, key, n)) continue;
        int64_t value = strtoll(line + n, &end, 10);
        if (end != line + n) bytes = value * unit;
    }
    if (f) fclose(f);
    return bytes;
}

/* The names of a group's files. */
typedef struct {
    const char *mounted; /* below the root */
    const char *most, *now, *files;
} Version;

static const Version FIRST = {"/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                              "total_inactive_file "};
static const Version SECOND = {"", "memory.max", "memory.current", "inactive_file "};

static int64_t read_group(const char *folder, const char *file, const char *key, int64_t none) {
    char *path = xprintf("%s/%s", folder, file);
    int64_t bytes = read_bytes(path, key, 1, none);
    free(path);
    return bytes;
}

/* Of one group: "max", or a number that no machine has, is none. */
static int64_t group_free_bytes(const Version *v, const char *folder) {
    const int64_t any = (int64_t)1 << 60;
    int64_t most = read_group(folder, v->most, "", any);
    if (most >= any) return INT64_MAX;
    int64_t used = read_group(folder, v->now, "", 0) -
                   read_group(folder, "memory.stat", v->files, 0); /* the system gives these up */
    return most - used;
}

/* Of the group `path` and of those above it. A container may see its own as the root. */
static int64_t path_free_bytes(const Version *v, const char *root, const char *path) {
    char *folder = xprintf("%s%s%s", root, v->mounted, path);
    size_t top = strlen(root) + strlen(v->mounted);
    int64_t least = INT64_MAX;
    for (char *end = folder + strlen(folder);;) {
        *end = 0;
        least = MIN(least, group_free_bytes(v, folder));
        if (end == folder + top) break;
        do end--;
        while (end > folder + top && *end != '/');
    }
    free(folder);
    return least;
}

/* A line is "0::/path", or "4:memory:/path" where version 1 is in use. */
int64_t groups_free_bytes(const char *root, const char *self) {
    FILE *f = fopen(self, "r");
    char line[4096];
    int64_t least = MIN(path_free_bytes(&FIRST, root, ""), path_free_bytes(&SECOND, root, ""));
    while (f && fgets(line, sizeof line, f)) {
        char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;
        if (!path) continue;
        *path++ = 0;
        path[strcspn(path, "\n")] = 0;
        if (!strcmp(path, "/")) *path = 0;
        if (!names[1]) least = MIN(least, path_free_bytes(&SECOND, root, path));
        if (strstr(names, "memory")) least = MIN(least, path_free_bytes(&FIRST, root, path));
    }
    if (f) fclose(f);
    return least;
}

int64_t host_free_bytes(void) {
    int64_t free_bytes = (int64_t)sysconf(_SC_AVPHYS_PAGES) * sysconf(_SC_PAGESIZE);
    free_bytes = read_bytes("/proc/meminfo", "MemAvailable:", 1024, free_bytes);
    return MIN(free_bytes, groups_free_bytes("/sys/fs/cgroup", "/proc/self/cgroup"));
}
