/* Frames of video: taking, pooling, and group norm with its context. */
#include "tests/kernels/device_cases.h"

#include <math.h>

static void take_frames_case(Trial *c) {
    static const TakeFrames takes[] = {
        {.channels = 1, .total = 1, .height = 1, .width = 1, .first = 0, .frames = 1},
        {.channels = 3, .total = 9, .height = 5, .width = 7, .first = 0, .frames = 5},
        {.channels = 3, .total = 9, .height = 16, .width = 31, .first = 5, .frames = 4},
        {.channels = 16, .total = 4, .height = 9, .width = 13, .first = 1, .frames = 2},
        {.channels = 5, .total = 3, .height = 33, .width = 17, .first = 1, .frames = 1},
    };
    for (size_t i = 0; i < COUNT(takes); i++) {
        TakeFrames f = takes[i], on_device = f;
        int64_t area = f.height * f.width * f.channels;
        Array *x = input(c, c->t, f.total * area, 1, 4);
        Array *y = output(c, c->t, (CONTEXT + f.frames) * area, 0, 2, 1);
        f.t = DT_F32;
        on_device.t = c->t;
        c->cpu->take_frames(c->cpu_stream, &f, x->host, y->host);
        c->device->take_frames(c->stream, &on_device, x->at, y->at);
        expect_bits(c, "rows", y);
    }
}

static void pool_frames_case(Trial *c) {
    static const int64_t frames[] = {1, 2, 3, 4, 7}, sizes[] = {1, 31, 64, 2400, 4104};
    for (size_t i = 0; i < COUNT(frames) * COUNT(sizes); i++) {
        int64_t count = frames[i / COUNT(sizes)], frame = sizes[i % COUNT(sizes)];
        Array *x = input(c, c->t, count * frame, 1, 4);
        Array *y = output(c, c->t, (count + 1) / 2 * frame, 0, 2, 1);
        c->cpu->pool_frames(c->cpu_stream, DT_F32, count, frame, x->host, y->host);
        c->device->pool_frames(c->stream, c->t, count, frame, x->at, y->at);
        expect_bits(c, "y", y);
    }
}

/* Sizes of one pixel, of a few, of several chunks of a sum, of more channels than a block takes. */
static const GroupNorm NORMS[] = {
    {.frames = 1, .height = 1, .width = 1, .channels = 8, .groups = 2, .grid = {1, 1, 1}},
    {.frames = 1, .height = 3, .width = 5, .channels = 32, .groups = 4, .grid = {1, 2, 3}},
    {.frames = 2, .height = 4, .width = 7, .channels = 6, .groups = 3, .grid = {1, 4, 7}},
    {.frames = 3, .height = 17, .width = 19, .channels = 96, .groups = 32, .grid = {2, 5, 3}},
    {.frames = 4, .height = 6, .width = 5, .channels = 40, .groups = 1, .grid = {2, 3, 2}},
    {.frames = 5, .height = 3, .width = 70, .channels = 16, .groups = 8, .grid = {3, 1, 9}},
    {.frames = 8, .height = 4, .width = 6, .channels = 128, .groups = 32, .grid = {2, 2, 3}},
    {.frames = 2, .height = 1, .width = 2, .channels = 2064, .groups = 4, .grid = {1, 1, 1}},
};

enum { TABLES = 1, PAST = 2, NEXT = 4 };

typedef struct {
    GroupNorm host, device;
    Array *x, *gamma, *beta, *scale, *shift, *past, *next;
} NormOperands;

static NormOperands norm_operands(Trial *c, GroupNorm n, int flags, double center) {
    int64_t area = n.height * n.width * n.channels, cells = n.grid[0] * n.grid[1] * n.grid[2];
    NormOperands o = {.x = input(c, c->t, n.frames * area, 1, 2)};
    for (int64_t i = 0; center != 0 && i < o.x->n; i++) values(o.x)[i] += (real)center;
    upload_again(c, o.x);
    o.gamma = input(c, c->t, n.channels, 2, 1.5);
    o.beta = input(c, c->t, n.channels, 3, 1);
    o.scale = input(c, c->t, cells * n.channels, 4, 1);
    o.shift = input(c, c->t, cells * n.channels, 5, 1);
    o.past = input(c, c->t, CONTEXT * area, 6, 1);
    o.next = output(c, c->t, CONTEXT * area, 0, 7, 1);
    n.eps = (real)1e-6;
    o.host = o.device = n;
    o.host.t = DT_F32;
    o.device.t = c->t;
    o.host.x = o.x->host, o.device.x = o.x->at;
    o.host.gamma = o.gamma->host, o.device.gamma = o.gamma->at;
    o.host.beta = o.beta->host, o.device.beta = o.beta->at;
    if (flags & TABLES) o.host.scale = o.scale->host, o.device.scale = o.scale->at;
    if (flags & TABLES) o.host.shift = o.shift->host, o.device.shift = o.shift->at;
    if (flags & PAST) o.host.past = o.past->host, o.device.past = o.past->at;
    if (flags & NEXT) o.host.next = o.next->host, o.device.next = o.next->at;
    return o;
}

/* The device sums 64 pixels in f32 of what they differ from the first, everything else in f64, and
 * then computes z by ten operations on numbers of at most gamma (|x| + |mean|) rstd + |beta|. The
 * groups of these inputs have a standard deviation of 0.4 or more, and silu's slope is below 1.1.
 */
static void check_group_norm(Trial *c, const GroupNorm *shape, int flags, double center) {
    NormOperands o = norm_operands(c, *shape, flags, center);
    Array *y = output(c, c->t, (CONTEXT + shape->frames) * (o.x->n / shape->frames), 0, 8, 1);
    c->cpu->group_norm(c->cpu_stream, &o.host, y->host);
    c->device->group_norm(c->stream, &o.device, y->at);
    double size = 1.1 * (1.5 * (2 + fabs(center)) / 0.4 + 2);
    expect(c, "y", y, 10 + 64.0 / 10, size);
    if (flags & NEXT) expect(c, "next", o.next, 10 + 64.0 / 10, size);
}

static void check_group_norms(Trial *c, int flags) {
    for (size_t i = 0; i < COUNT(NORMS); i++) check_group_norm(c, NORMS + i, flags, 0);
}

static void group_norm_case(Trial *c) { check_group_norms(c, 0); }
static void group_norm_next_case(Trial *c) { check_group_norms(c, NEXT); }
static void group_norm_past_case(Trial *c) { check_group_norms(c, PAST | NEXT); }
static void group_norm_tables_case(Trial *c) { check_group_norms(c, TABLES | PAST); }
static void group_norm_all_case(Trial *c) { check_group_norms(c, TABLES | PAST | NEXT); }

/* Numbers far from zero beside what they vary by. */
static void far_group_norm_case(Trial *c) {
    check_group_norm(c, NORMS + 3, 0, 50);
    check_group_norm(c, NORMS + 6, TABLES, -200);
}

const DeviceCase VIDEO_CASES[] = {
    {"take_frames", take_frames_case},
    {"pool_frames", pool_frames_case},
    {"group_norm", group_norm_case},
    {"group_norm, next", group_norm_next_case},
    {"group_norm, past and next", group_norm_past_case},
    {"group_norm, tables and past", group_norm_tables_case},
    {"group_norm, all of it", group_norm_all_case},
    {"group_norm far from zero", far_group_norm_case},
    {NULL, NULL},
};
