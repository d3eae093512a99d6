/* The cache: what is read is what was added; a killed writer costs the open part at most; damage of
 * any kind is an error and never a wrong value; one writer at a time. */
#define _GNU_SOURCE
#include "data/cache_files.h"
#include "kernels/kernels.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { F = 2, C = 16, H = 4, W = 6, N = F * C * H * W, L = 5, E = 8 };

static char folder[64];

static void shell(const char *format, const char *a) {
    char *line = xprintf(format, a);
    if (system(line)) fail_msg("%s", line);
    free(line);
}

static int setup(void **state) {
    (void)state;
    strcpy(folder, "/tmp/cogsmith-cache-XXXXXX");
    return mkdtemp(folder) ? 0 : 1;
}

static int teardown(void **state) {
    (void)state;
    shell("rm -rf %s", folder);
    return 0;
}

/* A value that bf16 holds exactly. */
static float value(int i, int j) { return (float)((i * 31 + j) % 251 - 125) / 8; }

static void key_of(int i, char key[CACHE_KEY_CHARS]) {
    CacheKey *k = cache_key_open("test");
    cache_key_number(k, "i", i);
    cache_key_close(k, key);
}

static bool add_latent(Cache *c, int i, Error *e) {
    CacheEntry n = {.kind = CACHE_LATENTS,
                    .shape = {F, C, H, W},
                    .first_frame = i,
                    .frames = 5,
                    .source = "a \"clip\".mp4",
                    .caption = "ein Zug f\xc3\xa4hrt",
                    .embedding = "k"};
    float mean[N], logvar[N];
    for (int j = 0; j < N; j++) mean[j] = value(i, j), logvar[j] = value(i + 1, j);
    key_of(i, n.key);
    return cache_add(c, &n, mean, logvar, e);
}

static void add_embedding(Cache *c) {
    CacheEntry n = {.kind = CACHE_EMBEDDING, .shape = {L, E, 1, 1}, .caption = ""};
    float values[L * E];
    Error e;
    for (int j = 0; j < L * E; j++) values[j] = value(7, j);
    key_of(1000, n.key);
    if (!cache_add(c, &n, values, NULL, &e)) fail_msg("%s", e.text);
}

static Cache *open_cache(bool writing) {
    Error e;
    Cache *c = cache_open(folder, writing, &e);
    if (!c) fail_msg("%s", e.text);
    return c;
}

static void close_cache(Cache *c) {
    Error e;
    if (!cache_close(c, &e)) fail_msg("%s", e.text);
}

static void write_latents(int from, int to) {
    Cache *c = open_cache(true);
    Error e;
    for (int i = from; i < to; i++)
        if (!add_latent(c, i, &e)) fail_msg("%s", e.text);
    close_cache(c);
}

static bool read_latent(Cache *c, int i, Error *e) {
    char key[CACHE_KEY_CHARS];
    key_of(i, key);
    int at = cache_find(c, CACHE_LATENTS, key);
    assert_true(at >= 0);
    float mean[N], logvar[N];
    if (!cache_read(c, at, mean, logvar, e)) return false;
    for (int j = 0; j < N; j++)
        if (mean[j] != value(i, j) || logvar[j] != value(i + 1, j)) fail_msg("entry %d differs", i);
    return true;
}

static void expect_latents(int count) {
    Cache *c = open_cache(false);
    Error e;
    for (int i = 0; i < count; i++)
        if (!read_latent(c, i, &e)) fail_msg("%s", e.text);
    close_cache(c);
}

static void test_round_trip(void **state) {
    (void)state;
    write_latents(0, 100); /* more than one part */
    write_latents(100, 103);
    Cache *c = open_cache(true);
    add_embedding(c);
    close_cache(c);
    expect_latents(103);
    c = open_cache(false);
    assert_int_equal(cache_count(c), 104);
    const CacheEntry *n = cache_entry(c, 101);
    assert_int_equal(n->first_frame, 101);
    assert_string_equal(n->source, "a \"clip\".mp4");
    assert_string_equal(n->caption, "ein Zug f\xc3\xa4hrt");
    assert_int_equal(cache_find(c, CACHE_LATENTS, "nothing"), -1);
    close_cache(c);
}

