/* Attention on a GPU through cuDNN: one graph for each segment and slice of heads, whose plan is
 * kept (see kernels/attention_cuda.h). */
#include "kernels/attention_cuda.h"

#include <cuda_runtime_api.h>
#include <stdio.h>

DnnRules attention_rules(const AttentionPart *p) {
    return (DnnRules){.workspace = attention_library_bytes(p)};
}

/* ---- graphs -----------------------------------------------------------------------------------
 */

/* Contiguous but for what the caller changes. */
static DnnShape shape_of(int64_t heads, int64_t rows, int64_t columns) {
    return (DnnShape){.rank = 4,
                      .dim = {1, heads, rows, columns},
                      .stride = {heads * rows * columns, rows * columns, columns, 1}};
}

static DnnShape transposed(DnnShape s) {
    DnnShape t = s;
    t.dim[2] = s.dim[3], t.dim[3] = s.dim[2];
    t.stride[2] = s.stride[3], t.stride[3] = s.stride[2];
    return t;
}

/* q, k, v and their like: heads are slices of rows. */
static DnnShape rows_shape(const AttentionPart *p) {
    DnnShape s = shape_of(p->heads, p->rows, p->size);
    s.stride[0] = p->rows * p->row_stride;
    s.stride[1] = p->size;
    s.stride[2] = p->row_stride;
    return s;
}

/* Elements from one head of lse to the next, as the graph has it. */
static int64_t lse_stride(const AttentionPart *p) { return p->backward ? p->rows : p->lse_stride; }

static DnnShape lse_shape(const AttentionPart *p) {
    DnnShape s = shape_of(p->heads, p->rows, 1);
    s.stride[0] = p->heads * lse_stride(p);
    s.stride[1] = lse_stride(p);
    s.alignment = p->lse_alignment;
    return s;
}

static DnnGraph *forward_graph(const AttentionPart *p) {
    DnnGraph *g = dnn_graph_open();
    DnnShape rows = rows_shape(p);
    DnnAttention a;
    a.q = dnn_tensor(g, p->t, DNN_STORED, rows);
    a.k = dnn_tensor(g, p->t, DNN_STORED, rows);
    a.v = dnn_tensor(g, p->t, DNN_STORED, rows);
    a.out = dnn_tensor(g, p->t, DNN_STORED, rows);
    a.lse = dnn_tensor(g, DT_F32, DNN_STORED, lse_shape(p));
    a.scale = dnn_tensor(g, DT_F32, DNN_SCALAR, shape_of(1, 1, 1));
    dnn_attention(g, &a);
    return g;
}

/* P = exp(scale q k^T - lse): its f32 form is returned, dv = P^T dout is done. */
static int add_scores(DnnGraph *g, const AttentionPart *p, const int *x) {
    DnnShape scores = shape_of(p->heads, p->rows, p->rows);
    int product = dnn_tensor(g, DT_F32, DNN_VIRTUAL, scores);
    int scaled = dnn_tensor(g, DT_F32, DNN_VIRTUAL, scores);
    int shifted = dnn_tensor(g, DT_F32, DNN_VIRTUAL, scores);
    int share = dnn_tensor(g, DT_F32, DNN_VIRTUAL, scores);
    int share_t = dnn_tensor(g, p->t, DNN_VIRTUAL, transposed(scores));
    dnn_matmul(g, x[ATTENTION_Q], x[ATTENTION_K], product);
    dnn_pointwise(g, DNN_MULTIPLY, product, x[ATTENTION_SCALE], scaled);
    dnn_pointwise(g, DNN_SUBTRACT, scaled, x[ATTENTION_LSE], shifted);
    dnn_pointwise(g, DNN_EXP, shifted, 0, share);
    dnn_reshape(g, share, share_t);
    dnn_matmul(g, share_t, x[ATTENTION_DOUT], x[ATTENTION_DV]);
    return share;
}

/* dS = scale P (dout v^T - sum), dk = dS^T q, dq = dS k. */
static void add_gradients(DnnGraph *g, const AttentionPart *p, const int *x, int share) {
    DnnShape scores = shape_of(p->heads, p->rows, p->rows);
    int product = dnn_tensor(g, DT_F32, DNN_VIRTUAL, scores);
    int less = dnn_tensor(g, DT_F32, DNN_VIRTUAL, scores);
    int weighed = dnn_tensor(g, DT_F32, DNN_VIRTUAL, scores);
    int ds = dnn_tensor(g, p->t, DNN_VIRTUAL, scores);
    int ds_t = dnn_tensor(g, p->t, DNN_VIRTUAL, transposed(scores));
    int k = dnn_tensor(g, p->t, DNN_VIRTUAL, rows_shape(p));
    dnn_matmul(g, x[ATTENTION_DOUT], x[ATTENTION_V], product);
    dnn_pointwise(g, DNN_SUBTRACT, product, x[ATTENTION_SUM], less);
    dnn_pointwise(g, DNN_MULTIPLY, less, share, weighed);
    dnn_pointwise(g, DNN_MULTIPLY, weighed, x[ATTENTION_SCALE], ds);
    dnn_reshape(g, ds, ds_t);
    dnn_matmul(g, ds_t, x[ATTENTION_Q], x[ATTENTION_DK]);
    dnn_reshape(g, x[ATTENTION_K], k);
    if (p->deterministic) {
        dnn_matmul(g, ds, k, x[ATTENTION_DQ]);
    } else {
        dnn_matmul(g, ds, k, x[ATTENTION_DQ_SUM]);
        dnn_pointwise(g, DNN_COPY, x[ATTENTION_DQ_SUM], 0, x[ATTENTION_DQ]);
    }
}

