/* kernels/gemm_cuda.c without a GPU: every product's layout, strides, types and alignments, against
 * a cuBLASLt of plain loops over matrices stored by columns, which also refuses what the real one
 * may refuse. */
#include "kernels/cuda_stream.h"
#include "tests/kernels/device_cases.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- the library -----------------------------------------------------------------------------
 */

typedef struct {
    cudaDataType type;
    int64_t rows, cols, ld, stride;
    int32_t batch;
} Layout;

typedef struct {
    cublasOperation_t op[2];
    cublasLtEpilogue_t epilogue;
    void *bias; /* or where a bias's gradient goes */
    cudaDataType bias_type;
    int64_t bias_stride, aux_ld;
    void *aux;
} Desc;

/* What was promised when the library chose, which is in the algorithm that it answers. */
typedef struct {
    uint64_t workspace;
    uint32_t scheme, alignments[4]; /* of A, B, C, D */
    uint32_t bias, aux;             /* alignments */
} Preference;

/* What the library cannot do today, which GPU it is on, and what it was asked for. */
static struct {
    bool no_batch, no_bias, no_gelu, no_sums, no_form; /* no_form: of GELU without aux */
    bool late;                                         /* it finds out when it is to do it */
    int generation;
    int heuristics, products, gelus, sums;
} library;

static size_t size_of(cudaDataType t) { return t == CUDA_R_32F ? 4 : 2; }

static DType type_of(cudaDataType t) {
    return t == CUDA_R_32F ? DT_F32 : t == CUDA_R_16BF ? DT_BF16 : DT_F16;
}