/* SIGKILL after `adds` additions, the process's part still open. */
static void test_killed_writer(void **state) {
    (void)state;
    write_latents(0, 3);
    pid_t child = fork();
    if (!child) {
        Error e;
        Cache *c = cache_open(folder, true, &e);
        for (int i = 3; c && i < 6; i++) add_latent(c, i, &e);
        raise(SIGKILL);
    }
    int status;
    waitpid(child, &status, 0);
    assert_true(WIFSIGNALED(status));
    expect_latents(3);
    write_latents(3, 6); /* the temporary is gone, the entries are not there twice */
    expect_latents(6);
    shell("test -z \"$(ls %s | grep tmp)\"", folder);
}

/* Killed between the part's rename and the index: the part is adopted. */
static void test_orphan_part(void **state) {
    (void)state;
    write_latents(0, 2);
    shell("cp %s/index.jsonl /tmp/cogsmith-old-index", folder);
    write_latents(2, 4);
    shell("mv /tmp/cogsmith-old-index %s/index.jsonl", folder);
    expect_latents(2);
    close_cache(open_cache(true));
    expect_latents(4);
    shell("rm %s/index.jsonl", folder);
    close_cache(open_cache(true));
    expect_latents(4);
}

static void flip(const char *path, long at) {
    FILE *f = fopen(path, "r+");
    fseek(f, at, SEEK_SET);
    int byte = fgetc(f);
    fseek(f, at, SEEK_SET);
    fputc(byte ^ 4, f);
    fclose(f);
}

static void test_damage(void **state) {
    (void)state;
    write_latents(0, 4);
    char *part = xprintf("%s/part-000001.h5", folder), *index = xprintf("%s/index.jsonl", folder);
    for (int t = 0; t < 2; t++) {
        const char *path = t ? index : part;
        FILE *f = fopen(path, "r");
        fseek(f, 0, SEEK_END);
        long size = ftell(f);
        fclose(f);
        for (int i = 0; i < 60; i++) {
            long at = (long)((uint64_t)i * 2654435761u % (uint64_t)size);
            flip(path, at);
            Error e = {0};
            Cache *c = cache_open(folder, false, &e);
            bool ok = c && read_latent(c, 1, &e);
            if (ok) fail_msg("byte %ld of %s", at, path);
            assert_int_equal(e.exit_code, EXIT_DATA);
            if (c) cache_close(c, &e);
            flip(path, at);
        }
    }
    expect_latents(4);
    free(part);
    free(index);
}

static void test_one_writer(void **state) {
    (void)state;
    Cache *c = open_cache(true);
    Error e;
    pid_t child = fork();
    if (!child) {
        Cache *other = cache_open(folder, true, &e);
        _exit(!other && e.exit_code == EXIT_USER && strstr(e.text, "process ") ? 0 : 1);
    }
    int status;
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
    close_cache(c);
}

/* A writer that came to nothing leaves a cache of nothing. */
static void test_nothing_added(void **state) {
    (void)state;
    close_cache(open_cache(true));
    char *path = xprintf("%s/index.jsonl", folder);
    assert_int_equal(access(path, F_OK), 0);
    free(path);
    expect_latents(0);
}

/* A disk that takes no more: an error, and what was there stays readable. */
static void test_full_disk(void **state) {
    (void)state;
    write_latents(0, 2);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old, small = {6000, RLIM_INFINITY};
    getrlimit(RLIMIT_FSIZE, &old);
    small.rlim_max = old.rlim_max;
    Cache *c = open_cache(true);
    setrlimit(RLIMIT_FSIZE, &small);
    Error e = {0};
    bool ok = add_latent(c, 2, &e) && cache_flush(c, &e);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_false(ok);
    assert_int_equal(e.exit_code, EXIT_WORLD);
    cache_close(c, &e);
    expect_latents(2);
}

/* ---- samples of large files -------------------------------------------------------------------
 */

