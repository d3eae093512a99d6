/* Ranks under test: mpirun on this machine, and what they say. */
#pragma once

#include "tests/data/scratch.h"

#include <sys/wait.h>

/* Ranks of one thread that wait without working; the tests may be root's. */
static const char MPIRUN[] =
    "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 mpirun "
    "--oversubscribe --mca mpi_yield_when_idle 1 --mca btl_vader_single_copy_mechanism none";

/* Runs a shell line; its exit code, or -1 for a signal. */
static inline int shell(const char *line) {
    int status = system(line);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* `mpirun -n world WHAT TO`, where TO is a shell's redirections; its exit code. */
static inline int run_ranks(int world, const char *what, const char *to) {
    char *line = xprintf("%s -n %d %s %s", MPIRUN, world, what, to);
    int code = shell(line);
    free(line);
    return code;
}

/* A whole file as text, of the caller's own. */
static inline char *text_of(const char *path) {
    size_t n;
    char *bytes = (char *)scratch_read(path, &n), *text = xprintf("%.*s", (int)n, bytes);
    free(bytes);
    return text;
}
