/* Owns every call of cuDNN. */
#include "kernels/cudnn_graph.h"

#include <cudnn.h>
#include <stdlib.h>
#include <string.h>

typedef cudnnBackendDescriptor_t Descriptor;

enum { MAX_CONFIGS = 16, MAX_NOTES = 32 };

struct DnnGraph {
    Descriptor *tensors, *ops, *others; /* others: what operations are made of */
    int n_tensors, n_ops, n_others;
    Error refused; /* the first refusal */
};

struct DnnPlan {
    Descriptor plan;
    int64_t workspace, engine, choice;
};

/* ---- building ---------------------------------------------------------------------------------
 */

static bool refuse(Error *e, cudnnStatus_t status, const char *call) {
    char text[512] = "";
    cudnnGetLastErrorString(text, sizeof text);
    return error_set(e, EXIT_WORLD, "cuDNN: %s: %s: %s", call, cudnnGetErrorString(status), text);
}

static void keep_status(DnnGraph *g, cudnnStatus_t status, const char *call) {
    if (status != CUDNN_STATUS_SUCCESS && !g->refused.exit_code) refuse(&g->refused, status, call);
}

static Descriptor *append(Descriptor **list, int *n, Descriptor d) {
    *list = xrealloc(*list, (size_t)(*n + 1) * sizeof **list);
    (*list)[*n] = d;
    return &(*list)[(*n)++];
}

static Descriptor make(DnnGraph *g, cudnnBackendDescriptorType_t type) {
    Descriptor d = NULL;
    keep_status(g, cudnnBackendCreateDescriptor(type, &d), "a descriptor");
    return d;
}

static void set(DnnGraph *g, Descriptor d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t n, const void *values) {
    if (!g->refused.exit_code)
        keep_status(g, cudnnBackendSetAttribute(d, name, type, n, values), "an attribute");
}

static void set_type(DnnGraph *g, Descriptor d, cudnnBackendAttributeName_t name,
                     cudnnDataType_t type) {
    set(g, d, name, CUDNN_TYPE_DATA_TYPE, 1, &type);
}

static void set_integers(DnnGraph *g, Descriptor d, cudnnBackendAttributeName_t name, int64_t n,
                         const int64_t *values) {
    set(g, d, name, CUDNN_TYPE_INT64, n, values);
}

