/* kernels/cuda_capture.c without a GPU: what fails while a stream is captured, over a CUDA that
 * fails as it is told to. */
#define _POSIX_C_SOURCE 200809L
#include "kernels/cuda_stream.h"

#include <cuda_runtime_api.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- CUDA -------------------------------------------------------------------------------------
 */

/* What fails, and what was asked for. */
static struct {
    cudaError_t begin, end, instantiate;
    size_t taken;                /* bytes of what must be left */
    int graphs, ready, launched; /* alive, alive, times */
    cudaStream_t captured, launched_on;
} cuda;

static char a_graph, a_ready_graph;

cudaError_t cudaGetLastError(void) { return cudaSuccess; }

cudaError_t cudaStreamBeginCapture(cudaStream_t queue, enum cudaStreamCaptureMode mode) {
    assert_int_equal(mode, cudaStreamCaptureModeRelaxed);
    assert_null(cuda.captured);
    if (!cuda.begin) cuda.captured = queue;
    return cuda.begin;
}

cudaError_t cudaStreamEndCapture(cudaStream_t queue, cudaGraph_t *graph) {
    assert_ptr_equal(queue, cuda.captured);
    cuda.captured = NULL;
    *graph = cuda.end ? NULL : (cudaGraph_t)&a_graph;
    cuda.graphs += !cuda.end;
    return cuda.end;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *ready, cudaGraph_t graph,
                                 unsigned long long flags) {
    assert_ptr_equal(graph, &a_graph);
    assert_int_equal(flags, 0);
    *ready = cuda.instantiate ? NULL : (cudaGraphExec_t)&a_ready_graph;
    cuda.ready += !cuda.instantiate;
    return cuda.instantiate;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    assert_ptr_equal(graph, &a_graph);
    cuda.graphs--;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
    assert_ptr_equal(ready, &a_ready_graph);
    cuda.ready--;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t queue) {
    assert_ptr_equal(ready, &a_ready_graph);
    cuda.launched++;
    cuda.launched_on = queue;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    *left = ((size_t)256 << 20) - cuda.taken;
    *total = (size_t)1 << 40;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) { return cudaSuccess; }

void cuda_enter(void) {}

CudaStream cuda_queue(Stream *s) { return cuda_capture_queue(s->queue); }

bool cuda_error(Error *e, int status, const char *doing) {
    return error_set(e, EXIT_WORLD, "%s failed (%d)", doing, status);
}

void cuda_check(int status, const char *doing) {
    Error e;
    if (status == cudaSuccess) return;
    cuda_error(&e, status, doing);
    cuda_fail(&e);
}

/* ---- the tests --------------------------------------------------------------------------------
 */

static char a_queue, another_queue;
static Stream first = {.queue = (CudaStream)&a_queue};
static Stream second = {.queue = (CudaStream)&another_queue};

static int reset(void **state) {
    (void)state;
    memset(&cuda, 0, sizeof cuda);
    return 0;
}

/* Nothing is left of a capture that failed, and every stream has its own queue again. */
static void expect_none(Captured *c) {
    assert_null(c);
    assert_null(cuda.captured);
    assert_int_equal(cuda.graphs, 0);
    assert_int_equal(cuda.ready, 0);
    assert_ptr_equal(cuda_queue(&second), &another_queue);
    assert_false(cuda_capture_refuses("anything"));
}

static void captures_are_replayed(void **state) {
    (void)state;
    assert_true(cuda_capture_begin(&first));
    assert_ptr_equal(cuda_queue(&first), &a_queue);
    assert_ptr_equal(cuda_queue(&second), &another_queue);
    Captured *c = cuda_capture_end(&first);
    assert_non_null(c);
    assert_int_equal(cuda.graphs, 0);
    for (int i = 0; i < 3; i++) cuda_replay(&first, c);
    assert_int_equal(cuda.launched, 3);
    assert_ptr_equal(cuda.launched_on, &a_queue);
    assert_int_equal(cuda.ready, 1);
    cuda_captured_close(c);
    assert_int_equal(cuda.ready, 0);
}

