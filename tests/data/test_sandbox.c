/* The decoder's sandbox: what a process in it cannot do, tried one by one in forks. */
#define _GNU_SOURCE
#include "data/sandbox.h"
#include "tests/data/scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cmocka.h>

static const SandboxLimits LIMITS = {.memory_bytes = 64 << 20, .cpu_seconds = 1};

/* What is tried inside; 0: it is as it should be. */
typedef int Deed(void);
static int file = -1; /* opened before */

/* The wait status of a fork that enters the sandbox and does it. */
static int status_of(Deed *deed) {
    int status;
    pid_t id = fork();
    if (!id) {
        Error e = {0};
        bool inside = sandbox_enter(&LIMITS, &e);
        _exit(inside ? deed() : 99);
    }
    assert_int_equal(waitpid(id, &status, 0), id);
    return status;
}

static void expect_fine(Deed *deed) { assert_int_equal(status_of(deed), 0); }

static void expect_signal(Deed *deed, int signal) {
    int status = status_of(deed);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != signal)
        fail_msg("status %x, expected to be ended by %s", status, strsignal(signal));
}

static int allocate(void) {
    volatile char *p = malloc(16 << 20);
    if (!p) return 1;
    for (size_t i = 0; i < 16 << 20; i += 4096) p[i] = 1;
    return 0;
}
static int allocate_too_much(void) {
    void *volatile p = malloc((size_t)128 << 20);
    return p != NULL;
}
static int read_open_file(void) {
    char bytes[4];
    return pread(file, bytes, 4, 0) != 4 || memcmp(bytes, "file", 4) != 0;
}
static int write_open_file(void) { return write(file, "x", 1) != -1 || errno != EPERM; }
static int open_file(void) { return open("/etc/passwd", O_RDONLY) != -1 || errno != EPERM; }
static int make_file(void) { return creat("/tmp/cogsmith-test-none", 0600) == -1; }
static int make_socket(void) { return socket(AF_INET, SOCK_STREAM, 0) == -1; }
static int start_process(void) { return fork() == -1; }
static int start_program(void) { return execl("/bin/true", "true", (char *)NULL); }
static int signal_other(void) { return kill(getppid(), 0) == -1; }
static int make_executable(void) {
    return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != NULL;
}
static int compute(void) {
    for (volatile unsigned i = 1; i; i |= 1) {
    }
    return 0;
}
static int give_up(void) { abort(); }

static void test_allowed(void **state) {
    (void)state;
    expect_fine(allocate);
    expect_fine(read_open_file);
}

static void test_refused(void **state) {
    (void)state;
    expect_fine(open_file);
    expect_fine(write_open_file);
    expect_fine(allocate_too_much);
}

static void test_ended(void **state) {
    (void)state;
    expect_signal(make_file, SIGSYS);
    expect_signal(make_socket, SIGSYS);
    expect_signal(start_process, SIGSYS);
    expect_signal(start_program, SIGSYS);
    expect_signal(signal_other, SIGSYS);
    expect_signal(make_executable, SIGSYS);
    expect_signal(compute, SIGXCPU);
    expect_signal(give_up, SIGABRT);
}

int main(void) {
    char *folder = scratch_make(), *path = xprintf("%s/file", folder);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_allowed),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_ended),
    };
    scratch_write(path, "file", 4);
    file = open(path, O_RDWR);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(path);
    scratch_remove(folder);
    return failed;
}
