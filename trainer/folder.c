/* Owns where the components of a model lie. */
#define _POSIX_C_SOURCE 200809L
#include "trainer/folder.h"

#include <stdlib.h>
#include <unistd.h>

bool component_folder(const char *model_path, const char *component, const char *file,
                      char **folder, Error *e) {
    for (int own = 0; own < 2; own++) {
        *folder = own ? xstrdup(model_path) : xprintf("%s/%s", model_path, component);
        char *path = xprintf("%s/%s", *folder, file);
        bool found = !access(path, F_OK);
        free(path);
        if (found) return true;
        free(*folder);
    }
    *folder = NULL;
    if (access(model_path, F_OK))
        return error_set(e, EXIT_USER,
                         "%s: no such folder%s; expected a model's, as `hf download NAME "
                         "--local-dir FOLDER` makes it",
                         model_path,
                         *model_path == '/' ? "" : " below the current one, where paths begin");
    return error_set(e, EXIT_USER,
                     "%s: expected %s/%s (a diffusers model folder) or %s (the %s's own folder)",
                     model_path, component, file, file, component);
}
