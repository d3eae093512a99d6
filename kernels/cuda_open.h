/* Libraries that are looked for when the first of their functions is called: a program linked to
 * them would not start where they are missing. Only the files that stand for them include this. */
#pragma once

#include "kernels/base.h"

typedef struct {
    const char *name;   /* as people call it */
    const char *need;   /* ", which ... need," or "" */
    const char *file;   /* its file, without the number of its major version */
    int major, minor;   /* the least that serves, of the major version it was compiled with */
    const char *source; /* where to get it */
    void *handle;       /* NULL: not opened yet */
    /* Opens what the library will look for itself, which is looked for in fewer places than what
     * the program wants; NULL: nothing. */
    bool (*before)(Error *e);
} Library;

/* false: it is not there, and *e says what to do. */
bool cuda_library_open(Library *l, Error *e);
/* Opens `file`, which the library needs, from the library's own folder, or else from wherever
 * libraries are. */
bool cuda_library_beside(const Library *l, const char *file, Error *e);
/* Its own function; ends the program where there is none. */
void *cuda_library_function(Library *l, const char *name);
/* Whether it is the major version, and not older than the least that serves; as text, too.
 * version: 10000 times the major, and 100 times the minor number, and the patch's. */
bool cuda_library_version(const Library *l, int64_t version, char text[16], Error *e);

/* A function that stands for the library's own, by the declaration of its header, and hands its
 * arguments on. */
#define FORWARD(library, result, name, parameters, arguments)                                      \
    result name parameters {                                                                       \
        static result(*to) parameters;                                                             \
        if (!to) to = (result(*) parameters)cuda_library_function(&library, #name);                \
        return to arguments;                                                                       \
    }
