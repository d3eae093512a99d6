/* Matrix products by cuBLASLt: the algorithm is chosen once per shape and kept.
 *
 * cuBLASLt's matrices are stored by columns, so what it is asked for is the transposed product,
 * C^T = op(B)^T op(A)^T: a stored row of ours is a stored column of its.
 * Sums are f32 (of f32 factors without TF32), and parts of a split sum stay f32 until they are
 * added, in order: no algorithm is asked for whose bits would change from run to run.
 */
#include "kernels/cuda_stream.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

enum {
    TRIED = 4,      /* algorithms */
    ALIGNMENT = 16, /* the widest access; more is not told, so as not to count */
    BUCKETS = 256
};

/* All that the choice of an algorithm depends on; compared byte by byte, so it has no padding. */
typedef struct {
    int64_t m, n, k, batch, lda, ldb, ldc, stride_a, stride_b, stride_c, stride_bias;
    int32_t type, type_c, a_transposed, b_transposed, has_bias;
    int32_t a_alignment, b_alignment, c_alignment; /* bytes */
} GemmKey;

typedef struct GemmPlan GemmPlan;
struct GemmPlan {
    GemmKey key;
    bool found; /* false: the library has no algorithm */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c; /* ours */
    cublasLtMatmulAlgo_t algo;
    GemmPlan *next;
};

typedef struct {
    GemmPlan *buckets[BUCKETS];
} GemmPlans;

static void check(cublasStatus_t status, const char *call) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    cuda_check(cudaGetLastError(), "a matrix product"); /* it often says more */
    Error e;
    error_set(&e, EXIT_WORLD, "cuda: a matrix product failed: cuBLASLt's %s answered %s", call,
              cublasLtGetStatusName(status));
    die_error(&e);
}

/* ---- plans -----------------------------------------------------------------------------------
 */

static int32_t alignment_of(const void *p, int64_t stride, DType t) {
    uintptr_t bits = (uintptr_t)p | (uintptr_t)(stride * (int64_t)dtype_size(t)) | ALIGNMENT;
    return (int32_t)(bits & -bits);
}

/* A bias is read as C is written, so it counts in C's alignment. */
static GemmKey key_of(const Gemm *g, const void *a, const void *b, const void *bias,
                      const void *c) {
    bool many = g->batch > 1;
    int64_t stride_bias = many && g->has_bias ? g->stride_bias : 0;
    GemmKey key = {.m = g->m, .n = g->n, .k = g->k, .batch = g->batch};
    key.lda = g->lda;
    key.ldb = g->ldb;
    key.ldc = g->ldc;
    key.stride_a = many ? g->stride_a : 0;
    key.stride_b = many ? g->stride_b : 0;
    key.stride_c = many ? g->stride_c : 0;
    key.stride_bias = stride_bias;
    key.type = (int32_t)g->type;
    key.type_c = (int32_t)g->type_c;
    key.a_transposed = g->a_transposed;
    key.b_transposed = g->b_transposed;
    key.has_bias = g->has_bias;
    key.a_alignment = alignment_of(a, key.stride_a, g->type);
    key.b_alignment = alignment_of(b, key.stride_b, g->type);
    key.c_alignment = alignment_of(c, key.stride_c, g->type_c);
    if (g->has_bias)
        key.c_alignment = MIN(key.c_alignment, alignment_of(bias, stride_bias, g->type));
    return key;
}

static cudaDataType_t data_type(int32_t t) {
    CHECK(t == DT_F32 || t == DT_BF16 || t == DT_F16, "gemm: no products of %s",
          dtype_name((DType)t));
    return t == DT_F32 ? CUDA_R_32F : t == DT_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

static cublasLtMatrixLayout_t layout_of(const GemmKey *k, int32_t type, int64_t rows, int64_t cols,
                                        int64_t ld, int64_t stride) {
    cublasLtMatrixLayout_t l;
    int32_t batch = (int32_t)k->batch;
    check(cublasLtMatrixLayoutCreate(&l, data_type(type), (uint64_t)cols, (uint64_t)rows, ld),
          "MatrixLayoutCreate");
    check(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                                           sizeof batch),
          "BATCH_COUNT");
    check(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                           sizeof stride),
          "STRIDED_BATCH_OFFSET");
    return l;
}

