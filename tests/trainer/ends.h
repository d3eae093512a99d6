/* Calls that end the program: what they say, and how. Include after cmocka.h. */
#pragma once

#include "tests/data/scratch.h"

#include <sys/wait.h>

/* Runs call(context) in a process of its own; its exit code, 0 where it returns, and *said, what it
 * wrote on stderr, of the caller's own. */
static inline int ends(void (*call)(void *context), void *context, char **said) {
    char path[] = "/tmp/cogsmith-ends-XXXXXX";
    int file = mkstemp(path), status;
    size_t n;
    assert_true(file >= 0);
    pid_t child = fork();
    if (!child) {
        if (dup2(file, STDERR_FILENO) < 0) _exit(126);
        call(context);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    char *bytes = (char *)scratch_read(path, &n);
    *said = xprintf("%.*s", (int)n, bytes);
    free(bytes);
    close(file);
    unlink(path);
    if (!WIFEXITED(status)) fail_msg("signal %d: %s", WTERMSIG(status), *said);
    return WEXITSTATUS(status);
}

/* It ends with `code` and one line that holds all parts, of which NULL is the last. */
static inline void expect_ends(void (*call)(void *), void *context, int code,
                               const char *const *parts) {
    char *said;
    int found = ends(call, context, &said);
    if (found != code) fail_msg("expected exit code %d, got %d: %s", code, found, said);
    for (int i = 0; parts[i]; i++)
        if (!strstr(said, parts[i])) fail_msg("expected '%s' in: %s", parts[i], said);
    if (strchr(said, '\n') != said + strlen(said) - 1) fail_msg("expected one line: %s", said);
    free(said);
}

#define ENDS(call, context, code, ...)                                                             \
    expect_ends(call, context, code, (const char *const[]){__VA_ARGS__, NULL})
