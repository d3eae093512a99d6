/* A folder that one process writes at a time: a lock file in it, which names its holder. */
#pragma once

#include "kernels/base.h"

/* Takes the lock of a folder, which must exist, until the process ends or folder_unlock. Returns a
 * descriptor; -1: *e says why. `what` completes "process 12 on host ... this cache": "writes this
 * cache" (EXIT_USER where another holds it). */
int folder_lock(const char *folder, const char *what, Error *e);
/* Also right for -1. */
void folder_unlock(int lock);
