/* Owns how a library is looked for, and what is said where it is missing or too old. */
#define _GNU_SOURCE
#include "kernels/cuda_open.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

bool cuda_library_open(Library *l, Error *e) {
    char file[64];
    if (!l->handle && l->before && !l->before(e)) return false;
    snprintf(file, sizeof file, "%s.%d", l->file, l->major);
    if (!l->handle) l->handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    return l->handle ||
           error_set(e, EXIT_WORLD,
                     "%s%s cannot be loaded (%s): install %s %d.%d or later, or put its folder "
                     "into LD_LIBRARY_PATH; %s",
                     l->name, l->need, dlerror(), l->name, l->major, l->minor, l->source);
}

bool cuda_library_beside(const Library *l, const char *file, Error *e) {
    char folder[4096] = "";
    if (dlinfo(l->handle, RTLD_DI_ORIGIN, folder)) *folder = 0;
    char *path = xprintf("%s/%s", folder, file);
    void *handle = *folder ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!handle) handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    free(path);
    return handle || error_set(e, EXIT_WORLD,
                               "%s, which %s needs, cannot be loaded (%s): put its folder into "
                               "LD_LIBRARY_PATH; %s",
                               file, l->name, dlerror(), l->source);
}

void *cuda_library_function(Library *l, const char *name) {
    Error e = {0};
    void *found = cuda_library_open(l, &e) ? dlsym(l->handle, name) : NULL;
    if (!found && !e.exit_code)
        error_set(&e, EXIT_WORLD, "the %s here has no %s: install version %d.%d or later; %s",
                  l->name, name, l->major, l->minor, l->source);
    if (!found) die_error(&e);
    return found;
}

bool cuda_library_version(const Library *l, int64_t version, char text[16], Error *e) {
    int major = (int)(version / 10000), minor = (int)(version / 100 % 100);
    snprintf(text, 16, "%d.%d.%d", major, minor, (int)(version % 100));
    if (major == l->major && minor >= l->minor) return true;
    return error_set(e, EXIT_WORLD,
                     "%s %s is here, and this program needs %d.%d or a later %d.x: install that; "
                     "%s",
                     l->name, text, l->major, l->minor, l->major, l->source);
}
