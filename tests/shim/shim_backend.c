/* Owns the shim as a device: CUDA's own kernels on the CPU, products, attention and convolutions by
 * widening their operands to float and calling BACKEND_CPU. A stream is one of the CPU's, so that
 * the workspace is what these calls need. */
#define _GNU_SOURCE
#include "tests/shim/shim_backend.h"
#include "kernels/conv.h"
#include "kernels/cuda.h"

#include <stdlib.h>
#include <string.h>

CudaStream cuda_queue(Stream *s) { return (CudaStream)s; }

/* Begins as NaN, as far as tests reach. */
void *cuda_scratch(Stream *s) {
    (void)s;
    enum { POISONED = 4 << 20 };
    static void *scratch;
    if (!scratch) scratch = aligned_alloc(256, SCRATCH_BYTES);
    CHECK(scratch, "no memory for scratch");
    return memset(scratch, 0xff, POISONED);
}

void cuda_check_launch(const char *kernel) { (void)kernel; }

static Stream *shim_open(void) { return BACKEND_CPU.stream_open(); }
static void shim_close(Stream *s) { BACKEND_CPU.stream_close(s); }
static void shim_sync(Stream *s) { BACKEND_CPU.stream_sync(s); }
static void shim_workspace(Stream *s, void *workspace, size_t bytes) {
    BACKEND_CPU.stream_workspace(s, workspace, bytes);
}

/* Exactly `bytes`, so that AddressSanitizer sees what lies beyond. */
static void *shim_alloc(size_t bytes) {
    void *p = NULL;
    return posix_memalign(&p, 256, MAX(bytes, 1)) ? NULL : p;
}

static void shim_copy(Stream *s, void *to, const void *from, size_t bytes) {
    (void)s;
    if (bytes) memmove(to, from, bytes);
}

static void shim_after(Stream *s, Stream *other) { (void)s, (void)other; }

static void shim_host_call(Stream *s, HostCall *call, const void *args, size_t bytes) {
    BACKEND_CPU.host_call(s, call, args, bytes);
}

static void shim_copy_rows(Stream *s, int64_t rows, size_t bytes, const void *from,
                           size_t from_pitch, void *to, size_t to_pitch) {
    BACKEND_CPU.copy_rows(s, rows, bytes, from, from_pitch, to, to_pitch);
}

static void shim_zero(Stream *s, void *p, size_t bytes) {
    (void)s;
    if (bytes) memset(p, 0, bytes);
}

/* ---- operands in float -----------------------------------------------------------------------*/

/* n elements of type t as floats of their own memory; NULL for NULL. */
static float *widened(Stream *s, DType t, int64_t n, const void *p) {
    if (!p) return NULL;
    float *x = xcalloc((size_t)MAX(n, 1), sizeof *x);
    BACKEND_CPU.cast(s, t, DT_F32, n, p, x);
    return x;
}

/* Puts floats into p as type t, and frees them. */
static void narrow_into(Stream *s, DType t, int64_t n, float *x, void *p) {
    BACKEND_CPU.cast(s, DT_F32, t, n, x, p);
    free(x);
}

/* What a workspace function answers without a stream, as a plan asks. */
typedef size_t Ask(Stream *s, const void *what);
static size_t ask(Ask *f, Stream *s, const void *what) {
    if (s) return f(s, what);
    Stream *own = BACKEND_CPU.stream_open();
    size_t bytes = f(own, what);
    BACKEND_CPU.stream_close(own);
    return bytes;
}

/* ---- products --------------------------------------------------------------------------------*/

static Gemm gemm_in_float(const Gemm *g) {
    Gemm f = *g;
    f.type = f.type_c = DT_F32;
    return f;
}

static size_t ask_gemm(Stream *s, const void *g) { return BACKEND_CPU.gemm_workspace(s, g); }

static size_t shim_gemm_workspace(Stream *s, const Gemm *g) {
    Gemm f = gemm_in_float(g);
    return ask(ask_gemm, s, &f);
}

