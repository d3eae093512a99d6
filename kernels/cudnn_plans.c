/* Owns the plans that were made, in memory and in files. */
#define _POSIX_C_SOURCE 200809L
#include "kernels/cudnn_plans.h"

#include <cuda_runtime_api.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct Kept Kept;
struct Kept {
    char key[DNN_KEY];
    DnnPlan *plan;
    Kept *next;
};

struct DnnPlans {
    DnnHandle handle;
    char *folder;
    Kept *first;
};

/* ---- a file's form ----------------------------------------------------------------------------
 *
 *     cogsmith cuDNN plan 2 KEY BYTES FNV\n, and the plan's bytes
 */

enum { HEADER = DNN_KEY + 96 };

/* Fowler, Noll and Vo's FNV-1a of 64 bits: the files are the user's own, and only whole or not. */
static uint64_t digest_of(const char *bytes, size_t n) {
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)bytes[i]) * UINT64_C(0x100000001b3);
    return h;
}

static size_t header_of(const char *key, const char *text, size_t bytes, char header[HEADER]) {
    return (size_t)snprintf(header, HEADER, "cogsmith cuDNN plan 2 %s %zu %016llx\n", key, bytes,
                            (unsigned long long)digest_of(text, bytes));
}

char *dnn_plan_file(const char *key, const char *text, size_t bytes, size_t *file_bytes) {
    char header[HEADER];
    size_t n = header_of(key, text, bytes, header);
    char *file = xcalloc(n + bytes, 1);
    memcpy(file, header, n);
    memcpy(file + n, text, bytes);
    *file_bytes = n + bytes;
    return file;
}

const char *dnn_plan_file_text(const char *key, const char *file, size_t file_bytes,
                               size_t *bytes) {
    char header[HEADER];
    const char *end = memchr(file, '\n', MIN(file_bytes, (size_t)HEADER));
    if (!end) return NULL;
    const char *text = end + 1;
    *bytes = file_bytes - (size_t)(text - file);
    size_t n = header_of(key, text, *bytes, header);
    return n == (size_t)(text - file) && !memcmp(file, header, n) ? text : NULL;
}

/* ---- files ------------------------------------------------------------------------------------
 */

/* Letters and digits of a GPU's name; all else becomes '-'. */
static char *folder_here(void) {
    struct cudaDeviceProp gpu;
    int device = 0;
    cuda_check(cudaGetDevice(&device), "asking for the GPU");
    cuda_check(cudaGetDeviceProperties(&gpu, device), "asking for the GPU's properties");
    for (char *c = gpu.name; *c; c++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", *c)) *c = '-';
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    bool own = cache && *cache;
    if (!own && !(home && *home)) return NULL;
    return xprintf("%s%s/cogsmith/cudnn/%s-sm%d%d-%d-cudnn%zu", own ? cache : home,
                   own ? "" : "/.cache", gpu.name, gpu.major, gpu.minor, gpu.multiProcessorCount,
                   dnn_version());
}

/* Makes a folder and those above it. */
static bool make_folders(const char *path) {
    char *copy = xstrdup(path);
    for (char *c = copy + 1; *c; c++) {
        if (*c != '/') continue;
        *c = 0;
        mkdir(copy, 0777);
        *c = '/';
    }
    bool made = !mkdir(copy, 0777) || errno == EEXIST;
    free(copy);
    return made;
}

static char *read_file(const char *path, size_t *bytes) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    struct stat info;
    char *text = NULL;
    if (!fstat(fileno(f), &info) && S_ISREG(info.st_mode)) {
        *bytes = (size_t)info.st_size;
        text = xcalloc(*bytes + 1, 1);
        if (fread(text, 1, *bytes, f) != *bytes) *bytes = 0;
    }
    fclose(f);
    return text;
}

/* Whole or not at all: under a temporary name first. */
static bool write_file(const char *path, const char *text, size_t bytes) {
    char *temporary = xprintf("%s.tmp.%ld", path, (long)getpid());
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    size_t done = 0;
    while (fd >= 0 && done < bytes) {
        ssize_t n = write(fd, text + done, bytes - done);
        if (n <= 0) break;
        done += (size_t)n;
    }
    bool good = fd >= 0 && done == bytes && !fsync(fd);
    if (fd >= 0) good = !close(fd) && good;
    good = good && !rename(temporary, path);
    int why = errno;
    if (!good && fd >= 0) unlink(temporary);
    errno = why;
    free(temporary);
    return good;
}

static DnnPlan *plan_from_file(const DnnPlans *p, const char *key) {
    if (!p->folder) return NULL;
    char *path = xprintf("%s/%s", p->folder, key);
    size_t file_bytes, bytes;
    char *file = read_file(path, &file_bytes);
    const char *text = file ? dnn_plan_file_text(key, file, file_bytes, &bytes) : NULL;
    DnnPlan *plan = text ? dnn_plan_restore(p->handle, text, bytes) : NULL;
    free(file);
    free(path);
    return plan;
}

static void plan_to_file(const DnnPlans *p, const char *key, const DnnPlan *plan) {
    size_t bytes, file_bytes;
    char *text = p->folder ? dnn_plan_save(plan, &bytes) : NULL;
    if (!text) return;
    char *file = dnn_plan_file(key, text, bytes, &file_bytes);
    char *path = xprintf("%s/%s", p->folder, key);
    static bool told;
    if (!(make_folders(p->folder) && write_file(path, file, file_bytes)) && !told) {
        fprintf(stderr,
                "cogsmith: %s: %s: cuDNN's plans are not kept, so every start makes them again; "
                "set XDG_CACHE_HOME to a folder that can be written\n",
                path, strerror(errno));
        told = true;
    }
    free(text);
    free(file);
    free(path);
}

/* ---- plans ------------------------------------------------------------------------------------
 */

DnnPlans *dnn_plans_open(DnnHandle handle, const char *folder) {
    DnnPlans *p = xcalloc(1, sizeof *p);
    p->handle = handle;
    p->folder = folder ? xstrdup(folder) : folder_here();
    return p;
}

void dnn_plans_close(void *plans) {
    DnnPlans *p = plans;
    if (!p) return;
    for (Kept *k = p->first, *next; k; k = next) {
        next = k->next;
        dnn_plan_close(k->plan);
        free(k);
    }
    free(p->folder);
    free(p);
}

static DnnPlan *plan_made(const DnnPlans *p, const char *key, const DnnRules *r, DnnGraph *g) {
    DnnAnswer answer;
    Error e = {0};
    DnnPlan *plan = dnn_plan_make(g, &(DnnDevice){.handle = p->handle}, r, &answer, &e);
    dnn_graph_close(g);
    if (plan) return plan;
    Error more;
    error_set(&more, EXIT_WORLD, "%.900s (for %s)", e.text, key);
    die_error(&more);
}

const DnnPlan *dnn_plans_find(DnnPlans *p, const char *key, const DnnRules *r,
                              DnnGraph *(*graph)(const void *what), const void *what) {
    for (Kept *k = p->first; k; k = k->next)
        if (!strcmp(k->key, key)) return k->plan;
    Kept *k = xcalloc(1, sizeof *k);
    snprintf(k->key, sizeof k->key, "%s", key);
    k->plan = plan_from_file(p, key);
    if (k->plan && r->workspace >= 0 && dnn_plan_workspace(k->plan) > r->workspace) {
        dnn_plan_close(k->plan);
        k->plan = NULL;
    }
    if (!k->plan) {
        k->plan = plan_made(p, key, r, graph(what));
        plan_to_file(p, key, k->plan);
    }
    k->next = p->first;
    p->first = k;
    return k->plan;
}
