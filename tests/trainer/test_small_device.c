/* `train` on a device with little memory, without memory.budget: what does not fit there rests on
 * the host, and the run comes to the same. $COGSMITH is the program whose device is tests/shim's
 * guarded one; GUARDED_BYTES is what that has free. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/trainer/train_model.h"

/* What the planner leaves free where nobody sets memory.budget. */
static const double SPARE_BYTES = 256 << 20;

static const Run *train_within(const char *out, double bytes, const char *steps) {
    char text[40];
    snprintf(text, sizeof text, "%.0f", bytes);
    setenv("GUARDED_BYTES", text, 1);
    const Run *r = TRAIN(out, steps, "method=full");
    unsetenv("GUARDED_BYTES");
    return r;
}

static double peak_of(const char *out) {
    json_t *m = train_metrics(out);
    double peak = train_metric(m, -1, "peak_bytes");
    json_decref(m);
    return peak;
}

static void what_does_not_fit_rests_on_the_host(void **state) {
    (void)state;
    train_expect(train_within("roomy", 4e9, "train.steps=2"), 0);
    double whole = peak_of("roomy");
    double bytes = SPARE_BYTES + 0.6 * whole;
    train_expect(train_within("tight", bytes, "train.steps=1"), 0);
    train_expect(train_within("tight", bytes, "train.steps=2"), 0); /* from a checkpoint */
    double peak = peak_of("tight");
    print_message("%.0f bytes at the peak, %.0f where there are %.0f\n", whole, peak, 0.6 * whole);
    assert_true(peak < 0.6 * whole);
    expect_same_metrics("roomy", "tight");
}

static void too_little_is_refused(void **state) {
    (void)state;
    REFUSED(train_within("none", SPARE_BYTES + 4096, "train.steps=2"), EXIT_USER,
            "GiB of device memory that are free are too little", "the least possible is");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_does_not_fit_rests_on_the_host),
                                       cmocka_unit_test(too_little_is_refused)};
    return cmocka_run_group_tests(tests, train_setup, train_teardown);
}
