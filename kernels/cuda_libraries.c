/* cuBLASLt, cuDNN and what that needs, looked for when the first of their functions is called: a
 * program linked to them would also map half a gigabyte for every verb. */
#include "kernels/cuda_open.h"
#include "kernels/cuda_stream.h"

#include <cublasLt.h>
#include <cudnn.h>
#include <stdio.h>

/* Within a major version functions stay: what serves is what kernels/cuda.cmake asks for, and not
 * what was there when this was compiled. */
static Library blas = {.name = "cuBLASLt",
                       .need = "",
                       .file = "libcublasLt.so",
                       .major = CUBLAS_VER_MAJOR,
                       .minor = CUBLAS_VER_MAJOR == 12 ? 4 : 0,
                       .source = "it comes with the CUDA toolkit"};
/* cuDNN compiles attention with it. */
static Library rtc = {.name = "NVRTC",
                      .need = ", which cuDNN needs,",
                      .file = "libnvrtc.so",
                      .major = CUDART_VERSION / 1000,
                      .minor = CUDART_VERSION / 1000 == 12 ? 4 : 0,
                      .source = "it comes with the CUDA toolkit"};

static bool open_compiler(Error *e) {
    char file[64];
    int (*version)(int *major, int *minor), major = 0, minor = 0;
    if (!cuda_library_open(&rtc, e)) return false;
    version = (int (*)(int *, int *))cuda_library_function(&rtc, "nvrtcVersion");
    version(&major, &minor);
    snprintf(file, sizeof file, "libnvrtc-builtins.so.%d.%d", major, minor);
    return cuda_library_beside(&rtc, file, e);
}

static Library dnn = {.name = "cuDNN",
                      .need = "",
                      .file = "libcudnn.so",
                      .major = CUDNN_MAJOR,
                      .minor = CUDNN_MAJOR == 9 ? 16 : 0,
                      .source = "NVIDIA's packages are called cudnn9-cuda-12 and cudnn9-cuda-13",
                      .before = open_compiler};

bool cuda_libraries(char blas_version[16], char dnn_version[16], Error *e) {
    Error second = {0};
    *blas_version = *dnn_version = 0;
    bool good = cuda_library_open(&blas, e) &&
                cuda_library_version(&blas, (int64_t)cublasLtGetVersion(), blas_version, e);
    bool also = cuda_library_open(&dnn, &second) &&
                cuda_library_version(&dnn, (int64_t)cudnnGetVersion(), dnn_version, &second);
    int cuda = also ? (int)(cudnnGetCudartVersion() / 1000) : 0;
    if (also && cuda != CUDART_VERSION / 1000)
        also =
            error_set(&second, EXIT_WORLD,
                      "the cuDNN %s here is the one for CUDA %d, and this program was built with "
                      "CUDA %d: install cuDNN for CUDA %d",
                      dnn_version, cuda, CUDART_VERSION / 1000, CUDART_VERSION / 1000);
    if (good && !also && e) *e = second;
    return good && also;
}

/* ---- the functions ---------------------------------------------------------------------------
 */

FORWARD(blas, size_t, cublasLtGetVersion, (void), ())
FORWARD(blas, const char *, cublasLtGetStatusName, (cublasStatus_t status), (status))
FORWARD(blas, cublasStatus_t, cublasLtCreate, (cublasLtHandle_t * handle), (handle))
FORWARD(blas, cublasStatus_t, cublasLtDestroy, (cublasLtHandle_t handle), (handle))
FORWARD(blas, cublasStatus_t, cublasLtMatmulDescCreate,
        (cublasLtMatmulDesc_t * desc, cublasComputeType_t compute, cudaDataType_t scale),
        (desc, compute, scale))
FORWARD(blas, cublasStatus_t, cublasLtMatmulDescDestroy, (cublasLtMatmulDesc_t desc), (desc))
FORWARD(blas, cublasStatus_t, cublasLtMatmulDescSetAttribute,
        (cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t name, const void *value,
         size_t bytes),
        (desc, name, value, bytes))
