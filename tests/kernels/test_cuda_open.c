/* Why a GPU cannot be used, said in one line each: with no driver, drivers of all kinds and
 * libraries of all ages, none of which this machine needs to have.
 *
 * usage: test_cuda_open                  the tests; FAKE_DRIVER, FAKE_LIBRARIES and FAKE_RTC name
 *                                        the folders of fake_driver.c, fake_dnn.c and fake_rtc.c as
 *                                        the libraries they play
 *        test_cuda_open device           says what stands in the way of the first GPU
 *        test_cuda_open libraries        and in that of cuBLASLt and cuDNN */
#define _GNU_SOURCE
#include "kernels/cuda_stream.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <cudnn_version.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char said[4096];
static const char *program;

/* Runs this program again, with `libraries` before the others and `environment` set. */
static int ask(const char *what, const char *libraries, const char *environment) {
    char *command =
        xprintf("env LD_LIBRARY_PATH='%s' %s '%s' %s 2>&1", libraries, environment, program, what);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    said[fread(said, 1, sizeof said - 1, f)] = 0;
    free(command);
    return WEXITSTATUS(pclose(f));
}

static void expect_words(const char *const words[], size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!strstr(said, words[i])) fail_msg("'%s' is not in: %s", words[i], said);
    const char *end = strchr(said, '\n');
    if (!end || end[1]) fail_msg("not one line: %s", said);
}
#define EXPECT_WORDS(...)                                                                          \
    do {                                                                                           \
        const char *const words[] = {__VA_ARGS__};                                                 \
        expect_words(words, COUNT(words));                                                         \
    } while (0)

static const char *folder(const char *name) {
    const char *path = getenv(name);
    assert_non_null(path);
    return path;
}

static void drivers_are_told_apart(void **state) {
    (void)state;
    const char *fake = folder("FAKE_DRIVER");
    char *old = xprintf("FAKE_VERSION=%d", CUDART_VERSION - 1010);
    char *built = xprintf("CUDA %d.%d", CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    assert_int_equal(ask("device", fake, old), EXIT_WORLD);
    EXPECT_WORDS("driver here runs CUDA", built, "update the driver");
    free(old);
    free(built);
    char *new = xprintf("FAKE_VERSION=%d", CUDART_VERSION);
    static const struct {
        cudaError_t status;
        const char *words[2];
    } starts[] = {
        {cudaErrorNoDevice, {"no GPU", "--gpus all"}},
        {cudaErrorStubLibrary, {"stub", "LD_LIBRARY_PATH"}},
        {cudaErrorUnknown, {"lost", "xid"}},
        {cudaErrorSystemNotReady, {"fabric manager", "systemctl"}},
        {cudaErrorSystemDriverMismatch, {"do not fit", "restart"}},
    };
    for (size_t i = 0; i < COUNT(starts); i++) {
        char *environment = xprintf("%s FAKE_INIT=%d", new, (int)starts[i].status);
        assert_int_equal(ask("device", fake, environment), EXIT_WORLD);
        EXPECT_WORDS(starts[i].words[0], starts[i].words[1]);
        free(environment);
    }
    free(new);
}

/* Of the machine itself, which may have a GPU. */
static void no_driver_is_said(void **state) {
    (void)state;
    int code = ask("device", "", "");
    if (!code) skip();
    EXPECT_WORDS("device=cpu");
}

static void libraries_are_found(void **state) {
    (void)state;
    char *blas = xprintf("cuBLASLt %d.%d", CUBLAS_VER_MAJOR, CUBLAS_VER_MINOR);
    char *dnn = xprintf("cuDNN %d.%d", CUDNN_MAJOR, CUDNN_MINOR);
    assert_int_equal(ask("libraries", "", ""), 0);
    EXPECT_WORDS(blas, dnn);
    free(blas);
    free(dnn);
}

static void old_libraries_are_refused(void **state) {
    (void)state;
    const char *fake = folder("FAKE_LIBRARIES");
    char *old = xprintf("FAKE_DNN=%d FAKE_DNN_CUDA=%d", CUDNN_MAJOR * 10000 + 305, CUDART_VERSION);
    assert_int_equal(ask("libraries", fake, old), EXIT_WORLD);
    EXPECT_WORDS("cuDNN 9.3.5 is here", "needs 9.16 or a later 9.x", "install");
    char *other = xprintf("FAKE_DNN=%d FAKE_DNN_CUDA=%d", CUDNN_MAJOR * 10000 + CUDNN_MINOR * 100,
                          CUDART_VERSION - 1000);
    assert_int_equal(ask("libraries", fake, other), EXIT_WORLD);
    EXPECT_WORDS("is the one for CUDA", "install cuDNN for CUDA");
    free(old);
    free(other);
}

/* One that is older than what this was compiled with, and new enough. */
static void least_libraries_serve(void **state) {
    (void)state;
    char *least = xprintf("FAKE_DNN=91600 FAKE_DNN_CUDA=%d", CUDART_VERSION);
    assert_int_equal(ask("libraries", folder("FAKE_LIBRARIES"), least), 0);
    EXPECT_WORDS("cuDNN 9.16.0");
    free(least);
}

/* cuDNN's compiler comes in two parts. */
static void parts_of_libraries_are_named(void **state) {
    (void)state;
    assert_int_equal(ask("libraries", folder("FAKE_RTC"), ""), EXIT_WORLD);
    EXPECT_WORDS("libnvrtc-builtins.so.99.9, which NVRTC needs,", "LD_LIBRARY_PATH", "toolkit");
}

/* A broken file in the place of each; and a call without asking first ends the program. */
static void missing_libraries_are_named(void **state) {
    static const struct {
        const char *what, *file;
        int major;
        const char *name;
    } cases[] = {{"libraries", "libcublasLt.so", CUBLAS_VER_MAJOR, "cuBLASLt"},
                 {"libraries", "libcudnn.so", CUDNN_MAJOR, "cuDNN"},
                 {"libraries", "libnvrtc.so", CUDART_VERSION / 1000, "NVRTC, which cuDNN needs,"},
                 {"call", "libcublasLt.so", CUBLAS_VER_MAJOR, "cuBLASLt"}};
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        char at[] = "/tmp/test_cuda_open.XXXXXX";
        assert_non_null(mkdtemp(at));
        char *file = xprintf("%s/%s.%d", at, cases[i].file, cases[i].major);
        fclose(fopen(file, "w"));
        assert_int_equal(ask(cases[i].what, at, ""), EXIT_WORLD);
        EXPECT_WORDS(cases[i].name, "cannot be loaded", "install", "LD_LIBRARY_PATH");
        unlink(file);
        rmdir(at);
        free(file);
    }
}

