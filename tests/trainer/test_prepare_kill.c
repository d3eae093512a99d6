/* `prepare` killed at random moments: the next run completes the cache, equal in content to one
 * that was never interrupted. And asked to stop: it ends in good order with 75.
 *
 *     test_prepare_kill [KILLS]      8 unless said */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "data/cache.h"
#include "tests/trainer/prepare_model.h"

#include <signal.h>
#include <time.h>

/* Entries of the embeddings, of both, and of a part that is full. */
enum { CAPTIONS = 4, ALL = 184, PART = 64 };

static int kills = 8;
static char *folder, *setting_model, *setting_data;
static double whole_seconds; /* of a run that is not interrupted */

/* Of folder/NAME, as a setting; and its value. */
static char *cache_setting(const char *name) { return xprintf("data.cache=%s/%s", folder, name); }

static const Run *prepare(const char *cache) {
    char *setting = cache_setting(cache);
    const Run *r = RUN("prepare", setting_model, setting_data, "data.windows=60", setting);
    free(setting);
    return r;
}

/* Starts it, sends the signal after `seconds`; the wait status. */
static int interrupt(const char *cache, double seconds, int signal) {
    char *setting = cache_setting(cache);
    char *argv[] = {"cogsmith",        "prepare", setting_model, setting_data,
                    "data.windows=60", setting,   NULL};
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        setenv("OMP_NUM_THREADS", "1", 0);
        if (freopen("/dev/null", "w", stdout) && freopen("/dev/null", "w", stderr))
            execv(getenv("COGSMITH"), argv);
        _exit(126);
    }
    struct timespec wait = {(time_t)seconds, (long)((seconds - floor(seconds)) * 1e9)};
    nanosleep(&wait, NULL);
    kill(child, signal);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    free(setting);
    return status;
}

static Cache *open_cache(const char *name) {
    char *path = xprintf("%s/%s", folder, name);
    Error e;
    Cache *c = cache_open(path, false, &e);
    if (!c) fail_msg("%s", e.text);
    free(path);
    return c;
}

/* Both arrays of an entry as they are read. */
static float *values_of(Cache *c, int i, size_t *bytes) {
    const CacheEntry *n = cache_entry(c, i);
    size_t count = (size_t)cache_elements(n);
    float *values = xcalloc(2 * count, sizeof *values);
    Error e;
    if (!cache_read(c, i, values, n->kind == CACHE_EMBEDDING ? NULL : values + count, &e))
        fail_msg("%s", e.text);
    *bytes = 2 * count * sizeof *values;
    return values;
}

static void expect_equal(const char *a, const char *b) {
    Cache *x = open_cache(a), *y = open_cache(b);
    assert_int_equal(cache_count(x), cache_count(y));
    for (int i = 0; i < cache_count(x); i++) {
        const CacheEntry *n = cache_entry(x, i);
        int k = cache_find(y, n->kind, n->key);
        if (k < 0) fail_msg("%s: missing", n->source ? n->source : n->caption);
        size_t bytes, other;
        float *p = values_of(x, i, &bytes), *q = values_of(y, k, &other);
        assert_int_equal(bytes, other);
        assert_memory_equal(p, q, bytes);
        free(p);
        free(q);
    }
    Error e;
    cache_close(x, &e);
    cache_close(y, &e);
}

static void a_killed_run_is_completed(void **state) {
    (void)state;
    uint64_t seed = (uint64_t)getpid();
    print_message("seed %d, a whole run takes %.2f s\n", (int)seed, whole_seconds);
    for (int i = 0; i < kills; i++) {
        float u;
        random_uniform((Draw){.seed = seed, .ordinal = (uint32_t)i}, 0, 1, &u);
        clips_run(folder, "rm -rf killed");
        int status = interrupt("killed", (double)u * whole_seconds, SIGKILL);
        assert_true(WIFSIGNALED(status) || !status);
        const Run *r = prepare("killed");
        print_message("killed after %.3f s; then %d of 180 were encoded\n",
                      (double)u * whole_seconds, (int)count_of(r, "encoded"));
        expect_equal("whole", "killed");
        clips_run(folder, "test -z \"$(ls killed | grep tmp)\"");
    }
}

static void a_request_to_stop_is_answered(void **state) {
    (void)state;
    static const int SIGNALS[] = {SIGINT, SIGTERM, SIGUSR1};
    int encoding = 0, kept = 0; /* runs that had begun to encode, that kept part of a part */
    for (size_t i = 0; i < COUNT(SIGNALS); i++) {
        int status = 0; /* a machine that has become faster may have finished: sooner, then */
        for (double wait = 0.6 * whole_seconds; !status && wait > 0.01; wait /= 1.5) {
            clips_run(folder, "rm -rf stopped");
            status = interrupt("stopped", wait, SIGNALS[i]);
        }
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), EXIT_STOPPED);
        Cache *c = open_cache("stopped");
        Error e;
        int done = cache_count(c);
        cache_close(c, &e);
        encoding += done > CAPTIONS && done < ALL;
        kept += (done - CAPTIONS) % PART != 0;
        const Run *r = prepare("stopped");
        assert_int_equal(count_of(r, "encoded") + count_of(r, "embedded"), ALL - done);
        expect_equal("whole", "stopped");
    }
    assert_true(kept || !encoding);
}

static int setup(void **state) {
    (void)state;
    folder = scratch_make();
    char *model = xprintf("%s/model", folder), *data = xprintf("%s/data", folder);
    setting_model = xprintf("model.path=%s", model);
    setting_data = xprintf("data.path=%s", data);
    model_make(model);
    mkdir(data, 0755);
    clip_make(data, "a", "testsrc2", 9);
    clip_make(data, "b", "mandelbrot", 9);
    clip_make(data, "c", "rgbtestsrc", 9);
    const Run *r = prepare("whole");
    assert_int_equal(count_of(r, "encoded"), 180);
    whole_seconds = r->seconds;
    free(model);
    free(data);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    scratch_remove(folder);
    free(setting_model);
    free(setting_data);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_killed_run_is_completed),
        cmocka_unit_test(a_request_to_stop_is_answered),
    };
    if (getenv("COGSMITH_KILLS")) kills = atoi(getenv("COGSMITH_KILLS"));
    return cmocka_run_group_tests(tests, setup, teardown);
}
