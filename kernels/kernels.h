/* The seam between cogsmith and a device: one const table of function pointers per device.
 *
 * Kernels see raw pointers, sizes and a stream, never a Tensor. All matrices are contiguous and
 * row-major unless a leading dimension is given. Shape letters: B samples in a pack, T text rows,
 * V video rows, S = T + V rows, D width, N heads, E head size (D = N * E).
 *
 * Types. `t` is the type of activations and of the parameters that a step computes with (on the
 * CPU always DT_REAL; on CUDA DT_F32, DT_BF16 or DT_F16), passed as `void *`. What is `real *` is
 * f32 on every device (f64 in the gradient-check build): statistics, losses, gradients of
 * parameters, masters and moments. Every kernel computes in `real` and rounds once when it stores.
 *
 * Accumulation. A gradient output comes with `keep`, 0 or 1: out = keep * out + new. With keep 0
 * the old contents are never read (they may be NaN). NULL outputs are not wanted and not computed.
 *
 * Determinism. A result depends on the arguments alone: not on the number of threads, nor on
 * earlier calls. Sums over rows run in chunks of a fixed number of rows, added in order: on the CPU
 * ROW_CHUNK in gemm and column_sum; other devices have numbers of their own.
 *
 * In-place use. Where a comment says "y may be x", both may be the same address.
 */
#pragma once

#include "kernels/base.h"

enum { ROW_CHUNK = 1024 };

/* A queue of work on a device, with what libraries need to run on it (handles, caches of compiled
 * primitives, the workspace). Work on one stream runs in order. The CPU's runs at once. */
typedef struct Stream Stream;
/* Work that was captured of a stream, to be done again. */
typedef struct Captured Captured;

/* What becomes of a product u = alpha * op(A) op(B) + bias before it is stored. Of one matrix that
 * is not added to and lies without gaps: batch 1, beta 0, ldc n.
 *   GELU       C = gelu(u), aux = u. NULL: not wanted; the bits of either are the same whether the
 *              other is wanted or not
 *   GELU_GRAD  C = gelu'(aux) * u, without a bias */
typedef enum { EPILOGUE_NONE, EPILOGUE_GELU, EPILOGUE_GELU_GRAD } Epilogue;

/* C[g] = alpha * op(A[g]) op(B[g]) + bias[g] + beta * C[g]   for g < batch.
 * op(A) is [m,k], op(B) is [k,n], C is [m,n], bias is one row [n]. A transposed matrix is stored
 * the other way round: A as [k,m], B as [n,k] (which is how a Linear's weight is stored). */
typedef struct {
    DType type;             /* of A, B and bias */
    DType type_c;           /* of C: `type`, or DT_REAL for gradients of weights */
    int64_t m, n, k, batch; /* batch >= 1 */
    bool a_transposed, b_transposed;
    int64_t lda, ldb, ldc; /* elements from one stored row to the next */
    int64_t stride_a, stride_b, stride_c,
        stride_bias;  /* elements between batch members; may be 0 */
    real alpha, beta; /* beta is 0 or 1; with 0, C is not read */
    bool has_bias;    /* only with beta 0 */
    bool k_is_rows;   /* k counts rows of a pack: the CPU sums by ROW_CHUNK, in order */
    bool of_samples;  /* rows are samples, few of them; B alone is transposed, A alone, or none;
                         a bias only with the first */
    Epilogue epilogue;
    void *aux;  /* [m,n] of C's type: the GELU's input, written or read */
    real *sums; /* [batch,m] = keep_sums * sums + sum over op(A)'s columns, which alpha does
                   not scale; only of a transposed A. NULL: not wanted */
    real keep_sums;
} Gemm;

/* y = LN(x) [* (1 + scale) + shift], LN over the last axis with gamma, beta and biased variance.
 * Row s uses row mod_row[s] of mod[M, mod_width], whose first 2D columns are shift | scale. */
typedef struct {
    DType t;
    int64_t rows, width; /* S, D */
    real eps;
    int64_t mod_rows, mod_width; /* M, columns of mod (>= 2D); 0, 0: no modulation */
    const void *x;               /* [S,D] */
    const void *gamma, *beta;    /* [D] */
    const void *mod;             /* [M, mod_width] */
    const int32_t *mod_row;      /* [S], each < M */
    real *stats; /* [S,2] mean, 1/sqrt(variance + eps): written forward, read backward */
} Norm;

/* Gradients of Norm. dmod is written whole: with keep_dmod 0 its other columns become zero. */
typedef struct {
    const void *dy;       /* [S,D] */
    void *dx;             /* [S,D] */
    real *dgamma, *dbeta; /* [D] */
    void *dmod;           /* [M, mod_width] */
    real keep_dx, keep_dgamma, keep_dbeta, keep_dmod;
} NormGrad;

