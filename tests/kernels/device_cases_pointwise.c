/* Casts, and kernels that treat each element by itself. */
#include "kernels/math.h"
#include "tests/kernels/device_cases.h"

#include <stdlib.h>

/* 1, odd, one pack and one more, one block of packs and a bit, and several blocks. */
static const int64_t COUNTS[] = {1, 3, 8, 9, 255, 2048, 2051, 10007};

/* ---- pointwise -------------------------------------------------------------------------------*/

typedef void Map(Stream *, DType, int64_t, const void *, void *);
typedef void MapGrad(Stream *, DType, int64_t, const void *, const void *, real, void *);

/* The exponent v of sigmoid: its four roundings and, in 16 bits, the GPU's own exponential cost
 * 8 + 8 |v| roundings of the result; the factors around it cost fewer than 10. */
static double gelu_length(double x) {
    return 18 + 8 * fabs(1.5957691 * x * (1 + 0.044715 * x * x));
}
static double silu_length(double x) { return 18 + 8 * fabs(x); }

/* The sum of the absolute values of what sigmoid(v) is multiplied with in the derivative. */
static double gelu_terms(double x) { return 1 + 1.5957691 * fabs(x) * (1 + 0.134145 * x * x); }
static double silu_terms(double x) { return 1 + fabs(x); }

typedef double Estimate(double x);

static void check_map(Trial *c, Map *device, Map *cpu, Estimate *length, int64_t n) {
    Array *x = input(c, c->t, n, 1, 8), *y = output(c, c->t, n, 0, 0, 0);
    double *sizes = xcalloc((size_t)n, sizeof *sizes);
    device(c->stream, c->t, n, x->at, y->at);
    cpu(c->cpu_stream, DT_F32, n, x->host, y->host);
    for (int64_t i = 0; i < n; i++)
        sizes[i] = fabs((double)values(y)[i]) * length((double)values(x)[i]);
    expect_sizes(c, "y", y, 1, sizes);
    device(c->stream, c->t, n, x->at, x->at);
    memcpy(x->host, y->host, (size_t)n * sizeof(real));
    expect_sizes(c, "y in place", x, 1, sizes);
    free(sizes);
}

/* In place: dx may be x or dy, with keep 0. */
static void check_map_grad(Trial *c, MapGrad *device, MapGrad *cpu, Estimate *length,
                           Estimate *terms, int64_t n) {
    double *sizes = xcalloc((size_t)n, sizeof *sizes);
    for (int way = 0; way < 4; way++) {
        real keep = way == 1;
        Array *x = input(c, c->t, n, 1, 8), *dy = input(c, c->t, n, 2, 2);
        Array *dx = way == 2 ? x : way == 3 ? dy : output(c, c->t, n, (double)keep, 3, 2);
        for (int64_t i = 0; i < n; i++) {
            double at = (double)values(x)[i], old = (double)keep * (double)values(dx)[i];
            sizes[i] = fabs((double)values(dy)[i]) * terms(at) * length(at);
            sizes[i] += keep != 0 ? 2 * fabs(old) : 0;
        }
        device(c->stream, c->t, n, x->at, dy->at, keep, dx->at);
        cpu(c->cpu_stream, DT_F32, n, x->host, dy->host, keep, dx->host);
        expect_sizes(c, "dx", dx, 1, sizes);
    }
    free(sizes);
}

static void gelu_case(Trial *c) {
    for (size_t i = 0; i < COUNT(COUNTS); i++)
        check_map(c, c->device->gelu, c->cpu->gelu, gelu_length, COUNTS[i]);
}
static void silu_case(Trial *c) {
    for (size_t i = 0; i < COUNT(COUNTS); i++)
        check_map(c, c->device->silu, c->cpu->silu, silu_length, COUNTS[i]);
}
static void gelu_grad_case(Trial *c) {
    for (size_t i = 0; i < COUNT(COUNTS); i++)
        check_map_grad(c, c->device->gelu_grad, c->cpu->gelu_grad, gelu_length, gelu_terms,
                       COUNTS[i]);
}
static void silu_grad_case(Trial *c) {
    for (size_t i = 0; i < COUNT(COUNTS); i++)
        check_map_grad(c, c->device->silu_grad, c->cpu->silu_grad, silu_length, silu_terms,
                       COUNTS[i]);
}

