/* Copies between host and device: what arrives, and when the host's memory is free again. */
#include "tests/kernels/device_cases.h"

#include <string.h>

enum { LARGE = (9 << 20) + 7 }; /* more than the device takes at once */

static void fill(unsigned char *p, size_t bytes, unsigned seed) {
    for (size_t i = 0; i < bytes; i++) p[i] = (unsigned char)((i * 2654435761u + seed) >> 13);
}

static void same(Trial *c, const char *what, const void *a, const void *b, size_t bytes) {
    if (memcmp(a, b, bytes)) refuse(c, "%s: %zu bytes did not arrive", what, bytes);
}

/* There and back through memory that the program has anyway; each source is spoiled at once. */
static void round_trip(Trial *c, unsigned char *host, size_t offset, size_t bytes, bool locked) {
    unsigned char *want = c->cpu->alloc(bytes), *device = c->device->alloc(bytes + offset);
    unsigned char *second = c->device->alloc(bytes);
    fill(want, bytes, (unsigned)(bytes + offset));
    memcpy(host + offset, want, bytes);
    c->device->upload(c->stream, device + offset, host + offset, bytes);
    if (locked) c->device->stream_sync(c->stream);
    memset(host + offset, 0xee, bytes);
    c->device->copy(c->stream, second, device + offset, bytes);
    c->device->zero(c->stream, device, bytes + offset);
    c->device->download(c->stream, host + offset, second, bytes);
    if (locked) c->device->stream_sync(c->stream);
    same(c, "a copy", host + offset, want, bytes);
    c->device->download(c->stream, host + offset, device + offset, bytes);
    if (locked) c->device->stream_sync(c->stream);
    memset(want, 0, bytes);
    same(c, "zeros", host + offset, want, bytes);
    c->device->release(device);
    c->device->release(second);
    c->cpu->release(want);
}

static void ordinary_case(Trial *c) {
    static const size_t sizes[] = {1, 2, 3, 16, 255, 4096, 4 << 20, LARGE};
    unsigned char *host = c->cpu->alloc(LARGE + 3);
    for (size_t i = 0; i < COUNT(sizes); i++) round_trip(c, host, i % 4, sizes[i], false);
    c->cpu->release(host);
}

static void locked_case(Trial *c) {
    static const size_t sizes[] = {1, 3, 4097, LARGE};
    unsigned char *host = c->device->alloc_host(LARGE + 3);
    for (size_t i = 0; i < COUNT(sizes); i++) round_trip(c, host, i % 4, sizes[i], true);
    c->device->release_host(host);
}

/* Columns of a matrix, out and back into another; and host numbers of another type. */
static void rows_case(Trial *c) {
    enum { ROWS = 37, WIDE = 50, FROM = 7, SLIM = 11 };
    Array *x = input(c, c->t, ROWS * WIDE, 1, 1), *y = output(c, c->t, ROWS * SLIM, 0, 2, 1);
    size_t size = dtype_size(c->t);
    for (int i = 0; i < ROWS; i++)
        memcpy(values(y) + i * SLIM, values(x) + i * WIDE + FROM, SLIM * sizeof(real));
    c->device->copy_rows(c->stream, ROWS, SLIM * size, (char *)x->at + FROM * size, WIDE * size,
                         y->at, SLIM * size);
    expect_bits(c, "columns", y);
    Array *z = output(c, c->t, ROWS * WIDE, 0, 3, 1);
    c->device->upload_cast(c->stream, DT_F32, c->t, ROWS * WIDE, values(x), z->at);
    memcpy(values(z), values(x), ROWS * WIDE * sizeof(real));
    expect_bits(c, "numbers from the host", z);
}

/* Without a stream everything is done at return; nothing is a size too. */
static void streamless_case(Trial *c) {
    unsigned char want[777], got[777];
    unsigned char *device = c->device->alloc(sizeof want);
    fill(want, sizeof want, 5);
    c->device->zero(NULL, device, sizeof want);
    c->device->upload(NULL, device, want, sizeof want - 70);
    memset(want + sizeof want - 70, 0, 70);
    c->device->download(NULL, got, device, sizeof got);
    same(c, "without a stream", got, want, sizeof got);
    c->device->upload(c->stream, device, want, 0);
    c->device->copy(c->stream, device, device, 0);
    c->device->zero(c->stream, device, 0);
    c->device->download(c->stream, got, device, 0);
    c->device->stream_sync(c->stream);
    c->device->release(device);
    c->device->release(c->device->alloc(0));
}

const DeviceCase MEMORY_CASES[] = {
    {"ordinary memory", ordinary_case},
    {"page-locked memory", locked_case},
    {"no stream", streamless_case},
    {"rows and numbers", rows_case},
    {NULL, NULL},
};
