/* The room in which files of strangers are decoded: a process that keeps its open descriptors and
 * its memory, and can do little else.
 *
 * After sandbox_enter the process cannot open a file, make a socket, start a process or a thread,
 * map executable memory, or gain privileges; it can grow by `memory_bytes`, compute for
 * `cpu_seconds`, and write into memory that it shares already. What a library does only to look
 * around (opening, asking the terminal) fails with EPERM; any other system call that is not in the
 * list ends the process with SIGSYS.
 */
#pragma once

#include "kernels/base.h"

typedef struct {
    int64_t memory_bytes; /* address space, on top of what the process has */
    int64_t cpu_seconds;
} SandboxLimits;

/* For a process with one thread. false: the kernel refused, *e (EXIT_WORLD) says what; the process
 * must not go on. */
bool sandbox_enter(const SandboxLimits *limits, Error *e);
