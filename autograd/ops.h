/* The ops: what a model function may call. Each records a node and returns its output.
 *
 * "consumed" inputs: the output may go on in the input's memory when nobody reads it later; the
 * plan decides, the result is the same. Equations, gradients and costs stand in op_*.c.
 */
#pragma once

#include "autograd/graph.h"

/* y = x w^T + b. x [S,K]; w [O,K] -> y [S,O], or w [G,O,K] -> y [G,S,O], one product per slice.
 * b [O] or [G,O], or NULL. */
Tensor *op_linear(Graph *g, Tensor *x, Tensor *w, Tensor *b);
/* y = residual, plus alpha * x w^T on slice `slice` of its leading axis. x [S,K], w [O,K], residual
 * [S,O] (slice 0) or [G,S,O]; residual is consumed. LoRA's second product. */
Tensor *op_linear_add(Graph *g, Tensor *x, Tensor *w, Tensor *residual, real alpha, int slice);
/* Says of what either has answered that its rows are samples (Gemm.of_samples); answers y. */
Tensor *op_linear_of_samples(Tensor *y);

/* gelu, tanh form; silu. x any shape; consumed. */
Tensor *op_gelu(Graph *g, Tensor *x);
bool op_is_gelu(const Node *n);
Tensor *op_silu(Graph *g, Tensor *x);
/* y = gelu(x[0]) * x[1]; x [2,S,F] -> [S,F]. Not differentiated. */
Tensor *op_geglu(Graph *g, Tensor *x);
/* y = a + b, same shape; a is consumed. */
Tensor *op_add(Graph *g, Tensor *a, Tensor *b);
/* Inverted dropout of rows x [S,D] that belong to samples as `rows` says; ordinals [B] u32 input.
 */
Tensor *op_dropout(Graph *g, Tensor *x, Tensor *ordinals, Segments rows, real p, uint32_t purpose);

/* Layer norm over the last axis of x [S,D], gamma and beta [D]; then, unless mod is NULL,
 * * (1 + scale) + shift from mod [M,P] (columns shift | scale | ...), row mod_row [S] i32. */
Tensor *op_norm(Graph *g, Tensor *x, Tensor *gamma, Tensor *beta, real eps, Tensor *mod,
                Tensor *mod_row);
/* y = gamma * x / sqrt(mean(x^2) + eps) over the last axis of x [S,D], consumed; gamma [D]. Not
 * differentiated. */
Tensor *op_rms_norm(Graph *g, Tensor *x, Tensor *gamma, real eps);
/* y = x + gate * a, gate = columns [offset, offset + D) of mod [M,P], row mod_row [S]; x is
 * consumed. */
Tensor *op_gate(Graph *g, Tensor *x, Tensor *a, Tensor *mod, Tensor *mod_row, int64_t offset);
/* Norm of q and k over each head's channels, then rotation. qk [2,S,D]; gammas and betas [E];
 * rope [S,E] f32 or NULL. */
Tensor *op_qk_norm(Graph *g, Tensor *qk, Tensor *gamma_q, Tensor *beta_q, Tensor *gamma_k,
                   Tensor *beta_k, Tensor *rope, int64_t heads, real eps);
/* softmax(q k^T / sqrt(E)) v inside each segment; qk [2,S,D], v [S,D] -> [S,D]. */
Tensor *op_attention(Graph *g, Tensor *qk, Tensor *v, int64_t heads, Segments rows);

/* softmax(q k^T + bias) v, likewise; bias [N,L,L] for the first L rows of every segment, none of
 * which is longer. Not differentiated. */
Tensor *op_attention_biased(Graph *g, Tensor *qk, Tensor *v, Tensor *bias, int64_t heads,
                            Segments rows);

/* Rows of text [T,D] and video [V,D] in the order of source [S] i32 (>= 0: text row, else video row
 * -1 - source), each used once. */
