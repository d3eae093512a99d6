/* Every device case on the shim: CUDA's own kernels on the CPU, in every type, with the threads in
 * three orders, which must give the same bits; at odd addresses, and under AddressSanitizer, in
 * one. */
#include "tests/kernels/device_cases.h"
#include "tests/shim/fibers.h"
#include "tests/shim/shim_backend.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const DType TYPES[] = {DT_F32, DT_BF16, DT_F16};
static const uint64_t ORDERS[] = {0, 1, 20260214};

/* NULL where AddressSanitizer is not linked. */
void __asan_poison_memory_region(const void *p, size_t bytes) __attribute__((weak));
void __asan_unpoison_memory_region(const void *p, size_t bytes) __attribute__((weak));

static void fence(const void *p, size_t bytes, bool closed) {
    if (__asan_poison_memory_region && closed) __asan_poison_memory_region(p, bytes);
    if (__asan_unpoison_memory_region && !closed) __asan_unpoison_memory_region(p, bytes);
}

/* The largest error / bound over all orders; false after printing why not. */
static bool same_in_all_orders(Trial *c, const DeviceCase *one, double *worst) {
    uint64_t hash = 0;
    bool one_order = c->shift || __asan_poison_memory_region;
    for (size_t i = one_order ? COUNT(ORDERS) - 1 : 0; i < COUNT(ORDERS); i++) {
        shim_shuffle(ORDERS[i]);
        if (!run_case(c, one)) return false;
        if (hash && c->hash != hash) refuse(c, "another order of threads gives other bits");
        if (c->failure[0]) return false;
        hash = c->hash;
        *worst = MAX(*worst, c->worst);
    }
    return true;
}

static void all_cases(void **state) {
    const char *only = getenv("COGSMITH_CASE"); /* one case by its name, by hand */
    int failed = 0;
    Trial c;
    (void)state;
    trial_open(&c, shim_capturing());
    c.fence = fence;
    for (int k = 0; DEVICE_CASES[k]; k++)
        for (const DeviceCase *one = DEVICE_CASES[k]; one->name; one++) {
            if (only && strcmp(only, one->name)) continue;
            for (int run = 0; run < 6; run++) {
                double worst = 0, start = now_seconds();
                c.t = TYPES[run / 2];
                c.shift = run % 2;
                bool passed = same_in_all_orders(&c, one, &worst);
                printf("%-4s %-28s %-4s %-7s %5.2f s, error %.3f of its bound%s%s\n",
                       passed ? "ok" : "FAIL", one->name, dtype_name(c.t),
                       c.shift ? "odd" : "aligned", now_seconds() - start, worst,
                       passed ? "" : ": ", passed ? "" : c.failure);
                failed += !passed;
            }
        }
    trial_close(&c);
    if (failed) fail_msg("%d cases failed", failed);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_cases)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
