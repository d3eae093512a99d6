/* Convolutions on a GPU through cuDNN, channels last: groups of frames, so that no tensor is larger
 * than cuDNN's indices bear and the workspace stays bounded (see kernels/conv_cuda.h). */
#include "kernels/conv_cuda.h"

#include <cuda_runtime_api.h>
#include <stdio.h>

enum { EIGHT = 8 };

/* Of a group: elements of a tensor, and bytes of what is prepared in the workspace. */
static const int64_t MAX_ELEMENTS = (int64_t)1 << 30, MAX_PREPARED = (int64_t)256 << 20;
/* Bytes that cuDNN's own workspace may have. */
static const int64_t MAX_OWN = (int64_t)128 << 20;

static void check_conv(const Conv *c) {
    CHECK(c->t == DT_F32 || c->t == DT_BF16 || c->t == DT_F16, "conv: %s", dtype_name(c->t));
    CHECK((c->kt == 1 || c->kt == 3) && (c->stride == 1 || c->stride == 2) &&
              (c->enlarge == 1 || (c->enlarge == 2 && c->kt == 1 && c->stride == 1)) &&
              !(c->add && c->repeat),
          "conv: kt %lld, stride %lld, enlarge %lld, add %d, repeat %d", (long long)c->kt,
          (long long)c->stride, (long long)c->enlarge, c->add, c->repeat);
}

/* ---- groups of frames -------------------------------------------------------------------------
 */

/* Elements of a frame as cuDNN reads and writes it. */
static int64_t frame_in(const Conv *c) {
    return c->enlarge * c->height * c->enlarge * c->width * align_up(c->in, EIGHT);
}

static int64_t frame_out(const Conv *c) {
    return conv_size_out(c, c->height) * conv_size_out(c, c->width) * align_up(c->out, EIGHT);
}

/* x is read from the workspace, where it is spread; y is written there, to be brought to its
 * place by conv_finish. */
static bool spreads(const Conv *c) { return c->enlarge == 2 || c->in % EIGHT; }

static bool finishes(const Conv *c) { return c->t == DT_F32 || c->out % EIGHT; }

static int64_t x_bytes(const Conv *c, int64_t frames) {
    int64_t bytes = (frames + c->kt - 1) * frame_in(c) * (int64_t)dtype_size(c->t);
    return spreads(c) ? align_up(bytes, 256) : 0;
}

static int64_t y_bytes(const Conv *c, int64_t frames) {
    return finishes(c) ? align_up(frames * frame_out(c) * (int64_t)dtype_size(c->t), 256) : 0;
}

static bool too_many(const Conv *c, int64_t frames) {
    return (frames + c->kt - 1) * frame_in(c) > MAX_ELEMENTS ||
           frames * frame_out(c) > MAX_ELEMENTS ||
           x_bytes(c, frames) + y_bytes(c, frames) > MAX_PREPARED;
}

/* Frames of a group, but the last: as equal as can be. Frames that are written apart from each
 * other go one by one: cuDNN copies results that do not lie side by side. */
static int64_t group_size(const Conv *c) {
    if (c->repeat && !finishes(c)) return 1;
    int64_t groups = 1;
    while (groups < c->frames && too_many(c, (c->frames + groups - 1) / groups)) groups++;
    return (c->frames + groups - 1) / groups;
}

ConvPart conv_part(const Conv *c, int64_t first) {
    check_conv(c);
    return (ConvPart){.t = c->t,
                      .frames = MIN(group_size(c), c->frames - first),
                      .height = c->height * c->enlarge,
                      .width = c->width * c->enlarge,
                      .in = align_up(c->in, EIGHT),
                      .out = align_up(c->out, EIGHT),
                      .kt = c->kt,
                      .stride = c->stride,
                      .add = c->add && c->t != DT_F32};
}

/* ---- graphs -----------------------------------------------------------------------------------
 */

/* [frames,H,W,C] as N, C, H, W, or as 1, C, D, H, W. */
static DnnShape frames_shape(bool time, int64_t frames, int64_t height, int64_t width,
                             int64_t channels) {
    int64_t line = width * channels, frame = height * line;
    if (!time) return (DnnShape){4, {frames, channels, height, width}, {frame, 1, line, channels}};
    return (DnnShape){
        5, {1, channels, frames, height, width}, {frames * frame, 1, frame, line, channels}};
}