static DnnGraph *backward_graph(const AttentionPart *p) {
    DnnGraph *g = dnn_graph_open();
    DnnShape rows = rows_shape(p), row = shape_of(p->heads, p->rows, 1);
    int x[ATTENTION_BACKWARD];
    for (int i = 0; i < ATTENTION_BACKWARD; i++) {
        bool number = i == ATTENTION_SCALE || i == ATTENTION_ONE;
        DnnShape shape = number                                 ? shape_of(1, 1, 1)
                         : i == ATTENTION_K || i == ATTENTION_V ? transposed(rows)
                         : i == ATTENTION_LSE                   ? lse_shape(p)
                         : i == ATTENTION_SUM                   ? row
                         : i == ATTENTION_DQ_SUM ? shape_of(p->heads, p->rows, p->size)
                                                 : rows;
        bool wide = number || i == ATTENTION_LSE || i == ATTENTION_SUM || i == ATTENTION_DQ_SUM;
        DnnPlace place = number ? DNN_SCALAR : i == ATTENTION_DQ_SUM ? DNN_SUMS : DNN_STORED;
        x[i] = dnn_tensor(g, wide ? DT_F32 : p->t, place, shape);
    }
    int product = dnn_tensor(g, DT_F32, DNN_VIRTUAL, shape_of(p->heads, p->rows, p->size));
    int sum = dnn_tensor(g, DT_F32, DNN_VIRTUAL, row);
    dnn_pointwise(g, DNN_MULTIPLY, x[ATTENTION_DOUT], x[ATTENTION_OUT], product);
    dnn_sum(g, product, sum);
    dnn_pointwise(g, DNN_MULTIPLY, sum, x[ATTENTION_ONE], x[ATTENTION_SUM]);
    add_gradients(g, p, x, add_scores(g, p, x));
    return g;
}

DnnGraph *attention_graph(const AttentionPart *p) {
    return p->backward ? backward_graph(p) : forward_graph(p);
}

/* ---- running ----------------------------------------------------------------------------------
 */

static DnnGraph *graph_of(const void *part) { return attention_graph(part); }

void attention_key(const AttentionPart *p, char key[DNN_KEY]) {
    snprintf(key, DNN_KEY, "attention%s-%s-%lldx%lldx%lld-%lld-%lld-%lld",
             !p->backward       ? ""
             : p->deterministic ? "_grad_repeats"
                                : "_grad",
             dtype_name(p->t), (long long)p->heads, (long long)p->rows, (long long)p->size,
             (long long)p->row_stride, (long long)lse_stride(p), (long long)p->lse_alignment);
}

static const DnnPlan *plan_of(Stream *s, const AttentionPart *p) {
    PlanCache *cache = &s->attentions;
    char key[DNN_KEY];
    if (!cache->plans) *cache = (PlanCache){dnn_plans_open(cuda_dnn(s), NULL), dnn_plans_close};
    attention_key(p, key);
    DnnRules rules = attention_rules(p);
    return dnn_plans_find(cache->plans, key, &rules, graph_of, p);
}

static void check_attention(const Stream *s, const Attention *a, bool backward) {
    CHECK(a->t == DT_F32 || a->t == DT_BF16 || a->t == DT_F16, "attention: %s", dtype_name(a->t));
    for (int b = 0; a->bias && b < a->segments; b++)
        CHECK(!backward && a->cu_rows[b + 1] - a->cu_rows[b] <= a->bias_rows,
              "attention: segment %d with a bias of %lld rows", b, (long long)a->bias_rows);
    size_t bytes = cuda_attention_workspace(NULL, a, backward);
    CHECK(bytes <= s->workspace_bytes, "attention: needs %zu bytes of workspace, has %zu", bytes,
          s->workspace_bytes);
}

