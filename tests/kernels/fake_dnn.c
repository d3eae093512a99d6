/* A libcudnn.so.9 of the version that FAKE_DNN says, for the CUDA that FAKE_DNN_CUDA says. */
#include <stddef.h>
#include <stdlib.h>

static size_t number(const char *name) { return getenv(name) ? (size_t)atol(getenv(name)) : 0; }

size_t cudnnGetVersion(void);
size_t cudnnGetVersion(void) { return number("FAKE_DNN"); }

size_t cudnnGetCudartVersion(void);
size_t cudnnGetCudartVersion(void) { return number("FAKE_DNN_CUDA"); }
