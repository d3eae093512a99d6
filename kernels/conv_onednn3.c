/* Makes convolutions of frames through oneDNN 3.x. */
#include "kernels/conv_onednn.h"

#include <dnnl.h>

void conv_append_sum(dnnl_post_ops_t post) {
    conv_check(dnnl_post_ops_append_sum(post, 1, 0, dnnl_data_type_undef), "sum");
}

static dnnl_memory_desc_t tensor(int n, const dnnl_dims_t size, dnnl_format_tag_t tag) {
    dnnl_memory_desc_t d;
    conv_check(dnnl_memory_desc_create_with_tag(&d, n, size, dnnl_f32, tag), "memory_desc");
    return d;
}

static dnnl_memory_t memory_of(const_dnnl_memory_desc_t d, dnnl_engine_t engine) {
    dnnl_memory_t m;
    conv_check(dnnl_memory_create(&m, d, engine, DNNL_MEMORY_NONE), "memory_create");
    return m;
}

static dnnl_primitive_desc_t plan_of(const ConvLibrary *l, const FramePart *p) {
    ConvSizes s = conv_sizes(p);
    dnnl_memory_desc_t x = tensor(5, s.x, dnnl_ndhwc), y = tensor(5, s.y, dnnl_ndhwc);
    dnnl_memory_desc_t w = tensor(5, s.w, dnnl_format_tag_any), b = tensor(1, s.bias, dnnl_x);
    dnnl_memory_desc_t descs[] = {x, w, b, y};
    dnnl_primitive_desc_t plan;
    dnnl_primitive_attr_t attr = conv_attributes(p->add);
    conv_check(dnnl_convolution_forward_primitive_desc_create(
                   &plan, l->engine, dnnl_forward_inference, dnnl_convolution_direct, x, w, b, y,
                   s.strides, s.dilates, s.before, s.after, attr),
               "primitive_desc");
    for (size_t i = 0; i < COUNT(descs); i++) dnnl_memory_desc_destroy(descs[i]);
    dnnl_primitive_attr_destroy(attr);
    return plan;
}

static dnnl_primitive_desc_t pack_plan(const ConvLibrary *l, const_dnnl_memory_desc_t from,
                                       const_dnnl_memory_desc_t to) {
    dnnl_primitive_desc_t plan;
    dnnl_primitive_attr_t attr = conv_attributes(false);
    conv_check(dnnl_reorder_primitive_desc_create(&plan, from, l->engine, to, l->engine, attr),
               "reorder_desc");
    dnnl_primitive_attr_destroy(attr);
    return plan;
}

FrameConv *frame_conv_create(ConvLibrary *l, const FramePart *p) {
    FrameConv *f = xcalloc(1, sizeof *f);
    dnnl_memory_desc_t plain = tensor(5, conv_sizes(p).w, dnnl_oidhw);
    dnnl_primitive_desc_t plan = plan_of(l, p);
    const_dnnl_memory_desc_t packed = dnnl_primitive_desc_query_md(plan, dnnl_query_weights_md, 0);
    const_dnnl_memory_desc_t scratch =
        dnnl_primitive_desc_query_md(plan, dnnl_query_scratchpad_md, 0);
    dnnl_primitive_desc_t pack = pack_plan(l, plain, packed);
    const_dnnl_memory_desc_t pack_scratch =
        dnnl_primitive_desc_query_md(pack, dnnl_query_scratchpad_md, 0);
    conv_check(dnnl_primitive_create(&f->conv, plan), "primitive_create");
    conv_check(dnnl_primitive_create(&f->pack, pack), "primitive_create");
    f->workspace = MAX(dnnl_memory_desc_get_size(scratch), dnnl_memory_desc_get_size(pack_scratch));
    f->elements = (int64_t)(dnnl_memory_desc_get_size(packed) / sizeof(float));
    f->x = memory_of(dnnl_primitive_desc_query_md(plan, dnnl_query_src_md, 0), l->engine);
    f->bias = memory_of(dnnl_primitive_desc_query_md(plan, dnnl_query_weights_md, 1), l->engine);
    f->y = memory_of(dnnl_primitive_desc_query_md(plan, dnnl_query_dst_md, 0), l->engine);
    f->w = memory_of(plain, l->engine);
    f->packed = memory_of(packed, l->engine);
    f->scratch = memory_of(scratch, l->engine);
    f->pack_scratch = memory_of(pack_scratch, l->engine);
    dnnl_memory_desc_destroy(plain);
    dnnl_primitive_desc_destroy(plan);
    dnnl_primitive_desc_destroy(pack);
    return f;
}
