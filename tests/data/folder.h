/* A folder for each test, made before it and removed behind it. */
#pragma once

#include "tests/data/scratch.h"

static char *folder; /* of the running test */

static inline int enter(void **state) {
    (void)state;
    folder = scratch_make();
    return 0;
}

static inline int leave(void **state) {
    (void)state;
    scratch_remove(folder);
    return 0;
}

/* "folder/name", in memory that the next eight calls leave alone. */
static inline const char *in_folder(const char *name) {
    static char *ring[8];
    static int next;
    next = (next + 1) % 8;
    free(ring[next]);
    return ring[next] = xprintf("%s/%s", folder, name);
}
