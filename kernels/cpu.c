/* Owns the CPU as a device: its table, its streams, its memory, and casts between number types. */
#define _DEFAULT_SOURCE
#include "kernels/cpu.h"
#include "kernels/math.h"

#include <stdlib.h>
#include <sys/mman.h>

static Stream *cpu_stream_open(void) {
    Stream *s = xcalloc(1, sizeof *s);
    s->gemms = gemm_cache_open();
    s->convs = conv_cache_open();
    return s;
}

static void cpu_stream_close(Stream *s) {
    if (!s) return;
    gemm_cache_close(s->gemms);
    conv_cache_close(s->convs);
    free(s);
}

static void cpu_stream_workspace(Stream *s, void *workspace, size_t bytes) {
    s->workspace = workspace;
    s->workspace_bytes = bytes;
}

static void cpu_stream_sync(Stream *s) { (void)s; }

static void cpu_stream_after(Stream *s, Stream *other) { (void)s, (void)other; }

static void cpu_host_call(Stream *s, HostCall *call, const void *args, size_t bytes) {
    (void)s, (void)bytes;
    call(args);
}

/* Large memory lies in large pages, where the system has some: kernels that stream through it wait
 * for its page tables otherwise. */
static void *cpu_alloc(size_t bytes) {
    const size_t page = 2 << 20;
    size_t unit = bytes < 4 * page ? 256 : page;
    void *p = aligned_alloc(unit, (bytes / unit + 1) * unit);
    if (p && unit == page) madvise(p, bytes / page * page, MADV_HUGEPAGE);
    return p;
}

static void cpu_copy(Stream *s, void *to, const void *from, size_t bytes) {
    (void)s;
    enum { PART = 256 << 10, LEAST = 1 << 20 };
    bool apart =
        (uintptr_t)to - (uintptr_t)from >= bytes && (uintptr_t)from - (uintptr_t)to >= bytes;
    if (bytes < LEAST || !apart) {
        if (bytes) memmove(to, from, bytes);
        return;
    }
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < bytes; i += PART)
        memcpy((char *)to + i, (const char *)from + i, MIN(PART, bytes - i));
}

static void cpu_copy_rows(Stream *s, int64_t rows, size_t bytes, const void *from,
                          size_t from_pitch, void *to, size_t to_pitch) {
    (void)s;
#pragma omp parallel for schedule(static) if (rows * (int64_t)bytes >= 4 * PARALLEL_MIN)
    for (int64_t i = 0; i < rows; i++)
        memcpy((char *)to + (size_t)i * to_pitch, (const char *)from + (size_t)i * from_pitch,
               bytes);
}

static void cpu_zero(Stream *s, void *p, size_t bytes) {
    (void)s;
    if (bytes) memset(p, 0, bytes);
}

static void widen(DType t, int64_t n, const void *src, real *x) {
    const float *single = src;
    const double *wide = src;
    const uint16_t *half = src;
    if (t == DT_REAL)
        memcpy(x, src, (size_t)n * sizeof *x);
    else if (t == DT_F32)
        for (int64_t i = 0; i < n; i++) x[i] = single[i];
    else if (t == DT_F64)
        for (int64_t i = 0; i < n; i++) x[i] = (real)wide[i];
    else if (t == DT_BF16)
        for (int64_t i = 0; i < n; i++) x[i] = float_from_bf16(half[i]);
    else if (t == DT_F16)
        for (int64_t i = 0; i < n; i++) x[i] = float_from_f16(half[i]);
    else
        CHECK(false, "cast: the CPU reads no %s", dtype_name(t));
}

static void narrow(DType t, int64_t n, const real *x, void *dst) {
    float *single = dst;
    uint16_t *half = dst;
    if (t == DT_REAL)
        memcpy(dst, x, (size_t)n * sizeof *x);
    else if (t == DT_F32)
        for (int64_t i = 0; i < n; i++) single[i] = (float)x[i];
    else if (t == DT_BF16)
        for (int64_t i = 0; i < n; i++) half[i] = bf16_from_float((float)x[i]);
    else if (t == DT_F16)
        for (int64_t i = 0; i < n; i++) half[i] = f16_from_float((float)x[i]);
    else
        CHECK(false, "cast: the CPU writes no %s", dtype_name(t));
}

void cpu_cast(Stream *s, DType from, DType to, int64_t n, const void *src, void *dst) {
    (void)s;
    enum { BLOCK = 2048 };
#pragma omp parallel for schedule(static) if (n >= PARALLEL_MIN)
    for (int64_t i = 0; i < n; i += BLOCK) {
        real x[BLOCK];
        double aligned[BLOCK];
        int64_t count = MIN(BLOCK, n - i);
        size_t size = dtype_size(from);
        const void *at = (const char *)src + (size_t)i * size;
        if ((uintptr_t)at % size) at = memcpy(aligned, at, (size_t)count * size);
        widen(from, count, at, x);
        narrow(to, count, x, (char *)dst + (size_t)i * dtype_size(to));
    }
}

const Backend BACKEND_CPU = {
    .name = "cpu",
    .stream_open = cpu_stream_open,
    .stream_close = cpu_stream_close,
    .stream_workspace = cpu_stream_workspace,
    .stream_sync = cpu_stream_sync,
    .stream_after = cpu_stream_after,
    .host_call = cpu_host_call,
    .alloc = cpu_alloc,
    .release = free,
    .alloc_host = cpu_alloc,
    .release_host = free,
    .upload = cpu_copy,
    .download = cpu_copy,
    .copy = cpu_copy,
    .copy_rows = cpu_copy_rows,
    .zero = cpu_zero,
    .cast = cpu_cast,
    .upload_cast = cpu_cast,
    .gemm_workspace = cpu_gemm_workspace,
    .gemm = cpu_gemm,
    .column_sum = cpu_column_sum,
    .gelu = cpu_gelu,
    .gelu_grad = cpu_gelu_grad,
    .silu = cpu_silu,
    .silu_grad = cpu_silu_grad,
    .geglu = cpu_geglu,
    .axpy = cpu_axpy,
    .dropout = cpu_dropout,
    .norm = cpu_norm,
    .norm_grad = cpu_norm_grad,
    .rms_norm = cpu_rms_norm,
    .gate = cpu_gate,
    .gate_grad = cpu_gate_grad,
    .qk_norm = cpu_qk_norm,
    .qk_norm_grad = cpu_qk_norm_grad,
    .attention_workspace = cpu_attention_workspace,
    .attention = cpu_attention,
    .attention_grad = cpu_attention_grad,
    .join = cpu_join,
    .split = cpu_split,
    .gather_rows = cpu_gather_rows,
    .scatter_rows = cpu_scatter_rows,
    .patchify = cpu_patchify,
    .unpatchify = cpu_unpatchify,
    .add_axes = cpu_add_axes,
    .conv_packed = cpu_conv_packed,
    .conv_workspace = cpu_conv_workspace,
    .conv_pack = cpu_conv_pack,
    .conv = cpu_conv,
    .group_norm_workspace = cpu_group_norm_workspace,
    .group_norm = cpu_group_norm,
    .take_frames = cpu_take_frames,
    .pool_frames = cpu_pool_frames,
    .mse = cpu_mse,
    .mse_grad = cpu_mse_grad,
    .adamw = cpu_adamw,
    .sum_squares = cpu_sum_squares,
};