/* Every error that a user may meet is explained in words of its own. */
static void errors_are_explained(void **state) {
    static const struct {
        cudaError_t status;
        const char *words;
    } cases[] = {{cudaErrorECCUncorrectable, "ECC"},
                 {cudaErrorDevicesUnavailable, "another process"},
                 {cudaErrorLaunchFailure, "a bug"},
                 {cudaErrorIllegalAddress, "compute-sanitizer"},
                 {cudaErrorMemoryAllocation, "is full"},
                 {cudaErrorNoKernelImageForDevice, "COGSMITH_CUDA"},
                 {cudaErrorUnknown, "the device is lost"},
                 {cudaErrorContained, "ECC"},
                 {cudaErrorMisalignedAddress, "a bug"},
                 {cudaErrorNvlinkUncorrectable, "nvlink"}};
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        Error e = {0};
        assert_false(cuda_error(&e, (int)cases[i].status, "an upload"));
        assert_int_equal(e.exit_code, EXIT_WORLD);
        assert_non_null(strstr(e.text, "an upload failed (cudaError"));
        if (!strstr(e.text, cases[i].words)) fail_msg("'%s' is not in: %s", cases[i].words, e.text);
    }
}

/* bf16 comes with 8.0. */
static void old_gpus_are_refused(void **state) {
    Error e = {0};
    (void)state;
    assert_false(cuda_capable(1, "Tesla T4", 7, 5, &e));
    assert_int_equal(e.exit_code, EXIT_WORLD);
    if (!strstr(e.text, "GPU 1 (Tesla T4) has compute capability 7.5, and 8.0 is the least"))
        fail_msg("%s", e.text);
    assert_true(cuda_capable(0, "A100", 8, 0, &e) && cuda_capable(0, "B200", 10, 0, &e));
}

static int tell(const char *what) {
    Error e = {0};
    char blas[16], dnn[16];
    CudaDevice gpu;
    bool device = !strcmp(what, "device");
    if (!strcmp(what, "call")) return cublasLtGetVersion() ? 0 : 1;
    if (device ? cuda_devices(&gpu, 1, &e) > 0 : cuda_libraries(blas, dnn, &e)) {
        printf("%s%s, cuDNN %s\n", device ? "a GPU with cuBLASLt " : "cuBLASLt ",
               device ? gpu.blas : blas, device ? gpu.dnn : dnn);
        return 0;
    }
    die_error(&e);
}

int main(int n, char **words) {
    program = words[0];
    if (n > 1) return tell(words[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(drivers_are_told_apart),
        cmocka_unit_test(no_driver_is_said),
        cmocka_unit_test(libraries_are_found),
        cmocka_unit_test(old_libraries_are_refused),
        cmocka_unit_test(least_libraries_serve),
        cmocka_unit_test(missing_libraries_are_named),
        cmocka_unit_test(errors_are_explained),
        cmocka_unit_test(old_gpus_are_refused),
        cmocka_unit_test(parts_of_libraries_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
