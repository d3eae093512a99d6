/* Convolutions of frames by oneDNN 2.x, channels last (see kernels/conv.h). */
#include "kernels/conv.h"

#include <dnnl.h>
#include <stdlib.h>

struct ConvLibrary {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
};

struct FrameConv {
    dnnl_primitive_t conv, pack;
    dnnl_memory_t x, w, packed, bias, y, scratch, pack_scratch;
    size_t workspace;
    int64_t elements; /* of the packed weights */
};

static void check(dnnl_status_t status, const char *call) {
    CHECK(status == dnnl_success, "conv: oneDNN's %s returned %d", call, (int)status);
}

ConvLibrary *conv_library_open(void) {
    ConvLibrary *l = xcalloc(1, sizeof *l);
    check(dnnl_engine_create(&l->engine, dnnl_cpu, 0), "engine_create");
    check(dnnl_stream_create(&l->stream, l->engine, dnnl_stream_default_flags), "stream_create");
    return l;
}

void conv_library_close(ConvLibrary *l) {
    dnnl_stream_destroy(l->stream);
    dnnl_engine_destroy(l->engine);
    free(l);
}

void frame_conv_free(FrameConv *f) {
    dnnl_memory_t memories[] = {f->x, f->w, f->packed, f->bias, f->y, f->scratch, f->pack_scratch};
    for (size_t i = 0; i < COUNT(memories); i++) dnnl_memory_destroy(memories[i]);
    dnnl_primitive_destroy(f->conv);
    dnnl_primitive_destroy(f->pack);
    free(f);
}

size_t frame_conv_workspace(const FrameConv *f) { return f->workspace; }

int64_t frame_conv_packed(const FrameConv *f) { return f->elements; }

static dnnl_memory_desc_t tensor(int n, const dnnl_dims_t size, dnnl_format_tag_t tag) {
    dnnl_memory_desc_t d;
    check(dnnl_memory_desc_init_by_tag(&d, n, size, dnnl_f32, tag), "memory_desc");
    return d;
}

/* Scratch memory of the caller's; with `add`, y + result. */
static dnnl_primitive_attr_t attributes(bool add) {
    dnnl_primitive_attr_t attr;
    dnnl_post_ops_t post;
    check(dnnl_primitive_attr_create(&attr), "attr_create");
    check(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user), "scratchpad");
    check(dnnl_post_ops_create(&post), "post_ops_create");
    if (add) check(dnnl_post_ops_append_sum(post, 1), "sum");
    check(dnnl_primitive_attr_set_post_ops(attr, post), "set_post_ops");
    dnnl_post_ops_destroy(post);
    return attr;
}

static dnnl_memory_t memory_of(const dnnl_memory_desc_t *d, dnnl_engine_t engine) {
    dnnl_memory_t m;
    check(dnnl_memory_create(&m, d, engine, DNNL_MEMORY_NONE), "memory_create");
    return m;
}

static dnnl_primitive_desc_t plan_of(const ConvLibrary *l, const FramePart *p) {
    dnnl_dims_t from = {1, p->in, p->kt, p->height, p->width}, taps = {p->out, p->in, p->kt, 3, 3};
    dnnl_dims_t to = {1, p->out, 1, p->height, p->width}, channels = {p->out};
    dnnl_dims_t strides = {1, p->stride, p->stride}, before = {0, 1, 1}, after = {0, 1, 1};
    for (int i = 0; i < 2 && p->stride == 2; i++) {
        to[3 + i] = (from[3 + i] - 2) / 2 + 1;
        before[1 + i] = 0;
    }
    dnnl_memory_desc_t x = tensor(5, from, dnnl_ndhwc), y = tensor(5, to, dnnl_ndhwc);
    dnnl_memory_desc_t w = tensor(5, taps, dnnl_format_tag_any), b = tensor(1, channels, dnnl_x);
    dnnl_convolution_desc_t desc;
    dnnl_primitive_desc_t plan;
    check(dnnl_convolution_forward_desc_init(&desc, dnnl_forward_inference, dnnl_convolution_direct,
                                             &x, &w, &b, &y, strides, before, after),
          "convolution_desc");
    dnnl_primitive_attr_t attr = attributes(p->add);
    check(dnnl_primitive_desc_create(&plan, &desc, attr, l->engine, NULL), "primitive_desc");
    dnnl_primitive_attr_destroy(attr);
    return plan;
}

