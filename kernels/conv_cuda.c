/* Convolutions on a GPU through cuDNN, channels last: groups of frames, so that no tensor is larger
 * than cuDNN's indices bear and the workspace stays bounded (see kernels/conv_cuda.h). */
#include "kernels/conv_cuda.h"

#include <cuda_runtime_api.h>
#include <stdio.h>

/* ---- graphs -----------------------------------------------------------------------------------
 */

/* [frames,H,W,C] as N, C, H, W, or as 1, C, D, H, W. */
static DnnShape frames_shape(bool time, int64_t frames, int64_t height, int64_t width,
                             int64_t channels) {
    int64_t line = width * channels, frame = height * line;
    if (!time)
        return (DnnShape){.rank = 4,
                          .dim = {frames, channels, height, width},
                          .stride = {frame, 1, line, channels}};
    return (DnnShape){.rank = 5,
                      .dim = {1, channels, frames, height, width},
                      .stride = {frames * frame, 1, frame, line, channels}};
}

static DnnShape weights_shape(const ConvPart *p) {
    int64_t i = p->in;
    if (p->kt == 1)
        return (DnnShape){.rank = 4, .dim = {p->out, i, 3, 3}, .stride = {9 * i, 1, 3 * i, i}};
    return (DnnShape){
        .rank = 5, .dim = {p->out, i, 3, 3, 3}, .stride = {27 * i, 1, 9 * i, 3 * i, i}};
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
    return (DnnRules){.workspace = CONV_LIBRARY_BYTES, .exact = p->t == DT_F32};
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

void cuda_conv_pack(Stream *s, const Conv *c, const void *w, void *packed) {
    conv_check_sizes(c);
    const int64_t from[] = {c->out, c->in};
    const int64_t to[] = {align_up(c->out, CONV_CHANNELS), align_up(c->in, CONV_CHANNELS)};
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
    cuda_check(cudaMemsetAsync(to, 0, (size_t)conv_bias_bytes(c), s->queue), "padding a bias");
    copy(s, to, bias, c->out * (int64_t)dtype_size(c->t));
}

/* The frames that `repeat` writes a second time. */
static void repeat_frames(Stream *s, const Conv *c, void *y) {
    int64_t frame = conv_frame_out(c), bytes = frame * (int64_t)dtype_size(c->t);
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
    char *wide_x = s->workspace, *wide_y = wide_x + conv_x_bytes(c, p->frames);
    char *wide_bias = wide_y + conv_y_bytes(c, p->frames);
    int64_t height = conv_size_out(c, c->height), width = conv_size_out(c, c->width);
    char *from = at_frame(x, first, c->height * c->width * c->in, c->t);
    char *to = at_frame(y, conv_frame_at(c, first), height * width * c->out, c->t);
    const int64_t in[] = {p->frames + c->kt - 1, c->height, c->width, c->in};
    const int64_t out[] = {p->frames, height, width, c->out};
    if (conv_spreads(c)) conv_spread_frames(s, c->t, in, c->enlarge, p->in, from, wide_x);
    if (conv_finishes(c) && p->add) conv_spread_frames(s, c->t, out, 1, p->out, to, wide_y);
    if (c->t != DT_F32) place_bias(s, c, bias, wide_bias);
    void *result = conv_finishes(c) ? wide_y : to;
    void *data[CONV_TENSORS] = {[CONV_X] = conv_spreads(c) ? wide_x : from,
                                [CONV_W] = (void *)packed,
                                [CONV_Y] = result,
                                [CONV_BIAS] = c->t == DT_F32 ? NULL : wide_bias,
                                [CONV_ADD] = p->add ? result : NULL};
    for (int i = 0; i < CONV_TENSORS; i++)
        CHECK((uintptr_t)data[i] % 16 == 0, "conv: operand %d is not aligned to 16 bytes", i);
    dnn_plan_run(plan_of(s, p), cuda_dnn(s), CONV_TENSORS, data, wide_bias + conv_bias_bytes(c));
    if (conv_finishes(c))
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
    if (!conv_finishes(c)) repeat_frames(s, c, y);
}
