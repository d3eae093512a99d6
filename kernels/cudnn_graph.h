/* cuDNN's backend graphs from C: tensors and operations, and plans to run them.
 *
 *     DnnGraph *g = dnn_graph_open();
 *     int x = dnn_tensor(g, DT_BF16, DNN_STORED, shape), ...;
 *     dnn_matmul(g, x, w, y);
 *     DnnPlan *p = dnn_plan_make(g, &device, &rules, &answer, &e);
 *     dnn_graph_close(g);
 *     dnn_plan_run(p, handle, 3, pointers, workspace);
 *
 * A tensor is named by a small number, 1 for the first. What cuDNN refuses while a graph is built
 * is kept and answered by dnn_plan_make. A plan is made for the GPU of a handle, or, without any
 * GPU, for one that is described: all but the loading of its kernels is then done, too.
 */
#pragma once

#include "kernels/cuda_stream.h"

C_BEGIN

typedef struct DnnGraph DnnGraph;
typedef struct DnnPlan DnnPlan;

/* Sizes, and elements from one to the next along each axis. Images are N, C, [D,] H, W. */
typedef struct {
    int rank; /* 4 or 5 */
    int64_t dim[5], stride[5];
    int64_t alignment; /* of its address, in bytes; 0: 16 */
} DnnShape;

/* In memory; in the graph only; one number, read from the host when it runs; in memory for the
 * graph alone, which its kernels add to. */
typedef enum { DNN_STORED, DNN_VIRTUAL, DNN_SCALAR, DNN_SUMS } DnnPlace;

typedef enum { DNN_ADD, DNN_SUBTRACT, DNN_MULTIPLY, DNN_EXP, DNN_COPY } DnnPointwise;

DnnGraph *dnn_graph_open(void);
void dnn_graph_close(DnnGraph *g);

/* t: F32, BF16 or F16. */
int dnn_tensor(DnnGraph *g, DType t, DnnPlace place, DnnShape shape);
/* y = mode(x, b) in f32, with b's axes of size 1 repeated; b 0: mode has one argument. */
void dnn_pointwise(DnnGraph *g, DnnPointwise mode, int x, int b, int y);
/* y = sum of x over the axes that have size 1 in y. */
void dnn_sum(DnnGraph *g, int x, int y);
/* c = a b over the last two axes, summed in f32. */
void dnn_matmul(DnnGraph *g, int a, int b, int c);
/* y is x with other sizes and strides. */
void dnn_reshape(DnnGraph *g, int x, int y);
/* y = cross-correlation of x [N,I,(D,)H,W] with w [O,I,(D,)H,W], summed in f32. The arrays have an
 * element for each of the `axes` (2 or 3) in space and time. */
typedef struct {
    int axes;
    int64_t stride[3], before[3], after[3]; /* before, after: zeros that pad x */
} DnnConv;
void dnn_conv(DnnGraph *g, const DnnConv *c, int x, int w, int y);
/* out = softmax(scale q k^T) v, [1,N,S,E] each; lse [1,N,S,1]: log of the sum of exp. */
typedef struct {
    int q, k, v, scale, out, lse;
} DnnAttention;
void dnn_attention(DnnGraph *g, const DnnAttention *a);

/* The GPU that a plan is for: that of a cudnnHandle_t, or one as JSON (cuDNN's "deviceless
 * compilation"). */
typedef struct {
    DnnHandle handle;
    const char *json; /* only without a handle */
} DnnDevice;

/* What an engine must keep to. */
typedef struct {
    int64_t workspace; /* bytes at most; -1: any */
    bool exact;        /* products of f32 are f32 throughout: no tensor cores, no transforms */
} DnnRules;

typedef enum {
    DNN_READY,
    DNN_NOT_LOADED, /* there is no driver; the kernel is compiled */
    DNN_REFUSED     /* no engine takes the graph */
} DnnAnswer;

/* By the first engine configuration of cuDNN's heuristics that keeps the rules. NULL unless the
 * answer is DNN_READY; *e says why. */
DnnPlan *dnn_plan_make(DnnGraph *g, const DnnDevice *d, const DnnRules *r, DnnAnswer *answer,
                       Error *e);
void dnn_plan_close(DnnPlan *p);
int64_t dnn_plan_workspace(const DnnPlan *p);
/* Which of cuDNN's engines was chosen, and its place among the heuristics' choices, 0 the best; -1
 * of a restored plan. */
int64_t dnn_plan_engine(const DnnPlan *p);
int64_t dnn_plan_choice(const DnnPlan *p);

/* Runs on the handle's stream. data[i] is tensor i + 1's, on the device, or a scalar's, on the
 * host; of a tensor in the graph only it is NULL. Ends the program (exit 1) where that fails. */
void dnn_plan_run(const DnnPlan *p, DnnHandle handle, int n, void *const *data, void *workspace);

/* A plan as bytes, to be freed, and back; NULL: cuDNN refuses. */
char *dnn_plan_save(const DnnPlan *p, size_t *bytes);
DnnPlan *dnn_plan_restore(DnnHandle handle, const char *text, size_t bytes);

/* 91900 is 9.19.0. */
size_t dnn_version(void);

C_END
