/* What a stream on a GPU holds, for the files that call CUDA's libraries: cuda*.c and *_cuda.c.
 *
 * The libraries' functions (cublasLt*, cudnn*) are called as their headers declare them;
 * cuda_libraries.c finds the libraries themselves when the first is called.
 */
#pragma once

#include "kernels/cuda.h"

/* What the libraries call cublasLtHandle_t and cudnnHandle_t. */
typedef struct cublasLtContext *BlasHandle;
typedef struct cudnnContext *DnnHandle;

/* Plans of one op family, made by it when first wanted and kept by shape. */
typedef struct {
    void *plans;                /* NULL: none made yet */
    void (*close)(void *plans); /* of the family that made them */
} PlanCache;

/* Page-locked memory through which ordinary host memory is uploaded. */
enum { STAGES = 2, STAGE_BYTES = 4 << 20 };
typedef struct {
    void *memory;             /* NULL: not yet wanted */
    struct CUevent_st *empty; /* the copy from it is done */
} Stage;

struct Stream {
    CudaStream queue;
    void *workspace; /* on the device; of stream_workspace */
    size_t workspace_bytes;
    void *scratch; /* SCRATCH_BYTES on the device */
    Stage stages[STAGES];
    int stage;       /* the next one to fill */
    BlasHandle blas; /* NULL: not yet wanted */
    DnnHandle dnn;
    PlanCache gemms, attentions, convs;
};

/* The handles that run on the stream's queue, opened when first wanted. */
BlasHandle cuda_blas(Stream *s);
DnnHandle cuda_dnn(Stream *s);

/* Ends the program with *e; where this thread captures a stream, it is that which fails
 * (cuda_capture.c). */
void cuda_fail(const Error *e);
/* cuda_fail unless `status`, a cudaError_t, is success: one line that says what was being done,
 * what happened and what to do. */
void cuda_check(int status, const char *doing);
/* The same line as an error; false. */
bool cuda_error(Error *e, int status, const char *doing);

/* Captures (see Backend). */
bool cuda_capture_begin(Stream *s);
Captured *cuda_capture_end(Stream *s);
void cuda_replay(Stream *s, Captured *c);
void cuda_captured_close(Captured *c);
/* The queue that takes what is meant for `queue`. */
CudaStream cuda_capture_queue(CudaStream queue);
/* Whether this thread captures a stream, which then has what xcalloc gave: it is freed when the
 * work can be done no more. */
bool cuda_capture_keeps(void *memory);
/* Whether this thread captures a stream, which then fails: for what must not be captured. */
bool cuda_capture_refuses(const char *what);

/* Opens GPU `index` for the process after the checks that cuda_backend promises. */
bool cuda_open(int index, Error *e);
/* Makes the opened GPU the calling thread's. */
void cuda_enter(void);

/* Whether a GPU of this name has a compute capability that the kernels run on. */
bool cuda_capable(int index, const char *name, int major, int minor, Error *e);
/* Whether cuBLASLt and cuDNN are there and as new as this program needs, and NVRTC is there. Their
 * versions as text; "" for a missing one. */
bool cuda_libraries(char blas[16], char dnn[16], Error *e);
