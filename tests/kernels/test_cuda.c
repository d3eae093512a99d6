/* The CUDA backend on the GPU that is here: every case of device_cases.h against the CPU backend,
 * in every type, at aligned and odd addresses, twice for the same bits.
 *
 * usage: test_cuda [--device N] [--own] [NAME ...]
 *   --own   only what no library computes
 *   NAME    only the cases whose names begin so
 * Exit code 0: all passed; 1: one failed, or there is no GPU to test on. Needs no library but the
 * backend's, so that it can be built where nothing but a toolkit and CMake is. */
#include "tests/kernels/device_cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    Trial trial;
    bool own;
    char **names;
    int n_names;
    int run, failed;
} Suite;

static bool by_library(const DeviceCase *cases, DType t) {
    return cases == GEMM_CASES || cases == CONV_CASES || cases == CAPTURE_CASES ||
           (cases == ATTENTION_CASES && t != DT_F32);
}

static bool wanted(const Suite *s, const char *name) {
    for (int i = 0; i < s->n_names; i++)
        if (!strncmp(name, s->names[i], strlen(s->names[i]))) return true;
    return !s->n_names;
}

static void run_one(Suite *s, const DeviceCase *one, DType t, int shift) {
    Trial *c = &s->trial;
    const char *why = "";
    c->t = t;
    c->shift = shift;
    bool good = run_case(c, one);
    uint64_t hash = c->hash;
    if (!good || !run_case(c, one))
        why = c->failure;
    else if (c->hash != hash)
        why = "the second time the bits were others";
    s->run++;
    s->failed += *why != 0;
    printf("%s  %-24s %-4s %s  %5.3f of the bound%s%s\n", *why ? "FAILED" : "ok    ", one->name,
           dtype_name(t), shift ? "odd    " : "aligned", c->worst, *why ? ": " : "", why);
    fflush(stdout);
}

static void run_all(Suite *s) {
    static const DType types[] = {DT_F32, DT_BF16, DT_F16};
    for (int i = 0; DEVICE_CASES[i]; i++)
        for (const DeviceCase *one = DEVICE_CASES[i]; one->name; one++)
            for (size_t t = 0; wanted(s, one->name) && t < COUNT(types); t++)
                for (int shift = 0; shift < 2; shift++)
                    if (!s->own || !by_library(DEVICE_CASES[i], types[t]))
                        run_one(s, one, types[t], shift);
}

/* More than any device has; and the stream is as good as before. */
static void run_full(Suite *s) {
    bool good = !s->trial.device->alloc((size_t)1 << 46);
    s->trial.device->stream_sync(s->trial.stream);
    s->run++;
    s->failed += !good;
    printf("%s  memory is full\n", good ? "ok    " : "FAILED");
}

static const Backend *open_device(int index) {
    Error e = {0};
    CudaDevice list[16];
    const Backend *device = cuda_backend(index, &e);
    if (!device || cuda_devices(list, COUNT(list), &e) <= index) {
        fprintf(stderr, "test_cuda: nothing was tested: %s\n", e.text);
        exit(EXIT_WORLD);
    }
    const CudaDevice *gpu = &list[index];
    printf("%s, compute capability %d.%d, CUDA %s, cuBLASLt %s, cuDNN %s\n", gpu->name, gpu->major,
           gpu->minor, gpu->runtime, gpu->blas, gpu->dnn);
    return device;
}

int main(int n, char **words) {
    bool chosen = n > 2 && !strcmp(words[1], "--device");
    int first = chosen ? 3 : 1;
    bool own = n > first && !strcmp(words[first], "--own");
    first += own;
    Suite s = {.own = own, .names = words + first, .n_names = n - first};
    trial_open(&s.trial, open_device(chosen ? atoi(words[2]) : 0));
    run_all(&s);
    if (!s.n_names) run_full(&s);
    trial_close(&s.trial);
    printf("%d passed, %d failed\n", s.run - s.failed, s.failed);
    return s.failed || !s.run ? EXIT_WORLD : 0;
}
