/* Ranks on GPUs, over a GPU and an NCCL of plain loops (fake_nccl.c): the same numbers as ranks on
 * CPUs, in rank order; and ranks that do not come, stand still or ask for something else end the
 * job in time and by name.
 *
 * The program is its own worker: `test_comm_nccl CASE` is a rank, and mpirun starts them. */
#define _GNU_SOURCE
#include "kernels/comm_watch.h"
#include "tests/kernels/fake_nccl.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { TIMEOUT_S = 3, MARGIN_S = 12, CULPRIT = 1 };

/* ---- what the ranks compute -------------------------------------------------------------------
 */

typedef struct {
    Comm *c;
    const Backend *k;
    Stream *s;
} Rank;

/* Element i of what rank r has: of such sizes that the order of a sum shows. */
static real value(int r, int64_t i) {
    uint32_t h = (uint32_t)(i * 2654435761u) ^ (uint32_t)(r + 1) * 0x9e3779b9u;
    h = (h ^ h >> 15) * 0x85ebca6bu;
    return (real)((int32_t)h / 65536) * (real)(1 << (h % 23)) / 1024;
}

static void fill(const Rank *r, int rank, int64_t n, real *device) {
    real *host = xcalloc((size_t)n, sizeof *host);
    for (int64_t i = 0; i < n; i++) host[i] = value(rank, i);
    r->k->upload(r->s, device, host, (size_t)n * sizeof *host);
    free(host);
}

static real *take(const Rank *r, int64_t n) { return r->k->alloc((size_t)n * sizeof(real)); }

/* The device's x[0..n) is what `expected` says; ends the rank if not. */
static void check(const Rank *r, const char *what, int64_t n, const real *x, const real *expected) {
    real *host = xcalloc((size_t)n, sizeof *host);
    r->k->download(r->s, host, x, (size_t)n * sizeof *host);
    for (int64_t i = 0; i < n; i++)
        if (memcmp(&host[i], &expected[i], sizeof *host)) {
            printf("rank %d of %d: %s of %lld: element %lld is %.9g, expected %.9g\n", r->c->rank,
                   r->c->size, what, (long long)n, (long long)i, (double)host[i],
                   (double)expected[i]);
            exit(EXIT_DATA);
        }
    free(host);
}

static void gathers(const Rank *r, int64_t count, bool in_place) {
    int n = r->c->size;
    int64_t all = n * count;
    real *to = take(r, all), *mine = in_place ? to + r->c->rank * count : take(r, count);
    real *expected = xcalloc((size_t)all, sizeof *expected);
    for (int64_t i = 0; i < all; i++) expected[i] = value((int)(i / count), i % count);
    fill(r, r->c->rank, count, mine);
    r->c->all_gather(r->c, r->s, DT_REAL, count, mine, to);
    check(r, "all_gather", all, to, expected);
    if (!in_place) r->k->release(mine);
    r->k->release(to);
    free(expected);
}

static void sums(const Rank *r, int64_t count, bool in_place) {
    int n = r->c->size;
    int64_t own = r->c->rank * count;
    real *all = take(r, n * count), *mine = in_place ? all + own : take(r, count);
    real *expected = xcalloc((size_t)count, sizeof *expected);
    for (int64_t i = 0; i < count; i++) {
        expected[i] = value(0, own + i);
        for (int j = 1; j < n; j++) expected[i] += value(j, own + i);
    }
    fill(r, r->c->rank, n * count, all);
    r->c->reduce_scatter(r->c, r->s, count, all, mine);
    check(r, "reduce_scatter", count, mine, expected);
    if (!in_place) r->k->release(mine);
    r->k->release(all);
    free(expected);
}

/* As twice as many elements of two bytes. */
static void exchanges(const Rank *r, int64_t count) {
    int n = r->c->size;
    real *from = take(r, n * count), *to = take(r, n * count);
    real *expected = xcalloc((size_t)(n * count), sizeof *expected);
    for (int64_t i = 0; i < n * count; i++)
        expected[i] = value((int)(i / count), r->c->rank * count + i % count);
    fill(r, r->c->rank, n * count, from);
    r->c->all_to_all(r->c, r->s, DT_BF16, 2 * count, from, to);
    check(r, "all_to_all", n * count, to, expected);
    r->k->release(from);
    r->k->release(to);
    free(expected);
}

static void sum_of_all(const Rank *r, int64_t count) {
    int64_t n = count * r->c->size;
    real *x = take(r, n), *expected = xcalloc((size_t)n, sizeof *expected);
    for (int64_t i = 0; i < n; i++) {
        expected[i] = value(0, i);
        for (int j = 1; j < r->c->size; j++) expected[i] += value(j, i);
    }
    fill(r, r->c->rank, n, x);
    comm_sum(r->c, r->s, n, x);
    check(r, "sum", n, x, expected);
    r->k->release(x);
    free(expected);
}

