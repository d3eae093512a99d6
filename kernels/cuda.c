/* Owns a GPU as a device: its table, its streams, its memory. */
#include "kernels/cuda_stream.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>
#include <stdlib.h>
#include <string.h>

/* ---- streams ---------------------------------------------------------------------------------
 */

static Stream *cuda_stream_open(void) {
    cuda_enter();
    Stream *s = xcalloc(1, sizeof *s);
    cuda_check(cudaStreamCreateWithFlags(&s->queue, cudaStreamNonBlocking), "opening a stream");
    cuda_check(cudaMalloc(&s->scratch, SCRATCH_BYTES), "taking memory for partial sums");
    return s;
}

static void cache_close(PlanCache *c) {
    if (c->plans) c->close(c->plans);
}

static void cuda_stream_close(Stream *s) {
    if (!s) return;
    cuda_enter();
    cuda_check(cudaStreamSynchronize(s->queue), "finishing a stream's work");
    cache_close(&s->gemms);
    cache_close(&s->attentions);
    cache_close(&s->convs);
    if (s->blas) cublasLtDestroy(s->blas);
    if (s->dnn) cudnnDestroy(s->dnn);
    for (int i = 0; i < STAGES && s->stages[i].memory; i++) {
        cudaEventDestroy(s->stages[i].empty);
        cudaFreeHost(s->stages[i].memory);
    }
    cudaFree(s->scratch);
    cuda_check(cudaStreamDestroy(s->queue), "closing a stream");
    free(s);
}

static void cuda_stream_workspace(Stream *s, void *workspace, size_t bytes) {
    CHECK((uintptr_t)workspace % 256 == 0, "the workspace is not aligned to 256 bytes");
    s->workspace = workspace;
    s->workspace_bytes = bytes;
}

static void cuda_stream_sync(Stream *s) {
    cuda_check(cudaStreamSynchronize(cuda_queue(s)), "the work on a stream");
}

static void cuda_stream_after(Stream *s, Stream *other) {
    cudaEvent_t given = NULL;
    cuda_enter();
    cuda_check(cudaEventCreateWithFlags(&given, cudaEventDisableTiming), "an event");
    cuda_check(cudaEventRecord(given, cuda_queue(other)), "an event");
    cuda_check(cudaStreamWaitEvent(cuda_queue(s), given, 0), "waiting for a stream");
    cuda_check(cudaEventDestroy(given), "an event"); /* it goes when it has come to pass */
}

typedef struct {
    HostCall *call;
    bool again; /* whenever a capture is replayed, which it belongs to */
    max_align_t args[];
} Called;

static void called(void *called) {
    Called *c = called;
    c->call(c->args);
    if (!c->again) free(c);
}

static void cuda_host_call(Stream *s, HostCall *call, const void *args, size_t bytes) {
    Called *c = xcalloc(1, sizeof *c + bytes);
    c->call = call;
    memcpy(c->args, args, bytes);
    c->again = cuda_capture_keeps(c);
    cuda_check(cudaLaunchHostFunc(cuda_queue(s), called, c), "a call of the host");
}

CudaStream cuda_queue(Stream *s) {
    cuda_enter();
    return s ? cuda_capture_queue(s->queue) : NULL;
}

void *cuda_scratch(Stream *s) { return s->scratch; }

BlasHandle cuda_blas(Stream *s) {
    cuda_enter();
    if (s->blas) return s->blas;
    cublasStatus_t status = cublasLtCreate(&s->blas);
    Error e;
    if (status == CUBLAS_STATUS_SUCCESS) return s->blas;
    error_set(&e, EXIT_WORLD, "cuBLASLt does not open on this GPU (%s): does its version fit it?",
              cublasLtGetStatusName(status));
    die_error(&e);
}

