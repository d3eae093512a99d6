/* Owns the signals that ask `prepare` to stop (SIGINT, SIGTERM, SIGUSR1), and how the program's own
 * thread sleeps between them while another works. */
#define _GNU_SOURCE
#include "trainer/prepare.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static int pipe_ends[2];
static volatile sig_atomic_t asked;

void prepare_wake(void) {
    int saved = errno;
    ssize_t written = write(pipe_ends[1], "", 1);
    (void)written; /* a full pipe wakes already */
    errno = saved;
}

/* Only what a signal handler may do. */
static void ask(int signal) {
    (void)signal;
    asked = 1;
    prepare_wake();
}

bool prepare_asked(void) { return asked; }

void prepare_sleep(int milliseconds) {
    struct pollfd wait = {.fd = pipe_ends[0], .events = POLLIN};
    char bytes[64];
    if (poll(&wait, 1, milliseconds) > 0)
        while (read(pipe_ends[0], bytes, sizeof bytes) == sizeof bytes) continue;
}

void prepare_on_stop(void) {
    static const int SIGNALS[] = {SIGINT, SIGTERM, SIGUSR1};
    CHECK(!pipe2(pipe_ends, O_CLOEXEC | O_NONBLOCK), "no pipe: %s", strerror(errno));
    struct sigaction how = {.sa_handler = ask, .sa_flags = SA_RESTART};
    for (size_t i = 0; i < COUNT(SIGNALS); i++) sigaction(SIGNALS[i], &how, NULL);
}