/* Where e^-x overflows or vanishes, and what is not a number. */
static void extremes_case(Trial *c) {
    static const float EXTREMES[] = {0, -0.0f, 30, -30, 100, -100, 300, -300, 3000, -3000};
    int64_t n = COUNT(EXTREMES);
    Map *device[] = {c->device->gelu, c->device->silu}, *cpu[] = {c->cpu->gelu, c->cpu->silu};
    Estimate *length[] = {gelu_length, silu_length};
    for (int f = 0; f < 2; f++) {
        Array *x = input(c, c->t, n, 1, 1), *y = output(c, c->t, n, 0, 0, 0);
        double sizes[COUNT(EXTREMES)];
        for (int64_t i = 0; i < n; i++) values(x)[i] = (real)EXTREMES[i];
        upload_again(c, x);
        device[f](c->stream, c->t, n, x->at, y->at);
        cpu[f](c->cpu_stream, DT_F32, n, x->host, y->host);
        /* Below e^-87 float has no normal numbers, and the CPU's exponential gives 0. */
        for (int64_t i = 0; i < n; i++)
            sizes[i] = fabs((double)values(y)[i]) * length[f]((double)values(x)[i]) + 0x1p-95;
        expect_sizes(c, "y", y, 1, sizes);
        values(x)[0] = NAN;
        upload_again(c, x);
        device[f](c->stream, c->t, 1, x->at, y->at);
        uint32_t bits = 0;
        c->device->download(c->stream, &bits, y->at, dtype_size(c->t));
        c->device->stream_sync(c->stream);
        float got;
        c->cpu->cast(c->cpu_stream, c->t, DT_F32, 1, &bits, &got);
        if (!isnan(got)) refuse(c, "NaN became %g", (double)got);
    }
}

static void geglu_case(Trial *c) {
    for (size_t k = 0; k < COUNT(COUNTS); k++) {
        int64_t n = COUNTS[k];
        Array *gate = input(c, c->t, n, 1, 8), *x = input(c, c->t, n, 2, 2);
        Array *y = output(c, c->t, n, 0, 0, 0);
        double *sizes = xcalloc((size_t)n, sizeof *sizes);
        c->device->geglu(c->stream, c->t, n, gate->at, x->at, y->at);
        c->cpu->geglu(c->cpu_stream, DT_F32, n, gate->host, x->host, y->host);
        for (int64_t i = 0; i < n; i++)
            sizes[i] = fabs((double)values(y)[i]) * gelu_length((double)values(gate)[i]);
        expect_sizes(c, "y", y, 1, sizes);
        free(sizes);
    }
}

static void axpy_case(Trial *c) {
    for (size_t k = 0; k < COUNT(COUNTS); k++)
        for (int keep = 0; keep < 2; keep++) {
            Array *x = input(c, c->t, COUNTS[k], 1, 2);
            Array *y = output(c, c->t, COUNTS[k], keep, 2, 2);
            c->device->axpy(c->stream, c->t, COUNTS[k], (real)-0.3, x->at, (real)keep, y->at);
            c->cpu->axpy(c->cpu_stream, DT_F32, COUNTS[k], (real)-0.3, x->host, (real)keep,
                         y->host);
            expect(c, "y", y, 2, 0.6 + 2 * keep);
        }
}