FORWARD(blas, cublasStatus_t, cublasLtMatrixLayoutCreate,
        (cublasLtMatrixLayout_t * layout, cudaDataType type, uint64_t rows, uint64_t cols,
         int64_t ld),
        (layout, type, rows, cols, ld))
FORWARD(blas, cublasStatus_t, cublasLtMatrixLayoutDestroy, (cublasLtMatrixLayout_t layout),
        (layout))
FORWARD(blas, cublasStatus_t, cublasLtMatrixLayoutSetAttribute,
        (cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t name, const void *value,
         size_t bytes),
        (layout, name, value, bytes))
FORWARD(blas, cublasStatus_t, cublasLtMatmulPreferenceCreate,
        (cublasLtMatmulPreference_t * preference), (preference))
FORWARD(blas, cublasStatus_t, cublasLtMatmulPreferenceDestroy,
        (cublasLtMatmulPreference_t preference), (preference))
FORWARD(blas, cublasStatus_t, cublasLtMatmulPreferenceSetAttribute,
        (cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t name,
         const void *value, size_t bytes),
        (preference, name, value, bytes))
FORWARD(blas, cublasStatus_t, cublasLtMatmulAlgoGetHeuristic,
        (cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
         cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
         cublasLtMatmulPreference_t preference, int wanted,
         cublasLtMatmulHeuristicResult_t results[], int *got),
        (handle, desc, a, b, c, d, preference, wanted, results, got))
FORWARD(blas, cublasStatus_t, cublasLtMatmulAlgoCheck,
        (cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
         cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
         const cublasLtMatmulAlgo_t *algo, cublasLtMatmulHeuristicResult_t *result),
        (handle, desc, a, b, c, d, algo, result))
FORWARD(blas, cublasStatus_t, cublasLtMatmul,
        (cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
         cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
         const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
         cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo, void *workspace,
         size_t bytes, cudaStream_t queue),
        (handle, desc, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algo,
         workspace, bytes, queue))

FORWARD(dnn, size_t, cudnnGetVersion, (void), ())
FORWARD(dnn, size_t, cudnnGetCudartVersion, (void), ())
FORWARD(dnn, const char *, cudnnGetErrorString, (cudnnStatus_t status), (status))
FORWARD(dnn, void, cudnnGetLastErrorString, (char *message, size_t size), (message, size))
FORWARD(dnn, cudnnStatus_t, cudnnCreate, (cudnnHandle_t * handle), (handle))
FORWARD(dnn, cudnnStatus_t, cudnnDestroy, (cudnnHandle_t handle), (handle))
FORWARD(dnn, cudnnStatus_t, cudnnSetStream, (cudnnHandle_t handle, cudaStream_t queue),
        (handle, queue))
FORWARD(dnn, cudnnStatus_t, cudnnBackendCreateDescriptor,
        (cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *descriptor),
        (type, descriptor))
FORWARD(dnn, cudnnStatus_t, cudnnBackendDestroyDescriptor, (cudnnBackendDescriptor_t descriptor),
        (descriptor))
FORWARD(dnn, cudnnStatus_t, cudnnBackendFinalize, (cudnnBackendDescriptor_t descriptor),
        (descriptor))
FORWARD(dnn, cudnnStatus_t, cudnnBackendSetAttribute,
        (cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
         cudnnBackendAttributeType_t type, int64_t count, const void *values),
        (descriptor, name, type, count, values))
FORWARD(dnn, cudnnStatus_t, cudnnBackendGetAttribute,
        (const cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
         cudnnBackendAttributeType_t type, int64_t wanted, int64_t *got, void *values),
        (descriptor, name, type, wanted, got, values))
FORWARD(dnn, cudnnStatus_t, cudnnBackendExecute,
        (cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack),
        (handle, plan, pack))