/* Elements from the first to the last of `batch` matrices. */
static int64_t span(int64_t batch, int64_t stride, int64_t rows, int64_t ld, int64_t cols) {
    return batch && rows && cols ? (batch - 1) * stride + (rows - 1) * ld + cols : 0;
}

/* Only what belongs to C is written: between its rows may be another matrix. */
static void store_c(Stream *s, const Gemm *g, const float *from, void *c) {
    size_t size = dtype_size(g->type_c);
    for (int64_t b = 0; b < g->batch; b++)
        for (int64_t i = 0; i < g->m; i++) {
            int64_t at = b * g->stride_c + i * g->ldc;
            BACKEND_CPU.cast(s, DT_F32, g->type_c, g->n, from + at, (char *)c + (size_t)at * size);
        }
}

static void shim_gemm(Stream *s, const Gemm *g, const void *a, const void *b, const void *bias,
                      void *c) {
    Gemm f = gemm_in_float(g);
    int64_t rows_a = g->a_transposed ? g->k : g->m, cols_a = g->a_transposed ? g->m : g->k;
    int64_t rows_b = g->b_transposed ? g->n : g->k, cols_b = g->b_transposed ? g->k : g->n;
    int64_t n_c = span(g->batch, g->stride_c, g->m, g->ldc, g->n);
    float *wide_a = widened(s, g->type, span(g->batch, g->stride_a, rows_a, g->lda, cols_a), a);
    float *wide_b = widened(s, g->type, span(g->batch, g->stride_b, rows_b, g->ldb, cols_b), b);
    float *wide_bias = NULL;
    if (g->has_bias)
        wide_bias = widened(s, g->type, span(g->batch, g->stride_bias, 1, g->n, g->n), bias);
    float *wide_c = g->beta != 0 ? widened(s, g->type_c, n_c, c)
                    : c          ? xcalloc((size_t)MAX(n_c, 1), sizeof *wide_c)
                                 : NULL;
    f.aux = widened(s, g->type, n_c, g->aux);
    BACKEND_CPU.gemm(s, &f, wide_a, wide_b, wide_bias, wide_c);
    if (c) store_c(s, g, wide_c, c);
    if (g->epilogue == EPILOGUE_GELU && g->aux) store_c(s, g, f.aux, g->aux);
    free(f.aux);
    free(wide_a);
    free(wide_b);
    free(wide_bias);
    free(wide_c);
}

/* ---- attention -------------------------------------------------------------------------------*/

static size_t shim_attention_workspace(Stream *s, const Attention *a, bool backward) {
    Attention f = *a;
    f.t = DT_F32;
    return BACKEND_CPU.attention_workspace(s, &f, backward);
}

static void widen_attention(Stream *s, const Attention *a, Attention *f) {
    int64_t n = a->rows * a->heads * a->head_size;
    *f = *a;
    f->t = DT_F32;
    f->q = widened(s, a->t, n, a->q);
    f->k = widened(s, a->t, n, a->k);
    f->v = widened(s, a->t, n, a->v);
}

static void free_attention(Attention *f) {
    free((void *)f->q);
    free((void *)f->k);
    free((void *)f->v);
}

static void shim_attention(Stream *s, const Attention *a, void *out, real *lse) {
    int64_t n = a->rows * a->heads * a->head_size;
    float *wide_out = xcalloc((size_t)MAX(n, 1), sizeof *wide_out);
    Attention f;
    widen_attention(s, a, &f);
    BACKEND_CPU.attention(s, &f, wide_out, lse);
    free_attention(&f);
    narrow_into(s, a->t, n, wide_out, out);
}

static void shim_attention_grad(Stream *s, const Attention *a, const void *out, const real *lse,
                                const void *dout, void *dq, void *dk, void *dv) {
    int64_t n = a->rows * a->heads * a->head_size;
    void *to[3] = {dq, dk, dv};
    float *grads[3], *wide_out = widened(s, a->t, n, out), *wide_dout = widened(s, a->t, n, dout);
    for (int i = 0; i < 3; i++) grads[i] = xcalloc((size_t)MAX(n, 1), sizeof(float));
    Attention f;
    widen_attention(s, a, &f);
    BACKEND_CPU.attention_grad(s, &f, wide_out, lse, wide_dout, grads[0], grads[1], grads[2]);
    for (int i = 0; i < 3; i++) narrow_into(s, a->t, n, grads[i], to[i]);
    free_attention(&f);
    free(wide_out);
    free(wide_dout);
}

