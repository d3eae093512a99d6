/* The device cases of attention and convolutions on the CUDA backend's own code, over a cuDNN of
 * plain loops (tests/kernels/dnn_on_cpu.c): that their bounds hold for what is rounded on the way
 * as graphs say. */
#define _POSIX_C_SOURCE 200809L
#include "kernels/attention_cuda.h"
#include "kernels/conv_cuda.h"
#include "tests/kernels/device_cases.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static Stream *case_stream(void) { return xcalloc(1, sizeof(Stream)); }

static void case_workspace(Stream *s, void *workspace, size_t bytes) {
    s->workspace = workspace;
    s->workspace_bytes = bytes;
}

static void case_close(Stream *s) {
    dnn_plans_close(s->attentions.plans);
    dnn_plans_close(s->convs.plans);
    free(s);
}

static void cases_keep_their_bounds(void **state) {
    static const DeviceCase *const CASES[] = {ATTENTION_CASES, CONV_CASES};
    static const DType TYPES[] = {DT_F32, DT_BF16, DT_F16};
    Backend device = BACKEND_CPU;
    Trial c;
    (void)state;
    device.stream_open = case_stream;
    device.stream_close = case_close;
    device.stream_workspace = case_workspace;
    device.attention = cuda_attention;
    device.attention_grad = cuda_attention_grad;
    device.conv_packed = cuda_conv_packed;
    device.conv_pack = cuda_conv_pack;
    device.conv = cuda_conv;
    trial_open(&c, &device);
    for (size_t i = 0; i < COUNT(CASES); i++)
        for (const DeviceCase *one = CASES[i]; one->name; one++)
            for (size_t run = 0; run < 2 * COUNT(TYPES); run++) {
                c.t = TYPES[run / 2];
                c.shift = run % 2;
                bool passed = run_case(&c, one);
                print_message("%s, %s: %.3f of the bound\n", one->name, dtype_name(c.t), c.worst);
                if (!passed) fail_msg("%s, %s: %s", one->name, dtype_name(c.t), c.failure);
            }
    trial_close(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(cases_keep_their_bounds)};
    setenv("XDG_CACHE_HOME", "/dev/null", 1); /* plans of loops are this process's own */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
