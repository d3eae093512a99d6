/* `mpirun -n N cogsmith prepare`: the ranks' cache holds what one rank's would; a stop, a failure
 * or a death of any of them ends all and keeps what was done; a long encoding is not a silent rank.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "data/cache.h"
#include "tests/trainer/prepare_model.h"
#include "tests/trainer/ranks.h"

static char *folder; /* of the group: model, data (clips a, b, c), caches */
static char *self;   /* this program */

/* `cogsmith prepare ... data.cache=CACHE settings` on `ranks` ranks, each of which runs `before`
 * first (a line of bash); the exit code. stdout and stderr are left in files of that name. */
static int prepare(int ranks, const char *cache, const char *settings, const char *before) {
    char *line =
        xprintf("cd '%s' && %s -n %d bash -c '%s exec \"$COGSMITH\" prepare model.path=model "
                "data.path=${DATA:-data} data.cache=%s %s' >stdout 2>stderr",
                folder, MPIRUN, ranks, before, cache, settings);
    int code = shell(line);
    free(line);
    return code;
}

static char *contents(const char *name) {
    char *path = xprintf("%s/%s", folder, name), *text = text_of(path);
    free(path);
    return text;
}

static void expect_in(const char *name, const char *const *parts) {
    char *text = contents(name);
    assert_parts(text, parts);
    free(text);
}
#define EXPECT_IN(name, ...) expect_in(name, (const char *const[]){__VA_ARGS__, NULL})

static void expect_code(int code, int expected) {
    char *text = contents("stderr");
    if (code != expected) fail_msg("exit code %d instead of %d: %s", code, expected, text);
    free(text);
}

static Cache *open_cache(const char *name) {
    char *path = xprintf("%s/%s", folder, name);
    Error e;
    Cache *c = cache_open(path, false, &e);
    if (!c) fail_msg("%s", e.text);
    free(path);
    return c;
}

static int entries_of(const char *name) {
    Error e;
    Cache *c = open_cache(name);
    int n = cache_count(c);
    cache_close(c, &e);
    return n;
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
    Error e;
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
    cache_close(x, &e);
    cache_close(y, &e);
}

/* ---- sharing ----------------------------------------------------------------------------------
 */

static void ranks_make_what_one_makes(void **state) {
    (void)state;
    for (int ranks = 2; ranks <= 5; ranks += 3) { /* five: more than there are captions */
        clips_run(folder, "rm -rf shared");
        expect_code(prepare(ranks, "shared", "data.windows=20", ""), 0);
        EXPECT_IN("stdout", "clips 3\n", "samples 60\n", "encoded 60\n", "embedded 4\n");
        EXPECT_IN("stderr", "which share the work", "encoding: 60 samples",
                  "embedding: 4 captions");
        expect_equal("whole", "shared");
        expect_code(prepare(ranks, "shared", "data.windows=20", ""), 0);
        EXPECT_IN("stdout", "encoded 0\n", "embedded 0\n");
        /* Every rank wrote parts: more of them than one rank needs. */
        char *script = xprintf("test $(ls shared/part-*.h5 | wc -l) -ge %d", ranks);
        clips_run(folder, "%s", script);
        free(script);
    }
}

static void image_conditions_are_shared(void **state) {
    (void)state;
    char *model = xprintf("%s/model", folder);
    model_transformer(model, true);
    expect_code(prepare(1, "images-1", "data.windows=2", ""), 0);
    expect_code(prepare(3, "images-3", "data.windows=2", ""), 0);
    EXPECT_IN("stdout", "samples 6\n", "encoded 6\n", "images 48\n", "embedded 4\n");
    expect_equal("images-1", "images-3");
    model_transformer(model, false);
    free(model);
}

/* Rank 1 has nothing to do while rank 0 encodes for longer than a rank may be silent. */
static void a_long_encoding_is_waited_for(void **state) {
    (void)state;
    static const char LONG[] = "data.frames=17 data.height=480 data.width=720 ranks.timeout=1";
    double start = now_seconds();
    expect_code(prepare(2, "long", LONG, "export DATA=one;"), 0);
    print_message("two ranks took %.1f s\n", now_seconds() - start);
    EXPECT_IN("stdout", "samples 1\n", "encoded 1\n");
}

/* ---- what goes wrong --------------------------------------------------------------------------
 */

/* Nothing is left of an end but what the next run uses. */
static void expect_clean(const char *cache) {
    char *line = xprintf("ls -A %s | grep -Evx '(index|files)\\.jsonl|lock|part-[0-9]{6}\\.h5' "
                         ">left; test ! -s left",
                         cache);
    clips_run(folder, "%s", line);
    free(line);
}

static void expect_said_once(const char *part) {
    char *text = contents("stderr"), *said = strstr(text, "cogsmith: ");
    if (!said || strstr(said + 1, "cogsmith: ") || !strstr(said, part)) fail_msg("%s", text);
    free(text);
}