/* y = gamma * x / sqrt(mean(x^2) + eps) over the last axis (Zhang and Sennrich 2019). */
typedef struct {
    DType t;
    int64_t rows, width; /* S, D */
    real eps;
    const void *x;     /* [S,D] */
    const void *gamma; /* [D] */
} RmsNorm;

/* y = x + gate * a, gate = columns [offset, offset + D) of row mod_row[s] of mod. */
typedef struct {
    DType t;
    int64_t rows, width; /* S, D */
    int64_t mod_rows, mod_width, offset;
    const void *a;          /* [S,D] */
    const void *mod;        /* [M, mod_width] */
    const int32_t *mod_row; /* [S] */
} Gate;

/* Normalisation of q and k over the E channels of each head, then rotation.
 * rope[s] holds E/2 pairs (cos, sin); channels (2i, 2i+1) of every head turn by pair i. */
typedef struct {
    DType t;
    int64_t rows, heads, head_size; /* S, N, E (E even) */
    real eps;
    const void *x;                  /* [2,S,N*E]: q, then k, as they leave to_q and to_k */
    const void *gamma[2], *beta[2]; /* [E] each, for q and for k */
    const real *rope;               /* [S,E], or NULL: no rotation */
} QkNorm;

typedef struct {
    const void *dy;             /* [2,S,N*E] */
    void *dx;                   /* [2,S,N*E] */
    real *dgamma[2], *dbeta[2]; /* [E] */
    real keep_dx, keep_dgamma[2], keep_dbeta[2];
} QkNormGrad;

/* Full attention inside each segment of rows: out = softmax(scale * q k^T + bias) v per head.
 * Never forms S x S. A segment's result does not depend on the other segments. */
typedef struct {
    DType t;
    int64_t rows, heads, head_size; /* S, N, E */
    real scale;                     /* 1/sqrt(E) */
    int segments;                   /* B */
    const int64_t *cu_rows;         /* [B+1] on the host: first row of each segment, and S */
    const void *q, *k, *v;          /* [S,N*E] each; head h is columns [h*E, (h+1)*E) */
    const real *bias;  /* [N,L,L], row i and key j of every segment; NULL: none. Forward only */
    int64_t bias_rows; /* L, at least the rows of the longest segment */
} Attention;

/* Latents [F,C,H,W] as patch rows: row (f', h', w'), column offset + ((c*pt + a)*p + i)*p + j holds
 * element [f'*pt + a, c, h'*p + i, w'*p + j]. */
typedef struct {
    DType t;
    int64_t frames, channels, height, width; /* F, C, H, W; F % pt == 0, H % p == 0, W % p == 0 */
    int64_t patch, patch_t;                  /* p, pt */
    int64_t row_width, offset; /* columns of a row; where this tensor's columns begin */
} Patch;

/* What all dropout of a run draws with. */
typedef struct {
    uint64_t seed;
    uint32_t step; /* optimizer step */
} DropoutState;

/* Inverted dropout: y = keep*y + (drawn ? x / (1-p) : 0). See kernels/random.h for the draw.
 * Segments are runs of rows of samples. */
typedef struct {
    DType t;
    int64_t width;             /* D */
    int segments;              /* B */
    const int64_t *cu_rows;    /* [B+1] on the host: rows of each segment */
    const uint32_t *ordinals;  /* [samples] on the device: their ordinals */
    real p;                    /* probability of zero, 0 <= p < 1, in steps of 2^-16 */
    const DropoutState *state; /* on the device, so that a captured step may be drawn anew */
    uint32_t purpose;
    const int64_t *first;  /* [B] on the host: where in its sample a segment begins, in rows */
    const int32_t *sample; /* [B] on the host: its sample; NULL, and first too: whole samples */
} Dropout;

/* ---- video, channels last ---------------------------------------------------------------------
 *
 * Frames are rows: [T,H,W,C], so that frames are contiguous and a pixel's channels lie side by
 * side. A causal convolution over time reads CONTEXT frames that lie before those it computes. */
enum { CONTEXT = 2 };

/* y = conv(x, w) + b (+ y): kt taps in time, which read frames t .. t + kt - 1 of x for frame t of
 * y, and 3 x 3 in space. Stride 1 pads 1 pixel of zeros on every side, stride 2 pads right and
 * bottom. */
