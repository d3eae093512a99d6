/* What attention on a GPU is made of; nothing outside attention_*.c, cuda*.c and tests includes it.
 *
 * attention_cuda.c runs cuDNN's fused attention in BF16 and F16, one graph for each segment of a
 * pack (and slice of heads); attention_f32_cuda.cu is cogsmith's own: for F32, with a bias, and for
 * head sizes that cuDNN does not take.
 */
#pragma once

#include "kernels/cudnn_plans.h"

C_BEGIN

/* Some heads of one segment: what one graph computes. */
typedef struct {
    DType t;
    int64_t rows, heads, size; /* L of the segment; N of the slice; E */
    int64_t row_stride;        /* elements from one row of q, k, v, out to the next */
    int64_t lse_stride;        /* elements from one head of lse to the next, in memory */
    int64_t lse_alignment;     /* bytes: 16, 8 or 4, as rows before it and heads come out */
    bool backward, deterministic;
} AttentionPart;

/* The tensors that a graph stores, in order: those of the forward, or all. SUM [N,L] and DQ_SUM
 * [N,L,E] are f32 memory for the graph alone. DQ_SUM must be zero before, and is not used when
 * deterministic. */
enum {
    ATTENTION_Q,
    ATTENTION_K,
    ATTENTION_V,
    ATTENTION_OUT,
    ATTENTION_LSE,
    ATTENTION_SCALE, /* on the host, f32 */
    ATTENTION_FORWARD,
    ATTENTION_DOUT = ATTENTION_FORWARD,
    ATTENTION_DQ,
    ATTENTION_DK,
    ATTENTION_DV,
    ATTENTION_SUM,
    ATTENTION_ONE, /* on the host, 1 in f32 */
    ATTENTION_DQ_SUM,
    ATTENTION_BACKWARD
};

/* Whether cuDNN computes a segment of `rows` rows; of one row its frontend lets it compute none. */
bool attention_suits(const Attention *a, int64_t rows);
/* A segment of `rows` rows in as many heads at once as the bounded workspace allows. */
AttentionPart attention_part(const Attention *a, int64_t rows, bool backward);
DnnGraph *attention_graph(const AttentionPart *p);
/* All that its plan depends on, as a name. */
void attention_key(const AttentionPart *p, char key[DNN_KEY]);
/* What cuDNN may choose from: bytes of its workspace, on every GPU. */
DnnRules attention_rules(const AttentionPart *p);
/* Bytes of that, and of what lies before it in the workspace: a copy of lse, SUM and DQ_SUM; and of
 * all. Until 9.26 cuDNN's backward reads lse as [N,L] whatever the graph says of its strides: where
 * it lies otherwise, as that of one segment of several does, the graph gets the copy. */
int64_t attention_library_bytes(const AttentionPart *p);
int64_t attention_lse_bytes(const AttentionPart *p);
int64_t attention_sum_bytes(const AttentionPart *p);
int64_t attention_dq_sum_bytes(const AttentionPart *p);
int64_t attention_part_workspace(const AttentionPart *p);

/* With slice_bytes > 0 attention's backward repeats its bits from run to run (train.deterministic),
 * by as many heads at once as keep dS [N,L,L] within them, at the price of workspace and time; 0:
 * off, as at first. Of the whole process, and to be said before plans are placed. */
#define ATTENTION_SLICE_BYTES ((int64_t)4 << 30)
void cuda_attention_deterministic(int64_t slice_bytes);

/* cogsmith's own, for one segment: rows [first, first + rows) of a. */
void attention_own(Stream *s, const Attention *a, int64_t first, int64_t rows, void *out,
                   real *lse);
void attention_own_grad(Stream *s, const Attention *a, int64_t first, int64_t rows, const void *out,
                        const real *lse, const void *dout, void *dq, void *dk, void *dv);

C_END
