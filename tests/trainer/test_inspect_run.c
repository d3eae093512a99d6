/* `inspect` of a run and of its checkpoints: what they say, and that damage is seen. */
#define _GNU_SOURCE
#include "kernels/base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/data/folder.h"
#include "tests/trainer/program.h"

/* The one report of `inspect --json`; ends the test where it fails. */
static json_t *inspect_json(const char *path) {
    const Run *r = RUN("inspect", "--json", path);
    if (r->code) fail_msg("%s: %d: %s", path, r->code, r->err);
    json_t *list = json_loads(r->out, JSON_REJECT_DUPLICATES, NULL);
    json_t *report = json_incref(json_array_get(list, 0));
    json_decref(list);
    return report;
}

static void expect_text(const json_t *j, const char *key, const char *want) {
    assert_string_equal(json_string_value(json_object_get(j, key)), want);
}

static void expect_whole(const json_t *j, const char *key, json_int_t want) {
    assert_int_equal(json_integer_value(json_object_get(j, key)), want);
}

/* Trains the tiny model for two steps, into folder/run. */
static void train_tiny(void) {
    char *cache = xprintf("data.cache=%s/cache", folder);
    char *out = xprintf("train.out=%s/run", folder);
    const Run *r = RUN("prepare", "configs/tiny.yaml", cache, out);
    if (r->code) fail_msg("%s", r->err);
    r = RUN("train", "configs/tiny.yaml", cache, out, "train.steps=2", "train.batch=1");
    if (r->code) fail_msg("%s", r->err);
    free(cache);
    free(out);
}

static void flip_bit(const char *path) {
    size_t n;
    uint8_t *bytes = scratch_read(path, &n);
    bytes[n / 2] ^= 4;
    scratch_write(path, bytes, n);
    free(bytes);
}

static void test_run(void **state) {
    (void)state;
    char *run = xprintf("%s/run", folder), *at = xprintf("%s/checkpoints/step-000002", run),
         *config = xprintf("%s/config.yaml", at);
    train_tiny();
    json_t *j = inspect_json(run);
    expect_text(j, "kind", "run");
    assert_int_equal(json_array_size(json_object_get(j, "checkpoints")), 1);
    expect_text(json_object_get(j, "result"), "kind", "adapter");
    json_decref(j);
    j = inspect_json(at);
    expect_text(j, "kind", "checkpoint");
    expect_whole(j, "step", 2);
    expect_whole(j, "samples", 2);
    expect_whole(json_object_get(j, "result"), "tensors", 40);
    json_decref(j);
    const Run *r = RUN("inspect", at);
    assert_non_null(strstr(r->out, "checkpoint after step 2, 2 samples"));
    assert_non_null(strstr(r->out, "every file verified"));
    flip_bit(config);
    REFUSED(RUN("inspect", at), EXIT_USER, "config.yaml", "has not the bytes");
    REFUSED(RUN("inspect", run), EXIT_USER, "config.yaml", "has not the bytes");
    free(run);
    free(at);
    free(config);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_run, enter, leave),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