typedef struct {
    DType t;
    int64_t frames;        /* T, that are computed; x has T + kt - 1 */
    int64_t height, width; /* H, W of x */
    int64_t in, out;       /* I, O */
    int64_t kt;            /* 1 or 3 */
    int64_t stride;        /* 1 or 2, in space */
    int64_t enlarge;       /* 2: every pixel of x counts as 2 x 2 (kt 1, stride 1 only); else 1 */
    bool repeat;           /* every frame of y is written twice, but the first of an odd T > 1 and
                              a single one: 2T, 2T - 1 or 1 frames */
    bool add;              /* y holds what the result is added to; not with repeat */
} Conv;

/* z = silu(s), s = GN(x) [* scale + shift], GN over the channels of each group and all of x, with
 * biased variance. y is CONTEXT frames, then z: those of `past`, or z's first frame twice.
 * scale and shift are tables on a small grid (F,h,w) that is enlarged to x's size by taking the
 * nearest: src = floor(dst * small / large); where T > 1 is odd the first frames belong together
 * and the others among themselves. */
typedef struct {
    DType t;
    int64_t frames, height, width, channels; /* T, H, W, C */
    int64_t groups;
    real eps;
    const void *x;             /* [T,H,W,C] */
    const void *gamma, *beta;  /* [C] */
    int64_t grid[3];           /* F, h, w */
    const void *scale, *shift; /* [F,h,w,C]; NULL: none */
    const void *past;          /* [CONTEXT,H,W,C]; NULL: there was nothing before */
    void *next;                /* [CONTEXT,H,W,C] the last frames of y; NULL: not wanted */
} GroupNorm;

/* Frames [first - CONTEXT, first + frames) of planes [C,total,H,W] as [CONTEXT + frames,H,W,C]; for
 * frames before the first there is the first. */
typedef struct {
    DType t;
    int64_t channels, total, height, width; /* C, all frames, H, W */
    int64_t first, frames;
} TakeFrames;

/* One AdamW update (Loshchilov and Hutter 2019, as torch.optim.AdamW does it). */
typedef struct {
    real learning_rate, beta1, beta2, eps, weight_decay;
    real correction1, correction2; /* 1 - beta^step */
    real grad_scale;               /* gradients are multiplied by this first (clipping) */
} AdamW;

typedef void HostCall(const void *args);

