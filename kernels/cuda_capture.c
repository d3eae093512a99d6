/* Owns what is captured of a stream: CUDA graphs. What fails meanwhile makes the capture fail and
 * not the program: the work is then launched as ever. */
#include "kernels/cuda_stream.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

/* What graphs leave of the GPU's memory, for kernels that are yet to be loaded: how much the driver
 * takes for graphs is not documented, and plans (plan_captured_bytes) only estimate it. */
enum { LEFT_MIB = 256 };

/* What is freed with a capture. */
typedef struct Kept Kept;
struct Kept {
    void *memory;
    Kept *next;
};

struct Captured {
    cudaGraphExec_t graph;
    Kept *kept;
};

/* Of this thread: the queue that is being captured, or NULL, the first thing that failed, and what
 * the capture keeps. */
static _Thread_local CudaStream captured;
static _Thread_local Error trouble;
static _Thread_local Kept *kept;

void cuda_fail(const Error *e) {
    if (!captured) die_error(e);
    if (!trouble.exit_code) trouble = *e;
}

bool cuda_capture_refuses(const char *what) {
    Error e;
    if (!captured) return false;
    error_set(&e, EXIT_WORLD, "cuda: %s cannot be captured", what);
    cuda_fail(&e);
    return true;
}

bool cuda_capture_keeps(void *memory) {
    if (!captured) return false;
    Kept *k = xcalloc(1, sizeof *k);
    *k = (Kept){memory, kept};
    kept = k;
    return true;
}

static void free_kept(Kept *k) {
    for (Kept *next; k; k = next) {
        next = k->next;
        free(k->memory);
        free(k);
    }
}

/* After a failure all goes to the queue that is captured, which drops it in the end: another queue,
 * which could not join, would do it now. */
CudaStream cuda_capture_queue(CudaStream queue) {
    return captured && trouble.exit_code ? captured : queue;
}

static void tell(const Error *e) {
    static bool told;
    if (told) return;
    fprintf(stderr, "cogsmith: steps are launched kernel by kernel, not as CUDA graphs: %s\n",
            e->text);
    told = true;
}

bool cuda_capture_begin(Stream *s) {
    CudaStream queue = cuda_queue(s);
    trouble = (Error){0};
    /* Relaxed: what libraries and other threads do beside is theirs. */
    cudaError_t status = cudaStreamBeginCapture(queue, cudaStreamCaptureModeRelaxed);
    if (status == cudaSuccess) {
        captured = queue;
        return true;
    }
    cudaGetLastError(); /* not the next call's error */
    cuda_error(&trouble, status, "beginning to capture a stream");
    tell(&trouble);
    return false;
}

/* NULL: there is trouble. */
static cudaGraphExec_t make_ready(cudaGraph_t graph) {
    cudaGraphExec_t ready = NULL;
    size_t left = SIZE_MAX, total;
    Error e;
    if (!trouble.exit_code) cuda_check(cudaGraphInstantiate(&ready, graph, 0), "making a graph");
    if (ready) cuda_check(cudaMemGetInfo(&left, &total), "asking for the memory that is left");
    error_set(&e, EXIT_WORLD, "they would leave less than %d MiB of the GPU's memory", LEFT_MIB);
    if (left >> 20 < LEFT_MIB) cuda_fail(&e);
    if (!trouble.exit_code) return ready;
    if (ready) cuda_check(cudaGraphExecDestroy(ready), "closing a graph");
    return NULL;
}

Captured *cuda_capture_end(Stream *s) {
    cudaGraph_t graph = NULL;
    cuda_check(cudaStreamEndCapture(s->queue, &graph), "capturing a stream");
    cudaGraphExec_t ready = make_ready(graph);
    if (graph) cuda_check(cudaGraphDestroy(graph), "letting go of what was captured");
    Kept *keeps = kept;
    captured = NULL;
    kept = NULL;
    cudaGetLastError();
    if (!ready) {
        free_kept(keeps);
        tell(&trouble);
        return NULL;
    }
    Captured *c = xcalloc(1, sizeof *c);
    *c = (Captured){ready, keeps};
    return c;
}

void cuda_replay(Stream *s, Captured *c) {
    cuda_check(cudaGraphLaunch(c->graph, cuda_queue(s)), "launching a graph");
}

void cuda_captured_close(Captured *c) {
    cuda_enter();
    cuda_check(cudaDeviceSynchronize(), "finishing what was launched");
    cuda_check(cudaGraphExecDestroy(c->graph), "closing a graph");
    free_kept(c->kept);
    free(c);
}