/* No elements: nothing happens, wherever the pointers go. */
static void nothing_case(Trial *c) {
    Array *y = output(c, c->t, 1, 1, 1, 1);
    c->device->gelu(c->stream, c->t, 0, y->at, y->at);
    c->device->axpy(c->stream, c->t, 0, 2, y->at, 0, y->at);
    c->device->cast(c->stream, c->t, DT_F32, 0, y->at, y->at);
    expect_bits(c, "y", y);
}

/* ---- casts -----------------------------------------------------------------------------------*/

/* Bit patterns of every kind: the upper half of a 32-bit word runs through all that 16 bits can be,
 * in steps, so that NaN, infinities and subnormals of all types occur. */
static void fill_bytes(DType t, int64_t n, void *to) {
    uint64_t state = 88172645463325252u;
    for (int64_t i = 0; i < n; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        uint32_t word = (uint32_t)(state >> 32);
        float x = float_from_bits(word);
        double wide = (double)x * (1 + 0x1p-40);
        uint16_t half = (uint16_t)(word >> 16);
        char *at = (char *)to + (size_t)i * dtype_size(t);
        memcpy(at,
               t == DT_F64   ? (void *)&wide
               : t == DT_F32 ? (void *)&x
                             : (void *)&half,
               dtype_size(t));
    }
}

/* The same bits as the CPU's; of a NaN, that it is one. */
static void expect_cast(Trial *c, DType to, int64_t n, const void *got, const void *want) {
    size_t size = dtype_size(to);
    for (int64_t i = 0; i < n; i++) {
        float pair[2];
        c->cpu->cast(c->cpu_stream, to, DT_F32, 1, (const char *)got + (size_t)i * size, pair);
        c->cpu->cast(c->cpu_stream, to, DT_F32, 1, (const char *)want + (size_t)i * size, pair + 1);
        bool same = !memcmp((const char *)got + (size_t)i * size,
                            (const char *)want + (size_t)i * size, size);
        if (!same && !(isnan(pair[0]) && isnan(pair[1])))
            refuse(c, "to %s: element %lld of %lld is %.9g, not %.9g", dtype_name(to), (long long)i,
                   (long long)n, (double)pair[0], (double)pair[1]);
    }
}

static void check_cast(Trial *c, DType from, DType to, int64_t n, size_t offset) {
    void *source = xcalloc((size_t)n, dtype_size(from)), *want = xcalloc((size_t)n, 4);
    void *got = xcalloc((size_t)n, 4);
    fill_bytes(from, n, source);
    c->cpu->cast(c->cpu_stream, from, to, n, source, want);
    Array *y = output(c, to, n, 0, 0, 0);
    c->device->cast(c->stream, from, to, n,
                    bytes_at(c, (size_t)n * dtype_size(from), offset, source), y->at);
    c->device->download(c->stream, got, y->at, (size_t)n * dtype_size(to));
    c->device->stream_sync(c->stream);
    expect_cast(c, to, n, got, want);
    free(source);
    free(want);
    free(got);
}

/* From the case's type and from F64 to every type; the source at every kind of address. */
static void cast_case(Trial *c) {
    static const DType TO[] = {DT_F32, DT_BF16, DT_F16};
    static const size_t OFFSETS[] = {0, 1, 2, 4, 8, 15};
    for (int k = 0; k < 3; k++)
        for (size_t i = 0; i < COUNT(OFFSETS); i++) {
            check_cast(c, c->t, TO[k], i ? 67 : 4101, OFFSETS[i]);
            check_cast(c, DT_F64, TO[k], i ? 67 : 4101, OFFSETS[i]);
        }
}

const DeviceCase CAST_CASES[] = {{"cast", cast_case}, {NULL, NULL}};

const DeviceCase POINTWISE_CASES[] = {
    {"gelu", gelu_case},
    {"gelu_grad", gelu_grad_case},
    {"silu", silu_case},
    {"silu_grad", silu_grad_case},
    {"gelu and silu at extremes", extremes_case},
    {"geglu", geglu_case},
    {"axpy", axpy_case},
    {"no elements", nothing_case},
    {NULL, NULL},
};
