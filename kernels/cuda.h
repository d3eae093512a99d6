/* What the CUDA backend's files share; nothing outside kernels/ and tests/ includes it.
 *
 * A cuda_NAME below is the entry NAME of Backend, with its promises. Those of *_cuda.cu are
 * cogsmith's own kernels: nvcc compiles them for the GPU, and a C++ compiler over tests/shim for
 * the CPU. Those of *_cuda.c call cuBLASLt and cuDNN.
 */
#pragma once

#include "kernels/kernels.h"

C_BEGIN

/* What CUDA calls cudaStream_t. */
typedef struct CUstream_st *CudaStream;

/* The queue that kernels of stream `s` go to; NULL for NULL. */
CudaStream cuda_queue(Stream *s);
/* SCRATCH_BYTES of device memory for partial sums, the stream's own: valid for the kernels of one
 * call. */
enum { SCRATCH_BYTES = 32 << 20 };
void *cuda_scratch(Stream *s);
/* Ends the program (exit 1) when the last launch, of the kernel named, failed. */
void cuda_check_launch(const char *kernel);

/* Of every product: as NVIDIA advises for its newest devices. */
enum { GEMM_WORKSPACE = 32 << 20 };

void cuda_cast(Stream *s, DType from, DType to, int64_t n, const void *src, void *dst);
size_t cuda_gemm_workspace(Stream *s, const Gemm *g);
void cuda_gemm(Stream *s, const Gemm *g, const void *a, const void *b, const void *bias, void *c);
void cuda_column_sum(Stream *s, DType t, int64_t rows, int64_t cols, int64_t ld, const void *x,
                     real keep, real *y);
void cuda_gelu(Stream *s, DType t, int64_t n, const void *x, void *y);
void cuda_gelu_grad(Stream *s, DType t, int64_t n, const void *x, const void *dy, real keep,
                    void *dx);
void cuda_silu(Stream *s, DType t, int64_t n, const void *x, void *y);
void cuda_silu_grad(Stream *s, DType t, int64_t n, const void *x, const void *dy, real keep,
                    void *dx);
void cuda_geglu(Stream *s, DType t, int64_t n, const void *gate, const void *x, void *y);
void cuda_axpy(Stream *s, DType t, int64_t n, real alpha, const void *x, real keep, void *y);
void cuda_dropout(Stream *s, const Dropout *d, const void *x, real keep, void *y);
void cuda_norm(Stream *s, const Norm *n, void *y);
void cuda_norm_grad(Stream *s, const Norm *n, const NormGrad *g);
void cuda_rms_norm(Stream *s, const RmsNorm *n, void *y);
void cuda_gate(Stream *s, const Gate *g, const void *x, void *y);
void cuda_gate_grad(Stream *s, const Gate *g, const void *dy, real keep_da, void *da,
                    real keep_dmod, void *dmod);
void cuda_qk_norm(Stream *s, const QkNorm *q, void *y);
void cuda_qk_norm_grad(Stream *s, const QkNorm *q, const QkNormGrad *g);
size_t cuda_attention_workspace(Stream *s, const Attention *a, bool backward);
void cuda_attention(Stream *s, const Attention *a, void *out, real *lse);
void cuda_attention_grad(Stream *s, const Attention *a, const void *out, const real *lse,
                         const void *dout, void *dq, void *dk, void *dv);
void cuda_join(Stream *s, DType t, int64_t rows, int64_t width, const int32_t *source,
               const void *text, const void *video, void *y);
void cuda_split(Stream *s, DType t, int64_t rows, int64_t width, const int32_t *source,
                const void *dy, real keep_text, void *dtext, real keep_video, void *dvideo);
void cuda_gather_rows(Stream *s, DType t, int64_t n, int64_t width, const int32_t *index,
                      const void *x, void *y);
void cuda_scatter_rows(Stream *s, DType t, int64_t n, int64_t rows, int64_t width,
                       const int32_t *index, const void *dy, real keep, void *dx);
void cuda_patchify(Stream *s, const Patch *p, const void *x, real keep, void *rows);
void cuda_unpatchify(Stream *s, const Patch *p, const void *rows, real keep, void *x);
void cuda_add_axes(Stream *s, DType t, const int64_t size[3], const int64_t widths[3],
                   const void *tf, const void *tw, const void *th, int64_t first, int64_t rows,
                   const void *x, void *y);
int64_t cuda_conv_packed(const Conv *c);
size_t cuda_conv_workspace(Stream *s, const Conv *c);
void cuda_conv_pack(Stream *s, const Conv *c, const void *w, void *packed);
void cuda_conv(Stream *s, const Conv *c, const void *x, const void *packed, const void *bias,
               void *y);
size_t cuda_group_norm_workspace(Stream *s, const GroupNorm *n);
void cuda_group_norm(Stream *s, const GroupNorm *n, void *y);
void cuda_take_frames(Stream *s, const TakeFrames *f, const void *planes, void *rows);
void cuda_pool_frames(Stream *s, DType t, int64_t frames, int64_t frame, const void *x, void *y);
void cuda_mse(Stream *s, DType t, int samples, const int64_t *cu, const void *x, const real *target,
              real *loss, real *per_sample);
void cuda_mse_grad(Stream *s, DType t, int samples, const int64_t *cu, const void *x,
                   const real *target, const real *dloss, real keep, void *dx);
void cuda_adamw(Stream *s, const AdamW *a, int64_t n, const real *grad, real *master, real *m,
                real *v);
void cuda_sum_squares(Stream *s, int64_t n, const real *x, double *partial);

C_END
