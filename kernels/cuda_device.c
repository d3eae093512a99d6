/* Which GPUs there are and whether they can be used, and what CUDA's errors mean to a user. */
#include "kernels/cuda_stream.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <string.h>

enum { LEAST_CAPABILITY = 80 }; /* the first with bf16 */

/* ---- errors ----------------------------------------------------------------------------------
 */

static const char LOST[] =
    "the device is lost, or its driver failed: `dmesg | grep -i xid` says why; a restart of the "
    "machine may bring it back";
static const char BUG[] =
    "a kernel went wrong, which is a bug of cogsmith, or broken hardware: run it again under "
    "`compute-sanitizer` and report what that says";
static const char MEMORY_ERROR[] =
    "the GPU's memory had an error that could not be corrected: trust nothing since the last "
    "checkpoint, go on from that, and let `nvidia-smi -q -d ECC,ROW_REMAPPER` say whether the GPU "
    "must be reset or replaced";
static const char MACHINE[] = "the driver's parts do not fit each other, or one does not run: "
                              "restart the machine, or install the driver again";

static const struct {
    cudaError_t status;
    const char *text;
} EXPLAINED[] = {
    {cudaErrorECCUncorrectable, MEMORY_ERROR},
    {cudaErrorContained, MEMORY_ERROR},
    {cudaErrorNvlinkUncorrectable,
     "the link between GPUs had an error that could not be corrected: go on from the last "
     "checkpoint; if it comes back, `nvidia-smi nvlink -e` names the link"},
    {cudaErrorUnknown, LOST},
    {cudaErrorNoDevice, LOST},
    {cudaErrorDeviceUninitialized, LOST},
    {cudaErrorContextIsDestroyed, LOST},
    {cudaErrorExternalDevice, LOST},
    {cudaErrorDevicesUnavailable,
     "another process has it for itself, or it is being reset: `nvidia-smi` names the processes "
     "and the compute mode; wait for it, or choose another with device=cuda:N"},
    {cudaErrorDeviceAlreadyInUse, "another process has it for itself: choose another with "
                                  "device=cuda:N, or end that one"},
    {cudaErrorMemoryAllocation,
     "its memory is full: `nvidia-smi` names what else uses it; `cogsmith plan` says what this "
     "configuration needs"},
    {cudaErrorIllegalAddress, BUG},
    {cudaErrorMisalignedAddress, BUG},
    {cudaErrorInvalidAddressSpace, BUG},
    {cudaErrorIllegalInstruction, BUG},
    {cudaErrorInvalidPc, BUG},
    {cudaErrorHardwareStackError, BUG},
    {cudaErrorLaunchFailure, BUG},
    {cudaErrorAssert, BUG},
    {cudaErrorInvalidConfiguration, BUG},
    {cudaErrorInvalidValue, BUG},
    {cudaErrorLaunchOutOfResources, BUG},
    {cudaErrorLaunchTimeout,
     "a kernel ran longer than the display allows: use a GPU without a screen, or switch off the "
     "driver's watchdog"},
    {cudaErrorNoKernelImageForDevice,
     "this program holds no code for it: build again with its compute capability in "
     "COGSMITH_CUDA_ARCHS"},
    {cudaErrorInvalidDeviceFunction,
     "this program holds no code for it: build again with its compute capability in "
     "COGSMITH_CUDA_ARCHS"},
    {cudaErrorUnsupportedPtxVersion,
     "its driver is older than the code that this program holds for it: update the driver"},
    {cudaErrorStubLibrary,
     "the libcuda.so.1 found is the toolkit's stub, not a driver: take its folder out of "
     "LD_LIBRARY_PATH"},
    {cudaErrorSystemNotReady,
     "the machine's fabric manager does not run: `systemctl start nvidia-fabricmanager`"},
    {cudaErrorSystemDriverMismatch, MACHINE},
    {cudaErrorCompatNotSupportedOnDevice, MACHINE},
    {cudaErrorInitializationError, MACHINE},
    {cudaErrorOperatingSystem, MACHINE},
    {cudaErrorMpsConnectionFailed, "the MPS server does not answer: start it again"},
    {cudaErrorMpsServerNotReady, "the MPS server is not ready: try again, or start it again"},
    {cudaErrorMpsMaxClientsReached, "the MPS server has no room for one more process"},
};

static const char *explain(cudaError_t status) {
    for (size_t i = 0; i < COUNT(EXPLAINED); i++)
        if (EXPLAINED[i].status == status) return EXPLAINED[i].text;
    return cudaGetErrorString(status);
}

bool cuda_error(Error *e, int status, const char *doing) {
    return error_set(e, EXIT_WORLD, "cuda: %s failed (%s): %s", doing,
                     cudaGetErrorName((cudaError_t)status), explain((cudaError_t)status));
}

void cuda_check(int status, const char *doing) {
    if (status == cudaSuccess) return;
    Error e;
    cuda_error(&e, status, doing);
    cuda_fail(&e);
}

void cuda_check_launch(const char *kernel) {
    cudaError_t status = cudaGetLastError();
    if (status == cudaSuccess) return;
    char doing[100];
    snprintf(doing, sizeof doing, "the launch of %.60s", kernel);
    cuda_check(status, doing);
}

