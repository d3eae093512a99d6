/* Owns the answer to requests to stop (SIGINT, SIGTERM, SIGUSR1) while `prepare` works. A thread of
 * its own gives it: encoding one clip may take minutes, and need not end first. */
#define _GNU_SOURCE
#include "trainer/prepare.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int pipe_ends[2];
static Prepare *stopping;

/* Only what a signal handler may do. */
static void ask(int signal) {
    (void)signal;
    int saved = errno;
    ssize_t written = write(pipe_ends[1], "", 1);
    (void)written; /* a full pipe has been asked already */
    errno = saved;
}

static void *answer(void *unused) {
    (void)unused;
    char byte;
    ssize_t n;
    do n = read(pipe_ends[0], &byte, 1);
    while (n < 0 && errno == EINTR);
    bool ok = prepare_stop(stopping);
    fflush(stdout);
    _exit(ok ? EXIT_STOPPED : EXIT_WORLD); /* others compute still: their memory must stay */
}

void prepare_on_stop(Prepare *p) {
    static const int SIGNALS[] = {SIGINT, SIGTERM, SIGUSR1};
    pthread_t thread;
    stopping = p;
    CHECK(!pipe2(pipe_ends, O_CLOEXEC | O_NONBLOCK), "no pipe: %s", strerror(errno));
    fcntl(pipe_ends[0], F_SETFL, 0); /* the reader waits, the handler never does */
    CHECK(!pthread_create(&thread, NULL, answer, NULL), "no thread");
    pthread_detach(thread);
    struct sigaction how = {.sa_handler = ask, .sa_flags = SA_RESTART};
    for (size_t i = 0; i < COUNT(SIGNALS); i++) sigaction(SIGNALS[i], &how, NULL);
}
