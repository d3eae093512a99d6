/* `cogsmith plan` as a user runs it: every number of its text is in its JSON, whose parts add up;
 * its columns line up; and a budget that is too little is refused. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/trainer/program.h"

#include <ctype.h>
#include <math.h>

enum { MAX_SETTINGS = 6 };

static const char *const CASES[][MAX_SETTINGS] = {
    {"plan.device=rtx4090"},
    {"plan.device=h200", "train.accumulate=4"},
    {"plan.device=rtx4090", "memory.budget=6GiB"},
    {"plan.device=rtx4090", "memory.budget=12GiB", "method=full"},
    {"plan.device=rtx4090", "method=full", "memory.optimizer.home=device"}, /* does not fit */
    {"plan.device=h100", "plan.world=4", "ranks.zero=3", "method=full"},
    {"plan.device=h100", "plan.world=2", "ranks.sequence=2"},
    {"plan.device=h100", "plan.world=16", "ranks.sequence=2", "ranks.zero=3", "method=full"},
    {"plan.device=rtx4090", "train.sample_every=100", "data.holdout=2", "train.validate_every=10"},
};

static const char MODEL[] = "model.path=tests/golden/published/5b";

static const Run *plan(const char *const *settings, const char *option) {
    const char *args[MAX_SETTINGS + 4] = {"plan", MODEL};
    int n = 2;
    for (int i = 0; i < MAX_SETTINGS && settings[i]; i++) args[n++] = settings[i];
    args[n] = option;
    const Run *r = run_args(args);
    if (r->code) fail_msg("%s: exit code %d: %s", settings[0], r->code, r->err);
    return r;
}

static json_t *plan_json(const char *const *settings) {
    json_error_t at;
    json_t *j = json_loads(plan(settings, "--json")->out, JSON_REJECT_DUPLICATES, &at);
    if (!j) fail_msg("%s: line %d: %s", settings[0], at.line, at.text);
    return j;
}

static double number(const json_t *j, const char *key) {
    const json_t *value = json_object_get(j, key);
    if (!json_is_number(value)) fail_msg("no number %s", key);
    return json_number_value(value);
}

/* ---- sums -------------------------------------------------------------------------------------
 */

static double sum_of(const json_t *j, const char *key) {
    json_t *rows = json_object_get(j, key), *value;
    const char *name;
    double sum = 0;
    assert_true(json_object_size(rows) > 3);
    json_object_foreach(rows, name, value) sum += json_number_value(value);
    return sum;
}

static void expect_sums(json_t *j) {
    const json_t *chosen = json_object_get(j, "choices");
    assert_true(sum_of(j, "device_memory_bytes") == number(j, "peak_device_bytes"));
    assert_true(sum_of(j, "host_memory_bytes") == number(j, "peak_host_bytes"));
    assert_true(number(chosen, "peak_device_bytes") == number(j, "peak_device_bytes"));
    assert_true(number(chosen, "peak_host_bytes") == number(j, "peak_host_bytes"));
    assert_true(number(chosen, "step_seconds") == number(j, "step_seconds"));
    double seconds = number(j, "step_seconds");
    assert_true(fabs(sum_of(j, "step_parts_seconds") - seconds) < 1e-9 * seconds);
    assert_true(number(j, "unlimited_seconds") <= 1.001 * seconds);
    double sent = number(json_object_get(j, "traffic_bytes"), "ranks");
    double micros = number(j, "micro_steps") * number(j, "micro_sent_bytes");
    assert_true((sent > 0) == (number(j, "world") > 1));
    assert_true((micros > 0) == (sent > 0) && micros <= sent);
    const json_t *host = json_object_get(j, "host_memory_bytes");
    assert_true(number(host, "checkpoints") + number(host, "optimizer") > 0);
    assert_true(number(host, "program") > 0 && number(host, "batches") > 0);
}

/* ---- text and JSON ----------------------------------------------------------------------------
 */

/* Whether `word` is how the text writes the value. */
static bool writes(const char *word, double value) {
    static const char *const FORMATS[] = {"%.0f", "%.3f", "%.4f", "%.3g", "%.4g"};
    static const double SCALES[] = {1, 1073741824.0, 1e9, 1e12};
    char text[64];
    for (size_t f = 0; f < COUNT(FORMATS); f++)
        for (size_t s = 0; s < COUNT(SCALES); s++) {
            snprintf(text, sizeof text, FORMATS[f], value / SCALES[s]);
            if (!strcmp(text, word)) return true;
        }
    return false;
}

static bool holds(json_t *j, const char *word) {
    const char *key;
    json_t *value;
    bool found = json_is_number(j) && writes(word, json_number_value(j));
    if (json_is_object(j)) {
        json_object_foreach(j, key, value) found = found || holds(value, word);
    }
    return found;
}