/* ---- devices ---------------------------------------------------------------------------------
 */

/* 13010 is CUDA 13.1. */
static void version_text(int version, char text[16]) {
    snprintf(text, 16, "%d.%d", version / 1000, version % 1000 / 10);
}

/* How many GPUs the driver shows; 0: none, and *e says why. */
static int count_devices(Error *e) {
    int driver = 0, count = 0;
    char has[16], wants[16];
    cudaDriverGetVersion(&driver);
    cudaError_t status = cudaGetDeviceCount(&count);
    cudaGetLastError(); /* this call's status is not the next call's */
    version_text(driver, has);
    version_text(CUDART_VERSION, wants);
    if (status == cudaSuccess && count > 0) return count;
    if (status == cudaErrorStubLibrary)
        cuda_error(e, status, "looking for a GPU");
    else if (!driver)
        error_set(e, EXIT_WORLD,
                  "no NVIDIA driver here (no libcuda.so.1): install one that runs CUDA %s, or use "
                  "device=cpu",
                  wants);
    else if (status == cudaErrorInsufficientDriver)
        error_set(e, EXIT_WORLD,
                  "the NVIDIA driver here runs CUDA %s, and this program was built with CUDA %s: "
                  "update the driver, or build with that or an older toolkit",
                  has, wants);
    else if (status == cudaSuccess || status == cudaErrorNoDevice)
        error_set(e, EXIT_WORLD,
                  "an NVIDIA driver is here, and no GPU: give the container its GPU (docker run "
                  "--gpus all), or look at CUDA_VISIBLE_DEVICES; or use device=cpu");
    else
        cuda_error(e, status, "looking for a GPU");
    return 0;
}

bool cuda_driver(void) {
    int version = 0;
    cudaDriverGetVersion(&version);
    return version > 0;
}

bool cuda_capable(int index, const char *name, int major, int minor, Error *e) {
    return 10 * major + minor >= LEAST_CAPABILITY ||
           error_set(e, EXIT_WORLD,
                     "GPU %d (%s) has compute capability %d.%d, and 8.0 is the least: use another "
                     "with device=cuda:N, or device=cpu",
                     index, name, major, minor);
}

/* The context, which a process makes once. */
static bool enter_device(int index, const char *name, Error *e) {
    char doing[100];
    cudaError_t status = cudaSetDevice(index);
    if (status == cudaSuccess) status = cudaFree(NULL);
    if (status == cudaSuccess) return true;
    cudaGetLastError();
    snprintf(doing, sizeof doing, "opening GPU %d (%.60s)", index, name);
    return cuda_error(e, status, doing);
}

/* Everything that may stand in the way of device `index`, which is there. */
static bool describe(int index, CudaDevice *d) {
    struct cudaDeviceProp properties;
    int driver = 0;
    *d = (CudaDevice){0};
    cudaError_t status = cudaGetDeviceProperties(&properties, index);
    if (status != cudaSuccess) return cuda_error(&d->trouble, status, "asking a GPU what it is");
    snprintf(d->name, sizeof d->name, "%s", properties.name);
    d->major = properties.major;
    d->minor = properties.minor;
    d->total_bytes = properties.totalGlobalMem;
    cudaDriverGetVersion(&driver);
    version_text(driver, d->driver);
    version_text(CUDART_VERSION, d->runtime);
    bool known = cuda_libraries(d->blas, d->dnn, &d->trouble);
    return cuda_capable(index, d->name, d->major, d->minor, &d->trouble) && known &&
           enter_device(index, d->name, &d->trouble);
}

static int opened = -1; /* -1: none yet */
static _Thread_local bool entered;

bool cuda_open(int index, Error *e) {
    CHECK(opened < 0 || opened == index, "GPU %d is open, and %d is wanted", opened, index);
    if (opened == index) return true;
    int count = count_devices(e);
    if (!count) return false;
    if (index < 0 || index >= count)
        return error_set(e, EXIT_WORLD,
                         "there is no cuda:%d: this machine shows %d GPU%s, cuda:0%s", index, count,
                         count == 1 ? "" : "s", count == 1 ? "" : " and so on");
    CudaDevice d;
    if (!describe(index, &d)) {
        if (e) *e = d.trouble;
        return false;
    }
    opened = index;
    entered = true;
    return true;
}

void cuda_enter(void) {
    CHECK(opened >= 0, "no GPU is open");
    if (!entered) cuda_check(cudaSetDevice(opened), "entering the GPU");
    entered = true;
}

static void look_at(int index, CudaDevice *d) {
    size_t total;
    if (describe(index, d) && cudaMemGetInfo(&d->free_bytes, &total) != cudaSuccess)
        d->free_bytes = 0;
}

void cuda_opened(CudaDevice *d) {
    CHECK(opened >= 0, "no GPU is open");
    look_at(opened, d);
}

int cuda_devices(CudaDevice *list, int max, Error *e) {
    int count = count_devices(e);
    for (int i = 0; i < MIN(count, max); i++) look_at(i, &list[i]);
    if (opened >= 0) cuda_check(cudaSetDevice(opened), "entering the GPU");
    return count;
}
