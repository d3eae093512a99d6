/* Matrix products by cuBLASLt: the algorithm is chosen once per shape and kept.
 *
 * cuBLASLt's matrices are stored by columns, so what it is asked for is the transposed product,
 * C^T = op(B)^T op(A)^T: a stored row of ours is a stored column of its.
 * Sums are f32 (of f32 factors without TF32), and parts of a split sum stay f32 until they are
 * added, in order: no algorithm is asked for whose bits would change from run to run.
 *
 * Epilogues are the library's where it has them and they are faster. GELU's three forms (both
 * results, or one of them) share one algorithm, so that u and gelu(u) have the same bits in all.
 */
#include "kernels/cuda_stream.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

enum {
    TRIED = 8,      /* algorithms */
    ALIGNMENT = 16, /* the widest access; more is not told, so as not to count */
    BUCKETS = 256
};

/* All that the choice of an algorithm depends on; compared byte by byte, so it has no padding. */
typedef struct {
    int64_t m, n, k, batch, lda, ldb, ldc, stride_a, stride_b, stride_c;
    int64_t stride_vector; /* of the bias or of the sums */
    int32_t type, type_c, a_transposed, b_transposed;
    int32_t epilogue;                                             /* of the widest of its forms */
    int32_t a_alignment, b_alignment, c_alignment, aux_alignment; /* bytes */
    int32_t vector_alignment;                                     /* 0: neither bias nor sums */
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
    int generation; /* the major number of the GPU's compute capability */
} GemmPlans;

static void check(cublasStatus_t status, const char *call) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    cuda_check(cudaGetLastError(), "a matrix product"); /* it often says more */
    Error e;
    error_set(&e, EXIT_WORLD, "cuda: a matrix product failed: cuBLASLt's %s answered %s", call,
              cublasLtGetStatusName(status));
    cuda_fail(&e);
}

/* ---- plans -----------------------------------------------------------------------------------
 */

static int32_t alignment_of(const void *p, int64_t stride, DType t) {
    uintptr_t bits = (uintptr_t)p | (uintptr_t)(stride * (int64_t)dtype_size(t)) | ALIGNMENT;
    return (int32_t)(bits & -bits);
}

static cublasLtEpilogue_t epilogue_of(const Gemm *g) {
    if (g->sums) return CUBLASLT_EPILOGUE_BGRADB; /* B is our A */
    if (g->epilogue == EPILOGUE_GELU_GRAD) return CUBLASLT_EPILOGUE_DGELU;
    if (g->epilogue == EPILOGUE_GELU)
        return g->has_bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    return g->has_bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

static bool has_aux(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_GELU_AUX || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS ||
           e == CUBLASLT_EPILOGUE_DGELU;
}

static GemmKey key_of(const Gemm *g, const void *a, const void *b, const void *bias,
                      const void *c) {
    bool many = g->batch > 1, aux = g->epilogue != EPILOGUE_NONE;
    GemmKey key = {.m = g->m, .n = g->n, .k = g->k, .batch = g->batch};
    key.lda = g->lda;
    key.ldb = g->ldb;
    key.ldc = g->ldc;
    key.stride_a = many ? g->stride_a : 0;
    key.stride_b = many ? g->stride_b : 0;
    key.stride_c = many ? g->stride_c : 0;
    key.type = (int32_t)g->type;
    key.type_c = (int32_t)g->type_c;
    key.a_transposed = g->a_transposed;
    key.b_transposed = g->b_transposed;
    key.epilogue = (int32_t)epilogue_of(g);
    key.a_alignment = alignment_of(a, key.stride_a, g->type);
    key.b_alignment = alignment_of(b, key.stride_b, g->type);
    key.c_alignment = alignment_of(c, key.stride_c, g->type_c);
    if (aux) /* either may take the other's place */
        key.c_alignment = key.aux_alignment =
            MIN(key.c_alignment, alignment_of(g->aux, 0, g->type));
    key.stride_vector = !many ? 0 : g->sums ? g->m : g->has_bias ? g->stride_bias : 0;
    if (g->sums)
        key.vector_alignment = alignment_of(g->sums, key.stride_vector, DT_REAL);
    else if (g->has_bias)
        key.vector_alignment = alignment_of(bias, key.stride_vector, g->type);
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

static void set_pointer(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t name,
                        const void *p) {
    set(desc, name, &p, sizeof p);
}

static void set_epilogue(cublasLtMatmulDesc_t desc, cublasLtEpilogue_t e) {
    set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &e, sizeof e);
}

/* Of the addresses that the library asks for now it sees the alignment only. */
static void describe_epilogue(cublasLtMatmulDesc_t desc, const GemmKey *k) {
    cublasLtEpilogue_t epilogue = (cublasLtEpilogue_t)k->epilogue;
    set_epilogue(desc, epilogue);
    if (k->vector_alignment) {
        cudaDataType_t type =
            data_type(epilogue == CUBLASLT_EPILOGUE_BGRADB ? (int32_t)DT_REAL : k->type);
        set(desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type);
        set_pointer(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                    (const void *)(intptr_t)k->vector_alignment);
        if (k->batch > 1)
            set(desc, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, &k->stride_vector,
                sizeof k->stride_vector);
    }
    if (has_aux(epilogue)) {
        set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &k->n, sizeof k->n);
        set_pointer(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER,
                    (const void *)(intptr_t)k->aux_alignment);
    }
}