static DnnShape weights_shape(const ConvPart *p) {
    int64_t i = p->in;
    if (p->kt == 1) return (DnnShape){4, {p->out, i, 3, 3}, {9 * i, 1, 3 * i, i}};
    return (DnnShape){5, {p->out, i, 3, 3, 3}, {27 * i, 1, 9 * i, 3 * i, i}};
}

static DnnConv conv_axes(const ConvPart *p) {
    DnnConv c = {.axes = p->kt == 3 ? 3 : 2};
    for (int i = 0; i < c.axes; i++) {
        bool time = p->kt == 3 && i == 0;
        c.stride[i] = time ? 1 : p->stride;
        c.before[i] = !time && p->stride == 1;
        c.after[i] = !time;
    }
    return c;
}

DnnGraph *conv_graph(const ConvPart *p) {
    DnnGraph *g = dnn_graph_open();
    bool time = p->kt == 3;
    int64_t height = p->height / p->stride, width = p->width / p->stride;
    DnnShape y = frames_shape(time, p->frames, height, width, p->out);
    DnnConv axes = conv_axes(p);
    int x = dnn_tensor(g, p->t, DNN_STORED,
                       frames_shape(time, p->frames + p->kt - 1, p->height, p->width, p->in));
    int w = dnn_tensor(g, p->t, DNN_STORED, weights_shape(p));
    int result = dnn_tensor(g, p->t, DNN_STORED, y);
    if (p->t == DT_F32) {
        dnn_conv(g, &axes, x, w, result);
        return g;
    }
    int bias = dnn_tensor(g, p->t, DNN_STORED, frames_shape(time, 1, 1, 1, p->out));
    int old = dnn_tensor(g, p->t, DNN_STORED, y);
    int sum = dnn_tensor(g, DT_F32, DNN_VIRTUAL, y);
    dnn_conv(g, &axes, x, w, sum);
    /* In this order: a bias that comes first is only taken by slower engines. */
    int added = p->add ? dnn_tensor(g, DT_F32, DNN_VIRTUAL, y) : sum;
    if (p->add) dnn_pointwise(g, DNN_ADD, sum, old, added);
    dnn_pointwise(g, DNN_ADD, added, bias, result);
    return g;
}

DnnRules conv_rules(const ConvPart *p) {
    return (DnnRules){.workspace = MAX_OWN, .exact = p->t == DT_F32};
}

/* ---- running ----------------------------------------------------------------------------------
 */

static DnnGraph *graph_of(const void *part) { return conv_graph(part); }

void conv_key(const ConvPart *p, char key[DNN_KEY]) {
    snprintf(key, DNN_KEY, "conv%s-%s-%lldx%lldx%lldx%lld-%lld-kt%lld-stride%lld",
             p->add ? "_add" : "", dtype_name(p->t), (long long)p->frames, (long long)p->height,
             (long long)p->width, (long long)p->in, (long long)p->out, (long long)p->kt,
             (long long)p->stride);
}

static const DnnPlan *plan_of(Stream *s, const ConvPart *p) {
    PlanCache *cache = &s->convs;
    char key[DNN_KEY];
    if (!cache->plans) *cache = (PlanCache){dnn_plans_open(cuda_dnn(s), NULL), dnn_plans_close};
    conv_key(p, key);
    DnnRules rules = conv_rules(p);
    return dnn_plans_find(cache->plans, key, &rules, graph_of, p);
}

int64_t cuda_conv_packed(const Conv *c) {
    check_conv(c);
    return align_up(c->out, EIGHT) * align_up(c->in, EIGHT) * c->kt * 9;
}

/* A bias is copied to where cuDNN can read it. */
static int64_t bias_bytes(const Conv *c) {
    return align_up(align_up(c->out, EIGHT) * (int64_t)dtype_size(c->t), 256);
}

size_t cuda_conv_workspace(Stream *s, const Conv *c) {
    (void)s;
    check_conv(c);
    int64_t frames = group_size(c);
    return (size_t)(x_bytes(c, frames) + y_bytes(c, frames) + bias_bytes(c) + MAX_OWN);
}