static void set_descriptor(DnnGraph *g, Descriptor d, cudnnBackendAttributeName_t name,
                           Descriptor value) {
    set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void set_tensor(DnnGraph *g, Descriptor d, cudnnBackendAttributeName_t name, int tensor) {
    CHECK(tensor >= 1 && tensor <= g->n_tensors, "cuDNN: tensor %d of %d", tensor, g->n_tensors);
    set_descriptor(g, d, name, g->tensors[tensor - 1]);
}

static void finish(DnnGraph *g, Descriptor d, const char *what) {
    if (!g->refused.exit_code) keep_status(g, cudnnBackendFinalize(d), what);
}

/* What an operation is made of: finished, and kept until the graph goes. */
static Descriptor finish_part(DnnGraph *g, Descriptor d, const char *what) {
    finish(g, d, what);
    return *append(&g->others, &g->n_others, d);
}

static void finish_op(DnnGraph *g, Descriptor d, const char *what) {
    finish(g, d, what);
    append(&g->ops, &g->n_ops, d);
}

DnnGraph *dnn_graph_open(void) { return xcalloc(1, sizeof(DnnGraph)); }

static void destroy_all(Descriptor *list, int n) {
    for (int i = n - 1; i >= 0; i--)
        if (list[i]) cudnnBackendDestroyDescriptor(list[i]);
    free(list);
}

void dnn_graph_close(DnnGraph *g) {
    if (!g) return;
    destroy_all(g->ops, g->n_ops);
    destroy_all(g->others, g->n_others);
    destroy_all(g->tensors, g->n_tensors);
    free(g);
}

static cudnnDataType_t type_of(DType t) {
    CHECK(t == DT_F32 || t == DT_BF16 || t == DT_F16, "cuDNN: type %s", dtype_name(t));
    return t == DT_F32 ? CUDNN_DATA_FLOAT : t == DT_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF;
}

int dnn_tensor(DnnGraph *g, DType t, DnnPlace place, DnnShape shape) {
    Descriptor d = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    int64_t name = g->n_tensors + 1, align = shape.alignment ? shape.alignment : 16;
    if (place == DNN_SCALAR) align = 4;
    bool is_virtual = place == DNN_VIRTUAL, by_value = place == DNN_SCALAR;
    set_type(g, d, CUDNN_ATTR_TENSOR_DATA_TYPE, type_of(t));
    set_integers(g, d, CUDNN_ATTR_TENSOR_DIMENSIONS, shape.rank, shape.dim);
    set_integers(g, d, CUDNN_ATTR_TENSOR_STRIDES, shape.rank, shape.stride);
    set_integers(g, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, 1, &align);
    set_integers(g, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, 1, &name);
    set(g, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    set(g, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
    finish(g, d, "a tensor");
    append(&g->tensors, &g->n_tensors, d);
    return g->n_tensors;
}

void dnn_pointwise(DnnGraph *g, DnnPointwise mode, int x, int b, int y) {
    static const cudnnPointwiseMode_t MODES[] = {[DNN_ADD] = CUDNN_POINTWISE_ADD,
                                                 [DNN_SUBTRACT] = CUDNN_POINTWISE_SUB,
                                                 [DNN_MULTIPLY] = CUDNN_POINTWISE_MUL,
                                                 [DNN_EXP] = CUDNN_POINTWISE_EXP,
                                                 [DNN_COPY] = CUDNN_POINTWISE_IDENTITY};
    Descriptor p = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(g, p, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &MODES[mode]);
    set_type(g, p, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT);
    p = finish_part(g, p, "a pointwise mode");
    Descriptor o = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_descriptor(g, o, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, p);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (b) set_tensor(g, o, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    finish_op(g, o, "a pointwise operation");
}

void dnn_sum(DnnGraph *g, int x, int y) {
    cudnnReduceTensorOp_t add = CUDNN_REDUCE_TENSOR_ADD;
    Descriptor r = make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(g, r, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &add);
    set_type(g, r, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
    r = finish_part(g, r, "a sum");
    Descriptor o = make(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_descriptor(g, o, CUDNN_ATTR_OPERATION_REDUCTION_DESC, r);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    finish_op(g, o, "a sum operation");
}

void dnn_matmul(DnnGraph *g, int a, int b, int c) {
    Descriptor m = make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set_type(g, m, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
    m = finish_part(g, m, "a matrix product");
    Descriptor o = make(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_descriptor(g, o, CUDNN_ATTR_OPERATION_MATMUL_DESC, m);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    finish_op(g, o, "a matrix product operation");
}

void dnn_reshape(DnnGraph *g, int x, int y) {
    Descriptor o = make(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    finish_op(g, o, "a reshape operation");
}

void dnn_conv(DnnGraph *g, const DnnConv *c, int x, int w, int y) {
    const int64_t axes = c->axes, ones[3] = {1, 1, 1};
    const double alpha = 1, beta = 0;
    cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    Descriptor d = make(g, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    set_type(g, d, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_DATA_FLOAT);
    set(g, d, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set_integers(g, d, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, 1, &axes);
    set_integers(g, d, CUDNN_ATTR_CONVOLUTION_DILATIONS, axes, ones);
    set_integers(g, d, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, axes, c->stride);
    set_integers(g, d, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, axes, c->before);
    set_integers(g, d, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, axes, c->after);
    d = finish_part(g, d, "a convolution");
    Descriptor o = make(g, CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    set_descriptor(g, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, d);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, y);
    set(g, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_DOUBLE, 1, &alpha);
    set(g, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_DOUBLE, 1, &beta);
    finish_op(g, o, "a convolution operation");
}

void dnn_attention(DnnGraph *g, const DnnAttention *a) {
    Descriptor o = make(g, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, a->q);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, a->k);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, a->v);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, a->scale);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, a->out);
    set_tensor(g, o, CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC, a->lse);
    finish_op(g, o, "an attention operation");
}

/* ---- planning ---------------------------------------------------------------------------------
 */

/* The whole graph, for the handle if there is one. */
static Descriptor finish_graph(DnnGraph *g, DnnHandle handle) {
    Descriptor d = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, d, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->n_ops, g->ops);
    if (handle) set(g, d, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    return finish_part(g, d, "the graph");
}

static Descriptor describe_device(DnnGraph *g, const DnnDevice *d) {
    if (d->handle) return NULL;
    Descriptor p = make(g, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
    set(g, p, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, (int64_t)strlen(d->json),
        d->json);
    return finish_part(g, p, "the device's properties");
}

/* The engine configurations of the heuristics, best first; returns how many. */
static int64_t ask_heuristics(DnnGraph *g, Descriptor graph, Descriptor device, const DnnRules *r,
                              Descriptor configs[MAX_CONFIGS]) {
    /* Of F32, the first choices are all TF32 on tensor cores. */
    cudnnBackendHeurMode_t mode = r->exact ? CUDNN_HEUR_MODE_FALLBACK : CUDNN_HEUR_MODE_A;
    int64_t n = 0;
    Descriptor h = make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    set_descriptor(g, h, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    set(g, h, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (device) set_descriptor(g, h, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, device);
    h = finish_part(g, h, "the heuristics");
    for (int i = 0; i < MAX_CONFIGS; i++)
        configs[i] = *append(&g->others, &g->n_others, make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
    if (g->refused.exit_code) return 0;
    keep_status(g,
                cudnnBackendGetAttribute(h, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                         CUDNN_TYPE_BACKEND_DESCRIPTOR, MAX_CONFIGS, &n, configs),
                "the heuristics' results");
    return g->refused.exit_code ? 0 : MIN(n, MAX_CONFIGS);
}

static Descriptor engine_of(DnnGraph *g, Descriptor config) {
    int64_t n;
    Descriptor engine = *append(&g->others, &g->n_others, make(g, CUDNN_BACKEND_ENGINE_DESCRIPTOR));
    cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                             &n, &engine);
    return engine;
}

/* Whether what cuDNN notes of an engine is allowed. Every result must repeat its bits. */
static bool engine_keeps(Descriptor engine, const DnnRules *r) {
    cudnnBackendNumericalNote_t notes[MAX_NOTES];
    int64_t n = 0;
    if (cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
                                 CUDNN_TYPE_NUMERICAL_NOTE, MAX_NOTES, &n, notes))
        return false;
    for (int64_t i = 0; i < n; i++)
        if (notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC ||
            notes[i] == CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION ||
            (r->exact && notes[i] != CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP))
            return false;
    return true;
}

static int64_t integer_of(Descriptor d, cudnnBackendAttributeName_t name) {
    int64_t n, value = -1;
    return cudnnBackendGetAttribute(d, name, CUDNN_TYPE_INT64, 1, &n, &value) ? -1 : value;
}

/* Without a driver a compiled kernel cannot be loaded, and only that. */
static bool only_not_loaded(cudnnStatus_t status) {
    char text[512] = "";
    cudnnGetLastErrorString(text, sizeof text);
    return status == CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER && strstr(text, "cuLibraryLoadData");
}

static DnnPlan *plan_new(Descriptor d, int64_t engine) {
    DnnPlan *p = xcalloc(1, sizeof *p);
    p->plan = d;
    p->engine = engine;
    p->choice = -1;
    p->workspace = integer_of(d, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
    return p;
}

/* One configuration as a plan; NULL: *answer and *e say why not. */
static DnnPlan *try_config(DnnGraph *g, Descriptor config, Descriptor device, const DnnDevice *d,
                           const DnnRules *r, DnnAnswer *answer, Error *e) {
    Descriptor engine = engine_of(g, config), plan = NULL;
    *answer = DNN_REFUSED;
    if (!engine_keeps(engine, r)) {
        error_set(e, EXIT_WORLD, "cuDNN: an engine that rounds more, or does not repeat its bits");
        return NULL;
    }
    cudnnStatus_t status =
        cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &plan);
    if (!status)
        status = cudnnBackendSetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
                                          CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &config);
    if (!status && device)
        status = cudnnBackendSetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP,
                                          CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &device);
    if (!status && d->handle)
        status = cudnnBackendSetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE,
                                          1, &d->handle);
    if (!status) status = cudnnBackendFinalize(plan);
    DnnPlan *p = status ? NULL : plan_new(plan, integer_of(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX));
    if (p && p->workspace >= 0 && (r->workspace < 0 || p->workspace <= r->workspace)) {
        *answer = DNN_READY;
        return p;
    }
    if (status && only_not_loaded(status)) *answer = DNN_NOT_LOADED;
    if (status)
        refuse(e, status, "a plan");
    else
        error_set(e, EXIT_WORLD, "cuDNN: a plan wants %lld bytes of workspace, %lld are allowed",
                  (long long)p->workspace, (long long)r->workspace);
    if (plan) cudnnBackendDestroyDescriptor(plan);
    free(p);
    return NULL;
}

DnnPlan *dnn_plan_make(DnnGraph *g, const DnnDevice *d, const DnnRules *r, DnnAnswer *answer,
                       Error *e) {
    Descriptor configs[MAX_CONFIGS], device = describe_device(g, d);
    Descriptor graph = finish_graph(g, d->handle);
    int64_t n = ask_heuristics(g, graph, device, r, configs);
    DnnPlan *p = NULL;
    *answer = DNN_REFUSED;
    if (g->refused.exit_code)
        *e = g->refused;
    else if (!n)
        error_set(e, EXIT_WORLD, "cuDNN: no engine takes the graph");
    for (int64_t i = 0; i < n && !p && *answer == DNN_REFUSED; i++) {
        p = try_config(g, configs[i], device, d, r, answer, e);
        if (p) p->choice = i;
    }
    return p;
}

void dnn_plan_close(DnnPlan *p) {
    if (!p) return;
    cudnnBackendDestroyDescriptor(p->plan);
    free(p);
}

int64_t dnn_plan_workspace(const DnnPlan *p) { return p->workspace; }

int64_t dnn_plan_engine(const DnnPlan *p) { return p->engine; }

int64_t dnn_plan_choice(const DnnPlan *p) { return p->choice; }

/* ---- running ----------------------------------------------------------------------------------
 */

static void must(cudnnStatus_t status, const char *call) {
    Error e;
    if (status == CUDNN_STATUS_SUCCESS) return;
    refuse(&e, status, call);
    cuda_fail(&e);
}

void dnn_plan_run(const DnnPlan *p, DnnHandle handle, int n, void *const *data, void *workspace) {
    enum { MOST = 32 };
    int64_t names[MOST], stored = 0;
    const void *at[MOST];
    Descriptor pack = NULL;
    CHECK(n <= MOST, "cuDNN: %d tensors", n);
    for (int i = 0; i < n; i++) {
        if (!data[i]) continue;
        names[stored] = i + 1;
        at[stored++] = data[i];
    }
    must(cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack), "a pack");
    must(cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64,
                                  stored, names),
         "the names of a pack");
    must(cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
                                  stored, at),
         "the data of a pack");
    must(cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
                                  &workspace),
         "the workspace of a pack");
    must(cudnnBackendFinalize(pack), "a pack");
    must(cudnnBackendExecute(handle, p->plan, pack), "running a plan");
    cudnnBackendDestroyDescriptor(pack);
}

/* ---- as bytes ---------------------------------------------------------------------------------
 */

char *dnn_plan_save(const DnnPlan *p, size_t *bytes) {
    int64_t n = 0, got = 0;
    cudnnBackendAttributeName_t name = CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION;
    if (cudnnBackendGetAttribute(p->plan, name, CUDNN_TYPE_CHAR, 0, &n, NULL) || n <= 0)
        return NULL;
    char *text = xcalloc((size_t)n + 1, 1);
    if (cudnnBackendGetAttribute(p->plan, name, CUDNN_TYPE_CHAR, n, &got, text) || got != n) {
        free(text);
        return NULL;
    }
    *bytes = (size_t)n;
    return text;
}

DnnPlan *dnn_plan_restore(DnnHandle handle, const char *text, size_t bytes) {
    Descriptor d = NULL;
    cudnnStatus_t status =
        cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &d);
    if (!status)
        status = cudnnBackendSetAttribute(d, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1,
                                          &handle);
    if (!status)
        status = cudnnBackendSetAttribute(d, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION,
                                          CUDNN_TYPE_CHAR, (int64_t)bytes, text);
    if (!status) status = cudnnBackendFinalize(d);
    DnnPlan *p = status ? NULL : plan_new(d, -1);
    if (p && p->workspace >= 0) return p;
    if (d) cudnnBackendDestroyDescriptor(d);
    free(p);
    return NULL;
}

size_t dnn_version(void) { return cudnnGetVersion(); }
