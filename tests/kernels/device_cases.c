/* Owns the list of all device cases, and what they are written with. */
#define _GNU_SOURCE
#include "tests/kernels/device_cases.h"
#include "kernels/math.h"

#include <stdio.h>
#include <stdlib.h>

const DeviceCase *const DEVICE_CASES[] = {
    CAST_CASES, POINTWISE_CASES, NORM_CASES, ROWS_CASES,   LOSS_CASES,    VIDEO_CASES,
    GEMM_CASES, ATTENTION_CASES, CONV_CASES, MEMORY_CASES, CAPTURE_CASES, NULL,
};

enum { FENCE_BYTE = 0xa5, WORKSPACE_BYTES = 192 << 20 };

void trial_open(Trial *c, const Backend *device) {
    *c = (Trial){.device = device, .cpu = &BACKEND_CPU};
    c->stream = device->stream_open();
    c->cpu_stream = c->cpu->stream_open();
    c->workspace = device->alloc(WORKSPACE_BYTES);
    c->cpu_workspace = c->cpu->alloc(WORKSPACE_BYTES);
    CHECK(c->workspace && c->cpu_workspace, "no memory for workspace");
    device->stream_workspace(c->stream, c->workspace, WORKSPACE_BYTES);
    c->cpu->stream_workspace(c->cpu_stream, c->cpu_workspace, WORKSPACE_BYTES);
}

void trial_close(Trial *c) {
    c->device->stream_close(c->stream);
    c->cpu->stream_close(c->cpu_stream);
    c->device->release(c->workspace);
    c->cpu->release(c->cpu_workspace);
}

void refuse(Trial *c, const char *format, ...) {
    if (c->failure[0]) return;
    va_list list;
    va_start(list, format);
    vsnprintf(c->failure, sizeof c->failure, format, list);
    va_end(list);
}

/* ---- operands --------------------------------------------------------------------------------*/

static size_t array_bytes(const Array *a) { return (size_t)a->n * dtype_size(a->t); }

/* Fence 0 lies before the elements, fence 1 behind them. */
static char *fence_of(const Array *a, int which) {
    return which ? (char *)a->at + array_bytes(a) : (char *)a->at - FENCE_BYTES;
}

static void set_fences(Trial *c, const Array *a, bool closed) {
    for (int i = 0; i < 2 && c->fence; i++) c->fence(fence_of(a, i), FENCE_BYTES, closed);
}

static void check_fences(Trial *c, const Array *a) {
    unsigned char bytes[FENCE_BYTES];
    set_fences(c, a, false);
    for (int i = 0; i < 2; i++) {
        c->device->download(c->stream, bytes, fence_of(a, i), sizeof bytes);
        c->device->stream_sync(c->stream);
        for (size_t j = 0; j < sizeof bytes; j++)
            if (bytes[j] != FENCE_BYTE)
                refuse(c, "wrote %zu bytes %s an array of %lld %s", i ? j : FENCE_BYTES - j,
                       i ? "behind" : "before", (long long)a->n, dtype_name(a->t));
    }
    set_fences(c, a, true);
}

static void send(Trial *c, void *device, const void *host, size_t bytes) {
    c->device->upload(c->stream, device, host, bytes);
    c->device->stream_sync(c->stream);
}

static Array *new_array(Trial *c, DType t, int64_t n, size_t offset) {
    if (c->count == c->room) {
        c->room = 2 * c->room + 16;
        c->arrays = xrealloc(c->arrays, (size_t)c->room * sizeof(Array *));
    }
    Array *a = c->arrays[c->count++] = xcalloc(1, sizeof *a);
    unsigned char bytes[FENCE_BYTES];
    memset(bytes, FENCE_BYTE, sizeof bytes);
    a->t = t;
    a->n = n;
    a->host = xcalloc((size_t)MAX(n, 1), MAX(sizeof(real), dtype_size(t)));
    a->base = c->device->alloc(2 * FENCE_BYTES + offset + array_bytes(a));
    CHECK(a->base, "no memory for %lld elements on the device", (long long)n);
    a->at = (char *)a->base + FENCE_BYTES + offset;
    for (int i = 0; i < 2; i++) send(c, fence_of(a, i), bytes, sizeof bytes);
    set_fences(c, a, true);
    return a;
}

static Array *new_values(Trial *c, DType t, int64_t n) {
    return new_array(c, t, n, (size_t)c->shift * dtype_size(t));
}

static void free_array(Trial *c, Array *a) {
    set_fences(c, a, false);
    c->device->release(a->base);
    free(a->host);
    free(a);
}

real *values(const Array *a) { return a->host; }

/* The host's values in the array's type; to be freed. */
static void *rounded(const Array *a) {
    void *stored = xcalloc((size_t)MAX(a->n, 1), dtype_size(a->t));
    BACKEND_CPU.cast(NULL, DT_F32, a->t, a->n, a->host, stored);
    return stored;
}

