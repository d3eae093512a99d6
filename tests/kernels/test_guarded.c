/* That the guarded device guards: what a host must not do to a device's memory ends a child. */
#define _XOPEN_SOURCE 700
#include "tests/shim/guarded.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { BYTES = 5000 };

/* What a child does with them; 0 is how it ends where nothing stopped it. */
typedef struct {
    const Backend *k;
    Stream *s, *other;
    volatile char *device, *host;
} Scene;

static void expect_end(void (*act)(const Scene *c), int signal_number) {
    fflush(NULL);
    pid_t child = fork();
    if (!child) {
        if (!freopen("/dev/null", "w", stderr)) _exit(2);
        signal(SIGSEGV, SIG_DFL); /* cmocka's would go on with the next test */
        signal(SIGABRT, SIG_DFL);
        Scene c = {.k = guarded(&BACKEND_CPU)};
        c.s = c.k->stream_open();
        c.other = c.k->stream_open();
        c.device = c.k->alloc(BYTES);
        c.host = c.k->alloc_host(BYTES);
        c.k->zero(c.s, (char *)c.device, BYTES);
        memset((char *)c.host, 0, BYTES);
        act(&c);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(WIFSIGNALED(status) ? WTERMSIG(status) : 0, signal_number);
    assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
}

static void download(const Scene *c, Stream *s) {
    c->k->download(s, (char *)c->host, (char *)c->device, BYTES);
}

static void upload(const Scene *c, Stream *s) {
    c->k->upload(s, (char *)c->device, (char *)c->host, BYTES);
}

/* ---- device memory ----------------------------------------------------------------------------
 */

static void read_device(const Scene *c) { (void)c->device[BYTES / 2]; }
static void write_device(const Scene *c) { c->device[0] = 1; }
static void read_behind(const Scene *c) { (void)c->host[(BYTES + 255) / 256 * 256]; }
static void read_released(const Scene *c) {
    c->k->release((char *)c->device);
    (void)c->device[0];
}
static void give_host(const Scene *c) { c->k->zero(c->s, (char *)c->host, BYTES); }
static void give_device(const Scene *c) {
    c->k->upload(c->s, (char *)c->device, (char *)c->device, BYTES);
}
static void read_by_entry(const Scene *c) {
    download(c, c->s);
    c->k->stream_sync(c->s);
    if (c->host[7]) _exit(3);
}

static void device_memory_is_closed(void **state) {
    (void)state;
    expect_end(read_device, SIGSEGV);
    expect_end(write_device, SIGSEGV);
    expect_end(read_behind, SIGSEGV);
    expect_end(read_released, SIGSEGV);
    expect_end(give_host, SIGABRT);
    expect_end(give_device, SIGABRT);
    expect_end(read_by_entry, 0);
}

/* ---- copies under way -------------------------------------------------------------------------
 */

static void read_too_early(const Scene *c) {
    download(c, c->s);
    (void)c->host[0];
}
static void read_after_another(const Scene *c) {
    download(c, c->other);
    c->k->stream_sync(c->s);
    (void)c->host[0];
}
static void read_after_a_wait(const Scene *c) {
    download(c, c->other);
    c->k->stream_after(c->s, c->other);
    c->k->stream_sync(c->s);
    (void)c->host[0];
}
static void read_one_of_two(const Scene *c) {
    download(c, c->other);
    c->k->stream_after(c->s, c->other);
    download(c, c->other);
    c->k->stream_sync(c->s);
    (void)c->host[0];
}
static void write_too_early(const Scene *c) {
    upload(c, c->s);
    c->host[0] = 1;
}
static void read_what_is_read(const Scene *c) {
    upload(c, c->s);
    (void)c->host[0];
    c->k->stream_sync(c->s);
    c->host[0] = 1;
}

static void host_memory_is_closed_while_copied(void **state) {
    (void)state;
    expect_end(read_too_early, SIGSEGV);
    expect_end(read_after_another, SIGSEGV);
    expect_end(read_one_of_two, SIGSEGV);
    expect_end(read_after_a_wait, 0);
    expect_end(write_too_early, SIGSEGV);
    expect_end(read_what_is_read, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(device_memory_is_closed),
        cmocka_unit_test(host_memory_is_closed_while_copied),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
