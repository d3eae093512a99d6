/* Processes: the end of one is seen, and of no other that has its number. */
#define _GNU_SOURCE
#include "kernels/comm_process.h"

#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* A process that waits to be killed, and what it says of itself. */
static pid_t start(Process *p) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (!child) {
        Process mine = own_process();
        if (write(ends[1], &mine, sizeof mine) != sizeof mine) _exit(1);
        for (;;) pause();
    }
    assert_true(child > 0);
    assert_int_equal(read(ends[0], p, sizeof *p), sizeof *p);
    close(ends[0]);
    close(ends[1]);
    assert_int_equal(p->number, child);
    return child;
}

static void end(pid_t child) {
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
}

static bool has_ended(int fd) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void an_end_is_seen(void **state) {
    (void)state;
    Process p;
    pid_t child = start(&p);
    int fd = process_open(&p);
    if (fd < 0) print_message("this kernel has no descriptors of processes\n");
    if (fd >= 0) assert_false(has_ended(fd));
    end(child);
    if (fd >= 0) assert_true(has_ended(fd));
    if (fd >= 0) close(fd);
    assert_int_equal(process_open(&p), -1);
}

/* A number that has passed on to another process; one of another host or container; one of which
 * that is not known. */
static void others_are_not_looked_at(void **state) {
    (void)state;
    Process p, other;
    pid_t child = start(&p);
    other = p;
    other.began--;
    assert_int_equal(process_open(&other), -1);
    other = p;
    other.began = 0;
    assert_int_equal(process_open(&other), -1);
    other = p;
    other.place[0] ^= 1;
    assert_int_equal(process_open(&other), -1);
    other = p;
    other.place[0] = 0;
    assert_int_equal(process_open(&other), -1);
    end(child);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(an_end_is_seen),
                                       cmocka_unit_test(others_are_not_looked_at)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