typedef struct Backend {
    const char *name; /* "cpu" */

    /* A stream, and the workspace that kernels on it may use. `bytes` must be at least what the
     * *_workspace functions answered for every call to come. */
    Stream *(*stream_open)(void);
    void (*stream_close)(Stream *s);
    void (*stream_workspace)(Stream *s, void *workspace, size_t bytes);
    void (*stream_sync)(Stream *s); /* returns when all work on the stream is done */
    /* What s is given from now on begins when all that `other` was given so far is done. */
    void (*stream_after)(Stream *s, Stream *other);
    /* In the order of the stream, `call` runs on a thread of the host, with a copy of `args`; of a
     * stream that is captured, at each replay. It may use host memory alone, that of alloc_host
     * that the stream copies to or from among it. */
    void (*host_call)(Stream *s, HostCall *call, const void *args, size_t bytes);
    /* Between these two, what s is given is not done but captured, and so is what other streams are
     * given once they come after s; s must come after them again before the end. Meanwhile no
     * stream is synced, and of host memory only that of alloc_host is copied. capture_begin answers
     * false where nothing can be captured now; capture_end NULL where this could not be, and
     * nothing of it was done. All four entries are NULL where the device captures nothing. */
    bool (*capture_begin)(Stream *s);
    Captured *(*capture_end)(Stream *s);
    /* Does it again, in the order of s: the same work on the same addresses. */
    void (*replay)(Stream *s, Captured *c);
    void (*captured_close)(Captured *c);

    /* Device memory, aligned to 256 bytes; NULL when there is none. */
    void *(*alloc)(size_t bytes);
    void (*release)(void *p);
    /* Host memory that copies to and from the device reach without a detour (page-locked where the
     * device can), aligned to 256 bytes; NULL when there is none. */
    void *(*alloc_host)(size_t bytes);
    void (*release_host)(void *p);
    /* In the order of the stream. Memory of alloc_host must stay as it is until the stream has come
     * so far; of other host memory a copy is taken, or has arrived, at return. */
    void (*upload)(Stream *s, void *device, const void *host, size_t bytes);
    void (*download)(Stream *s, void *host, const void *device, size_t bytes);
    void (*copy)(Stream *s, void *to, const void *from, size_t bytes);
    /* `rows` runs of `bytes`, the first bytes of which lie so far apart. */
    void (*copy_rows)(Stream *s, int64_t rows, size_t bytes, const void *from, size_t from_pitch,
                      void *to, size_t to_pitch);
    void (*zero)(Stream *s, void *p, size_t bytes);

    /* dst[i] = (type to) src[i]. From F64, F32, BF16, F16 to F32, BF16, F16, DT_REAL; rounds to
     * nearest even (from F64 by way of DT_REAL). src may lie at any address, as in a file. */
    void (*cast)(Stream *s, DType from, DType to, int64_t n, const void *src, void *dst);

    /* The same from host memory, which upload's rule holds for: mapped files have been read at
     * return. */
    void (*upload_cast)(Stream *s, DType from, DType to, int64_t n, const void *host, void *dst);

    /* Matrix products. */
    size_t (*gemm_workspace)(Stream *s, const Gemm *g);
    void (*gemm)(Stream *s, const Gemm *g, const void *a, const void *b, const void *bias, void *c);
    /* y[j] = keep*y[j] + sum over rows of x[i*ld + j]. */
    void (*column_sum)(Stream *s, DType t, int64_t rows, int64_t cols, int64_t ld, const void *x,
                       real keep, real *y);

    /* Pointwise, n elements. gelu is the tanh form. The grads: dx = keep*dx + f'(x) * dy; with keep
     * 0, dx may be dy or x. y may be x. */
    void (*gelu)(Stream *s, DType t, int64_t n, const void *x, void *y);
    void (*gelu_grad)(Stream *s, DType t, int64_t n, const void *x, const void *dy, real keep,
                      void *dx);
    void (*silu)(Stream *s, DType t, int64_t n, const void *x, void *y);
    void (*silu_grad)(Stream *s, DType t, int64_t n, const void *x, const void *dy, real keep,
                      void *dx);
    /* y = gelu(gate) * x: the gated unit of T5's feed-forward. */
    void (*geglu)(Stream *s, DType t, int64_t n, const void *gate, const void *x, void *y);
    /* y = keep*y + alpha*x */
    void (*axpy)(Stream *s, DType t, int64_t n, real alpha, const void *x, real keep, void *y);
    void (*dropout)(Stream *s, const Dropout *d, const void *x, real keep, void *y);

    /* Rows. */
    void (*norm)(Stream *s, const Norm *n, void *y);
    void (*norm_grad)(Stream *s, const Norm *n, const NormGrad *g);
    void (*rms_norm)(Stream *s, const RmsNorm *n, void *y);         /* y may be x */
    void (*gate)(Stream *s, const Gate *g, const void *x, void *y); /* y may be x */
    /* da = keep_da*da + gate*dy; dmod as in NormGrad, its columns [offset, offset+D) = sum dy * a.
     */
    void (*gate_grad)(Stream *s, const Gate *g, const void *dy, real keep_da, void *da,
                      real keep_dmod, void *dmod);
    void (*qk_norm)(Stream *s, const QkNorm *q, void *y);
    void (*qk_norm_grad)(Stream *s, const QkNorm *q, const QkNormGrad *g);

    /* lse [N,S]: log of the sum of exp of each row's scaled scores; read again by the backward.
     * The gradients are assigned, not accumulated. */
    size_t (*attention_workspace)(Stream *s, const Attention *a, bool backward);
    void (*attention)(Stream *s, const Attention *a, void *out, real *lse);
    void (*attention_grad)(Stream *s, const Attention *a, const void *out, const real *lse,
                           const void *dout, void *dq, void *dk, void *dv);

    /* y[i] = source[i] >= 0 ? text[source[i]] : video[-1 - source[i]], i < rows. Each row of text
     * and video occurs exactly once. split is the adjoint. */
    void (*join)(Stream *s, DType t, int64_t rows, int64_t width, const int32_t *source,
                 const void *text, const void *video, void *y);
    void (*split)(Stream *s, DType t, int64_t rows, int64_t width, const int32_t *source,
                  const void *dy, real keep_text, void *dtext, real keep_video, void *dvideo);
    /* y[i] = x[index[i]], i < n; indices differ. scatter is the adjoint into dx[rows, width]: with
     * keep 0 rows that no index names become zero. */
    void (*gather_rows)(Stream *s, DType t, int64_t n, int64_t width, const int32_t *index,
                        const void *x, void *y);
    void (*scatter_rows)(Stream *s, DType t, int64_t n, int64_t rows, int64_t width,
                         const int32_t *index, const void *dy, real keep, void *dx);
    void (*patchify)(Stream *s, const Patch *p, const void *x, real keep, void *rows);
    void (*unpatchify)(Stream *s, const Patch *p, const void *rows, real keep, void *x);
    /* y row (f,h,w) = x row + [tf[f] | tw[w] | th[h]]: position tables tf [F,Df], tw [W,Dw],
     * th [H,Dh]; size = {F,H,W}, widths = {Df,Dw,Dh}, whose sum is the width. x and y hold rows
     * [first, first + rows) of the F*H*W. y may be x. */
    void (*add_axes)(Stream *s, DType t, const int64_t size[3], const int64_t widths[3],
                     const void *tf, const void *tw, const void *th, int64_t first, int64_t rows,
                     const void *x, void *y);

    /* Convolutions. w [O,I,kt,3,3] is packed once, by the same Conv (whose `frames` may differ) and
     * with as many threads, into a form of the device's own, of conv_packed elements.
     * conv_workspace is that of packing, too. */
    int64_t (*conv_packed)(const Conv *c);
    size_t (*conv_workspace)(Stream *s, const Conv *c);
    void (*conv_pack)(Stream *s, const Conv *c, const void *w, void *packed);
    void (*conv)(Stream *s, const Conv *c, const void *x, const void *packed, const void *bias,
                 void *y);
    size_t (*group_norm_workspace)(Stream *s, const GroupNorm *n);
    void (*group_norm)(Stream *s, const GroupNorm *n, void *y); /* y [CONTEXT + T,H,W,C] */
    void (*take_frames)(Stream *s, const TakeFrames *f, const void *planes, void *rows);
    /* y = means of pairs of x's `frames` frames of `frame` elements; the first of an odd number
     * stays. */
    void (*pool_frames)(Stream *s, DType t, int64_t frames, int64_t frame, const void *x, void *y);

    /* Mean squared error of samples laid end to end: per_sample[b] = mean over elements
     * [cu[b], cu[b+1]) of (x - target)^2, loss[0] = mean of per_sample; f64 sums inside.
     * Gradient: dx = keep*dx + dloss[0] * 2/(B * elements of the sample) * (x - target). */
    void (*mse)(Stream *s, DType t, int samples, const int64_t *cu, const void *x,
                const real *target, real *loss, real *per_sample);
    void (*mse_grad)(Stream *s, DType t, int samples, const int64_t *cu, const void *x,
                     const real *target, const real *dloss, real keep, void *dx);

    /* Optimizer, over flat ranges: the same bits on every device, so that it may run where its
     * numbers rest. partial[i] = sum of x^2 over elements [1024 i, 1024 (i+1)) in f64: 128 sums of
     * every 128th, four by four as (s0 + s1) + (s2 + s3), then the 32 of these by halves. */
    void (*adamw)(Stream *s, const AdamW *a, int64_t n, const real *grad, real *master, real *m,
                  real *v);
    void (*sum_squares)(Stream *s, int64_t n, const real *x, double *partial);
} Backend;

