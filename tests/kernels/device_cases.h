/* One table of cases for every device: an entry of a Backend in one type, against BACKEND_CPU.
 *
 * A case is a function that builds its operands from a Trial, runs the entry on both
 * backends, and compares:
 *
 *     static void axpy_case(Trial *c) {
 *         Array *x = input(c, c->t, 1003, 1, 2), *y = output(c, c->t, 1003, 1, 2, 2);
 *         c->cpu->axpy(c->cpu_stream, DT_F32, 1003, 0.3f, x->host, 1, y->host);
 *         c->device->axpy(c->stream, c->t, 1003, 0.3f, x->at, 1, y->at);
 *         expect(c, "y", y, 2, 4);
 *     }
 *
 * To add cases: write them in device_cases_NAME.c, end that file with
 *     const DeviceCase NAME_CASES[] = {{"axpy", axpy_case}, {NULL, NULL}};
 * and add one line to device_cases.h and one to the list in device_cases.c.
 *
 * Bounds. Inputs are rounded to the case's type first, so that both devices see the same numbers.
 * Both compute in float with unit u = 2^-24; then the device rounds once to its type, of unit U
 * (2^-24, 2^-8, 2^-11) and smallest step M (2^-149, 2^-133, 2^-24). A result that is computed by at
 * most `length` rounded operations on numbers no larger than `size` differs by
 *     |device - CPU| <= 2 length u size + U |CPU| + M.
 * For a sum, `length` is the depth of its tree (sum_depth), and `size` bounds the sum of the
 * absolute values of its terms.
 */
#pragma once

#include "kernels/kernels.h"

/* An operand on both sides. The device's lies between fences of FENCE_BYTES on each side, at an
 * address that is a multiple of its element and, with shift 1, of nothing more. */
enum { FENCE_BYTES = 256 };
typedef struct {
    DType t;
    int64_t n;
    void *host; /* for the CPU backend: real; int32_t or uint32_t if made by indices() */
    void *at;   /* on the device, of type t */
    void *base; /* the device's allocation */
} Array;

typedef struct {
    const Backend *device, *cpu;
    Stream *stream, *cpu_stream; /* the CPU's has workspace */
    DType t;                     /* the type of activations in this run */
    int shift;                   /* 0, or 1: no address is a multiple of 16 */
    /* Told of every fence, where the device's memory is the host's and something watches it;
     * NULL: nobody. `closed` is false when the fence goes. */
    void (*fence)(const void *p, size_t bytes, bool closed);

    double worst;      /* the largest error / bound so far */
    uint64_t hash;     /* of the bits of all outputs that were compared */
    char failure[300]; /* the first one; "" */
    Array **arrays;    /* of the running case */
    int count, room;
    void *workspace, *cpu_workspace; /* 192 MiB each, which both streams have */
} Trial;

typedef struct {
    const char *name;
    void (*run)(Trial *c);
} DeviceCase;

/* All tables, ended by NULL; each is ended by a case without a name. */
extern const DeviceCase *const DEVICE_CASES[];

extern const DeviceCase CAST_CASES[];
extern const DeviceCase POINTWISE_CASES[];
extern const DeviceCase NORM_CASES[];
extern const DeviceCase ROWS_CASES[];
extern const DeviceCase LOSS_CASES[];
extern const DeviceCase VIDEO_CASES[];
extern const DeviceCase GEMM_CASES[];
extern const DeviceCase ATTENTION_CASES[];
extern const DeviceCase CONV_CASES[];
extern const DeviceCase MEMORY_CASES[];
extern const DeviceCase CAPTURE_CASES[];

/* n numbers of type t, uniform in (-scale, scale). */
Array *input(Trial *c, DType t, int64_t n, uint32_t seed, double scale);
/* An output: with keep 0 all NaN, which no kernel may read; else like input. */
Array *output(Trial *c, DType t, int64_t n, double keep, uint32_t seed, double scale);
/* n 32-bit words, the same on both sides. */
Array *indices(Trial *c, int64_t n, const void *words);
/* `bytes` bytes on the device, at `offset` from a multiple of 16. */
void *bytes_at(Trial *c, size_t bytes, size_t offset, const void *from);

/* The host's values of an array, which a case may change before it calls upload_again. */
real *values(const Array *a);
void upload_again(Trial *c, Array *a); /* rounds them to the type, and sends them */

/* Compares the device's values with the host's, and the fences with what they were. The second
 * form has a size for each element. */
void expect(Trial *c, const char *what, const Array *a, double length, double size);
void expect_sizes(Trial *c, const char *what, const Array *a, double length, const double *sizes);
/* The same bits on both sides: the host's values rounded to the type. */
void expect_bits(Trial *c, const char *what, const Array *a);
/* The unit U of a type, and the depth of a tree over n terms whose leaves are sums of every 32nd
 * (no kernel here adds with fewer lanes): n/32 + 8. */
double type_unit(DType t);
double sum_depth(int64_t n);
/* Says that a case failed for another reason. */
void refuse(Trial *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A Trial with streams and workspace; type, shift and fence are still to be set. */
void trial_open(Trial *c, const Backend *device);
void trial_close(Trial *c);
/* Runs a case from a clean Trial (device, streams, type, shift and fence set); frees its arrays.
 * false: c->failure says why. */
bool run_case(Trial *c, const DeviceCase *one);