static void bad_clips_of_any_rank_are_known(void **state) {
    (void)state;
    /* In the order of names the fourth sample, of two ranks the second one's. It shows when it is
     * decoded, after the cache was begun. */
    clips_run(folder,
              "rm -rf bad && cp -r data bad && echo bad >bad/d.txt && " FFMPEG
              "-f lavfi -i testsrc2=s=96x64:r=8:d=3 -c:v libx264 -movflags +faststart bad/d.mp4 && "
              "dd if=/dev/zero of=bad/d.mp4 bs=1 count=3000 conv=notrunc status=none "
              "seek=$(($(stat -c %%s bad/d.mp4) - 6000))");
    expect_code(prepare(2, "skip", "", "export DATA=bad;"), EXIT_DATA);
    EXPECT_IN("stderr", "cogsmith: bad/d.mp4: ", "data.on_bad=skip");
    expect_said_once("bad/d.mp4: ");
    expect_clean("skip");
    assert_true(entries_of("skip") >= 4);
    expect_code(prepare(2, "skip", "data.on_bad=skip", "export DATA=bad;"), 0);
    EXPECT_IN("stdout", "clips 3\n", "samples 3\n", "skipped 1\n");
    EXPECT_IN("stderr", "skipped   1", "bad/d.mp4: ");
    char *setting = xprintf("model.path=%s/model", folder),
         *path = xprintf("data.path=%s/bad", folder),
         *cache = xprintf("data.cache=%s/skip", folder);
    const Run *r = RUN("prepare", setting, path, cache, "data.on_bad=skip");
    assert_int_equal(count_of(r, "encoded"), 0); /* one rank knows what many made */
    assert_int_equal(count_of(r, "skipped"), 1);
    free(setting);
    free(path);
    free(cache);
}

static void ranks_must_see_the_same_files(void **state) {
    (void)state;
    clips_run(folder, "rm -rf other && cp -r data other && rm other/c.*");
    int code =
        prepare(2, "views", "", "if [ $OMPI_COMM_WORLD_RANK = 1 ]; then export DATA=other; fi;");
    expect_code(code, EXIT_USER);
    EXPECT_IN("stderr", "rank 1", "all ranks must see the same files");
}

/* A second job on the same cache is told who has it. */
static void one_job_at_a_time(void **state) {
    (void)state;
    clips_run(folder, "mkdir -p held && touch held/lock");
    int code = prepare(2, "held", "",
                       "if [ $OMPI_COMM_WORLD_RANK = 0 ]; then exec 9>>held/lock; flock 9; fi;");
    expect_code(code, EXIT_USER);
    EXPECT_IN("stderr", "writes this cache");
}

/* Ends rank 1 by `signal` when the first entries have been made; the exit code. */
static int interrupt(const char *cache, const char *signal) {
    char *before = xprintf("if [ $OMPI_COMM_WORLD_RANK = 1 ]; then \"%s\" signal %s $$ "
                           "\"ls %s/part-* >/dev/null 2>&1 && sleep 0.3\" & fi;",
                           self, signal, cache);
    clips_run(folder, "rm -rf '%s'", cache);
    int code = prepare(2, cache, "data.windows=20", before);
    free(before);
    return code;
}

static void a_stop_of_one_stops_all(void **state) {
    (void)state;
    int code = interrupt("stopped", "USR1");
    expect_code(code, EXIT_STOPPED);
    EXPECT_IN("stderr", "cogsmith: stopped; what was done is in the cache");
    int done = entries_of("stopped");
    print_message("stopped with %d entries\n", done);
    expect_clean("stopped");
    assert_true(done >= 4 && done < 64);
    expect_code(prepare(3, "stopped", "data.windows=20", ""), 0); /* in another number, too */
    expect_equal("whole", "stopped");
}

static void a_death_of_one_ends_all(void **state) {
    (void)state;
    int code = interrupt("killed", "KILL");
    assert_int_not_equal(code, 0);
    expect_code(prepare(2, "killed", "data.windows=20", ""), 0);
    expect_equal("whole", "killed");
    expect_clean("killed");
}

/* Embeddings and a few latents fit into a file. */
static void a_full_disk_ends_all(void **state) {
    (void)state;
    expect_code(prepare(2, "full", "data.windows=20", "trap \"\" XFSZ; ulimit -f 64;"), EXIT_WORLD);
    expect_said_once("cannot write the file");
    expect_clean("full");
    int done = entries_of("full");
    print_message("a full disk left %d entries\n", done);
    assert_true(done >= 4 && done < 64);
    expect_code(prepare(2, "full", "data.windows=20", ""), 0);
    EXPECT_IN("stdout", "embedded 0\n");
    expect_equal("whole", "full");
}

static int setup(void **state) {
    (void)state;
    folder = scratch_make();
    char *model = xprintf("%s/model", folder), *data = xprintf("%s/data", folder),
         *one = xprintf("%s/one", folder);
    model_make(model);
    mkdir(data, 0755);
    mkdir(one, 0755);
    clip_make(data, "a", "testsrc2", 3);
    clip_make(data, "b", "mandelbrot", 3);
    clip_make(data, "c", "rgbtestsrc", 3);
    clip_make(one, "a", "testsrc2", 3);
    expect_code(prepare(1, "whole", "data.windows=20", ""), 0);
    EXPECT_IN("stdout", "encoded 60\n");
    free(model);
    free(data);
    free(one);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    scratch_remove(folder);
    return 0;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_make_what_one_makes),
        cmocka_unit_test(image_conditions_are_shared),
        cmocka_unit_test(a_long_encoding_is_waited_for),
        cmocka_unit_test(bad_clips_of_any_rank_are_known),
        cmocka_unit_test(ranks_must_see_the_same_files),
        cmocka_unit_test(one_job_at_a_time),
        cmocka_unit_test(a_stop_of_one_stops_all),
        cmocka_unit_test(a_death_of_one_ends_all),
        cmocka_unit_test(a_full_disk_ends_all),
    };
    if (is_signal(argc, argv)) return signal_rank(argv + 2);
    self = realpath("/proc/self/exe", NULL);
    int failed = cmocka_run_group_tests(tests, setup, teardown);
    free(self);
    return failed;
}