/* What lies in host memory is over at return. */
static void hosts(const Rank *r) {
    double mine = r->c->rank + 0.5, *all = xcalloc((size_t)r->c->size, sizeof *all);
    r->c->all_gather(r->c, r->s, DT_F64, 1, &mine, all);
    for (int i = 0; i < r->c->size; i++)
        if (all[i] != i + 0.5) exit(EXIT_DATA);
    free(all);
}

static void everything(const Rank *r, int64_t largest) {
    const int64_t counts[] = {1, 7, 1000, largest};
    for (size_t i = 0; i < COUNT(counts); i++) {
        gathers(r, counts[i], i % 2);
        gathers(r, counts[i], !(i % 2));
        sums(r, counts[i], i % 2);
        sums(r, counts[i], !(i % 2));
        exchanges(r, counts[i]);
        sum_of_all(r, counts[i]);
        hosts(r);
    }
}

/* Many calls on two streams, the second of which the first does not wait for. */
static void streams(const Rank *r) {
    enum { N = 4096, CALLS = 100 };
    Stream *other = r->k->stream_open();
    int n = r->c->size;
    real *x[2] = {take(r, n * N), take(r, n * N)}, *y[2] = {take(r, n * N), take(r, n * N)};
    real *expected = xcalloc((size_t)(n * N), sizeof *expected);
    for (int64_t i = 0; i < n * N; i++) expected[i] = value((int)(i / N), r->c->rank * N + i % N);
    for (int i = 0; i < 2; i++) fill(r, r->c->rank, n * N, x[i]);
    for (int i = 0; i < CALLS; i++)
        r->c->all_to_all(r->c, i % 2 ? other : r->s, DT_REAL, N, x[i % 2], y[i % 2]);
    r->k->stream_sync(other);
    for (int i = 0; i < 2; i++) {
        check(r, "all_to_all on two streams", n * N, y[i], expected);
        r->k->release(x[i]);
        r->k->release(y[i]);
    }
    r->k->stream_close(other);
    free(expected);
}

static Rank open_rank(const Backend *k) {
    return (Rank){comm_over(comm_world(TIMEOUT_S * 10), k), k, k->stream_open()};
}

/* The sizes of the parts in which a sum is formed are crossed: 2 Mi elements of 4 ranks. */
static void results(void) {
    Rank r = open_rank(fake_gpu());
    everything(&r, (1 << 21) + 5);
    streams(&r);
    for (int size = 1; size <= r.c->size; size++) {
        if (r.c->size % size) continue;
        Rank part = {comm_neighbours(r.c, size), r.k, r.s};
        if (part.c->size != size || part.c->rank != r.c->rank % size) exit(EXIT_DATA);
        everything(&part, 20000);
        comm_close(part.c);
    }
    everything(&r, 1);
    comm_close(r.c);
    r.k->stream_close(r.s);
    printf("all well\n");
}

/* The same checks of the ranks beneath. */
static void results_on_cpus(void) {
    Rank r = open_rank(&BACKEND_CPU);
    everything(&r, (1 << 16) + 5);
    comm_close(r.c);
    printf("all well\n");
}

/* ---- what goes wrong --------------------------------------------------------------------------
 */

static void gather(const Rank *r, int64_t count, int times) {
    real *to = take(r, 4096), *mine = take(r, 1024);
    for (int i = 0; i < times; i++) r->c->all_gather(r->c, r->s, DT_REAL, count, mine, to);
    r->k->stream_sync(r->s);
}

/* All ranks come to four collectives; then the culprit does as `what` says, and the others wait for
 * what they queued. */
static void go_wrong(const char *what) {
    Rank r = {.k = fake_gpu(), .s = fake_gpu()->stream_open()};
    r.c = comm_over(comm_world(TIMEOUT_S), r.k);
    bool culprit = r.c->rank == CULPRIT;
    gather(&r, 100, 3);
    if (culprit && !strcmp(what, "late"))
        for (;;) pause();
    if (culprit && !strcmp(what, "stopped")) raise(SIGSTOP);
    if (culprit && !strcmp(what, "broken")) fake_break();
    if (culprit && !strcmp(what, "blocked")) fake_block();
    real *all = take(&r, 300);
    if (culprit && !strcmp(what, "another")) r.c->reduce_scatter(r.c, r.s, 100, all, all);
    gather(&r, culprit && !strcmp(what, "count") ? 101 : 100, 50);
    sleep(2 * (TIMEOUT_S + MARGIN_S));
}