/* A GPU that CUDA shows, and the versions of what runs on it. */
typedef struct {
    char name[256];         /* "NVIDIA H200" */
    int major, minor;       /* of its compute capability */
    size_t total_bytes;     /* of its memory */
    size_t free_bytes;      /* of those; 0: the device could not be opened */
    char driver[16];        /* the newest CUDA that the driver runs, "13.0" */
    char runtime[16];       /* the CUDA that this program was built with */
    char blas[16], dnn[16]; /* cuBLASLt's and cuDNN's versions; "": the library is missing */
    Error trouble;          /* why cuda_backend would refuse it; exit_code 0: it would not */
} CudaDevice;

C_BEGIN

extern const Backend BACKEND_CPU;

/* CHECKs that the fields of a Gemm agree. */
void gemm_check(const Gemm *g);

/* The table of GPU `index`, for the whole process; another index later is a bug. NULL and *e (exit
 * 1, one line): built without CUDA, no driver or too old a one, no such device, a compute
 * capability below 8.0, cuBLASLt or cuDNN missing or too old, a device that does not open. */
const Backend *cuda_backend(int index, Error *e);
/* Whether there is an NVIDIA driver here: that no GPU can be used is then worth telling. */
bool cuda_driver(void);
/* What plans for a GPU ask of its table, with CUDA or without: only conv_packed and the *_workspace
 * functions are there, and take stream NULL. */
const Backend *cuda_table(void);
/* Whether attention's backward on a GPU repeats its bits from run to run, at the price of time and
 * workspace; not at first. Of the whole process, and to be said before plans are placed. */
void cuda_deterministic(bool repeats);
/* The GPU of cuda_backend's table, which was asked for. */
void cuda_opened(CudaDevice *d);
/* The first `max` GPUs into `list`, each of which gets this process's context; answers how many
 * there are. 0: none can be used, and *e says why. */
int cuda_devices(CudaDevice *list, int max, Error *e);

C_END