DnnHandle cuda_dnn(Stream *s) {
    cuda_enter();
    if (s->dnn) return s->dnn;
    cudnnStatus_t status = cudnnCreate(&s->dnn);
    if (status == CUDNN_STATUS_SUCCESS) status = cudnnSetStream(s->dnn, s->queue);
    Error e;
    if (status == CUDNN_STATUS_SUCCESS) return s->dnn;
    error_set(&e, EXIT_WORLD, "cuDNN does not open on this GPU (%s): does its version fit it?",
              cudnnGetErrorString(status));
    die_error(&e);
}

/* ---- memory ----------------------------------------------------------------------------------
 */

/* NULL where the memory is full; other errors end the program. */
static void *taken(cudaError_t status, void *p, const char *doing) {
    if (status == cudaSuccess) return p;
    cudaGetLastError(); /* not the next call's error */
    if (status != cudaErrorMemoryAllocation) cuda_check(status, doing);
    return NULL;
}

static void *cuda_alloc(size_t bytes) {
    void *p = NULL;
    cuda_enter();
    return taken(cudaMalloc(&p, MAX(bytes, 1)), p, "taking device memory");
}

static void cuda_release(void *p) {
    cuda_enter();
    cuda_check(cudaFree(p), "giving device memory back");
}

static void *cuda_alloc_host(size_t bytes) {
    void *p = NULL;
    cuda_enter();
    return taken(cudaMallocHost(&p, MAX(bytes, 1)), p, "taking page-locked memory");
}

static void cuda_release_host(void *p) {
    cuda_enter();
    cuda_check(cudaFreeHost(p), "giving page-locked memory back");
}

static bool is_page_locked(const void *host) {
    struct cudaPointerAttributes about = {0};
    cuda_check(cudaPointerGetAttributes(&about, host), "asking where memory lies");
    return about.type != cudaMemoryTypeUnregistered;
}

/* The next stage to fill, when the copy from it is done. */
static Stage *empty_stage(Stream *s) {
    Stage *stage = &s->stages[s->stage++ % STAGES];
    s->stage %= STAGES;
    if (!stage->memory) {
        cuda_check(cudaMallocHost(&stage->memory, STAGE_BYTES), "taking page-locked memory");
        cuda_check(cudaEventCreateWithFlags(&stage->empty, cudaEventDisableTiming), "an event");
    }
    cuda_check(cudaEventSynchronize(stage->empty), "an upload");
    return stage;
}

/* CUDA promises of ordinary host memory neither that it is read at return nor that it is not. */
static void upload_staged(Stream *s, char *device, const char *host, size_t bytes) {
    if (cuda_capture_refuses("an upload of ordinary host memory")) return;
    for (size_t at = 0; at < bytes; at += STAGE_BYTES) {
        Stage *stage = empty_stage(s);
        size_t part = MIN(bytes - at, (size_t)STAGE_BYTES);
        memcpy(stage->memory, host + at, part);
        cuda_check(
            cudaMemcpyAsync(device + at, stage->memory, part, cudaMemcpyHostToDevice, s->queue),
            "an upload");
        cuda_check(cudaEventRecord(stage->empty, s->queue), "an upload");
    }
}

static void cuda_upload(Stream *s, void *device, const void *host, size_t bytes) {
    if (!bytes) return;
    CudaStream queue = cuda_queue(s);
    bool locked = is_page_locked(host);
    if (s && !locked) {
        upload_staged(s, device, host, bytes);
        return;
    }
    cuda_check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, queue), "an upload");
    if (!s) cuda_stream_sync(s);
}

static void cuda_download(Stream *s, void *host, const void *device, size_t bytes) {
    if (!bytes) return;
    CudaStream queue = cuda_queue(s);
    cuda_check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, queue), "a download");
    if (!s || !is_page_locked(host)) cuda_stream_sync(s);
}

static void cuda_copy(Stream *s, void *to, const void *from, size_t bytes) {
    if (!bytes || to == from) return;
    cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda_queue(s)), "a copy");
    if (!s) cuda_stream_sync(s);
}

