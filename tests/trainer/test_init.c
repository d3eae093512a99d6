/* `init`: every recipe of configs/ is what the program writes, parses, and can be planned; and
 * `doctor`, with which a user begins. */
#define _GNU_SOURCE
#include "trainer/config.h"
#include "trainer/recipes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/data/folder.h"
#include "tests/trainer/program.h"

enum { LEAST_LINES = 20, MOST_LINES = 40 };

/* Runs init into folder/NAME; the caller frees the path of the config that it printed. */
static char *init(const char *name) {
    char *dir = xprintf("%s/runs/%s", folder, name), *preset = xprintf("init.preset=%s", name);
    const Run *r = RUN("init", dir, preset);
    if (r->code) fail_msg("%s: %s", name, r->err);
    char *path = xprintf("%s/config.yaml", dir), *line = xprintf("%s\n", path);
    assert_string_equal(r->out, line);
    free(line);
    free(dir);
    free(preset);
    return path;
}

/* What is written is the file of configs/, of 20 to 40 lines. */
static void check_text(const char *name, const char *path) {
    char *source = xprintf("configs/%s.yaml", name);
    size_t n, n_source;
    int lines = 0;
    uint8_t *text = scratch_read(path, &n), *want = scratch_read(source, &n_source);
    assert_int_equal(n, n_source);
    assert_memory_equal(text, want, n);
    for (size_t i = 0; i < n; i++) lines += text[i] == '\n';
    if (lines < LEAST_LINES || lines > MOST_LINES) fail_msg("%s: %d lines", source, lines);
    free(text);
    free(want);
    free(source);
}

/* "1.5-5b-i2v-lora" -> tests/golden/published/1.5-5b-i2v; the caller frees it. */
static char *model_of(const char *name, const char *method) {
    size_t n = strlen(name) - strlen(method) - 1;
    return xprintf("model.path=tests/golden/published/%.*s", (int)n, name);
}

static void check_plan(const char *name, const char *path, const Config *c) {
    bool tiny = !strcmp(name, "tiny");
    char *model = tiny ? xstrdup("model.path=tests/golden/dit/5b")
                       : model_of(name, c->method == METHOD_FULL ? "full" : "lora");
    const Run *r = tiny ? RUN("plan", path, model, "data.frames=9", "data.height=32",
                              "data.width=64", "--json")
                        : RUN("plan", path, model, "--json");
    if (r->code) fail_msg("%s: %s", name, r->err);
    json_t *plan = json_loads(r->out, 0, NULL);
    assert_true(json_integer_value(json_object_get(plan, "peak_device_bytes")) > 0);
    assert_true(json_number_value(json_object_get(plan, "step_seconds")) > 0);
    json_decref(plan);
    free(model);
}

static void test_recipes(void **state) {
    (void)state;
    int n = 0;
    for (const Recipe *recipe = RECIPES; recipe->name; recipe++, n++) {
        char *path = init(recipe->name);
        check_text(recipe->name, path);
        Config *c = config_new();
        Error e;
        if (!config_read_file(c, path, &e)) fail_msg("%s", e.text);
        bool full = strstr(recipe->name, "-full");
        assert_int_equal(c->method, full ? METHOD_FULL : METHOD_LORA);
        assert_true(config_is_set(c, "model.path") && config_is_set(c, "data.path"));
        check_plan(recipe->name, path, c);
        config_free(c);
        free(path);
    }
    assert_int_equal(n, 11); /* five variants, two methods, and the tiny model */
}

static void test_refused(void **state) {
    (void)state;
    char *dir = xprintf("%s/run", folder), *file = xprintf("%s/run/config.yaml", folder);
    REFUSED(RUN("init", dir), EXIT_USER, "init.preset", "2b-lora", "tiny");
    REFUSED(RUN("init", dir, "init.preset=5b-i2v-lroa"), EXIT_USER, "did you mean '5b-i2v-lora'");
    REFUSED(RUN("init", "init.preset=tiny"), EXIT_USER, "one DIR");
    REFUSED(RUN("init", dir, "other", "init.preset=tiny"), EXIT_USER, "'other'");
    assert_int_equal(scratch_count(folder), 0);
    assert_int_equal(RUN("init", dir, "init.preset=tiny")->code, 0);
    REFUSED(RUN("init", dir, "init.preset=2b-lora"), EXIT_USER, file, "already");
    free(dir);
    free(file);
}

static void test_doctor(void **state) {
    (void)state;
    static const char *const NAMES[] = {"cpu",       "memory", "gpu",     "nccl",
                                        "libraries", "mpi",    "decoder", "disk"};
    const Run *r = RUN("doctor", "--json");
    assert_int_equal(r->code, 0);
    json_t *report = json_loads(r->out, JSON_REJECT_DUPLICATES, NULL), *row;
    assert_true(json_is_true(json_object_get(report, "usable")));
    json_t *rows = json_object_get(report, "checks");
    size_t i;
    for (size_t k = 0; k < COUNT(NAMES); k++) {
        bool found = false;
        json_array_foreach(rows, i, row) {
            bool this = !strcmp(json_string_value(json_object_get(row, "name")), NAMES[k]);
            found |= this && *json_string_value(json_object_get(row, "found"));
        }
        if (!found) fail_msg("no row %s", NAMES[k]);
    }
    json_decref(report);
    run_as.file_bytes = 100000;
    r = RUN("doctor");
    run_as.file_bytes = 0;
    assert_int_equal(r->code, EXIT_WORLD);
    assert_parts(r->out, (const char *const[]){"wrong", "ulimit -f unlimited", NULL});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_recipes, enter, leave),
        cmocka_unit_test_setup_teardown(test_refused, enter, leave),
        cmocka_unit_test(test_doctor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
