/* What the CPU's kernel files share; nothing outside kernels/ includes it.
 *
 * A cpu_NAME below is the entry NAME of Backend, with its promises.
 */
#pragma once

#include "kernels/kernels.h"

/* Compiled matrix products of one stream (gemm_*.c). */
typedef struct GemmCache GemmCache;
GemmCache *gemm_cache_open(void);
void gemm_cache_close(GemmCache *c);

/* Compiled convolutions of one stream (conv_*.c). */
typedef struct ConvCache ConvCache;
ConvCache *conv_cache_open(void);
void conv_cache_close(ConvCache *c);

struct Stream {
    GemmCache *gemms;
    ConvCache *convs;
    void *workspace;
    size_t workspace_bytes;
};

/* Below this many elements one thread is faster than waking the others. */
enum { PARALLEL_MIN = 16384 };

enum { LANES = VECTOR_BYTES / sizeof(real) };
typedef real Vec __attribute__((vector_size(VECTOR_BYTES)));
typedef long long LongVector __attribute__((vector_size(VECTOR_BYTES)));
typedef real VecAnywhere
    __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

static inline Vec vec_load(const real *p) { return *(const VecAnywhere *)p; }
static inline void vec_store(real *p, Vec v) { *(VecAnywhere *)p = v; }

/* An output that is larger than the caches, and whose vectors lie at multiples of their size, is
 * stored past them. */
enum { STREAM_BYTES = 8 << 20 };
static inline bool is_streamed(int64_t rows, int64_t width, const void *y) {
    return rows * width * (int64_t)sizeof(real) >= STREAM_BYTES && width % LANES == 0 &&
           (uintptr_t)y % VECTOR_BYTES == 0;
}

static inline void vec_put(bool streamed, real *p, Vec v) {
    if (streamed)
        STREAM_STORE((Vec *)p, v);
    else
        vec_store(p, v);
}

/* The sum of the lanes, by halves; constant halves let each become one addition of vectors. */
static inline real vec_sum(Vec v) {
    real x[LANES];
    vec_store(x, v);
    for (int i = 0; LANES == 16 && i < 8; i++) x[i] += x[i + 8];
    for (int i = 0; LANES >= 8 && i < 4; i++) x[i] += x[i + 4];
    return (x[0] + x[2]) + (x[1] + x[3]);
}

/* keep * old + new, without reading old where keep is 0. */
static inline real kept(real keep, const real *old, real new) {
    return keep != 0 ? keep * *old + new : new;
}

static inline void check_type(DType t, const char *kernel) {
    CHECK(t == DT_REAL, "%s: the CPU computes in %s, not %s", kernel, dtype_name(DT_REAL),
          dtype_name(t));
}

/* Kernels that read whole rows and also sum over them take SUM_ROWS rows at a time, counted from
 * the start of a run, and add what these come to in order. */
enum { SUM_ROWS = 64, MAX_WIDTH = 8192 };

/* The end of the run of rows from `first` on that use the same modulation row. */
int64_t run_end(const int32_t *mod_row, int64_t first, int64_t rows);

void cpu_cast(Stream *s, DType from, DType to, int64_t n, const void *src, void *dst);
size_t cpu_gemm_workspace(Stream *s, const Gemm *g);
void cpu_gemm(Stream *s, const Gemm *g, const void *a, const void *b, const void *bias, void *c);
void cpu_column_sum(Stream *s, DType t, int64_t rows, int64_t cols, int64_t ld, const void *x,
                    real keep, real *y);
void cpu_gelu(Stream *s, DType t, int64_t n, const void *x, void *y);
void cpu_gelu_grad(Stream *s, DType t, int64_t n, const void *x, const void *dy, real keep,
                   void *dx);
void cpu_silu(Stream *s, DType t, int64_t n, const void *x, void *y);
void cpu_silu_grad(Stream *s, DType t, int64_t n, const void *x, const void *dy, real keep,
                   void *dx);
void cpu_geglu(Stream *s, DType t, int64_t n, const void *gate, const void *x, void *y);
void cpu_axpy(Stream *s, DType t, int64_t n, real alpha, const void *x, real keep, void *y);
void cpu_dropout(Stream *s, const Dropout *d, const void *x, real keep, void *y);
void cpu_norm(Stream *s, const Norm *n, void *y);
void cpu_norm_grad(Stream *s, const Norm *n, const NormGrad *g);
void cpu_rms_norm(Stream *s, const RmsNorm *n, void *y);
void cpu_gate(Stream *s, const Gate *g, const void *x, void *y);
void cpu_gate_grad(Stream *s, const Gate *g, const void *dy, real keep_da, void *da, real keep_dmod,
                   void *dmod);
void cpu_qk_norm(Stream *s, const QkNorm *q, void *y);
void cpu_qk_norm_grad(Stream *s, const QkNorm *q, const QkNormGrad *g);
size_t cpu_attention_workspace(Stream *s, const Attention *a, bool backward);
void cpu_attention(Stream *s, const Attention *a, void *out, real *lse);
void cpu_attention_grad(Stream *s, const Attention *a, const void *out, const real *lse,
                        const void *dout, void *dq, void *dk, void *dv);
void cpu_join(Stream *s, DType t, int64_t rows, int64_t width, const int32_t *source,
              const void *text, const void *video, void *y);
void cpu_split(Stream *s, DType t, int64_t rows, int64_t width, const int32_t *source,
               const void *dy, real keep_text, void *dtext, real keep_video, void *dvideo);
void cpu_gather_rows(Stream *s, DType t, int64_t n, int64_t width, const int32_t *index,
                     const void *x, void *y);
void cpu_scatter_rows(Stream *s, DType t, int64_t n, int64_t rows, int64_t width,
                      const int32_t *index, const void *dy, real keep, void *dx);
void cpu_patchify(Stream *s, const Patch *p, const void *x, real keep, void *rows);
void cpu_unpatchify(Stream *s, const Patch *p, const void *rows, real keep, void *x);
void cpu_add_axes(Stream *s, DType t, const int64_t size[3], const int64_t widths[3],
                  const void *tf, const void *tw, const void *th, int64_t first, int64_t rows,
                  const void *x, void *y);
int64_t cpu_conv_packed(const Conv *c);
size_t cpu_conv_workspace(Stream *s, const Conv *c);
void cpu_conv_pack(Stream *s, const Conv *c, const void *w, void *packed);
void cpu_conv(Stream *s, const Conv *c, const void *x, const void *packed, const void *bias,
              void *y);
size_t cpu_group_norm_workspace(Stream *s, const GroupNorm *n);
void cpu_group_norm(Stream *s, const GroupNorm *n, void *y);
void cpu_take_frames(Stream *s, const TakeFrames *f, const void *planes, void *rows);
void cpu_pool_frames(Stream *s, DType t, int64_t frames, int64_t frame, const void *x, void *y);
void cpu_mse(Stream *s, DType t, int samples, const int64_t *cu, const void *x, const real *target,
             real *loss, real *per_sample);
void cpu_mse_grad(Stream *s, DType t, int samples, const int64_t *cu, const void *x,
                  const real *target, const real *dloss, real keep, void *dx);
void cpu_adamw(Stream *s, const AdamW *a, int64_t n, const real *grad, real *master, real *m,
               real *v);
void cpu_sum_squares(Stream *s, int64_t n, const real *x, double *partial);