static cublasLtMatmulDesc_t desc_of(const GemmKey *k) {
    cublasLtMatmulDesc_t desc;
    cublasOperation_t first = k->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t second = k->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    check(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "MatmulDescCreate");
    set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first);
    set(desc, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second);
    describe_epilogue(desc, k);
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

/* What GELU's widest form is without one of its results. */
static cublasLtEpilogue_t without_aux(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS ? CUBLASLT_EPILOGUE_GELU_BIAS
                                                : CUBLASLT_EPILOGUE_GELU;
}

static cublasLtEpilogue_t without_gelu(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS ? CUBLASLT_EPILOGUE_BIAS
                                                : CUBLASLT_EPILOGUE_DEFAULT;
}

static bool runs(BlasHandle blas, const GemmPlan *p, const cublasLtMatmulAlgo_t *algo,
                 cublasLtEpilogue_t form) {
    cublasLtMatmulHeuristicResult_t result = {.workspaceSize = 0};
    set_epilogue(p->desc, form);
    return cublasLtMatmulAlgoCheck(blas, p->desc, p->b, p->a, p->c, p->c, algo, &result) ==
               CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= GEMM_WORKSPACE;
}

/* Whether an algorithm computes all forms of the plan's epilogue. */
static bool runs_all(BlasHandle blas, const GemmPlan *p, const cublasLtMatmulAlgo_t *algo) {
    cublasLtEpilogue_t e = (cublasLtEpilogue_t)p->key.epilogue;
    if (!has_aux(e) || e == CUBLASLT_EPILOGUE_DGELU) return true;
    bool all = runs(blas, p, algo, without_aux(e)) && runs(blas, p, algo, without_gelu(e));
    set_epilogue(p->desc, e);
    return all;
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
        p->found = results[i].state == CUBLAS_STATUS_SUCCESS &&
                   results[i].workspaceSize <= GEMM_WORKSPACE &&
                   runs_all(blas, p, &results[i].algo);
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

static GemmPlans *plans_of(Stream *s) {
    if (s->gemms.plans) return s->gemms.plans;
    GemmPlans *all = xcalloc(1, sizeof *all);
    int device = 0;
    cuda_check(cudaGetDevice(&device), "asking which GPU is used");
    cuda_check(cudaDeviceGetAttribute(&all->generation, cudaDevAttrComputeCapabilityMajor, device),
               "asking for a GPU's compute capability");
    s->gemms = (PlanCache){.plans = all, .close = plans_close};
    return all;
}

/* Whether to ask for an epilogue of the library's at all. Its GELU is an approximation that f32
 * would show, wants rows of 8 elements, and is a kernel of its own, slower than ours, but on
 * compute capability 9 and 10 (measured for llm.c and SGLang). */
static bool wants_library(Stream *s, const Gemm *g) {
    if (!g->epilogue) return true;
    int generation = plans_of(s)->generation;
    return g->type != DT_F32 && g->n % 8 == 0 && (generation == 9 || generation == 10);
}

static GemmPlan *plan_for(Stream *s, const GemmKey *key) {
    GemmPlans *all = plans_of(s);
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

/* The addresses of this product, and which of GELU's results are wanted; answers where the first
 * of them goes. */
static void *aim(const GemmPlan *p, const Gemm *g, const void *bias, void *c) {
    cublasLtEpilogue_t e = (cublasLtEpilogue_t)p->key.epilogue;
    if (p->key.vector_alignment)
        set_pointer(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g->sums ? g->sums : bias);
    if (!has_aux(e)) return c;
    set_pointer(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, g->aux);
    if (g->epilogue == EPILOGUE_GELU)
        set_epilogue(p->desc, !c ? without_gelu(e) : g->aux ? e : without_aux(e));
    return c ? c : g->aux;
}

/* false: the library does not run what it chose. */
static bool run(Stream *s, GemmPlan *p, const Gemm *g, const void *a, const void *b,
                const void *bias, void *c) {
    const float alpha = (float)g->alpha, beta = (float)g->beta;
    CHECK(s->workspace_bytes >= GEMM_WORKSPACE, "gemm: needs %d bytes of workspace, has %zu",
          GEMM_WORKSPACE, s->workspace_bytes);
    void *to = aim(p, g, bias, c);
    cublasStatus_t status =
        cublasLtMatmul(cuda_blas(s), p->desc, &alpha, b, p->b, a, p->a, &beta, to, p->c, to, p->c,
                       &p->algo, s->workspace, GEMM_WORKSPACE, cuda_queue(s));
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) return false;
    check(status, "Matmul");
    return true;
}

/* Member i of a batch. */
static const void *member(const void *p, int64_t i, int64_t stride, DType t) {
    return p ? (const char *)p + i * stride * (int64_t)dtype_size(t) : NULL;
}

static void multiply(Stream *s, const Gemm *g, const void *a, const void *b, const void *bias,
                     void *c);

static void multiply_members(Stream *s, const Gemm *g, const void *a, const void *b,
                             const void *bias, void *c) {
    Gemm one = *g;
    one.batch = 1;
    for (int64_t i = 0; i < g->batch; i++) {
        if (g->sums) one.sums = g->sums + i * g->m;
        multiply(s, &one, member(a, i, g->stride_a, g->type), member(b, i, g->stride_b, g->type),
                 member(bias, i, g->stride_bias, g->type),
                 (void *)member(c, i, g->stride_c, g->type_c));
    }
}

/* One product, and what comes with it by our own kernels. */
static void multiply_apart(Stream *s, const Gemm *g, const void *a, const void *b, const void *bias,
                           void *c) {
    Gemm plain = *g;
    plain.epilogue = EPILOGUE_NONE;
    plain.sums = NULL;
    void *u = g->epilogue == EPILOGUE_GELU && g->aux ? g->aux : c;
    multiply(s, &plain, a, b, bias, u);
    if (g->epilogue == EPILOGUE_GELU && c) cuda_gelu(s, g->type, g->m * g->n, u, c);
    if (g->epilogue == EPILOGUE_GELU_GRAD) cuda_gelu_grad(s, g->type, g->m * g->n, g->aux, c, 0, c);
    if (g->sums) cuda_column_sum(s, g->type, g->k, g->m, g->lda, a, g->keep_sums, g->sums);
}

/* The library assigns sums, of C's type, and does not say whether it scales them. */
static bool sums_fit(const Gemm *g) {
    return !g->sums || (g->type_c == DT_REAL && g->keep_sums == 0 && g->alpha == 1);
}

/* Where the library has no algorithm for a batch its members are multiplied one by one, where it
 * has none with an epilogue that is done apart, and where it has none with a bias C starts as that,
 * which rounds the same. */
static void multiply(Stream *s, const Gemm *g, const void *a, const void *b, const void *bias,
                     void *c) {
    GemmKey key = key_of(g, a, b, bias, c);
    GemmPlan *p = g->k && sums_fit(g) && wants_library(s, g) ? plan_for(s, &key) : NULL;
    Gemm simpler = *g;
    if (p && p->found) p->found = run(s, p, g, a, b, bias, c);
    if (p && p->found) return;
    if (g->batch > 1) {
        multiply_members(s, g, a, b, bias, c);
    } else if (g->epilogue || g->sums) {
        multiply_apart(s, g, a, b, bias, c);
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
    gemm_check(g);
    CHECK(!g->has_bias || g->type_c == g->type, "gemm: a bias is of C's type");
    if (g->m && g->n)
        multiply(s, g, a, b, bias, c);
    else
        for (int64_t i = 0; g->sums && i < g->batch; i++)
            cuda_column_sum(s, g->type, g->k, g->m, g->lda, member(a, i, g->stride_a, g->type),
                            g->keep_sums, g->sums + i * g->m);
}