static void cuda_copy_rows(Stream *s, int64_t rows, size_t bytes, const void *from,
                           size_t from_pitch, void *to, size_t to_pitch) {
    if (!rows || !bytes) return;
    cuda_check(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, bytes, (size_t)rows,
                                 cudaMemcpyDeviceToDevice, cuda_queue(s)),
               "a copy of rows");
    if (!s) cuda_stream_sync(s);
}

/* Part by part to the scratch memory, and from there widened or rounded. */
static void cuda_upload_cast(Stream *s, DType from, DType to, int64_t n, const void *host,
                             void *dst) {
    int64_t size = (int64_t)dtype_size(from), most = SCRATCH_BYTES / size;
    if (from == to) {
        cuda_upload(s, dst, host, (size_t)(n * size));
        return;
    }
    for (int64_t at = 0; at < n; at += most) {
        int64_t count = MIN(most, n - at);
        cuda_upload(s, s->scratch, (const char *)host + at * size, (size_t)(count * size));
        cuda_cast(s, from, to, count, s->scratch, (char *)dst + at * (int64_t)dtype_size(to));
    }
}

static void cuda_zero(Stream *s, void *p, size_t bytes) {
    if (!bytes) return;
    cuda_check(cudaMemsetAsync(p, 0, bytes, cuda_queue(s)), "zeroing memory");
    if (!s) cuda_stream_sync(s);
}

/* ---- the table -------------------------------------------------------------------------------
 */

static const Backend BACKEND_CUDA = {
    .name = "cuda",
    .stream_open = cuda_stream_open,
    .stream_close = cuda_stream_close,
    .stream_workspace = cuda_stream_workspace,
    .stream_sync = cuda_stream_sync,
    .stream_after = cuda_stream_after,
    .host_call = cuda_host_call,
    .capture_begin = cuda_capture_begin,
    .capture_end = cuda_capture_end,
    .replay = cuda_replay,
    .captured_close = cuda_captured_close,
    .alloc = cuda_alloc,
    .release = cuda_release,
    .alloc_host = cuda_alloc_host,
    .release_host = cuda_release_host,
    .upload = cuda_upload,
    .download = cuda_download,
    .copy = cuda_copy,
    .copy_rows = cuda_copy_rows,
    .zero = cuda_zero,
    .cast = cuda_cast,
    .upload_cast = cuda_upload_cast,
    .gemm_workspace = cuda_gemm_workspace,
    .gemm = cuda_gemm,
    .column_sum = cuda_column_sum,
    .gelu = cuda_gelu,
    .gelu_grad = cuda_gelu_grad,
    .silu = cuda_silu,
    .silu_grad = cuda_silu_grad,
    .geglu = cuda_geglu,
    .axpy = cuda_axpy,
    .dropout = cuda_dropout,
    .norm = cuda_norm,
    .norm_grad = cuda_norm_grad,
    .rms_norm = cuda_rms_norm,
    .gate = cuda_gate,
    .gate_grad = cuda_gate_grad,
    .qk_norm = cuda_qk_norm,
    .qk_norm_grad = cuda_qk_norm_grad,
    .attention_workspace = cuda_attention_workspace,
    .attention = cuda_attention,
    .attention_grad = cuda_attention_grad,
    .join = cuda_join,
    .split = cuda_split,
    .gather_rows = cuda_gather_rows,
    .scatter_rows = cuda_scatter_rows,
    .patchify = cuda_patchify,
    .unpatchify = cuda_unpatchify,
    .add_axes = cuda_add_axes,
    .conv_packed = cuda_conv_packed,
    .conv_workspace = cuda_conv_workspace,
    .conv_pack = cuda_conv_pack,
    .conv = cuda_conv,
    .group_norm_workspace = cuda_group_norm_workspace,
    .group_norm = cuda_group_norm,
    .take_frames = cuda_take_frames,
    .pool_frames = cuda_pool_frames,
    .mse = cuda_mse,
    .mse_grad = cuda_mse_grad,
    .adamw = cuda_adamw,
    .sum_squares = cuda_sum_squares,
};

const Backend *cuda_backend(int index, Error *e) {
    return cuda_open(index, e) ? &BACKEND_CUDA : NULL;
}
