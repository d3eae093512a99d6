/* The transformer's linear maps by module name, and LoRA on them (Hu et al. 2021).
 *
 *     y = x W^T + b            and with an adapter       y += (alpha / r) (dropout(x) A^T) B^T
 *
 * LoRA is no op: it is two more linear maps, the second of which consumes y.
 */
#pragma once

#include "autograd/ops.h"

typedef struct {
    char *module; /* "transformer_blocks.0.attn1.to_q" */
    Shape shape;  /* of the weight: [O,K], or [O,C,p,p] for the patch convolution */
    bool has_bias;
    int block;    /* of the ParamSet: 0 embed, 1.. blocks, the last final */
    int w, b;     /* parameters; b -1: none */
    int64_t rank; /* of the adapter; 0: none */
    double alpha; /* of the adapter */
    real scale;   /* alpha / r */
    real dropout;
    bool frozen;        /* the adapter is not trained: its values come as the base's do */
    uint32_t ordinal;   /* its place among all maps: names its random draws */
    int lora_a, lora_b; /* parameters [r,K] and [O,r] (a convolution's: [r,C,p,p], [O,r,1,1]) */
} Linear;

/* Elements of one output and of one input row. */
int64_t linear_out(const Linear *l);
int64_t linear_in(const Linear *l);

/* The shapes of an adapter of some rank. */
void linear_adapter_shapes(const Linear *l, int64_t rank, Shape *a, Shape *b);
/* Adds the adapter's parameters where there is an adapter. */
void linear_add_adapter(ParamSet *p, Linear *l);

/* x [rows,K] -> [rows,O], adapter included. `rows` says whose rows they are; ordinals [B] may be
 * NULL where no dropout is. */
Tensor *linear_forward(Graph *g, const Linear *l, Tensor *x, Segments rows, Tensor *ordinals);
/* n maps of one input, whose weights lie side by side (to_q, to_k, to_v) -> [n, rows, O]. */
Tensor *linear_forward_fused(Graph *g, const Linear *l, int n, Tensor *x, Segments rows,
                             Tensor *ordinals);
