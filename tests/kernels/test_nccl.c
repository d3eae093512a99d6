/* NCCL itself: why it cannot be loaded, and a job of one rank on the GPU that is here.
 *
 * usage: test_nccl            the tests; the last is skipped where there is no GPU
 *        test_nccl library    says which NCCL there is */
#define _GNU_SOURCE
#include "kernels/comm_watch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char *self;
static char said[4096];

static int ask(const char *libraries) {
    char *command = xprintf("LD_LIBRARY_PATH='%s' '%s' library 2>&1", libraries, self);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    said[fread(said, 1, sizeof said - 1, f)] = 0;
    free(command);
    return WEXITSTATUS(pclose(f));
}

/* A broken file in its place: this program starts, and says what is wrong when it wants it. */
static void a_missing_library_is_named(void **state) {
    (void)state;
    char at[] = "/tmp/test_nccl.XXXXXX";
    assert_non_null(mkdtemp(at));
    char *file = xprintf("%s/libnccl.so.2", at);
    fclose(fopen(file, "w"));
    assert_int_equal(ask(at), EXIT_WORLD);
    assert_non_null(strstr(said, "NCCL, which several ranks on GPUs need, cannot be loaded"));
    assert_non_null(strstr(said, "LD_LIBRARY_PATH"));
    unlink(file);
    rmdir(at);
    free(file);
}

static void gather_and_sum(Comm *c, const Backend *k, Stream *s) {
    enum { N = 100003 };
    float *host = xcalloc(N, sizeof *host), *back = xcalloc(N, sizeof *back);
    float *x = k->alloc(N * sizeof *x), *y = k->alloc(N * sizeof *y);
    for (int i = 0; i < N; i++) host[i] = (float)(i * 0.37);
    k->upload(s, x, host, N * sizeof *x);
    c->all_gather(c, s, DT_F32, N, x, y);
    c->all_to_all(c, s, DT_F32, N, y, x);
    c->reduce_scatter(c, s, N, x, y);
    comm_sum(c, s, N, y);
    k->download(s, back, y, N * sizeof *y);
    k->stream_sync(s);
    assert_memory_equal(host, back, N * sizeof *host);
    c->all_gather(c, s, DT_F32, N, host, back);
    assert_memory_equal(host, back, N * sizeof *host);
    k->release(x);
    k->release(y);
    free(host);
    free(back);
}

static void one_rank(void **state) {
    (void)state;
    Error e;
    const Backend *k = cuda_backend(0, &e);
    if (!k) {
        print_message("not run: %s\n", e.text);
        skip();
    }
    Stream *s = k->stream_open();
    Comm *comms[] = {comm_nccl(comm_self(), k), comm_over(comm_self(), k)};
    for (size_t i = 0; i < COUNT(comms); i++) {
        gather_and_sum(comms[i], k, s);
        comm_close(comms[i]);
    }
    k->stream_close(s);
}

static int tell(void) {
    char version[16];
    Error e;
    if (!nccl_library(version, &e)) die_error(&e);
    printf("NCCL %s\n", version);
    return 0;
}

int main(int n, char **words) {
    self = words[0];
    if (n > 1) return tell();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_missing_library_is_named),
        cmocka_unit_test(one_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