Tensor *op_join(Graph *g, Tensor *text, Tensor *video, Tensor *source);
/* y[i] = x[index[i]]; x [S,D], index [n] i32, all different. */
Tensor *op_gather_rows(Graph *g, Tensor *x, Tensor *index);
/* Latents, samples end to end, each [F,C,H,W], as patch rows [V, C_all*pt*p*p] with the columns of
 * `latents` first and those of `image` (or NULL) behind. Not differentiated. */
Tensor *op_patchify(Graph *g, Tensor *latents, Tensor *image, LatentSizes sizes, int64_t channels,
                    int64_t patch, int64_t patch_t);
/* The inverse for one tensor: rows [V, C*pt*p*p] -> latents, flat. */
Tensor *op_unpatchify(Graph *g, Tensor *rows, LatentSizes sizes, int64_t channels, int64_t patch,
                      int64_t patch_t);
/* Adds [tf[f] | tw[w] | th[h]] to row (f,h,w) of each sample; x [V,D] consumed, grid sizes per
 * sample, tables [max F', Df], [max W', Dw], [max H', Dh]. rows: a run of each sample's rows. */
Tensor *op_add_axes(Graph *g, Tensor *x, LatentSizes grid, Segments rows, Tensor *tf, Tensor *tw,
                    Tensor *th);

/* Sequence parallelism: the ranks of Graph.sequence share the rows of each sample. Of each of
 * `runs`, all S rows, a rank has a part (graph_part), S' rows in all. Without such ranks these
 * return x.
 *
 * From a rank's own rows, x [..,S',D], to its own heads of all rows, [..,S,D/n]; and back. */
Tensor *op_rows_to_heads(Graph *g, Tensor *x, Segments runs);
Tensor *op_heads_to_rows(Graph *g, Tensor *x, Segments runs);
/* From a rank's own rows, x [S',D], to all rows on every rank, [S,D], for all of them to compute
 * the same with. */
Tensor *op_whole_rows(Graph *g, Tensor *x, Segments runs);

/* loss [1] = mean over samples of the mean squared error; x and target (f32) flat, samples end to
 * end. The node's second output is the loss per sample [B]. */
Tensor *op_mse(Graph *g, Tensor *x, Tensor *target, Segments samples);

/* ---- video, channels last: frames [T,H,W,C]; forward only -------------------------------------
 */

/* Weights w [O,I,kt,3,3] in the device's own form, of `packed` elements (Backend's conv_packed),
 * for op_conv of the same shape but for its frames. */
Tensor *op_conv_weight(Graph *g, Tensor *w, const Conv *shape, int64_t packed);
/* y = conv(x, packed) + bias (+ residual): see Conv, whose type and `add` need not be set. residual
 * is as large as y and consumed, or NULL. */
Tensor *op_conv(Graph *g, Tensor *x, Tensor *packed, Tensor *bias, const Conv *shape,
                Tensor *residual);

typedef struct {
    Tensor *gamma, *beta; /* [C] */
    int64_t groups;
    real eps;
    Tensor *scale, *shift; /* [F,h,w,C] on a small grid, or NULL */
    Tensor *past;          /* [CONTEXT,H,W,C] what comes before, or NULL: the beginning */
    Tensor **next;         /* gets what comes before the next chunk; NULL: there is none */
} GroupNormArgs;
/* silu(group norm of x [* scale + shift]) behind CONTEXT frames: see GroupNorm. The output is
 * [CONTEXT + T,H,W,C]. */
Tensor *op_group_norm(Graph *g, Tensor *x, const GroupNormArgs *args);
/* Frames [first - CONTEXT, first + frames) of planes [C,F,H,W] -> [CONTEXT + frames,H,W,C]. */
Tensor *op_take_frames(Graph *g, Tensor *planes, int64_t first, int64_t frames);
/* Means of pairs of frames, the first of an odd number alone. */
Tensor *op_pool_frames(Graph *g, Tensor *x);
