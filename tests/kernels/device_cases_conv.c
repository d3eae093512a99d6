/* Convolutions: every form that a video's takes, with channels that come in whole eights and that
 * do not. */
#include "tests/kernels/device_cases.h"

#include <stdlib.h>

/* Frames that the result has. */
static int64_t frames_out(const Conv *c) {
    return c->repeat && c->frames > 1 ? 2 * c->frames - c->frames % 2 : c->frames;
}

static int64_t size_out(const Conv *c, int64_t size) {
    return c->stride == 2 ? (size - 2) / 2 + 1 : size * c->enlarge;
}

static void convolve(Trial *c, Conv conv) {
    int64_t terms = conv.in * conv.kt * 9;
    int64_t n = frames_out(&conv) * size_out(&conv, conv.height) * size_out(&conv, conv.width);
    Conv f = conv;
    conv.t = c->t;
    f.t = DT_F32;
    Array *x =
        input(c, c->t, (conv.frames + conv.kt - 1) * conv.height * conv.width * conv.in, 1, 1);
    Array *w = input(c, c->t, conv.out * terms, 2, 0.1), *b = input(c, c->t, conv.out, 3, 1);
    Array *y = output(c, c->t, n * conv.out, conv.add, 4, 1);
    void *packed = c->device->alloc((size_t)c->device->conv_packed(&conv) * dtype_size(c->t));
    real *cpu_packed = xcalloc((size_t)c->cpu->conv_packed(&f), sizeof *cpu_packed);
    CHECK(packed, "no memory for weights");
    c->cpu->conv_pack(c->cpu_stream, &f, w->host, cpu_packed);
    c->cpu->conv(c->cpu_stream, &f, x->host, cpu_packed, b->host, y->host);
    c->device->conv_pack(c->stream, &conv, w->at, packed);
    c->device->conv(c->stream, &conv, x->at, packed, b->at, y->at);
    expect(c, "y", y, (double)terms + 2, 0.1 * (double)terms + 2);
    c->device->release(packed);
    free(cpu_packed);
}

/* Operands lie at multiples of 16 bytes, as in an arena. */
static void conv_case(Trial *c) {
    static const int64_t CHANNELS[][2] = {{8, 16}, {3, 8}, {16, 3}, {5, 7}};
    static const Conv FORMS[] = {
        {.frames = 3, .kt = 3, .stride = 1, .enlarge = 1},
        {.frames = 3, .kt = 3, .stride = 1, .enlarge = 1, .add = true},
        {.frames = 2, .kt = 1, .stride = 1, .enlarge = 1, .add = true},
        {.frames = 2, .kt = 1, .stride = 2, .enlarge = 1},
        {.frames = 2, .kt = 1, .stride = 1, .enlarge = 2},
        {.frames = 2, .kt = 1, .stride = 1, .enlarge = 2, .repeat = true},
        {.frames = 3, .kt = 3, .stride = 1, .enlarge = 1, .repeat = true},
        {.frames = 1, .kt = 3, .stride = 1, .enlarge = 1, .repeat = true},
    };
    if (c->shift) return;
    for (size_t i = 0; i < COUNT(CHANNELS) * COUNT(FORMS); i++) {
        Conv conv = FORMS[i % COUNT(FORMS)];
        conv.height = 6;
        conv.width = 7;
        conv.in = CHANNELS[i / COUNT(FORMS)][0];
        conv.out = CHANNELS[i / COUNT(FORMS)][1];
        convolve(c, conv);
    }
}

const DeviceCase CONV_CASES[] = {
    {"conv", conv_case},
    {NULL, NULL},
};
