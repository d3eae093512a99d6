/* What bench_device times: the kernels of a Backend with the operands of a published model.
 *
 * An op takes its operands, says what it computes in `flops`, and calls one entry of the table;
 * what it takes counts as its traffic in `bytes`. Operands go round a pool that no cache holds, so
 * every call finds them cold. */
#pragma once

#include "kernels/kernels.h"

typedef struct {
    const char *name;
    int64_t text, frames, height, width; /* rows of text; latents */
    int64_t heads, patch_t;              /* of 64 channels; patches of 2 x 2 pixels */
    int64_t trained;                     /* parameters of a LoRA of rank 128 */
} Published;

enum { HEAD = 64, PATCH = 2, CHANNELS = 16, RANK = 128, TIME = 512 };

typedef struct {
    char *at;
    size_t bytes, used;
} Pool;

typedef struct {
    const Backend *k;
    Stream *stream;
    DType t;
    const Published *model;
    int64_t width, rows, video; /* D, S, V */
    Pool in, out;               /* what is only read: normals; what is written */
    int32_t *mod_row;           /* device [S]: text uses row 1, video row 0 */
    int32_t *source;            /* device [S]: text rows, then video */
    int32_t *index;             /* device [V]: the video's rows of S */
    uint32_t *ordinals;         /* device [1] */
    DropoutState *state;        /* on the device */
    void *workspace;
    size_t workspace_bytes;
    bool first; /* the first call of an op, which is not timed */
    /* Of the call just made: */
    double flops, bytes;
    Gemm gemm; /* batch 0: it was none */
    const void *a, *b, *bias;
    void *c;
} Bench;

typedef struct {
    const char *name;
    void (*run)(Bench *b);
} BenchOp;

/* Ended by one without a name. */
extern const BenchOp BENCH_OPS[];

/* n elements that are read, written, or both. */
const void *reads(Bench *b, DType t, int64_t n);
void *writes(Bench *b, DType t, int64_t n);
void *updates(Bench *b, DType t, int64_t n);
/* The stream's workspace is at least so large. */
void need_workspace(Bench *b, size_t bytes);
