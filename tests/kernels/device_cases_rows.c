/* What moves rows and patches, and sums over rows. What is only moved has the same bits. */
#include "tests/kernels/device_cases.h"

#include <math.h>
#include <string.h>

/* Text and video rows in turn as long as there are both, each kind from its last to its first. */
static Array *sources(Trial *c, int64_t text, int64_t video) {
    int32_t source[512];
    int64_t rows = text + video;
    for (int64_t i = 0; i < rows; i++) {
        bool is_text = video == 0 || (text > 0 && i % 3 == 1);
        source[i] = (int32_t)(is_text ? --text : -1 - --video);
    }
    return indices(c, rows, source);
}

/* text rows, video rows, width */
static const int64_t JOINS[][3] = {{1, 0, 1},   {0, 1, 5},    {3, 5, 7},    {2, 9, 64},
                                   {4, 30, 72}, {5, 4, 1096}, {1, 2, 2051}, {100, 350, 24}};

static void join_case(Trial *c) {
    for (size_t i = 0; i < COUNT(JOINS); i++) {
        int64_t text = JOINS[i][0], video = JOINS[i][1], width = JOINS[i][2], rows = text + video;
        Array *a = input(c, c->t, text * width, 1, 4), *b = input(c, c->t, video * width, 2, 4);
        Array *source = sources(c, text, video), *y = output(c, c->t, rows * width, 0, 3, 1);
        c->cpu->join(c->cpu_stream, DT_F32, rows, width, source->host, a->host, b->host, y->host);
        c->device->join(c->stream, c->t, rows, width, source->at, a->at, b->at, y->at);
        expect_bits(c, "y", y);
    }
}

/* wanted: bit 0 the gradient of text, bit 1 that of video. */
static void check_split(Trial *c, const int64_t *sizes, int wanted, real keep_text,
                        real keep_video) {
    int64_t text = sizes[0], video = sizes[1], width = sizes[2], rows = text + video;
    Array *dy = input(c, c->t, rows * width, 1, 4), *source = sources(c, text, video);
    Array *a = output(c, c->t, text * width, (double)keep_text, 2, 1);
    Array *b = output(c, c->t, video * width, (double)keep_video, 3, 1);
    bool has_a = wanted & 1, has_b = wanted & 2;
    c->cpu->split(c->cpu_stream, DT_F32, rows, width, source->host, dy->host, keep_text,
                  has_a ? a->host : NULL, keep_video, has_b ? b->host : NULL);
    c->device->split(c->stream, c->t, rows, width, source->at, dy->at, keep_text,
                     has_a ? a->at : NULL, keep_video, has_b ? b->at : NULL);
    if (has_a) expect_bits(c, "dtext", a);
    if (has_b) expect_bits(c, "dvideo", b);
}

static void split_case(Trial *c) {
    for (size_t i = 0; i < COUNT(JOINS); i++)
        for (int flags = 0; flags < 4; flags++)
            check_split(c, JOINS[i], flags == 3 ? 3 : flags + 1, (real)(flags & 1),
                        (real)(flags >> 1));
}

/* Every second row and then some, backwards: indices that differ. */
static Array *some_rows(Trial *c, int64_t n, int64_t rows) {
    int32_t index[512];
    for (int64_t i = 0; i < n; i++) index[i] = (int32_t)((rows - 1 - 2 * i + 2 * rows) % rows);
    return indices(c, n, index);
}

/* rows that are named, all (an odd number), width */
static const int64_t GATHERS[][3] = {{1, 1, 1},   {1, 3, 5},    {3, 3, 8},    {4, 9, 33},
                                     {20, 31, 8}, {17, 33, 88}, {3, 5, 1032}, {300, 401, 40}};

