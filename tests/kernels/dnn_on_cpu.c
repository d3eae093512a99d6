/* kernels/cudnn_graph.h without cuDNN: graphs that plain loops run on the CPU, so that what builds
 * graphs and what places their operands can be compared with the CPU backend. Also stands for the
 * few functions of CUDA and of the backend that these files call; a device's memory is the host's.
 *
 * Tensors are rounded to their types. A product that is stored in F32 is added to what lies there,
 * as an engine does whose blocks add up a sum. A plan as bytes is its number in this process. */
#include "kernels/cudnn_graph.h"
#include "kernels/math.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 40 };

typedef enum { OP_POINTWISE, OP_SUM, OP_MATMUL, OP_RESHAPE, OP_CONV, OP_ATTENTION } OpKind;

typedef struct {
    OpKind kind;
    DnnPointwise mode;
    int a, b, y; /* tensors */
    DnnConv conv;
    DnnAttention attention;
} GraphOp;

typedef struct {
    DType t;
    DnnPlace place;
    DnnShape shape;
    void *data;
} GraphTensor;

struct DnnGraph {
    GraphTensor tensors[MOST]; /* from 1 on */
    GraphOp ops[MOST];
    int n_tensors, n_ops;
};

struct DnnPlan {
    DnnGraph graph;
};

/* How many plans were made, rather than read. */
int dnn_plans_made;

/* ---- building ---------------------------------------------------------------------------------
 */

DnnGraph *dnn_graph_open(void) { return xcalloc(1, sizeof(DnnGraph)); }
void dnn_graph_close(DnnGraph *g) { free(g); }

int dnn_tensor(DnnGraph *g, DType t, DnnPlace place, DnnShape shape) {
    g->tensors[++g->n_tensors] = (GraphTensor){t, place, shape, NULL};
    CHECK(g->n_tensors < MOST, "tensors");
    return g->n_tensors;
}

static void add_op(DnnGraph *g, GraphOp op) { g->ops[g->n_ops++] = op; }

/* What is subtracted from scores is read as [N,L], whatever the strides say (until cuDNN 9.26). */
static void check_subtracted(const GraphTensor *t) {
    const DnnShape *s = &t->shape;
    CHECK(s->dim[3] == 1 && s->stride[2] == 1 && s->stride[1] == s->dim[2],
          "rows of one number, %lld apart, for heads of %lld", (long long)s->stride[1],
          (long long)s->dim[2]);
}

void dnn_pointwise(DnnGraph *g, DnnPointwise mode, int x, int b, int y) {
    if (mode == DNN_SUBTRACT) check_subtracted(&g->tensors[b]);
    add_op(g, (GraphOp){.kind = OP_POINTWISE, .mode = mode, .a = x, .b = b, .y = y});
}
void dnn_sum(DnnGraph *g, int x, int y) { add_op(g, (GraphOp){.kind = OP_SUM, .a = x, .y = y}); }
void dnn_matmul(DnnGraph *g, int a, int b, int c) {
    add_op(g, (GraphOp){.kind = OP_MATMUL, .a = a, .b = b, .y = c});
}
void dnn_reshape(DnnGraph *g, int x, int y) {
    add_op(g, (GraphOp){.kind = OP_RESHAPE, .a = x, .y = y});
}
void dnn_conv(DnnGraph *g, const DnnConv *c, int x, int w, int y) {
    add_op(g, (GraphOp){.kind = OP_CONV, .conv = *c, .a = x, .b = w, .y = y});
}
void dnn_attention(DnnGraph *g, const DnnAttention *a) {
    add_op(g, (GraphOp){.kind = OP_ATTENTION, .attention = *a});
}

DnnPlan *dnn_plan_make(DnnGraph *g, const DnnDevice *d, const DnnRules *r, DnnAnswer *answer,
                       Error *e) {
    (void)d, (void)r, (void)e;
    DnnPlan *p = xcalloc(1, sizeof *p);
    p->graph = *g;
    dnn_plans_made++;
    *answer = DNN_READY;
    return p;
}
void dnn_plan_close(DnnPlan *p) { free(p); }
int64_t dnn_plan_workspace(const DnnPlan *p) { return p ? 0 : -1; }

/* ---- numbers ----------------------------------------------------------------------------------
 */

/* Elements that the memory of a tensor spans. */
static int64_t span_of(const GraphTensor *t) {
    int64_t last = 0;
    for (int i = 0; i < t->shape.rank; i++) last += (t->shape.dim[i] - 1) * t->shape.stride[i];
    return last + 1;
}

/* An axis of size 1 is repeated. */
static int64_t offset_of(const GraphTensor *t, const int64_t *at) {
    int64_t offset = 0;
    for (int i = 0; i < t->shape.rank; i++)
        if (t->shape.dim[i] > 1) offset += at[i] * t->shape.stride[i];
    return offset;
}

