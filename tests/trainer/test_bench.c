/* bench of a tiny model's ops: a row for each op and each size of matrix product, each timed and
 * compared with something. */
#define _GNU_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/data/golden.h"
#include "tests/trainer/program.h"

static json_t *rows_of(const char *method) {
    char *model = golden_find("dit/2b");
    char *m = xprintf("method=%s", method), *path = xprintf("model.path=%s", model);
    const Run *r = RUN("bench", "--json", "bench.what=ops", "bench.repeat=2", "data.frames=9",
                       "data.height=32", "data.width=32", m, path);
    if (r->code) fail_msg("exit code %d: %s", r->code, r->err);
    json_t *rows = json_loads(r->out, JSON_REJECT_DUPLICATES, NULL);
    assert_true(json_is_array(rows) && json_array_size(rows));
    free(model);
    free(m);
    free(path);
    return rows;
}

static int count_named(const json_t *rows, const char *prefix, const char *suffix) {
    size_t i, from = strlen(prefix), to = strlen(suffix);
    int found = 0;
    json_t *row;
    json_array_foreach(rows, i, row) {
        const char *name = json_string_value(json_object_get(row, "name"));
        size_t n = strlen(name);
        found += n >= from + to && !strncmp(name, prefix, from) && !strcmp(name + n - to, suffix);
    }
    return found;
}

static void assert_timed(const json_t *rows) {
    size_t i;
    json_t *row;
    json_array_foreach(rows, i, row) {
        double least = json_number_value(json_object_get(row, "min_ms"));
        double median = json_number_value(json_object_get(row, "median_ms"));
        double share = json_number_value(json_object_get(row, "share"));
        assert_true(least > 0 && median >= least);
        assert_true(share > 0 && isfinite(share));
    }
}

static void every_op_is_timed(void **state) {
    (void)state;
    json_t *lora = rows_of("lora"), *full = rows_of("full");
    assert_timed(lora);
    assert_timed(full);
    static const char *const OPS[] = {"linear", "norm",       "qk_norm",  "attention",
                                      "gate",   "unpatchify", "patchify", "silu"};
    for (size_t i = 0; i < COUNT(OPS); i++) {
        char *forward = xprintf("%s forward", OPS[i]);
        assert_true(count_named(lora, forward, "]"));
        free(forward);
    }
    /* y = x W^T, dx = dy W; dW = dy^T x of A and of B, and with all weights of many more. */
    assert_true(count_named(lora, "product", ""));
    assert_true(count_named(lora, "product", " dx"));
    int few = count_named(lora, "product", " dW"), many = count_named(full, "product", " dW");
    assert_true(few >= 2 && many > few);
    json_decref(lora);
    json_decref(full);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_op_is_timed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