static void gather_case(Trial *c) {
    for (size_t i = 0; i < COUNT(GATHERS); i++) {
        int64_t n = GATHERS[i][0], rows = GATHERS[i][1], width = GATHERS[i][2];
        Array *x = input(c, c->t, rows * width, 1, 4), *index = some_rows(c, n, rows);
        Array *y = output(c, c->t, n * width, 0, 2, 1);
        const double special[] = {-0.0, INFINITY, -INFINITY, 0x1p-140, -0x1p-24};
        for (int64_t k = 0; k < 5 && k < x->n; k++) values(x)[k] = (real)special[k];
        upload_again(c, x);
        c->cpu->gather_rows(c->cpu_stream, DT_F32, n, width, index->host, x->host, y->host);
        c->device->gather_rows(c->stream, c->t, n, width, index->at, x->at, y->at);
        expect_bits(c, "y", y);
    }
}

static void scatter_case(Trial *c) {
    for (size_t i = 0; i < 2 * COUNT(GATHERS); i++) {
        const int64_t *sizes = GATHERS[i / 2];
        int64_t n = sizes[0], rows = sizes[1], width = sizes[2];
        real keep = (real)(i % 2);
        Array *dy = input(c, c->t, n * width, 1, 4), *index = some_rows(c, n, rows);
        Array *dx = output(c, c->t, rows * width, (double)keep, 2, 1);
        c->cpu->scatter_rows(c->cpu_stream, DT_F32, n, rows, width, index->host, dy->host, keep,
                             dx->host);
        c->device->scatter_rows(c->stream, c->t, n, rows, width, index->at, dy->at, keep, dx->at);
        expect_bits(c, "dx", dx);
    }
}

static const Patch PATCHES[] = {
    {.frames = 1, .channels = 1, .height = 2, .width = 2, .patch = 2, .patch_t = 1},
    {.frames = 3, .channels = 5, .height = 6, .width = 10, .patch = 2, .patch_t = 1},
    {.frames = 4, .channels = 16, .height = 4, .width = 14, .patch = 2, .patch_t = 2},
    {.frames = 3, .channels = 2, .height = 6, .width = 9, .patch = 3, .patch_t = 3},
    {.frames = 2, .channels = 3, .height = 5, .width = 7, .patch = 1, .patch_t = 2},
    {.frames = 2, .channels = 2, .height = 8, .width = 12, .patch = 4, .patch_t = 1},
};

/* Columns that are not this tensor's stay as they were. */
static void check_patch(Trial *c, Patch p, int64_t before, int64_t after, real keep) {
    int64_t columns = p.channels * p.patch_t * p.patch * p.patch;
    int64_t n = p.frames * p.channels * p.height * p.width, rows = n / columns;
    p.t = DT_F32;
    p.offset = before;
    p.row_width = before + columns + after;
    Array *x = input(c, c->t, n, 1, 4), *y = output(c, c->t, rows * p.row_width, 1, 2, 1);
    for (int64_t i = 0; keep == 0 && i < y->n; i++)
        if (i % p.row_width >= before && i % p.row_width < before + columns) values(y)[i] = NAN;
    upload_again(c, y);
    Array *back = output(c, c->t, n, (double)keep, 3, 1);
    Patch on_device = p;
    on_device.t = c->t;
    c->cpu->patchify(c->cpu_stream, &p, x->host, keep, y->host);
    c->device->patchify(c->stream, &on_device, x->at, keep, y->at);
    expect_bits(c, "rows", y);
    upload_again(c, y);
    c->cpu->unpatchify(c->cpu_stream, &p, y->host, keep, back->host);
    c->device->unpatchify(c->stream, &on_device, y->at, keep, back->at);
    expect_bits(c, "x", back);
}

static void patch_case(Trial *c) {
    for (size_t i = 0; i < COUNT(PATCHES); i++)
        for (int keep = 0; keep < 2; keep++) {
            check_patch(c, PATCHES[i], 0, 0, (real)keep);
            check_patch(c, PATCHES[i], 4, 2, (real)keep);
            check_patch(c, PATCHES[i], 3, 0, (real)keep);
        }
}