/* As graphs are told: heads are whole packs. */
static void check_addresses(int n, void *const *data) {
    for (int i = 0; i < n; i++)
        CHECK(i == ATTENTION_LSE || i == ATTENTION_SCALE || (uintptr_t)data[i] % 16 == 0,
              "attention: operand %d is not aligned to 16 bytes", i);
}

static void *at(const void *matrix, int64_t elements, DType t) {
    return (char *)matrix + elements * (int64_t)dtype_size(t);
}

/* Tensors of the forward at row `first` and head `head`. */
static void place_forward(const Attention *a, int64_t first, int64_t head, const void *out,
                          const real *lse, real *scale, void **data) {
    int64_t offset = first * a->heads * a->head_size + head * a->head_size;
    data[ATTENTION_Q] = at(a->q, offset, a->t);
    data[ATTENTION_K] = at(a->k, offset, a->t);
    data[ATTENTION_V] = at(a->v, offset, a->t);
    data[ATTENTION_OUT] = at(out, offset, a->t);
    data[ATTENTION_LSE] = (void *)(lse + head * a->rows + first);
    data[ATTENTION_SCALE] = scale;
}

static int64_t lse_alignment(void *const *data) {
    uintptr_t bits = (uintptr_t)data[ATTENTION_LSE] | 16;
    return (int64_t)(bits & -bits);
}

void cuda_attention(Stream *s, const Attention *a, void *out, real *lse) {
    real scale = a->scale;
    check_attention(s, a, false);
    for (int b = 0; b < a->segments; b++) {
        int64_t first = a->cu_rows[b], rows = a->cu_rows[b + 1] - first;
        void *data[ATTENTION_FORWARD];
        if (!rows) continue;
        if (!attention_suits(a, rows)) {
            attention_own(s, a, first, rows, out, lse);
            continue;
        }
        AttentionPart p = attention_part(a, rows, false);
        place_forward(a, first, 0, out, lse, &scale, data);
        p.lse_alignment = lse_alignment(data);
        check_addresses(ATTENTION_FORWARD, data);
        dnn_plan_run(plan_of(s, &p), cuda_dnn(s), ATTENTION_FORWARD, data, s->workspace);
    }
}

/* lse as the graph reads it: in its place, or brought together in `memory`. */
static void place_lse(Stream *s, AttentionPart *p, void **data, void *memory) {
    size_t row = (size_t)p->rows * sizeof(real), pitch = (size_t)p->lse_stride * sizeof(real);
    if (attention_lse_bytes(p)) {
        cuda_check(cudaMemcpy2DAsync(memory, row, data[ATTENTION_LSE], pitch, row, (size_t)p->heads,
                                     cudaMemcpyDeviceToDevice, s->queue),
                   "bringing attention's sums together");
        data[ATTENTION_LSE] = memory;
    }
    p->lse_alignment = lse_alignment(data);
}

static void run_grad(Stream *s, AttentionPart *p, void **data) {
    real one = 1;
    char *memory = s->workspace;
    place_lse(s, p, data, memory);
    memory += attention_lse_bytes(p);
    data[ATTENTION_ONE] = &one;
    data[ATTENTION_SUM] = memory;
    memory += attention_sum_bytes(p);
    data[ATTENTION_DQ_SUM] = p->deterministic ? NULL : memory;
    if (!p->deterministic)
        cuda_check(cudaMemsetAsync(memory, 0, (size_t)attention_dq_sum_bytes(p), s->queue),
                   "zeroing attention's workspace");
    memory += attention_dq_sum_bytes(p);
    dnn_plan_run(plan_of(s, p), cuda_dnn(s), ATTENTION_BACKWARD, data, memory);
}

void cuda_attention_grad(Stream *s, const Attention *a, const void *out, const real *lse,
                         const void *dout, void *dq, void *dk, void *dv) {
    real scale = a->scale;
    check_attention(s, a, true);
    for (int b = 0; b < a->segments; b++) {
        int64_t first = a->cu_rows[b], rows = a->cu_rows[b + 1] - first;
        void *data[ATTENTION_BACKWARD];
        if (rows && !attention_suits(a, rows))
            attention_own_grad(s, a, first, rows, out, lse, dout, dq, dk, dv);
        if (!attention_suits(a, rows)) continue;
        AttentionPart p = attention_part(a, rows, true);
        for (int64_t head = 0; head < a->heads; head += p.heads) {
            int64_t offset = (first * a->heads + head) * a->head_size;
            p.heads = MIN(p.heads, a->heads - head);
            place_forward(a, first, head, out, lse, &scale, data);
            data[ATTENTION_DOUT] = at(dout, offset, a->t);
            data[ATTENTION_DQ] = at(dq, offset, a->t);
            data[ATTENTION_DK] = at(dk, offset, a->t);
            data[ATTENTION_DV] = at(dv, offset, a->t);
            check_addresses(ATTENTION_SUM, data);
            run_grad(s, &p, data);
        }
    }
}
