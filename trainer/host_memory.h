/* Host memory: how much of it this machine has for programs. */
#pragma once

#include <stdint.h>

/* Free, or of files that were read, which the system gives up for programs; within what the
 * control groups that this process is in allow. */
int64_t host_free_bytes(void);

/* The latter alone, by the files of version 2, or the memory controller's of version 1: `root` is
 * where they are mounted (/sys/fs/cgroup), `self` the list of this process's groups
 * (/proc/self/cgroup). Every group above counts too. INT64_MAX: there is no limit. */
int64_t groups_free_bytes(const char *root, const char *self);
