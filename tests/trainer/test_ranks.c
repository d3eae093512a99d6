/* Ranks: `mpirun -n W cogsmith probe` trains one small model on the same global batch. At one world
 * every ZeRO stage gives the same bits; over worlds the losses agree within rounding; ranks that do
 * not answer, or come for something else, end the job in time and by name. */
#define _GNU_SOURCE
#include "data/safetensors.h"
#include "kernels/random.h"
#include "tests/trainer/models.h"
#include "tests/trainer/ranks.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <unistd.h>

#include <cmocka.h>

enum { STEPS = 20, BATCH = 24, F = 3, CH = 16, H = 4, W = 8, ROWS = 10, TEXT = 32 };

static char folder[] = "/tmp/cogsmith-ranks-XXXXXX";
static char *self; /* this program */

static char *at(const char *name) { return xprintf("%s/%s", folder, name); }

static void *draw(int64_t n, uint32_t ordinal) {
    float *values = xcalloc((size_t)n, sizeof *values);
    random_normal((Draw){.seed = 7, .ordinal = ordinal, .purpose = PURPOSE_NOISE}, 0, n, values);
    return values;
}

static int make_inputs(void **state) {
    (void)state;
    assert_non_null(mkdtemp(folder));
    int64_t latents = STEPS * BATCH * F * CH * H * W, text = STEPS * BATCH * ROWS * TEXT;
    int64_t *timesteps = xcalloc(STEPS * BATCH, sizeof *timesteps);
    for (int i = 0; i < STEPS * BATCH; i++) timesteps[i] = (i * 37) % 1000;
    SafetensorsItem items[] = {
        {"latents", DT_F32, 6, {STEPS, BATCH, F, CH, H, W}, draw(latents, 1)},
        {"noise", DT_F32, 6, {STEPS, BATCH, F, CH, H, W}, draw(latents, 2)},
        {"text", DT_F32, 4, {STEPS, BATCH, ROWS, TEXT}, draw(text, 3)},
        {"timesteps", DT_I64, 2, {STEPS, BATCH}, timesteps}};
    SafetensorsFile file = {.items = items, .n_items = COUNT(items)};
    Error e;
    char *path = at("inputs.safetensors");
    assert_true(safetensors_write(path, &file, &e));
    for (size_t i = 0; i < COUNT(items); i++) free((void *)items[i].data);
    free(path);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    char *line = xprintf("rm -rf %s", folder);
    shell(line);
    free(line);
    return 0;
}

/* mpirun -n world cogsmith probe ... probe.out=OUT settings; returns its exit status. */
static int probe(int world, const char *out, const char *settings) {
    char *model = golden_path("5b");
    char *what = xprintf("\"$COGSMITH\" probe model.path=%s probe.inputs=%s/inputs.safetensors "
                         "probe.out=%s/%s train.learning_rate=1e-3 lora.rank=4 %s",
                         model, folder, folder, out, settings);
    char *to = xprintf(">/dev/null 2>%s/stderr", folder);
    int code = run_ranks(world, what, to);
    free(model);
    free(what);
    free(to);
    return code;
}

static char *contents(const char *name, size_t *size) {
    char *path = at(name);
    FILE *in = fopen(path, "r");
    if (!in) fail_msg("%s was not written", path);
    fseek(in, 0, SEEK_END);
    *size = (size_t)ftell(in);
    rewind(in);
    char *bytes = xcalloc(*size + 1, 1);
    assert_int_equal(fread(bytes, 1, *size, in), *size);
    fclose(in);
    free(path);
    return bytes;
}

static void expect_same_file(const char *a, const char *b) {
    size_t n, m;
    char *x = contents(a, &n), *y = contents(b, &m);
    if (n != m || memcmp(x, y, n)) fail_msg("%s and %s differ", a, b);
    free(x);
    free(y);
}

/* The worst relative difference between the losses of two runs. */
static double loss_distance(const char *a, const char *b) {
    Safetensors x, y;
    Error e;
    char *pa = at(a), *pb = at(b);
    assert_true(safetensors_open(&x, pa, &e) && safetensors_open(&y, pb, &e));
    const float *u = safetensors_find(&x, "loss")->data, *v = safetensors_find(&y, "loss")->data;
    double worst = 0;
    for (int i = 0; i < STEPS; i++) {
        double d = fabs((double)u[i] - (double)v[i]) / fabs((double)v[i]);
        worst = MAX(worst, d);
    }
    safetensors_close(&x);
    safetensors_close(&y);
    free(pa);
    free(pb);
    return worst;
}

/* What the ranks of the last run said. */
static char *said(void) {
    char *path = at("stderr"), *text = text_of(path);
    free(path);
    return text;
}

static void expect_probe(int world, const char *out, const char *settings) {
    int code = probe(world, out, settings);
    if (code) fail_msg("%s ended with %d: %s", out, code, said());
}

static void check_method(const char *method, const char *more) {
    for (int world = 1; world <= 4; world++) {
        for (int zero = 0; zero <= 3; zero++) {
            char *out = xprintf("%s-%d-%d", method, world, zero);
            char *settings = xprintf("method=%s ranks.zero=%d %s", method, zero, more);
            if (probe(world, out, settings))
                fail_msg("%s, world %d, ZeRO %d: %s", method, world, zero, said());
            free(out);
            free(settings);
            char *first = xprintf("%s-%d-0", method, world);
            char *this = xprintf("%s-%d-%d", method, world, zero);
            expect_same_file(first, this);
            free(first);
            free(this);
        }
        char *here = xprintf("%s-%d-0", method, world), *one = xprintf("%s-1-0", method);
        double d = loss_distance(here, one);
        if (d > 2e-5) fail_msg("%s, world %d: losses differ by %g", method, world, d);
        free(here);
        free(one);
    }
}