static void add_axes_case(Trial *c) {
    static const int64_t shapes[][6] = {
        {1, 1, 1, 1, 1, 1}, {3, 4, 5, 7, 2, 6}, {2, 3, 7, 16, 24, 8}, {2, 2, 2, 256, 136, 136}};
    for (size_t i = 0; i < COUNT(shapes); i++) {
        const int64_t *f = shapes[i], *widths = shapes[i] + 3;
        int64_t n = f[0] * f[1] * f[2] * (widths[0] + widths[1] + widths[2]);
        Array *x = output(c, c->t, n, 1, 1, 4), *y = output(c, c->t, n, 0, 2, 1);
        Array *tf = input(c, c->t, f[0] * widths[0], 3, 2);
        Array *tw = input(c, c->t, f[2] * widths[1], 4, 2);
        Array *th = input(c, c->t, f[1] * widths[2], 5, 2);
        int64_t rows = f[0] * f[1] * f[2], first = rows / 3, some = rows - first - rows / 4;
        c->cpu->add_axes(c->cpu_stream, DT_F32, f, widths, tf->host, tw->host, th->host, 0, rows,
                         x->host, y->host);
        c->device->add_axes(c->stream, c->t, f, widths, tf->at, tw->at, th->at, 0, rows, x->at,
                            y->at);
        expect_bits(c, "y", y);
        Array *part = output(c, c->t, n, 0, 6, 1);
        c->cpu->add_axes(c->cpu_stream, DT_F32, f, widths, tf->host, tw->host, th->host, first,
                         some, x->host, part->host);
        c->device->add_axes(c->stream, c->t, f, widths, tf->at, tw->at, th->at, first, some, x->at,
                            part->at);
        expect_bits(c, "some rows of y", part);
        c->device->add_axes(c->stream, c->t, f, widths, tf->at, tw->at, th->at, 0, rows, x->at,
                            x->at);
        memcpy(x->host, y->host, (size_t)n * sizeof(real));
        expect_bits(c, "y in place", x);
    }
}

/* Sums of eighths are exact in any order: a row too few or too many shows. */
static void check_column_sum(Trial *c, int64_t rows, int64_t cols, int64_t ld, real keep,
                             bool exact) {
    Array *x = input(c, c->t, rows * ld, 1, 1);
    Array *y = output(c, DT_F32, cols, (double)keep, 2, 1);
    for (int64_t i = 0; exact && i < x->n; i++) values(x)[i] = (real)round(8 * values(x)[i]) / 8;
    for (int64_t i = 0; exact && i < cols; i++) values(y)[i] = keep != 0 ? (real)(i % 5) : NAN;
    upload_again(c, x);
    upload_again(c, y);
    c->cpu->column_sum(c->cpu_stream, DT_F32, rows, cols, ld, x->host, keep, y->host);
    c->device->column_sum(c->stream, c->t, rows, cols, ld, x->at, keep, y->at);
    if (exact)
        expect_bits(c, "y", y);
    else
        expect(c, "y", y, (double)MIN(rows, ROW_CHUNK) + 2, (double)rows + 1);
}

static void column_sum_case(Trial *c) {
    static const int64_t sizes[][3] = {{1, 1, 1},     {3, 7, 9},     {128, 8, 8},
                                       {129, 64, 72}, {130, 31, 31}, {1025, 264, 264}};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        check_column_sum(c, sizes[i][0], sizes[i][1], sizes[i][2], (real)(i % 2), true);
        check_column_sum(c, sizes[i][0], sizes[i][1], sizes[i][2], (real)(1 - i % 2), false);
    }
    check_column_sum(c, 4500, 5, 5, 1, true);
    check_column_sum(c, 70, 520, 640, 0, true);
}

const DeviceCase ROWS_CASES[] = {
    {"join", join_case},
    {"split", split_case},
    {"gather_rows", gather_case},
    {"scatter_rows", scatter_case},
    {"patchify", patch_case},
    {"add_axes", add_axes_case},
    {"column_sum", column_sum_case},
    {NULL, NULL},
};