/* Arguments of calls that are made at each replay are there until the last. */
static void what_calls_need_is_kept(void **state) {
    (void)state;
    int *one = xcalloc(1, sizeof *one), *other = xcalloc(1, sizeof *other);
    assert_false(cuda_capture_keeps(one));
    assert_true(cuda_capture_begin(&first));
    assert_true(cuda_capture_keeps(one) && cuda_capture_keeps(other));
    Captured *c = cuda_capture_end(&first);
    assert_non_null(c);
    assert_false(cuda_capture_keeps(NULL));
    cuda_replay(&first, c);
    *one = *other = 1;
    cuda_captured_close(c);
    assert_true(cuda_capture_begin(&first));
    assert_true(cuda_capture_keeps(xcalloc(1, 1)));
    assert_true(cuda_capture_refuses("a copy"));
    expect_none(cuda_capture_end(&first));
}

static void a_failure_ends_the_capture_alone(void **state) {
    (void)state;
    assert_true(cuda_capture_begin(&first));
    cuda_check(cudaErrorStreamCaptureUnsupported, "the first");
    assert_ptr_equal(cuda_queue(&second), &a_queue); /* which takes nothing any more */
    cuda_check(cudaErrorStreamCaptureInvalidated, "the second");
    cuda.end = cudaErrorStreamCaptureInvalidated;
    expect_none(cuda_capture_end(&first));
}

static void what_must_not_be_captured_is_not(void **state) {
    (void)state;
    assert_false(cuda_capture_refuses("nothing under way"));
    assert_true(cuda_capture_begin(&first));
    assert_true(cuda_capture_refuses("a copy"));
    expect_none(cuda_capture_end(&first));
}

static void no_capture_begins(void **state) {
    (void)state;
    cuda.begin = cudaErrorNotSupported;
    assert_false(cuda_capture_begin(&first));
    expect_none(NULL);
}

static void no_graph_is_made(void **state) {
    (void)state;
    cuda.instantiate = cudaErrorMemoryAllocation;
    assert_true(cuda_capture_begin(&first));
    expect_none(cuda_capture_end(&first));
    cuda.instantiate = cudaSuccess;
    assert_true(cuda_capture_begin(&first));
    Captured *c = cuda_capture_end(&first);
    assert_non_null(c);
    cuda_captured_close(c);
}

static void some_memory_is_left(void **state) {
    (void)state;
    cuda.taken = 1;
    assert_true(cuda_capture_begin(&first));
    expect_none(cuda_capture_end(&first));
}

static void fail_twice(void) {
    for (int i = 0; i < 2; i++) {
        cuda_capture_begin(&first);
        cuda_check(i + 1, i ? "another" : "the first");
        cuda_check(7, "its consequence");
        cuda_capture_end(&first);
    }
}

static void fail_outside(void) { cuda_check(1, "a launch"); }

/* What a child says on stderr, and how it ends. */
static int said_by(void (*act)(void), char *said, size_t size) {
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    if (!child) {
        dup2(ends[1], STDERR_FILENO);
        act();
        fflush(NULL);
        _exit(0);
    }
    close(ends[1]);
    size_t n = 0;
    for (ssize_t got = 1; got > 0; n += (size_t)MAX(got, 0))
        got = read(ends[0], said + n, size - 1 - n);
    said[n] = 0;
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void it_is_said_once(void **state) {
    (void)state;
    char said[4096];
    assert_int_equal(said_by(fail_twice, said, sizeof said), 0);
    const char *end = strchr(said, '\n');
    assert_true(end && !end[1] && strstr(said, "the first failed (1)"));
    assert_int_equal(said_by(fail_outside, said, sizeof said), EXIT_WORLD);
    assert_non_null(strstr(said, "a launch failed (1)"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(it_is_said_once, reset), /* before the others say it */
        cmocka_unit_test_setup(captures_are_replayed, reset),
        cmocka_unit_test_setup(what_calls_need_is_kept, reset),
        cmocka_unit_test_setup(a_failure_ends_the_capture_alone, reset),
        cmocka_unit_test_setup(what_must_not_be_captured_is_not, reset),
        cmocka_unit_test_setup(no_capture_begins, reset),
        cmocka_unit_test_setup(no_graph_is_made, reset),
        cmocka_unit_test_setup(some_memory_is_left, reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