static float get(const GraphTensor *t, int64_t offset) {
    const uint16_t *half = t->data;
    if (t->t == DT_F32) return ((const float *)t->data)[offset];
    return t->t == DT_BF16 ? float_from_bf16(half[offset]) : float_from_f16(half[offset]);
}

static void put(const GraphTensor *t, int64_t offset, double value) {
    uint16_t *half = t->data;
    if (t->t == DT_F32)
        ((float *)t->data)[offset] = (float)value;
    else
        half[offset] =
            t->t == DT_BF16 ? bf16_from_float((float)value) : f16_from_float((float)value);
}

/* The next index within `dim`; false after the last. */
static bool next(int rank, const int64_t *dim, int64_t *at) {
    for (int i = rank - 1; i >= 0; i--) {
        if (++at[i] < dim[i]) return true;
        at[i] = 0;
    }
    return false;
}

/* ---- running ----------------------------------------------------------------------------------
 */

static void run_pointwise(const GraphOp *op, const GraphTensor *x, const GraphTensor *b,
                          const GraphTensor *y) {
    int64_t at[5] = {0};
    do {
        double a = get(x, offset_of(x, at)), c = op->b ? get(b, offset_of(b, at)) : 0;
        put(y, offset_of(y, at),
            op->mode == DNN_ADD        ? a + c
            : op->mode == DNN_SUBTRACT ? a - c
            : op->mode == DNN_MULTIPLY ? a * c
            : op->mode == DNN_EXP      ? exp(a)
                                       : a);
    } while (next(y->shape.rank, y->shape.dim, at));
}

static void run_sum(const GraphTensor *x, const GraphTensor *y) {
    int64_t at[5] = {0}, n = span_of(y);
    for (int64_t i = 0; i < n; i++) put(y, i, 0);
    do put(y, offset_of(y, at), get(y, offset_of(y, at)) + get(x, offset_of(x, at)));
    while (next(x->shape.rank, x->shape.dim, at));
}

static void run_matmul(const GraphTensor *a, const GraphTensor *b, const GraphTensor *c) {
    int64_t at[5] = {0}, inner = a->shape.dim[3];
    for (int i = 0; i < 4; i++)
        CHECK(i < 2    ? a->shape.dim[i] == b->shape.dim[i] && a->shape.dim[i] == c->shape.dim[i]
              : i == 2 ? a->shape.dim[2] == c->shape.dim[2] && inner == b->shape.dim[2]
                       : b->shape.dim[3] == c->shape.dim[3],
              "a product of other sizes, axis %d", i);
    do {
        int64_t left[] = {at[0], at[1], at[2], 0}, right[] = {at[0], at[1], 0, at[3]};
        bool adds = c->place == DNN_SUMS;
        double sum = adds ? get(c, offset_of(c, at)) : 0;
        for (int64_t k = 0; k < inner; k++) {
            left[3] = right[2] = k;
            sum += (double)get(a, offset_of(a, left)) * (double)get(b, offset_of(b, right));
        }
        put(c, offset_of(c, at), sum);
    } while (next(4, c->shape.dim, at));
}

/* Elements keep their places in memory. */
static void run_reshape(const GraphTensor *x, const GraphTensor *y) {
    int64_t at[5] = {0};
    do put(y, offset_of(y, at), get(x, offset_of(y, at)));
    while (next(y->shape.rank, y->shape.dim, at));
}

static void run_conv(const DnnConv *c, const GraphTensor *x, const GraphTensor *w,
                     const GraphTensor *y) {
    int64_t at[5] = {0}, rank = y->shape.rank;
    CHECK(x->shape.dim[1] == w->shape.dim[1] && y->shape.dim[1] == w->shape.dim[0], "channels");
    for (int i = 0; i < c->axes; i++)
        CHECK(y->shape.dim[2 + i] ==
                  (x->shape.dim[2 + i] + c->before[i] + c->after[i] - w->shape.dim[2 + i]) /
                          c->stride[i] +
                      1,
              "a convolution of other sizes, axis %d", i);
    do {
        int64_t tap[5] = {0}; /* of one filter: its first axis is not used */
        double sum = 0;
        int64_t sizes[5] = {1};
        memcpy(sizes + 1, w->shape.dim + 1, sizeof sizes - sizeof *sizes);
        do {
            int64_t from[5] = {at[0], tap[1]}, filter[5] = {at[1]};
            bool inside = true;
            for (int i = 0; i < c->axes; i++) {
                from[2 + i] = at[2 + i] * c->stride[i] + tap[2 + i] - c->before[i];
                inside &= from[2 + i] >= 0 && from[2 + i] < x->shape.dim[2 + i];
            }
            memcpy(filter + 1, tap + 1, sizeof filter - sizeof *filter);
            if (inside)
                sum += (double)get(x, offset_of(x, from)) * (double)get(w, offset_of(w, filter));
        } while (next((int)rank, sizes, tap));
        put(y, offset_of(y, at), sum);
    } while (next((int)rank, y->shape.dim, at));
}

