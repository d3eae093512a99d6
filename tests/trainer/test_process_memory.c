/* The memory that a running program takes against what its plan says, on the device and the host
 * together, for both are one memory here: two full-width blocks of the 2B model. The resident set
 * may be above the plan by 3 per cent at most; the plan states a constant for the program itself
 * and its libraries (CPU_CONTEXT_BYTES). */
#define _GNU_SOURCE
#include "data/json.h"
#include "tests/trainer/models.h"

#include <setjmp.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/cogsmith-memory-XXXXXX";

static int make_model(void **state) {
    (void)state;
    assert_non_null(mkdtemp(folder));
    char *line = xprintf("mkdir %s/transformer && sed 's/\"num_layers\": 30/\"num_layers\": 2/' "
                         "tests/golden/published/2b/transformer/config.json > "
                         "%s/transformer/config.json",
                         folder, folder);
    int status = system(line);
    free(line);
    return status;
}

static int remove_model(void **state) {
    (void)state;
    char *line = xprintf("rm -r %s", folder);
    int status = system(line);
    free(line);
    return status;
}

/* Bytes that the JSON of bench says under a key. */
static int64_t bytes_of(const char *json, const char *key) {
    const char *at = strstr(json, key);
    if (!at) fail_msg("no %s in %s", key, json);
    return atoll(at + strlen(key));
}

/* What the plan of a step says. */
typedef struct {
    int64_t device, host;
} Planned;

/* Runs one training step in a process of its own; returns its largest resident set in bytes. home:
 * of all that may be moved; ahead: moves set out early. */
static int64_t run_step(const char *method, const char *recompute, const char *home, bool ahead,
                        Planned *planned) {
    char *out = xprintf("%s/out.json", folder), *model = xprintf("model.path=%s", folder);
    pid_t child = fork();
    if (!child) {
        char *m = xprintf("method=%s", method), *r = xprintf("memory.recompute=%s", recompute);
        char *b = xprintf("memory.base.home=%s", home);
        char *o = xprintf("memory.optimizer.home=%s", home);
        char *a = xprintf("memory.activations.home=%s", home);
        char *p = xprintf("memory.prefetch=%s", ahead ? "on" : "off");
        if (!freopen(out, "w", stdout)) _exit(1);
        execl(getenv("COGSMITH"), "cogsmith", "bench", "--json", "bench.what=step",
              "bench.repeat=1", "data.frames=17", "data.height=160", "data.width=160", model, m, r,
              b, o, a, p, (char *)NULL);
        _exit(1);
    }
    int status;
    struct rusage usage;
    assert_int_equal(wait4(child, &status, 0, &usage), child);
    assert_int_equal(status, 0);
    FILE *in = fopen(out, "r");
    char text[4096] = {0};
    assert_true(fread(text, 1, sizeof text - 1, in) > 0);
    fclose(in);
    *planned = (Planned){bytes_of(text, "\"peak_bytes\": "), bytes_of(text, "\"host_bytes\": ")};
    free(out);
    free(model);
    return (int64_t)usage.ru_maxrss * 1024;
}

static void check(const char *method, const char *recompute, const char *home, bool ahead) {
    Planned planned;
    int64_t resident = run_step(method, recompute, home, ahead, &planned);
    double all = (double)(planned.device + planned.host);
    printf("%s, recompute %s, homes %s: planned %.1f MiB and %.1f MiB on the host, resident %.1f "
           "MiB\n",
           method, recompute, home, (double)planned.device / (1 << 20),
           (double)planned.host / (1 << 20), (double)resident / (1 << 20));
    assert_true((planned.host > 0) == !strcmp(home, "host"));
    assert_true((double)resident <= 1.03 * all);
    assert_true((double)resident >= 0.95 * all);
}

static void test_lora(void **state) {
    (void)state;
    check("lora", "none", "device", false);
}

static void test_full(void **state) {
    (void)state;
    check("full", "block", "device", false);
}

static void test_lora_on_host(void **state) {
    (void)state;
    check("lora", "none", "host", false);
}

static void test_ahead(void **state) {
    (void)state;
    check("lora", "selective", "host", true);
}

static void test_full_on_host(void **state) {
    (void)state;
    check("full", "block", "host", false);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lora),         cmocka_unit_test(test_full),
        cmocka_unit_test(test_lora_on_host), cmocka_unit_test(test_full_on_host),
        cmocka_unit_test(test_ahead),
    };
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