void cuda_conv_pack(Stream *s, const Conv *c, const void *w, void *packed) {
    check_conv(c);
    const int64_t from[] = {c->out, c->in};
    const int64_t to[] = {align_up(c->out, EIGHT), align_up(c->in, EIGHT)};
    conv_spread_weights(s, c->t, from, to, 9 * c->kt, w, packed);
}

static void copy(Stream *s, void *to, const void *from, int64_t bytes) {
    cuda_check(cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDeviceToDevice, s->queue),
               "copying within the GPU");
}

static void *at_frame(const void *frames, int64_t frame, int64_t elements, DType t) {
    return (char *)frames + frame * elements * (int64_t)dtype_size(t);
}

/* The bias, padded with zeros. */
static void place_bias(Stream *s, const Conv *c, const void *bias, void *to) {
    cuda_check(cudaMemsetAsync(to, 0, (size_t)bias_bytes(c), s->queue), "padding a bias");
    copy(s, to, bias, c->out * (int64_t)dtype_size(c->t));
}

/* The frames that `repeat` writes a second time. */
static void repeat_frames(Stream *s, const Conv *c, void *y) {
    int64_t frame = frame_out(c), bytes = frame * (int64_t)dtype_size(c->t);
    for (int64_t t = 0; t < c->frames; t++) {
        int64_t again = conv_frame_again(c, t);
        if (again >= 0)
            copy(s, at_frame(y, again, frame, c->t), at_frame(y, conv_frame_at(c, t), frame, c->t),
                 bytes);
    }
}

/* One group of frames, from `first` on. In the workspace lie x, y, bias, and cuDNN's own. */
static void run_part(Stream *s, const Conv *c, const ConvPart *p, int64_t first, const void *x,
                     const void *packed, const void *bias, void *y) {
    char *wide_x = s->workspace, *wide_y = wide_x + x_bytes(c, p->frames);
    char *wide_bias = wide_y + y_bytes(c, p->frames);
    int64_t height = conv_size_out(c, c->height), width = conv_size_out(c, c->width);
    char *from = at_frame(x, first, c->height * c->width * c->in, c->t);
    char *to = at_frame(y, conv_frame_at(c, first), height * width * c->out, c->t);
    const int64_t in[] = {p->frames + c->kt - 1, c->height, c->width, c->in};
    const int64_t out[] = {p->frames, height, width, c->out};
    if (spreads(c)) conv_spread_frames(s, c->t, in, c->enlarge, p->in, from, wide_x);
    if (finishes(c) && p->add) conv_spread_frames(s, c->t, out, 1, p->out, to, wide_y);
    if (c->t != DT_F32) place_bias(s, c, bias, wide_bias);
    void *result = finishes(c) ? wide_y : to;
    void *data[CONV_TENSORS] = {[CONV_X] = spreads(c) ? wide_x : from,
                                [CONV_W] = (void *)packed,
                                [CONV_Y] = result,
                                [CONV_BIAS] = c->t == DT_F32 ? NULL : wide_bias,
                                [CONV_ADD] = p->add ? result : NULL};
    for (int i = 0; i < CONV_TENSORS; i++)
        CHECK((uintptr_t)data[i] % 16 == 0, "conv: operand %d is not aligned to 16 bytes", i);
    dnn_plan_run(plan_of(s, p), cuda_dnn(s), CONV_TENSORS, data, wide_bias + bias_bytes(c));
    if (finishes(c))
        conv_finish(s, c, first, p->frames, p->out, wide_y, c->t == DT_F32 ? bias : NULL, y);
}

void cuda_conv(Stream *s, const Conv *c, const void *x, const void *packed, const void *bias,
               void *y) {
    size_t bytes = cuda_conv_workspace(s, c);
    CHECK(bytes <= s->workspace_bytes, "conv: needs %zu bytes of workspace, has %zu", bytes,
          s->workspace_bytes);
    for (int64_t first = 0; first < c->frames;) {
        ConvPart p = conv_part(c, first);
        run_part(s, c, &p, first, x, packed, bias, y);
        first += p.frames;
    }
    if (!finishes(c)) repeat_frames(s, c, y);
}
