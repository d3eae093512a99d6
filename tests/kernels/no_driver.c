/* A libcuda.so.1 for machines without a GPU: kernels can be loaded and looked up, and there is
 * nothing to run them on. cuDNN asks for all of these names when it is loaded. */

typedef int Result; /* CUresult */
enum { SUCCESS, NO_DEVICE = 100 };

#define NOTHING(name)                                                                              \
    Result name(void);                                                                             \
    Result name(void) { return NO_DEVICE; }

NOTHING(cuInit)
NOTHING(cuCtxGetCurrent)
NOTHING(cuCtxGetLimit)
NOTHING(cuCtxPopCurrent)
NOTHING(cuCtxPushCurrent)
NOTHING(cuDeviceGet)
NOTHING(cuDeviceGetCount)
NOTHING(cuDriverGetVersion)
NOTHING(cuGetErrorName)
NOTHING(cuGetErrorString)
NOTHING(cuLaunchCooperativeKernel)
NOTHING(cuLaunchKernel)
NOTHING(cuLaunchKernelEx)
NOTHING(cuLibraryLoadFromFile)
NOTHING(cuLinkAddData)
NOTHING(cuLinkComplete)
NOTHING(cuLinkCreate)
NOTHING(cuLinkDestroy)
NOTHING(cuOccupancyMaxPotentialClusterSize)
NOTHING(cuStreamGetCtx)

static int handle;

Result cuLibraryLoadData(void **library, ...);
Result cuLibraryLoadData(void **library, ...) {
    *library = &handle;
    return SUCCESS;
}

Result cuLibraryUnload(void *library);
Result cuLibraryUnload(void *library) {
    (void)library;
    return SUCCESS;
}

Result cuLibraryGetKernel(void **kernel, void *library, const char *name);
Result cuLibraryGetKernel(void **kernel, void *library, const char *name) {
    (void)library, (void)name;
    *kernel = &handle;
    return SUCCESS;
}

Result cuKernelSetAttribute(int attribute, int value, void *kernel, int device);
Result cuKernelSetAttribute(int attribute, int value, void *kernel, int device) {
    (void)attribute, (void)value, (void)kernel, (void)device;
    return SUCCESS;
}

Result cuKernelGetAttribute(int *value, int attribute, void *kernel, int device);
Result cuKernelGetAttribute(int *value, int attribute, void *kernel, int device) {
    (void)attribute, (void)kernel, (void)device;
    *value = 0;
    return SUCCESS;
}