static dnnl_primitive_desc_t pack_plan(const ConvLibrary *l, const dnnl_memory_desc_t *from,
                                       const dnnl_memory_desc_t *to) {
    dnnl_primitive_desc_t plan;
    dnnl_primitive_attr_t attr = attributes(false);
    check(dnnl_reorder_primitive_desc_create(&plan, from, l->engine, to, l->engine, attr),
          "reorder_desc");
    dnnl_primitive_attr_destroy(attr);
    return plan;
}

FrameConv *frame_conv_create(ConvLibrary *l, const FramePart *p) {
    FrameConv *f = xcalloc(1, sizeof *f);
    dnnl_dims_t taps = {p->out, p->in, p->kt, 3, 3};
    dnnl_memory_desc_t plain = tensor(5, taps, dnnl_oidhw);
    dnnl_primitive_desc_t plan = plan_of(l, p);
    const dnnl_memory_desc_t *packed = dnnl_primitive_desc_query_md(plan, dnnl_query_weights_md, 0);
    const dnnl_memory_desc_t *scratch =
        dnnl_primitive_desc_query_md(plan, dnnl_query_scratchpad_md, 0);
    dnnl_primitive_desc_t pack = pack_plan(l, &plain, packed);
    const dnnl_memory_desc_t *pack_scratch =
        dnnl_primitive_desc_query_md(pack, dnnl_query_scratchpad_md, 0);
    check(dnnl_primitive_create(&f->conv, plan), "primitive_create");
    check(dnnl_primitive_create(&f->pack, pack), "primitive_create");
    f->workspace = MAX(dnnl_memory_desc_get_size(scratch), dnnl_memory_desc_get_size(pack_scratch));
    f->elements = (int64_t)(dnnl_memory_desc_get_size(packed) / sizeof(float));
    f->x = memory_of(dnnl_primitive_desc_query_md(plan, dnnl_query_src_md, 0), l->engine);
    f->bias = memory_of(dnnl_primitive_desc_query_md(plan, dnnl_query_weights_md, 1), l->engine);
    f->y = memory_of(dnnl_primitive_desc_query_md(plan, dnnl_query_dst_md, 0), l->engine);
    f->w = memory_of(&plain, l->engine);
    f->packed = memory_of(packed, l->engine);
    f->scratch = memory_of(scratch, l->engine);
    f->pack_scratch = memory_of(pack_scratch, l->engine);
    dnnl_primitive_desc_destroy(plan);
    dnnl_primitive_desc_destroy(pack);
    return f;
}

/* Runs with the data given, one pointer for each argument. */
static void execute(ConvLibrary *l, dnnl_primitive_t primitive, int n, const dnnl_exec_arg_t *args,
                    const void *const *data) {
    for (int i = 0; i < n; i++)
        check(dnnl_memory_set_data_handle(args[i].memory, (void *)data[i]), "set_data_handle");
    check(dnnl_primitive_execute(primitive, l->stream, n, args), "execute");
    check(dnnl_stream_wait(l->stream), "stream_wait");
}

void frame_conv_pack(ConvLibrary *l, const FrameConv *f, const real *w, real *packed,
                     void *workspace) {
    dnnl_exec_arg_t args[] = {
        {DNNL_ARG_FROM, f->w}, {DNNL_ARG_TO, f->packed}, {DNNL_ARG_SCRATCHPAD, f->pack_scratch}};
    execute(l, f->pack, COUNT(args), args, (const void *[]){w, packed, workspace});
}

void frame_conv_run(ConvLibrary *l, const FrameConv *f, const real *x, const real *packed,
                    const real *bias, real *y, void *workspace) {
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, f->x},
                              {DNNL_ARG_WEIGHTS, f->packed},
                              {DNNL_ARG_BIAS, f->bias},
                              {DNNL_ARG_DST, f->y},
                              {DNNL_ARG_SCRATCHPAD, f->scratch}};
    execute(l, f->conv, COUNT(args), args, (const void *[]){x, packed, bias, y, workspace});
}