static const int64_t LARGE = (int64_t)20 << 30, UNSEEN = 100000;

/* A component whose one file has `bytes` bytes, all zero but for a header and the byte at `at`. */
static void make_large(int64_t bytes, const char *header, int64_t at) {
    char path[100], length[8] = {(char)strlen(header)};
    snprintf(path, sizeof path, "%s/a.safetensors", folder);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0 && !ftruncate(fd, bytes));
    assert_true(pwrite(fd, length, sizeof length, 0) == sizeof length);
    assert_true(pwrite(fd, header, strlen(header), sizeof length) > 0);
    assert_true(pwrite(fd, "x", 1, at) == 1);
    close(fd);
}

static const char *sampled(void) {
    static char digest[2][CACHE_KEY_CHARS];
    static int next;
    Error e;
    next = !next;
    if (!cache_files_sample_folder(folder, digest[next], &e)) fail_msg("%s", e.text);
    return digest[next];
}

static int64_t bytes_read(void) {
    long long n = 0;
    FILE *in = fopen("/proc/self/io", "r");
    assert_true(in && fscanf(in, "rchar: %lld", &n) == 1);
    fclose(in);
    return n;
}

/* 20 GiB are looked at in a few megabytes; what any sample falls on is seen. */
static void test_sampled_folder(void **state) {
    (void)state;
    static const char HEADER[] = "{\"w\":{\"dtype\":\"F32\"}}";
    char first[CACHE_KEY_CHARS];
    make_large(LARGE, HEADER, UNSEEN);
    int64_t before = bytes_read();
    strcpy(first, sampled());
    assert_true(bytes_read() - before < 8 << 20);
    assert_string_equal(first, sampled());
    make_large(LARGE, "{\"w\":{\"dtype\":\"F16\"}}", UNSEEN); /* another header */
    assert_string_not_equal(first, sampled());
    make_large(LARGE, HEADER, LARGE - 1); /* another end */
    assert_string_not_equal(first, sampled());
    make_large(LARGE, HEADER, (LARGE - (1 << 14)) / 256 * 128 + 5000); /* another middle */
    assert_string_not_equal(first, sampled());
    make_large(LARGE + 1, HEADER, UNSEEN); /* another size */
    assert_string_not_equal(first, sampled());
    make_large(LARGE, HEADER, UNSEEN);
    assert_string_equal(first, sampled());
    shell("cd %s && mv a.safetensors b.safetensors", folder); /* another name */
    assert_string_not_equal(first, sampled());
}

/* ---- digests of large files -------------------------------------------------------------------
 */

/* What taking the digest of a file says on this rank, of the caller's own. */
static char *said_by_rank(const char *rank, const char *path) {
    char digest[CACHE_KEY_CHARS], *said = xcalloc(1000, 1);
    FILE *err = tmpfile();
    int before = dup(STDERR_FILENO);
    Error e;
    CacheFiles *files = cache_files_open(folder);
    setenv("OMPI_COMM_WORLD_RANK", rank, 1);
    assert_true(err && dup2(fileno(err), STDERR_FILENO) >= 0);
    bool ok = cache_files_digest(files, path, digest, &e);
    dup2(before, STDERR_FILENO);
    close(before);
    unsetenv("OMPI_COMM_WORLD_RANK");
    if (!ok) fail_msg("%s", e.text);
    rewind(err);
    said[fread(said, 1, 999, err)] = 0;
    fclose(err);
    cache_files_close(files);
    return said;
}

static void test_the_first_rank_speaks(void **state) {
    (void)state;
    char *path = xprintf("%s/a.safetensors", folder);
    make_large(1 << 30, "{}", 1000);
    char *first = said_by_rank("0", path), *second = said_by_rank("1", path);
    assert_non_null(strstr(first, "taking the digest of 1.0 GiB"));
    assert_string_equal(second, "");
    free(first);
    free(second);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_killed_writer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_orphan_part, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damage, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_writer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_disk, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sampled_folder, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_first_rank_speaks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nothing_added, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