/* ---- convolutions ----------------------------------------------------------------------------*/

/* The packed form is the weights as they are: the CPU's own form needs floats. */
static int64_t shim_conv_packed(const Conv *c) { return c->out * c->in * c->kt * 9; }

static Conv conv_in_float(const Conv *c) {
    Conv f = *c;
    f.t = DT_F32;
    return f;
}

static size_t ask_conv(Stream *s, const void *c) { return BACKEND_CPU.conv_workspace(s, c); }

static size_t shim_conv_workspace(Stream *s, const Conv *c) {
    Conv f = conv_in_float(c);
    return ask(ask_conv, s, &f);
}

static void shim_conv_pack(Stream *s, const Conv *c, const void *w, void *packed) {
    shim_copy(s, packed, w, (size_t)shim_conv_packed(c) * dtype_size(c->t));
}

static int64_t conv_out_elements(const Conv *c) {
    int64_t frames = 0;
    for (int64_t t = 0; t < c->frames; t++) frames += conv_copies(c, t);
    return frames * conv_out_size(c, c->height) * conv_out_size(c, c->width) * c->out;
}

static void shim_conv(Stream *s, const Conv *c, const void *x, const void *packed, const void *bias,
                      void *y) {
    Conv f = conv_in_float(c);
    int64_t n = conv_out_elements(c), pixels = (c->frames + c->kt - 1) * c->height * c->width;
    float *wide_x = widened(s, c->t, pixels * c->in, x);
    float *w = widened(s, c->t, shim_conv_packed(c), packed);
    float *wide_bias = widened(s, c->t, c->out, bias);
    float *wide_packed = xcalloc((size_t)BACKEND_CPU.conv_packed(&f), sizeof *wide_packed);
    float *wide_y = c->add ? widened(s, c->t, n, y) : xcalloc((size_t)n, sizeof *wide_y);
    BACKEND_CPU.conv_pack(s, &f, w, wide_packed);
    BACKEND_CPU.conv(s, &f, wide_x, wide_packed, wide_bias, wide_y);
    narrow_into(s, c->t, n, wide_y, y);
    free(wide_x);
    free(w);
    free(wide_bias);
    free(wide_packed);
}

const Backend BACKEND_SHIM = {
    .name = "shim",
    .stream_open = shim_open,
    .stream_close = shim_close,
    .stream_workspace = shim_workspace,
    .stream_sync = shim_sync,
    .stream_after = shim_after,
    .host_call = shim_host_call,
    .alloc = shim_alloc,
    .release = free,
    .alloc_host = shim_alloc,
    .release_host = free,
    .upload = shim_copy,
    .download = shim_copy,
    .copy = shim_copy,
    .copy_rows = shim_copy_rows,
    .zero = shim_zero,
    .cast = cuda_cast,
    .upload_cast = cuda_cast,
    .gemm_workspace = shim_gemm_workspace,
    .gemm = shim_gemm,
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
    .attention_workspace = shim_attention_workspace,
    .attention = shim_attention,
    .attention_grad = shim_attention_grad,
    .join = cuda_join,
    .split = cuda_split,
    .gather_rows = cuda_gather_rows,
    .scatter_rows = cuda_scatter_rows,
    .patchify = cuda_patchify,
    .unpatchify = cuda_unpatchify,
    .add_axes = cuda_add_axes,
    .conv_packed = shim_conv_packed,
    .conv_workspace = shim_conv_workspace,
    .conv_pack = shim_conv_pack,
    .conv = shim_conv,
    .group_norm_workspace = cuda_group_norm_workspace,
    .group_norm = cuda_group_norm,
    .take_frames = cuda_take_frames,
    .pool_frames = cuda_pool_frames,
    .mse = cuda_mse,
    .mse_grad = cuda_mse_grad,
    .adamw = cuda_adamw,
    .sum_squares = cuda_sum_squares,
};