/* Words that begin with a digit: numbers, perhaps before a mark. */
static void expect_numbers(const char *text, json_t *j) {
    char *copy = xstrdup(text);
    int n = 0;
    for (char *rest = copy, *word; (word = strtok_r(rest, " \n()", &rest));) {
        size_t length = strcspn(word, ",;:");
        word[length] = 0;
        if (!isdigit((unsigned char)*word)) continue;
        if (!holds(j, word)) fail_msg("%s is not in the JSON of:\n%s", word, text);
        n++;
    }
    assert_true(n > 20);
    free(copy);
}

/* Rows of numbers: two blanks, a label, a number that ends at one column, and its unit. */
static void expect_columns(const char *text) {
    enum { END = 37 };
    int rows = 0;
    for (const char *line = text; *line; line += strcspn(line, "\n") + 1) {
        size_t n = strcspn(line, "\n");
        assert_true(n && line[n - 1] != ' ');
        if (strncmp(line, "  ", 2) || line[2] == ' ') continue;
        if (n <= END || !isdigit((unsigned char)line[END - 1]) || line[END] != ' ')
            fail_msg("a number should end at column %d: %.*s", END, (int)n, line);
        rows++;
    }
    assert_true(rows > 8);
}

static void text_is_in_json_that_adds_up(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(CASES); i++) {
        json_t *j = plan_json(CASES[i]);
        const char *text = plan(CASES[i], NULL)->out;
        expect_numbers(text, j);
        expect_columns(text);
        expect_sums(j);
        const json_t *choices = json_object_get(j, "choices");
        bool fits = json_is_true(json_object_get(choices, "fits"));
        assert_true(!strstr(text, fits ? "fits      no" : "fits      yes"));
        assert_true(json_is_null(json_object_get(j, "next")) == !strstr(text, "\nnext best "));
        json_decref(j);
    }
}

/* Ranks of a host take their parts of its memory; their sum is what must fit. */
static void ranks_of_a_host_add_up(void **state) {
    (void)state;
    const char *four[MAX_SETTINGS] = {"plan.device=rtx4090", "plan.world=4"};
    json_t *j = plan_json(four);
    const json_t *ranks = json_object_get(j, "ranks");
    double together = number(j, "host_together_bytes"), each = number(j, "peak_host_bytes");
    assert_true(number(ranks, "on_a_host") == 4);
    assert_true(together > 2 * each && together <= 4 * each);
    assert_true(together <= number(j, "host_limit_bytes"));
    json_decref(j);
}

/* What this machine can do is measured, or asked of it, each time. */
static void a_cpu_is_planned_for_too(void **state) {
    (void)state;
    static const char *const MACHINES[][MAX_SETTINGS] = {{"plan.device=cpu"}, {"device=cpu"}};
    for (size_t i = 0; i < COUNT(MACHINES); i++) {
        json_t *j = plan_json(MACHINES[i]);
        assert_true(sum_of(j, "device_memory_bytes") == number(j, "peak_device_bytes"));
        assert_true(number(j, "host_together_bytes") >= number(j, "peak_host_bytes"));
        expect_columns(plan(MACHINES[i], NULL)->out);
        json_decref(j);
    }
}

static void too_small_a_budget_is_refused(void **state) {
    (void)state;
    REFUSED(RUN("plan", MODEL, "plan.device=rtx4090", "memory.budget=1GiB"), EXIT_USER,
            "memory.budget: 1.000 GiB is too little: the least possible is ",
            "the optimizer at host");
    REFUSED(RUN("plan", MODEL, "plan.device=rtx4090", "memory.budget=1GiB", "--json"), EXIT_USER,
            "memory.budget: 1.000 GiB is too little");
}

/* Over a driver that shows no GPU: `auto` says why it takes the CPU, and `cuda` refuses. */
static void a_gpu_that_cannot_be_used_is_told(void **state) {
    (void)state;
    const char *fake = getenv("FAKE_DRIVER");
    if (!fake) skip();
    setenv("LD_LIBRARY_PATH", fake, 1);
    setenv("FAKE_VERSION", "99000", 1);
    setenv("FAKE_INIT", "100", 1);
    const Run *r = RUN("plan", MODEL);
    assert_int_equal(r->code, 0);
    if (!strstr(r->err, "device=auto takes the CPU: an NVIDIA driver is here, and no GPU"))
        fail_msg("%s", r->err);
    REFUSED(RUN("plan", MODEL, "device=cuda"), EXIT_USER, "device: an NVIDIA driver is here");
    unsetenv("LD_LIBRARY_PATH");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_in_json_that_adds_up),
        cmocka_unit_test(ranks_of_a_host_add_up),
        cmocka_unit_test(a_cpu_is_planned_for_too),
        cmocka_unit_test(too_small_a_budget_is_refused),
        cmocka_unit_test(a_gpu_that_cannot_be_used_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