static void test_full(void **state) {
    (void)state;
    check_method("full", "");
}

static void test_lora_with_accumulation(void **state) {
    (void)state;
    check_method("lora", "train.accumulate=2");
}

/* A frozen base in shards gives the same bits as one that is read from its files. */
static void test_sharded_base(void **state) {
    (void)state;
    expect_probe(3, "base-file", "method=lora");
    expect_probe(3, "base-ranks", "method=lora memory.base.home=ranks ranks.zero=3");
    expect_probe(3, "base-device", "method=lora memory.base.home=device");
    expect_probe(3, "base-ahead",
                 "method=lora memory.base.home=ranks ranks.zero=3 memory.prefetch=on");
    expect_same_file("base-file", "base-ahead");
    expect_same_file("base-file", "base-ranks");
    expect_same_file("base-file", "base-device");
}

static void expect_stderr(const char *text) {
    char *heard = said();
    if (!strstr(heard, text)) fail_msg("no '%s' in:\n%s", text, heard);
    free(heard);
}

/* So many lines of what was said hold the text. */
static void expect_lines(const char *text, int n) {
    char *heard = said();
    int found = 0;
    for (char *rest = heard, *line; (line = strsep(&rest, "\n"));)
        found += strstr(line, text) != NULL;
    if (found != n) fail_msg("%d lines with '%s', not %d, in:\n%s", found, text, n, said());
    free(heard);
}

static void test_batch_that_cannot_be_cut(void **state) {
    (void)state;
    assert_int_not_equal(probe(5, "uncut", "method=full"), 0);
    expect_stderr("24 samples cannot be cut into 1 micro-steps of 5 ranks");
}

/* mpirun -n 3 cogsmith probe: rank 1 gets a signal in the middle of the run, from which on it takes
 * part in nothing. Returns the exit code; *took, in seconds. */
static int probe_with_signal(const char *signal, const char *settings, double *took) {
    char *model = golden_path("5b");
    char *line =
        xprintf("%s -n 3 bash -c 'if [ $OMPI_COMM_WORLD_RANK = 1 ]; then "
                "\"%s\" signal %s $$ \"grep -q diffusion_pytorch /proc/$$/maps\" & fi; "
                "exec \"$COGSMITH\" probe model.path=%s probe.inputs=%s/inputs.safetensors "
                "probe.out=%s/signal method=full train.accumulate=4 train.learning_rate=1e-3 %s' "
                ">/dev/null 2>%s/stderr",
                MPIRUN, self, signal, model, folder, folder, settings, folder);
    double start = now_seconds();
    int status = shell(line);
    *took = now_seconds() - start;
    free(model);
    free(line);
    return status;
}

/* The others say its name within the deadline. */
static void test_hung_rank(void **state) {
    (void)state;
    double took;
    assert_int_not_equal(probe_with_signal("STOP", "ranks.timeout=2", &took), 0);
    expect_stderr("rank 1 did not answer in");
    expect_lines("is gone", 0);
    assert_true(took < 15);
}

/* One of the others says its name at once, in one line for the job, and at which collective that
 * was. */
static void test_dead_rank(void **state) {
    (void)state;
    double took;
    assert_int_equal(probe_with_signal("KILL", "", &took), 128 + SIGKILL);
    expect_stderr("cogsmith: rank 1 (process ");
    expect_stderr(" is gone; rank 0");
    expect_stderr(" had come to ");
    expect_stderr(" number ");
    expect_lines("cogsmith: ", 1);
    assert_true(took < 15);
}

/* Rank 1 stops before it has come to the others: nobody can ask it for its name, but all end. */
static void test_rank_that_never_starts(void **state) {
    (void)state;
    char *model = golden_path("5b");
    char *line = xprintf("%s -n 2 bash -c 'if [ $OMPI_COMM_WORLD_RANK = 1 ]; then kill -STOP $$; "
                         "fi; exec \"$COGSMITH\" probe model.path=%s "
                         "probe.inputs=%s/inputs.safetensors probe.out=%s/never method=full "
                         "ranks.timeout=1' >/dev/null "
                         "2>%s/stderr",
                         MPIRUN, model, folder, folder, folder);
    double start = now_seconds();
    assert_int_not_equal(shell(line), 0);
    expect_stderr("did not start");
    assert_true(now_seconds() - start < 30);
    free(model);
    free(line);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rank_that_never_starts),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_lora_with_accumulation),
        cmocka_unit_test(test_sharded_base),
        cmocka_unit_test(test_batch_that_cannot_be_cut),
        cmocka_unit_test(test_hung_rank),
        cmocka_unit_test(test_dead_rank),
    };
    if (is_signal(argc, argv)) return signal_rank(argv + 2);
    self = realpath("/proc/self/exe", NULL);
    int failed = cmocka_run_group_tests(tests, make_inputs, remove_folder);
    free(self);
    return failed;
}