static void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t name, const void *value,
                size_t bytes) {
    check(cublasLtMatmulDescSetAttribute(desc, name, value, bytes), "MatmulDescSetAttribute");
}

static cublasLtMatmulDesc_t desc_of(const GemmKey *k) {
    cublasLtMatmulDesc_t desc;
    cublasOperation_t first = k->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t second = k->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    cudaDataType_t type = data_type(k->type);
    check(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "MatmulDescCreate");
    set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first);
    set(desc, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second);
    if (!k->has_bias) return desc;
    set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    set(desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type);
    if (k->batch > 1)
        set(desc, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, &k->stride_bias, sizeof k->stride_bias);
    return desc;
}

static void prefer(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t name,
                   uint32_t value) {
    check(cublasLtMatmulPreferenceSetAttribute(p, name, &value, sizeof value),
          "MatmulPreferenceSetAttribute");
}

static cublasLtMatmulPreference_t preference_of(const GemmKey *k) {
    cublasLtMatmulPreference_t p;
    const uint64_t bytes = GEMM_WORKSPACE;
    check(cublasLtMatmulPreferenceCreate(&p), "MatmulPreferenceCreate");
    check(cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                               sizeof bytes),
          "MAX_WORKSPACE_BYTES");
    prefer(p, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
    prefer(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)k->b_alignment);
    prefer(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)k->a_alignment);
    prefer(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)k->c_alignment);
    prefer(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)k->c_alignment);
    return p;
}

/* The heuristic's first choice that fits the workspace. */
static void choose(BlasHandle blas, GemmPlan *p) {
    cublasLtMatmulHeuristicResult_t results[TRIED];
    int count = 0;
    cublasLtMatmulPreference_t preference = preference_of(&p->key);
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(blas, p->desc, p->b, p->a, p->c, p->c,
                                                           preference, TRIED, results, &count);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE)
        check(status, "MatmulAlgoGetHeuristic");
    cublasLtMatmulPreferenceDestroy(preference);
    for (int i = 0; i < count && !p->found; i++) {
        p->found =
            results[i].state == CUBLAS_STATUS_SUCCESS && results[i].workspaceSize <= GEMM_WORKSPACE;
        if (p->found) p->algo = results[i].algo;
    }
}

static void plans_close(void *plans) {
    GemmPlans *all = plans;
    for (int i = 0; i < BUCKETS; i++)
        for (GemmPlan *p = all->buckets[i], *next; p; p = next) {
            next = p->next;
            cublasLtMatmulDescDestroy(p->desc);
            cublasLtMatrixLayoutDestroy(p->a);
            cublasLtMatrixLayoutDestroy(p->b);
            cublasLtMatrixLayoutDestroy(p->c);
            free(p);
        }
    free(all);
}

static GemmPlan *plan_new(Stream *s, const GemmKey *k) {
    GemmPlan *p = xcalloc(1, sizeof *p);
    p->key = *k;
    p->desc = desc_of(k);
    p->a = layout_of(k, k->type, k->a_transposed ? k->k : k->m, k->a_transposed ? k->m : k->k,
                     k->lda, k->stride_a);
    p->b = layout_of(k, k->type, k->b_transposed ? k->n : k->k, k->b_transposed ? k->k : k->n,
                     k->ldb, k->stride_b);
    p->c = layout_of(k, k->type_c, k->m, k->n, k->ldc, k->stride_c);
    choose(cuda_blas(s), p);
    return p;
}

static GemmPlan *plan_for(Stream *s, const GemmKey *key) {
    if (!s->gemms.plans)
        s->gemms = (PlanCache){.plans = xcalloc(1, sizeof(GemmPlans)), .close = plans_close};
    GemmPlans *all = s->gemms.plans;
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < sizeof *key; i++)
        hash = (hash ^ ((const unsigned char *)key)[i]) * 1099511628211u;
    GemmPlan **bucket = &all->buckets[hash % BUCKETS];
    for (GemmPlan *p = *bucket; p; p = p->next)
        if (!memcmp(&p->key, key, sizeof *key)) return p;
    GemmPlan *p = plan_new(s, key);
    p->next = *bucket;
    return *bucket = p;
}

