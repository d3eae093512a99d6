/* Ranks under test: mpirun on this machine, what they say, and signals that reach one of them. The
 * file that includes it defines _GNU_SOURCE. */
#pragma once

#include "tests/data/scratch.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

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

/* `TEST signal USR1 $$ CONDITION &`: a shell's line before it becomes a rank, which gets the signal
 * once the condition, a line of a shell, holds. Where the rank has ended nobody gets it, for its
 * number may be another's; and this process ends with it. Returns the exit code. */
static inline int signal_rank(char **args) {
    static const struct {
        const char *name;
        int number;
    } SIGNALS[] = {{"USR1", SIGUSR1}, {"TERM", SIGTERM}, {"STOP", SIGSTOP}, {"KILL", SIGKILL}};
    pid_t rank = atoi(args[1]);
    struct pollfd end = {.fd = (int)syscall(SYS_pidfd_open, rank, 0), .events = POLLIN};
    if (end.fd < 0) perror("no descriptor of a rank");
    if (end.fd < 0 || getppid() != rank) return 1;
    while (poll(&end, 1, 0) == 0) {
        int status = system(args[2]);
        for (size_t i = 0; !status && i < COUNT(SIGNALS); i++)
            if (!strcmp(SIGNALS[i].name, args[0]))
                return syscall(SYS_pidfd_send_signal, end.fd, SIGNALS[i].number, NULL, 0) != 0;
        poll(&end, 1, 10);
    }
    return 0;
}

/* Whether main was called so. */
static inline bool is_signal(int argc, char **argv) {
    return argc == 5 && !strcmp(argv[1], "signal");
}
