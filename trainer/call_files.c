/* Owns the checks on files that a call names. */
#define _POSIX_C_SOURCE 200809L
#include "trainer/call_files.h"

#include "kernels/kernels.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

float *given_floats(const Safetensors *file, const SafetensorsTensor *t) {
    if (t->dtype != DT_F32 && t->dtype != DT_BF16 && t->dtype != DT_F16)
        die("%s: %s: expected F32, BF16 or F16, found %s", file->path, t->name, t->dtype_name);
    int64_t n = safetensors_count(t);
    float *values = xcalloc((size_t)n, sizeof *values);
    BACKEND_CPU.cast(NULL, t->dtype, DT_F32, n, t->data, values);
    for (int64_t i = 0; i < n; i++)
        if (!(values[i] - values[i] == 0))
            die("%s: %s: value %lld: expected a finite number; mend what wrote the file",
                file->path, t->name, (long long)i);
    return values;
}

void check_writable(const Config *c, const char *key, const char *path) {
    const char *slash = strrchr(path, '/');
    char *folder = slash ? xprintf("%.*s", (int)(slash - path + 1), path) : xstrdup(".");
    struct stat info;
    if (access(folder, W_OK))
        config_die(c, key, "%s: cannot write into the folder %s: %s", path, folder,
                   strerror(errno));
    if (!stat(path, &info) && S_ISDIR(info.st_mode))
        config_die(c, key, "%s is a folder; expected a file", path);
    free(folder);
}