/* ---- products --------------------------------------------------------------------------------
 */

/* Every row of C becomes `row`, by copies of 1, 2, 4 ... rows; NULL: zeros. */
static void fill(Stream *s, const Gemm *g, const void *row, void *c) {
    size_t width = (size_t)g->n * dtype_size(g->type_c);
    size_t pitch = (size_t)g->ldc * dtype_size(g->type_c);
    CudaStream queue = cuda_queue(s);
    if (!row) {
        cuda_check(cudaMemset2DAsync(c, pitch, 0, width, (size_t)g->m, queue), "zeroing a matrix");
        return;
    }
    cuda_check(cudaMemcpyAsync(c, row, width, cudaMemcpyDeviceToDevice, queue), "copying a row");
    for (int64_t done = 1; done < g->m; done *= 2)
        cuda_check(cudaMemcpy2DAsync((char *)c + (size_t)done * pitch, pitch, c, pitch, width,
                                     (size_t)MIN(done, g->m - done), cudaMemcpyDeviceToDevice,
                                     queue),
                   "copying rows");
}

static void run(Stream *s, GemmPlan *p, const Gemm *g, const void *a, const void *b,
                const void *bias, void *c) {
    const float alpha = (float)g->alpha, beta = (float)g->beta;
    CHECK(s->workspace_bytes >= GEMM_WORKSPACE, "gemm: needs %d bytes of workspace, has %zu",
          GEMM_WORKSPACE, s->workspace_bytes);
    if (g->has_bias) set(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
    check(cublasLtMatmul(cuda_blas(s), p->desc, &alpha, b, p->b, a, p->a, &beta, c, p->c, c, p->c,
                         &p->algo, s->workspace, GEMM_WORKSPACE, cuda_queue(s)),
          "Matmul");
}

/* Member i of a batch. */
static const void *member(const void *p, int64_t i, int64_t stride, DType t) {
    return p ? (const char *)p + i * stride * (int64_t)dtype_size(t) : NULL;
}

/* Where the library has no algorithm for a batch its members are multiplied one by one, and where
 * it has none with a bias C starts as that, which rounds the same. */
static void multiply(Stream *s, const Gemm *g, const void *a, const void *b, const void *bias,
                     void *c) {
    GemmKey key = key_of(g, a, b, bias, c);
    GemmPlan *p = g->k ? plan_for(s, &key) : NULL;
    Gemm simpler = *g;
    if (p && p->found) {
        run(s, p, g, a, b, bias, c);
    } else if (g->batch > 1) {
        simpler.batch = 1;
        for (int64_t i = 0; i < g->batch; i++)
            multiply(s, &simpler, member(a, i, g->stride_a, g->type),
                     member(b, i, g->stride_b, g->type), member(bias, i, g->stride_bias, g->type),
                     (void *)member(c, i, g->stride_c, g->type_c));
    } else if (!p && g->beta != 0) {
        return; /* an empty sum adds nothing */
    } else if (!p || g->has_bias) {
        fill(s, g, g->has_bias ? bias : NULL, c);
        simpler.has_bias = false;
        simpler.beta = 1;
        if (p) multiply(s, &simpler, a, b, NULL, c);
    } else {
        CHECK(false, "gemm: cuBLASLt has no algorithm for [%lld,%lld] = [.,%lld] of %s",
              (long long)g->m, (long long)g->n, (long long)g->k, dtype_name(g->type));
    }
}

void cuda_gemm(Stream *s, const Gemm *g, const void *a, const void *b, const void *bias, void *c) {
    CHECK(g->batch >= 1 && g->batch <= INT32_MAX, "gemm: a batch of %lld", (long long)g->batch);
    CHECK(!g->has_bias || g->beta == 0, "gemm: a bias comes with beta 0");
    CHECK(!g->has_bias || g->type_c == g->type, "gemm: a bias is of C's type");
    if (!g->m || !g->n) return;
    multiply(s, g, a, b, bias, c);
}