void upload_again(Trial *c, Array *a) {
    void *stored = rounded(a);
    send(c, a->at, stored, array_bytes(a));
    BACKEND_CPU.cast(NULL, a->t, DT_F32, a->n, stored, a->host);
    free(stored);
}

Array *input(Trial *c, DType t, int64_t n, uint32_t seed, double scale) {
    Array *a = new_values(c, t, n);
    uint64_t state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (int64_t i = 0; i < n; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        values(a)[i] = (real)((double)(int32_t)(state >> 32) * 0x1p-31 * scale);
    }
    upload_again(c, a);
    return a;
}

Array *output(Trial *c, DType t, int64_t n, double keep, uint32_t seed, double scale) {
    if (keep != 0) return input(c, t, n, seed, scale);
    Array *a = new_values(c, t, n);
    for (int64_t i = 0; i < n; i++) values(a)[i] = NAN;
    upload_again(c, a);
    return a;
}

Array *indices(Trial *c, int64_t n, const void *words) {
    Array *a = new_values(c, DT_I32, n);
    if (n) memcpy(a->host, words, array_bytes(a));
    send(c, a->at, a->host, array_bytes(a));
    return a;
}

void *bytes_at(Trial *c, size_t bytes, size_t offset, const void *from) {
    Array *a = new_array(c, DT_U8, (int64_t)bytes, offset);
    send(c, a->at, from, bytes);
    return a->at;
}

/* ---- comparisons -----------------------------------------------------------------------------*/

double type_unit(DType t) { return t == DT_BF16 ? 0x1p-8 : t == DT_F16 ? 0x1p-11 : 0x1p-24; }

static double type_step(DType t) {
    return t == DT_BF16 ? 0x1p-133 : t == DT_F16 ? 0x1p-24 : 0x1p-149;
}

double sum_depth(int64_t n) { return (double)n / 32 + 8; }

/* What the device has, as it is stored; to be freed. Its bits go into the trial's hash. */
static void *fetch(Trial *c, const Array *a) {
    size_t bytes = array_bytes(a);
    unsigned char *stored = xcalloc(1, MAX(bytes, 1));
    c->device->download(c->stream, stored, a->at, bytes);
    c->device->stream_sync(c->stream);
    for (size_t i = 0; i < bytes; i++) c->hash = (c->hash ^ stored[i]) * UINT64_C(0x100000001b3);
    check_fences(c, a);
    return stored;
}

/* `sizes` has `step` 0 or 1 between elements. */
static void compare(Trial *c, const char *what, const Array *a, double length, const double *sizes,
                    int step) {
    void *stored = fetch(c, a);
    float *got = xcalloc((size_t)MAX(a->n, 1), sizeof *got);
    BACKEND_CPU.cast(NULL, a->t, DT_F32, a->n, stored, got);
    for (int64_t i = 0; i < a->n; i++) {
        double want = (double)values(a)[i], size = sizes[i * step];
        double bound = 2 * length * 0x1p-24 * size + type_unit(a->t) * fabs(want) + type_step(a->t);
        double error = fabs((double)got[i] - want) / bound;
        if (!(error <= 1))
            refuse(c, "%s[%lld] of %lld is %.9g, not %.9g: off by %.3g, may be off by %.3g", what,
                   (long long)i, (long long)a->n, (double)got[i], want, fabs((double)got[i] - want),
                   bound);
        c->worst = error <= c->worst ? c->worst : error;
    }
    free(got);
    free(stored);
}

void expect(Trial *c, const char *what, const Array *a, double length, double size) {
    compare(c, what, a, length, &size, 0);
}

void expect_sizes(Trial *c, const char *what, const Array *a, double length, const double *sizes) {
    compare(c, what, a, length, sizes, 1);
}

void expect_bits(Trial *c, const char *what, const Array *a) {
    void *stored = fetch(c, a), *want = rounded(a);
    size_t size = dtype_size(a->t);
    for (int64_t i = 0; i < a->n; i++)
        if (memcmp((char *)stored + (size_t)i * size, (char *)want + (size_t)i * size, size))
            refuse(c, "%s[%lld] of %lld is not %.9g", what, (long long)i, (long long)a->n,
                   (double)values(a)[i]);
    free(stored);
    free(want);
}

bool run_case(Trial *c, const DeviceCase *one) {
    c->worst = 0;
    c->hash = UINT64_C(0xcbf29ce484222325);
    c->failure[0] = 0;
    one->run(c);
    for (int i = 0; i < c->count; i++) check_fences(c, c->arrays[i]);
    for (int i = 0; i < c->count; i++) free_array(c, c->arrays[i]);
    free(c->arrays);
    c->arrays = NULL;
    c->count = c->room = 0;
    return !c->failure[0];
}