/* The culprit of a group of neighbours has another number among all. */
static void go_wrong_among_neighbours(void) {
    Rank r = {.k = fake_gpu(), .s = fake_gpu()->stream_open()};
    r.c = comm_over(comm_world(TIMEOUT_S), r.k);
    Rank part = {comm_neighbours(r.c, 2), r.k, r.s};
    gather(&part, 10, 2);
    if (r.c->rank == 3)
        for (;;) pause();
    gather(&part, 10, 1);
    sleep(2 * (TIMEOUT_S + MARGIN_S));
}

static int worker(const char *what) {
    if (!strcmp(what, "results"))
        results();
    else if (!strcmp(what, "cpu"))
        results_on_cpus();
    else if (!strcmp(what, "neighbours"))
        go_wrong_among_neighbours();
    else
        go_wrong(what);
    return 0;
}

/* ---- the tests --------------------------------------------------------------------------------
 */

static const char *self;
static char folder[] = "/tmp/cogsmith-nccl-XXXXXX";
static char said[1 << 16];

/* Starts so many ranks; returns the exit code of mpirun. */
static int start(int ranks, const char *what) {
    char *command =
        xprintf("OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 "
                "FAKE_NCCL=%s mpirun --oversubscribe --mca mpi_yield_when_idle 1 "
                "--mca btl_vader_single_copy_mechanism none -n %d '%s' %s 2>&1",
                folder, ranks, self, what);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    said[fread(said, 1, sizeof said - 1, f)] = 0;
    int status = pclose(f);
    free(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void expect_words(const char *words) {
    if (!strstr(said, words)) fail_msg("'%s' is not in: %s", words, said);
}

/* The job ends in time, with 1. */
static void start_wrong(int ranks, const char *what) {
    double from = now_seconds();
    int code = start(ranks, what);
    if (code != EXIT_WORLD) fail_msg("expected exit code 1, got %d: %s", code, said);
    if (now_seconds() > from + TIMEOUT_S + MARGIN_S)
        fail_msg("took %.1f s: %s", now_seconds() - from, said);
}

static void same_numbers(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 4; ranks++) {
        for (int cpu = 0; cpu < 2; cpu++) {
            int code = start(ranks, cpu ? "cpu" : "results");
            if (code) fail_msg("%d ranks: exit code %d: %s", ranks, code, said);
            expect_words("all well");
        }
    }
}

static void a_rank_that_does_not_come(void **state) {
    (void)state;
    start_wrong(3, "late");
    expect_words("rank 1 did not answer in all_gather number 5 within 3 s (ranks.timeout)");
    assert_null(strstr(said, "rank 0 did not"));
    assert_null(strstr(said, "rank 2 did not"));
}

static void a_rank_that_stands_still(void **state) {
    (void)state;
    start_wrong(3, "stopped");
    expect_words("rank 1 did not answer in all_gather number 5 within 3 s (ranks.timeout)");
    assert_null(strstr(said, "rank 0 did not"));
}

static void a_rank_of_a_group_is_named_by_its_number_among_all(void **state) {
    (void)state;
    start_wrong(4, "neighbours");
    expect_words("rank 3 did not answer in all_gather number 4 within 3 s (ranks.timeout), says "
                 "rank 2");
}

static void ranks_that_go_apart(void **state) {
    (void)state;
    start_wrong(3, "count");
    expect_words("ranks went apart: at collective 5 rank");
    expect_words("all_gather of 101 F32");
    expect_words("all_gather of 100 F32");
    start_wrong(2, "another");
    expect_words("ranks went apart: at collective 5 rank");
    expect_words("reduce_scatter of 100 F32");
}

static void a_link_that_breaks(void **state) {
    (void)state;
    start_wrong(2, "broken");
    expect_words("rank 1: NCCL failed (remote process exited: the fake's)");
}

/* The driver may not answer while it waits for the device. */
static void a_device_that_does_not_answer(void **state) {
    (void)state;
    start_wrong(2, "blocked");
    expect_words("rank 1: the GPU did not answer for 3 s (ranks.timeout)");
}

static int make_folder(void **state) {
    (void)state;
    assert_non_null(mkdtemp(folder));
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    char *command = xprintf("rm -rf '%s'", folder);
    int status = system(command);
    free(command);
    return status;
}

int main(int n, char **words) {
    self = words[0];
    if (n > 1) return worker(words[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_numbers),
        cmocka_unit_test(a_rank_that_does_not_come),
        cmocka_unit_test(a_rank_that_stands_still),
        cmocka_unit_test(a_rank_of_a_group_is_named_by_its_number_among_all),
        cmocka_unit_test(ranks_that_go_apart),
        cmocka_unit_test(a_link_that_breaks),
        cmocka_unit_test(a_device_that_does_not_answer),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