static double dot_rows(const GraphTensor *a, int64_t i, const GraphTensor *b, int64_t j,
                       int64_t head) {
    double sum = 0;
    for (int64_t e = 0; e < a->shape.dim[3]; e++)
        sum += (double)get(a, offset_of(a, (int64_t[]){0, head, i, e})) *
               (double)get(b, offset_of(b, (int64_t[]){0, head, j, e}));
    return sum;
}

static void run_attention(const DnnAttention *a, const GraphTensor *t) {
    const GraphTensor *q = &t[a->q], *v = &t[a->v], *out = &t[a->out], *lse = &t[a->lse];
    int64_t heads = q->shape.dim[1], rows = q->shape.dim[2], size = q->shape.dim[3];
    double *share = xcalloc((size_t)rows, sizeof *share), scale = get(&t[a->scale], 0);
    for (int64_t i = 0; i < heads * rows; i++) {
        int64_t head = i / rows, row = i % rows;
        double sum = 0;
        for (int64_t j = 0; j < rows; j++)
            sum += share[j] = exp(scale * dot_rows(q, row, &t[a->k], j, head));
        put(lse, offset_of(lse, (int64_t[]){0, head, row, 0}), log(sum));
        for (int64_t e = 0; e < size; e++) {
            double mean = 0;
            for (int64_t j = 0; j < rows; j++)
                mean += share[j] / sum * (double)get(v, offset_of(v, (int64_t[]){0, head, j, e}));
            put(out, offset_of(out, (int64_t[]){0, head, row, e}), mean);
        }
    }
    free(share);
}

static void run_op(const GraphOp *op, const GraphTensor *t) {
    const GraphTensor *a = &t[op->a], *b = &t[op->b], *y = &t[op->y];
    if (op->kind == OP_POINTWISE) run_pointwise(op, a, b, y);
    if (op->kind == OP_SUM) run_sum(a, y);
    if (op->kind == OP_MATMUL) run_matmul(a, b, y);
    if (op->kind == OP_RESHAPE) run_reshape(a, y);
    if (op->kind == OP_CONV) run_conv(&op->conv, a, b, y);
    if (op->kind == OP_ATTENTION) run_attention(&op->attention, t);
}

void dnn_plan_run(const DnnPlan *p, DnnHandle handle, int n, void *const *data, void *workspace) {
    (void)handle, (void)workspace;
    DnnGraph g = p->graph;
    for (int i = 1; i <= g.n_tensors; i++) {
        const DnnShape *shape = &g.tensors[i].shape;
        bool own = g.tensors[i].place == DNN_VIRTUAL;
        bool there = !own && g.tensors[i].place != DNN_SCALAR && i <= n;
        CHECK(!there || (uintptr_t)data[i - 1] % (shape->alignment ? shape->alignment : 16) == 0,
              "tensor %d is not where it was said to lie", i);
        g.tensors[i].data = own      ? xcalloc((size_t)span_of(&g.tensors[i]), sizeof(double))
                            : i <= n ? data[i - 1]
                                     : NULL;
    }
    for (int i = 0; i < g.n_ops; i++) run_op(&g.ops[i], g.tensors);
    for (int i = 1; i <= g.n_tensors; i++)
        if (g.tensors[i].place == DNN_VIRTUAL) free(g.tensors[i].data);
}

/* ---- as bytes ---------------------------------------------------------------------------------
 */

static DnnGraph saved[512];
static int n_saved;

char *dnn_plan_save(const DnnPlan *p, size_t *bytes) {
    CHECK(n_saved < (int)COUNT(saved), "plans");
    saved[n_saved] = p->graph;
    char *text = xprintf("%d", n_saved++);
    *bytes = strlen(text);
    return text;
}

DnnPlan *dnn_plan_restore(DnnHandle handle, const char *text, size_t bytes) {
    (void)handle, (void)bytes;
    DnnPlan *p = xcalloc(1, sizeof *p);
    p->graph = saved[atoi(text)];
    return p;
}

size_t dnn_version(void) { return 90000; }

/* ---- CUDA -------------------------------------------------------------------------------------
 */

DnnHandle cuda_dnn(Stream *s) { return (DnnHandle)s; }
void cuda_check(int status, const char *doing) { CHECK(!status, "%s", doing); }

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t queue) {
    (void)queue;
    memset(p, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t queue) {
    (void)kind, (void)queue;
    memcpy(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t rows, enum cudaMemcpyKind kind,
                              cudaStream_t queue) {
    (void)kind, (void)queue;
    for (size_t i = 0; i < rows; i++)
        memcpy((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *gpu, int device) {
    (void)device;
    memset(gpu, 0, sizeof *gpu);
    snprintf(gpu->name, sizeof gpu->name, "A/GPU of loops");
    return cudaSuccess;
}
