/* cuBLASLt, called plainly: whatever workspace it likes, any way of splitting sums. */
#include "tests/kernels/bare_gemm.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>

enum { WORKSPACE = 256 << 20, OFFERED = 16 };

typedef struct {
    cublasLtHandle_t handle;
    cudaStream_t stream;
    void *workspace;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c;
    float alpha, beta;
    const void *at_a, *at_b;
    void *at_c;
} Bare;

static void check(int status, const char *doing) {
    CHECK(!status, "bare product: %s: status %d", doing, status);
}

static cudaDataType_t data_type(DType t) {
    return t == DT_F32 ? CUDA_R_32F : t == DT_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

/* A stored row of ours is a stored column of the library's. */
static cublasLtMatrixLayout_t layout(const Gemm *g, DType t, int64_t rows, int64_t cols, int64_t ld,
                                     int64_t stride) {
    cublasLtMatrixLayout_t l;
    int32_t batch = (int32_t)g->batch;
    check(cublasLtMatrixLayoutCreate(&l, data_type(t), (uint64_t)cols, (uint64_t)rows, ld),
          "layout");
    check(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                                           sizeof batch),
          "batch");
    check(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                           sizeof stride),
          "stride");
    return l;
}

static void set(const Bare *p, cublasLtMatmulDescAttributes_t name, const void *value,
                size_t bytes) {
    check(cublasLtMatmulDescSetAttribute(p->desc, name, value, bytes), "what is fused");
}

static cublasLtEpilogue_t epilogue_of(const Gemm *g) {
    if (g->sums) return CUBLASLT_EPILOGUE_BGRADB;
    if (g->epilogue == EPILOGUE_GELU_GRAD) return CUBLASLT_EPILOGUE_DGELU;
    if (g->epilogue == EPILOGUE_GELU)
        return g->has_bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    return g->has_bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

static void fuse(const Bare *p, const Gemm *g, const void *bias) {
    const void *vector = g->sums ? g->sums : bias;
    cudaDataType_t type = data_type(g->sums ? DT_F32 : g->type);
    cublasLtEpilogue_t epilogue = epilogue_of(g);
    set(p, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (vector) {
        set(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &vector, sizeof vector);
        set(p, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type);
    }
    if (vector && g->batch > 1)
        set(p, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, &g->stride_bias, sizeof g->stride_bias);
    if (!g->aux) return;
    set(p, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &g->aux, sizeof g->aux);
    set(p, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &g->n, sizeof g->n);
}

static Bare bare_open(const Gemm *g, const void *a, const void *b, void *c) {
    Bare p = {.alpha = (float)g->alpha, .beta = (float)g->beta, .at_a = a, .at_b = b, .at_c = c};
    cublasOperation_t first = g->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t second = g->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    check(cublasLtCreate(&p.handle), "handle");
    check(cudaStreamCreateWithFlags(&p.stream, cudaStreamNonBlocking), "stream");
    check(cudaMalloc(&p.workspace, WORKSPACE), "workspace");
    check(cublasLtMatmulDescCreate(&p.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "product");
    check(cublasLtMatmulDescSetAttribute(p.desc, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first),
          "first factor");
    check(
        cublasLtMatmulDescSetAttribute(p.desc, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second),
        "second factor");
    p.a = layout(g, g->type, g->a_transposed ? g->k : g->m, g->a_transposed ? g->m : g->k, g->lda,
                 g->stride_a);
    p.b = layout(g, g->type, g->b_transposed ? g->n : g->k, g->b_transposed ? g->k : g->n, g->ldb,
                 g->stride_b);
    p.c = layout(g, g->type_c, g->m, g->n, g->ldc, g->stride_c);
    return p;
}

static void bare_close(Bare *p) {
    cublasLtMatmulDescDestroy(p->desc);
    cublasLtMatrixLayoutDestroy(p->a);
    cublasLtMatrixLayoutDestroy(p->b);
    cublasLtMatrixLayoutDestroy(p->c);
    cublasLtDestroy(p->handle);
    cudaFree(p->workspace);
    cudaStreamDestroy(p->stream);
}

static int offers(const Bare *p, cublasLtMatmulHeuristicResult_t *found) {
    cublasLtMatmulPreference_t preference;
    const uint64_t bytes = WORKSPACE;
    int n = 0;
    check(cublasLtMatmulPreferenceCreate(&preference), "preference");
    check(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                               &bytes, sizeof bytes),
          "workspace");
    if (cublasLtMatmulAlgoGetHeuristic(p->handle, p->desc, p->b, p->a, p->c, p->c, preference,
                                       OFFERED, found, &n) != CUBLAS_STATUS_SUCCESS)
        n = 0;
    cublasLtMatmulPreferenceDestroy(preference);
    return n;
}

/* Seconds of one of `calls` calls; 0: the algorithm does not run. */
static double timed(const Bare *p, const cublasLtMatmulAlgo_t *algo, int calls) {
    double start = now_seconds();
    for (int i = 0; i < calls; i++)
        if (cublasLtMatmul(p->handle, p->desc, &p->alpha, p->at_b, p->b, p->at_a, p->a, &p->beta,
                           p->at_c, p->c, p->at_c, p->c, algo, p->workspace, WORKSPACE, p->stream))
            return 0;
    check(cudaStreamSynchronize(p->stream), "the products");
    return (now_seconds() - start) / calls;
}

double bare_gemm(const Gemm *g, const void *a, const void *b, const void *bias, void *c, int repeat,
                 int calls) {
    const cublasLtEpilogue_t none = CUBLASLT_EPILOGUE_DEFAULT;
    cublasLtMatmulHeuristicResult_t found[OFFERED];
    Bare p = bare_open(g, a, b, c);
    double best = 0;
    fuse(&p, g, bias);
    int n = offers(&p, found);
    if (!n) {
        set(&p, CUBLASLT_MATMUL_DESC_EPILOGUE, &none, sizeof none);
        n = offers(&p, found);
    }
    for (int i = 0; i < n; i++) {
        if (found[i].state != CUBLAS_STATUS_SUCCESS) continue;
        double first = timed(&p, &found[i].algo, 1); /* loads the kernel */
        for (int j = 0; first > 0 && j < repeat; j++) {
            double seconds = timed(&p, &found[i].algo, calls);
            if (seconds > 0 && (best == 0 || seconds < best)) best = seconds;
        }
    }
    bare_close(&p);
    return best;
}
