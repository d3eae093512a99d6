/* The CUDA backend on the GPU that is here: every case of device_cases.h against the CPU backend,
 * in every type, at aligned and odd addresses, twice for the same bits.
 *
 * usage: test_cuda [--device N] [--own] [--here] [NAME ...]
 *   --own   only what no library computes
 *   --here  in this process: what ends it hides what comes after
 *   NAME    only the cases whose names begin so
 * Exit code 0: all passed; 1: one failed, or there is no GPU to test on. Needs no library but the
 * backend's, so that it can be built where nothing but a toolkit and CMake is. */
#define _DEFAULT_SOURCE
#include "tests/kernels/device_cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* Longer than any trial takes: one that hangs ends its process. */
enum { SECONDS_OF_A_TRIAL = 120 };

/* What a process that ends leaves to the next. */
typedef struct {
    int next; /* the trial that comes, of all in order */
    int run, failed;
    bool opened; /* there is a GPU */
    char name[100];
} Score;

typedef struct {
    Trial trial;
    int device;
    bool own, here;
    char **names;
    int n_names;
    Score *score; /* shared by the processes */
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
    snprintf(s->score->name, sizeof s->score->name, "%-24s %-4s %s", one->name, dtype_name(t),
             shift ? "odd    " : "aligned");
    s->score->next++;
    if (!s->here) alarm(SECONDS_OF_A_TRIAL);
    c->t = t;
    c->shift = shift;
    bool good = run_case(c, one);
    uint64_t hash = c->hash;
    if (!good || !run_case(c, one))
        why = c->failure;
    else if (c->hash != hash)
        why = "the second time the bits were others";
    s->score->run++;
    s->score->failed += *why != 0;
    printf("%s  %s  %5.3f of the bound%s%s\n", *why ? "FAILED" : "ok    ", s->score->name, c->worst,
           *why ? ": " : "", why);
    fflush(stdout);
}

/* Those that an earlier process has begun are done. */
static void run_all(Suite *s) {
    static const DType types[] = {DT_F32, DT_BF16, DT_F16};
    int done = s->score->next, at = 0;
    for (int i = 0; DEVICE_CASES[i]; i++)
        for (const DeviceCase *one = DEVICE_CASES[i]; one->name; one++)
            for (size_t t = 0; wanted(s, one->name) && t < COUNT(types); t++)
                for (int shift = 0; shift < 2; shift++)
                    if ((!s->own || !by_library(DEVICE_CASES[i], types[t])) && at++ >= done)
                        run_one(s, one, types[t], shift);
}

/* More than any device has; and the stream is as good as before. */
static void run_full(Suite *s) {
    bool good = !s->trial.device->alloc((size_t)1 << 46);
    s->trial.device->stream_sync(s->trial.stream);
    s->score->run++;
    s->score->failed += !good;
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

static void run_here(Suite *s) {
    trial_open(&s->trial, open_device(s->device));
    s->score->opened = true;
    run_all(s);
    snprintf(s->score->name, sizeof s->score->name, "what comes after the cases");
    if (!s->n_names) run_full(s);
    trial_close(&s->trial);
}

/* A library's refusal, or a kernel's error, ends the process that it befalls: another goes on with
 * the next trial. */
static void run_apart(Suite *s) {
    for (bool ended = true; ended;) {
        int first = s->score->next, status = 0;
        s->score->opened = false;
        fflush(stdout);
        pid_t child = fork();
        if (!child) {
            run_here(s);
            fflush(stdout);
            _exit(0);
        }
        CHECK(child > 0 && waitpid(child, &status, 0) == child, "a process of its own");
        ended = status && s->score->opened;
        if (!status) continue;
        s->score->run++;
        s->score->failed++;
        printf("FAILED  %s  it ended its process (%s %d)\n", s->score->name,
               WIFSIGNALED(status) ? "signal" : "exit code",
               WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
        ended = ended && s->score->next > first;
    }
}

int main(int n, char **words) {
    Suite s = {.device = 0};
    int at = 1;
    for (; at < n && !strncmp(words[at], "--", 2); at++) {
        s.own |= !strcmp(words[at], "--own");
        s.here |= !strcmp(words[at], "--here");
        if (!strcmp(words[at], "--device") && at + 1 < n) s.device = atoi(words[++at]);
    }
    s.names = words + at;
    s.n_names = n - at;
    s.score =
        mmap(NULL, sizeof *s.score, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(s.score != MAP_FAILED, "no memory for the score");
    snprintf(s.score->name, sizeof s.score->name, "opening the GPU");
    if (s.here)
        run_here(&s);
    else
        run_apart(&s);
    printf("%d passed, %d failed\n", s.score->run - s.score->failed, s.score->failed);
    return s.score->failed || !s.score->run ? EXIT_WORLD : 0;
}
