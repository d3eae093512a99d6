/* What conv_onednn.c and the file for oneDNN's version share. Handles are oneDNN's own. */
#pragma once

#include "kernels/conv.h"

struct ConvLibrary {
    struct dnnl_engine *engine;
    struct dnnl_stream *stream;
};

struct FrameConv {
    struct dnnl_primitive *conv, *pack;
    struct dnnl_memory *x, *w, *packed, *bias, *y, *scratch, *pack_scratch;
    size_t workspace;
    int64_t elements; /* of the packed weights */
};

/* Bug unless a call returned dnnl_success. */
void conv_check(int status, const char *call);
/* Scratch memory of the caller's; with `add`, y + result. */
struct dnnl_primitive_attr *conv_attributes(bool add);

struct dnnl_post_ops;

/* Appends y + result; of the file for the version. */
void conv_append_sum(struct dnnl_post_ops *post);

/* Sizes of a FramePart, each a dnnl_dims_t. */
typedef struct {
    int64_t x[12], w[12], y[12], bias[12];
    int64_t strides[12], dilates[12], before[12], after[12];
} ConvSizes;

ConvSizes conv_sizes(const FramePart *p);