const char *cublasLtGetStatusName(cublasStatus_t status) { return status ? "error" : "success"; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
    assert_int_equal(compute, CUBLAS_COMPUTE_32F);
    assert_int_equal(scale, CUDA_R_32F);
    *d = xcalloc(1, sizeof(Desc));
    ((Desc *)*d)->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
    free(d);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                              cublasLtMatmulDescAttributes_t name,
                                              const void *value, size_t bytes) {
    Desc *desc = (Desc *)d;
    void *to = name == CUBLASLT_MATMUL_DESC_TRANSA                 ? (void *)&desc->op[0]
               : name == CUBLASLT_MATMUL_DESC_TRANSB               ? (void *)&desc->op[1]
               : name == CUBLASLT_MATMUL_DESC_EPILOGUE             ? (void *)&desc->epilogue
               : name == CUBLASLT_MATMUL_DESC_BIAS_POINTER         ? (void *)&desc->bias
               : name == CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE       ? (void *)&desc->bias_type
               : name == CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE    ? (void *)&desc->bias_stride
               : name == CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER ? (void *)&desc->aux
               : name == CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD      ? (void *)&desc->aux_ld
                                                                   : NULL;
    assert_non_null(to);
    memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
    Layout *layout = xcalloc(1, sizeof *layout);
    *layout = (Layout){type, (int64_t)rows, (int64_t)cols, ld, 0, 1};
    assert_true(ld >= (int64_t)rows);
    *l = (cublasLtMatrixLayout_t)layout;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    free(l);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l,
                                                cublasLtMatrixLayoutAttribute_t name,
                                                const void *value, size_t bytes) {
    Layout *layout = (Layout *)l;
    bool count = name == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT;
    assert_true(count || name == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET);
    memcpy(count ? (void *)&layout->batch : (void *)&layout->stride, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    *p = xcalloc(1, sizeof(Preference));
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    free(p);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t name,
                                                    const void *value, size_t bytes) {
    Preference *preference = (Preference *)p;
    int operand = (int)name - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
    void *to = name == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES     ? (void *)&preference->workspace
               : name == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK ? (void *)&preference->scheme
               : operand >= 0 && operand < 4 ? (void *)&preference->alignments[operand]
                                             : NULL;
    assert_non_null(to);
    memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

static bool has_vector(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_BIAS || e == CUBLASLT_EPILOGUE_GELU_BIAS ||
           e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS || e == CUBLASLT_EPILOGUE_BGRADB;
}

static bool has_aux(cublasLtEpilogue_t e) { return e & 128; }
static bool is_gelu(cublasLtEpilogue_t e) { return e & 32; }

/* The widest power of two up to 16 that an address is a multiple of; NULL is no address to ask
 * with. */
static uint32_t alignment_of(const void *p) {
    uintptr_t bits = (uintptr_t)p | 16;
    assert_non_null(p);
    return (uint32_t)(bits & -bits);
}

static bool refused(const Desc *d, const Layout *to) {
    cublasLtEpilogue_t e = d->epilogue;
    return (library.no_batch && to->batch > 1) ||
           (library.no_bias && e == CUBLASLT_EPILOGUE_BIAS) ||
           (library.no_gelu && (is_gelu(e) || e == CUBLASLT_EPILOGUE_DGELU)) ||
           (library.no_sums && e == CUBLASLT_EPILOGUE_BGRADB) ||
           (library.no_form && (e == CUBLASLT_EPILOGUE_GELU || e == CUBLASLT_EPILOGUE_GELU_BIAS));
}

static void check_epilogue(const Desc *d, const Layout *to) {
    if (has_aux(d->epilogue)) {
        assert_true(d->aux_ld >= to->rows && d->aux_ld % 8 == 0 && to->batch == 1);
        assert_true(to->type != CUDA_R_32F && library.generation == 9);
    }
    if (d->epilogue == CUBLASLT_EPILOGUE_BGRADB)
        assert_true(d->bias_type == CUDA_R_32F && to->type == CUDA_R_32F);
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t d,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t to,
                                       const cublasLtMatmulAlgo_t *algo,
                                       cublasLtMatmulHeuristicResult_t *result) {
    (void)handle, (void)a, (void)b, (void)c, (void)algo, (void)result;
    bool known = refused((const Desc *)d, (const Layout *)to) && !library.late;
    return known ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t d,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t to,
                                              cublasLtMatmulPreference_t p, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int *got) {
    const Layout *layout = (const Layout *)c;
    const Desc *desc = (const Desc *)d;
    Preference promised = *(Preference *)p;
    (void)handle, (void)a, (void)b, (void)to;
    library.heuristics++;
    *got = 0;
    if (refused(desc, layout) && !library.late) /* or an answer without an algorithm */
        return layout->batch > 1 ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
    check_epilogue(desc, layout);
    if (has_vector(desc->epilogue)) promised.bias = alignment_of(desc->bias);
    if (has_aux(desc->epilogue)) promised.aux = alignment_of(desc->aux);
    assert_true(wanted >= 2 && sizeof(Preference) <= sizeof results[1].algo);
    memset(results, 0, 2 * sizeof *results);
    results[0].state = CUBLAS_STATUS_INVALID_VALUE; /* must be passed over */
    memcpy(&results[1].algo, &promised, sizeof promised);
    *got = 2;
    return CUBLAS_STATUS_SUCCESS;
}

/* The elements of a matrix as floats, with its leading dimension; to be freed. */
static float *widened(const void *p, const Layout *l) {
    int64_t n = (l->cols - 1) * l->ld + l->rows;
    float *x = xcalloc((size_t)n, sizeof *x);
    BACKEND_CPU.cast(NULL, type_of(l->type), DT_F32, n, p, x);
    return x;
}

/* Element (row, col) of op(matrix). */
static float element(const float *x, const Layout *l, cublasOperation_t op, int64_t row,
                     int64_t col) {
    return x[op == CUBLAS_OP_T ? col + row * l->ld : row + col * l->ld];
}

static void check_alignment(const void *p, const Layout *l, uint32_t promised) {
    size_t stride = (size_t)l->stride * size_of(l->type);
    assert_true(promised >= size_of(l->type) && promised <= 16);
    assert_int_equal((uintptr_t)p % promised, 0);
    assert_int_equal(stride % promised, 0);
}

static const void *moved(const void *p, int64_t elements, cudaDataType t) {
    return (const char *)p + elements * (int64_t)size_of(t);
}

/* What the epilogue makes of one column of u, a matrix like C^T. */
static void finish_column(const Desc *d, const Layout *lc, int64_t col, float *u) {
    DType t = type_of(lc->type);
    void *aux = has_aux(d->epilogue) ? (void *)moved(d->aux, col * d->aux_ld, lc->type) : NULL;
    if (is_gelu(d->epilogue)) {
        if (aux) BACKEND_CPU.cast(NULL, DT_F32, t, lc->rows, u, aux);
        BACKEND_CPU.gelu(NULL, DT_F32, lc->rows, u, u);
        library.gelus++;
    } else if (d->epilogue == CUBLASLT_EPILOGUE_DGELU) {
        float *x = xcalloc((size_t)lc->rows, sizeof *x);
        BACKEND_CPU.cast(NULL, t, DT_F32, lc->rows, aux, x);
        BACKEND_CPU.gelu_grad(NULL, DT_F32, lc->rows, x, u, 0, u);
        library.gelus++;
        free(x);
    }
}

/* The sums over k of op(B), a matrix [k, columns of C^T]. */
static void sum_columns(const Desc *d, const Layout *lb, const float *b, const Layout *lc,
                        float *sums) {
    int64_t depth = d->op[1] == CUBLAS_OP_T ? lb->cols : lb->rows;
    for (int64_t col = 0; col < lc->cols; col++) {
        sums[col] = 0;
        for (int64_t p = 0; p < depth; p++) sums[col] += element(b, lb, d->op[1], p, col);
    }
    library.sums++;
}

static void multiply_member(const Desc *d, float alpha, const void *a, const Layout *la,
                            const void *b, const Layout *lb, float beta, void *c, const Layout *lc,
                            void *vector) {
    const void *bias = d->epilogue == CUBLASLT_EPILOGUE_BGRADB ? NULL : vector;
    int64_t depth = d->op[0] == CUBLAS_OP_T ? la->rows : la->cols;
    assert_int_equal(depth, d->op[1] == CUBLAS_OP_T ? lb->cols : lb->rows);
    assert_int_equal(lc->rows, d->op[0] == CUBLAS_OP_T ? la->cols : la->rows);
    assert_int_equal(lc->cols, d->op[1] == CUBLAS_OP_T ? lb->rows : lb->cols);
    Layout row_of_c = {.type = d->bias_type, .rows = lc->rows, .cols = 1};
    float *wide_a = widened(a, la), *wide_b = widened(b, lb), *wide_c = widened(c, lc);
    float *wide_bias = bias ? widened(bias, &row_of_c) : NULL;
    for (int64_t col = 0; col < lc->cols; col++) {
        for (int64_t row = 0; row < lc->rows; row++) {
            float sum = 0, *to = &wide_c[row + col * lc->ld];
            for (int64_t p = 0; p < depth; p++)
                sum +=
                    element(wide_a, la, d->op[0], row, p) * element(wide_b, lb, d->op[1], p, col);
            *to = alpha * sum + (beta != 0 ? beta * *to : 0) + (bias ? wide_bias[row] : 0);
        }
        finish_column(d, lc, col, &wide_c[col * lc->ld]);
        BACKEND_CPU.cast(NULL, DT_F32, type_of(lc->type), lc->rows, &wide_c[col * lc->ld],
                         (void *)moved(c, col * lc->ld, lc->type));
    }
    if (vector && !bias) sum_columns(d, lb, wide_b, lc, vector);
    free(wide_a);
    free(wide_b);
    free(wide_c);
    free(wide_bias);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *to,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t bytes, cudaStream_t queue) {
    const Layout *la = (const Layout *)a_layout, *lb = (const Layout *)b_layout,
                 *lc = (const Layout *)c_layout;
    const Desc *d = (const Desc *)desc;
    Preference promised;
    memcpy(&promised, algo, sizeof promised);
    (void)handle, (void)queue;
    library.products++;
    assert_true(workspace && bytes >= promised.workspace && c == to && c_layout == d_layout);
    assert_int_equal(promised.scheme & (uint32_t) ~(CUBLASLT_REDUCTION_SCHEME_NONE |
                                                    CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE),
                     0);
    assert_true(la->type == lb->type && (lc->type == la->type || lc->type == CUDA_R_32F));
    check_alignment(a, la, promised.alignments[0]);
    check_alignment(b, lb, promised.alignments[1]);
    check_alignment(c, lc, promised.alignments[2]);
    check_alignment(c, lc, promised.alignments[3]);
    char *vector = has_vector(d->epilogue) ? d->bias : NULL;
    if (vector) assert_int_equal((uintptr_t)vector % promised.bias, 0);
    if (has_aux(d->epilogue)) assert_int_equal((uintptr_t)d->aux % promised.aux, 0);
    check_epilogue(d, lc);
    assert_true(library.late || !refused(d, lc));
    if (refused(d, lc)) return CUBLAS_STATUS_NOT_SUPPORTED;
    for (int64_t i = 0; i < lc->batch; i++)
        multiply_member(d, *(const float *)alpha, moved(a, i * la->stride, la->type), la,
                        moved(b, i * lb->stride, lb->type), lb, *(const float *)beta,
                        (void *)moved(c, i * lc->stride, lc->type), lc,
                        vector ? (void *)moved(vector, i * d->bias_stride, d->bias_type) : NULL);
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- the device ------------------------------------------------------------------------------
 */

cudaError_t cudaGetLastError(void) { return cudaSuccess; }

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t queue) {
    (void)kind, (void)queue;
    memmove(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t queue) {
    (void)kind, (void)queue;
    for (size_t i = 0; i < height; i++)
        memcpy((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
    return cudaSuccess;
}

cudaError_t cudaMemset2DAsync(void *p, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t queue) {
    (void)queue;
    for (size_t i = 0; i < height; i++) memset((char *)p + i * pitch, value, width);
    return cudaSuccess;
}

void cuda_check(int status, const char *doing) {
    if (status) fail_msg("%s: %d", doing, status);
}

void cuda_fail(const Error *e) { fail_msg("%s", e->text); }

cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr name, int device) {
    assert_int_equal(name, cudaDevAttrComputeCapabilityMajor);
    assert_int_equal(device, 0);
    *value = library.generation;
    return cudaSuccess;
}

CudaStream cuda_queue(Stream *s) { return s->queue; }
BlasHandle cuda_blas(Stream *s) { return s->blas; }

/* ---- our own kernels, by the CPU's ------------------------------------------------------------
 */

static float *floats_of(DType t, int64_t n, const void *p) {
    float *x = xcalloc((size_t)MAX(n, 1), sizeof *x);
    BACKEND_CPU.cast(NULL, t, DT_F32, n, p, x);
    return x;
}

void cuda_gelu(Stream *s, DType t, int64_t n, const void *x, void *y) {
    float *wide = floats_of(t, n, x);
    (void)s;
    BACKEND_CPU.gelu(NULL, DT_F32, n, wide, wide);
    BACKEND_CPU.cast(NULL, DT_F32, t, n, wide, y);
    free(wide);
}

void cuda_gelu_grad(Stream *s, DType t, int64_t n, const void *x, const void *dy, real keep,
                    void *dx) {
    float *wide = floats_of(t, n, x), *wide_dy = floats_of(t, n, dy);
    (void)s;
    assert_true(keep == 0);
    BACKEND_CPU.gelu_grad(NULL, DT_F32, n, wide, wide_dy, 0, wide_dy);
    BACKEND_CPU.cast(NULL, DT_F32, t, n, wide_dy, dx);
    free(wide);
    free(wide_dy);
}

void cuda_column_sum(Stream *s, DType t, int64_t rows, int64_t cols, int64_t ld, const void *x,
                     real keep, real *y) {
    float *wide = floats_of(t, rows ? (rows - 1) * ld + cols : 0, x);
    (void)s;
    BACKEND_CPU.column_sum(NULL, DT_F32, rows, cols, ld, wide, keep, y);
    free(wide);
}

/* ---- the cases -------------------------------------------------------------------------------
 */

static Stream *fake_stream_open(void) { return xcalloc(1, sizeof(Stream)); }

static void fake_stream_close(Stream *s) {
    if (s->gemms.plans) s->gemms.close(s->gemms.plans);
    free(s);
}

static void fake_stream_workspace(Stream *s, void *workspace, size_t bytes) {
    Gemm g = {.m = 1, .n = 1, .k = 1, .batch = 1};
    assert_true(bytes >= cuda_gemm_workspace(NULL, &g));
    s->workspace = workspace;
    s->workspace_bytes = bytes;
}

/* A device whose products come from the library above, and which is the CPU else. */
static void open_device(Trial *c) {
    static Backend device;
    device = BACKEND_CPU;
    device.stream_open = fake_stream_open;
    device.stream_close = fake_stream_close;
    device.stream_workspace = fake_stream_workspace;
    device.gemm = cuda_gemm;
    trial_open(c, &device);
}

static void run_cases(Trial *c) {
    static const DType types[] = {DT_F32, DT_BF16, DT_F16};
    for (const DeviceCase *one = GEMM_CASES; one->name; one++)
        for (size_t t = 0; t < COUNT(types); t++)
            for (int shift = 0; shift < 2; shift++) {
                c->t = types[t];
                c->shift = shift;
                if (!run_case(c, one))
                    fail_msg("%s, %s, shift %d: %s", one->name, dtype_name(c->t), shift,
                             c->failure);
            }
}

enum { BATCH = 1, BIAS = 2, GELU = 4, SUMS = 8, FORM = 16, NEW_GPU = 32, LATE = 64 };

/* The library without what `less` names. */
static void set_library(int less) {
    library.no_batch = less & BATCH;
    library.no_bias = less & BIAS;
    library.no_gelu = less & GELU;
    library.no_sums = less & SUMS;
    library.no_form = less & FORM;
    library.late = less & LATE;
    library.generation = less & NEW_GPU ? 12 : 9;
    library.gelus = library.sums = 0;
}

/* As the library is, and without what it may lack, alone and together. On some GPUs its GELU is not
 * asked for. */
static void products_are_right(void **state) {
    (void)state;
    static const int LESS[] = {0,    BATCH,        BIAS,         GELU,        SUMS,
                               FORM, BATCH | BIAS, BATCH | SUMS, BIAS | GELU, BIAS | FORM,
                               31,   32,           63,           LATE | 15};
    for (size_t i = 0; i < COUNT(LESS); i++) {
        Trial c;
        set_library(LESS[i]);
        open_device(&c);
        run_cases(&c);
        trial_close(&c);
        assert_int_equal(library.gelus > 0, !(LESS[i] & (GELU | NEW_GPU)));
        assert_int_equal(library.sums > 0, !(LESS[i] & SUMS));
    }
}

static void algorithms_are_chosen_once(void **state) {
    Trial c;
    (void)state;
    set_library(0);
    open_device(&c);
    run_cases(&c);
    int chosen = library.heuristics, products = library.products;
    run_cases(&c);
    assert_int_equal(library.heuristics, chosen);
    assert_true(library.products > products);
    trial_close(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_right),
        cmocka_unit_test(algorithms_are_chosen_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
