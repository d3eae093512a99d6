/* Convolutions of frames by oneDNN, channels last (see kernels/conv.h): all but their making, which
 * differs between versions 2 and 3 of its interface. */
#include "kernels/conv_onednn.h"

#include <dnnl.h>
#include <stdlib.h>

void conv_check(int status, const char *call) {
    CHECK(status == dnnl_success, "conv: oneDNN's %s returned %d", call, status);
}

ConvLibrary *conv_library_open(void) {
    ConvLibrary *l = xcalloc(1, sizeof *l);
    conv_check(dnnl_engine_create(&l->engine, dnnl_cpu, 0), "engine_create");
    conv_check(dnnl_stream_create(&l->stream, l->engine, dnnl_stream_default_flags),
               "stream_create");
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

/* Scratch memory of the caller's; with `add`, y + result. */
dnnl_primitive_attr_t conv_attributes(bool add) {
    dnnl_primitive_attr_t attr;
    dnnl_post_ops_t post;
    conv_check(dnnl_primitive_attr_create(&attr), "attr_create");
    conv_check(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user),
               "scratchpad");
    conv_check(dnnl_post_ops_create(&post), "post_ops_create");
    if (add) conv_append_sum(post);
    conv_check(dnnl_primitive_attr_set_post_ops(attr, post), "set_post_ops");
    dnnl_post_ops_destroy(post);
    return attr;
}

ConvSizes conv_sizes(const FramePart *p) {
    ConvSizes s = {.x = {1, p->in, p->kt, p->height, p->width},
                   .w = {p->out, p->in, p->kt, 3, 3},
                   .y = {1, p->out, 1, p->height, p->width},
                   .bias = {p->out},
                   .strides = {1, p->stride, p->stride},
                   .before = {0, 1, 1},
                   .after = {0, 1, 1}};
    for (int i = 0; i < 2 && p->stride == 2; i++) {
        s.y[3 + i] = (s.x[3 + i] - 2) / 2 + 1;
        s.before[1 + i] = 0;
    }
    return s;
}

/* Runs with the data given, one pointer for each argument. */
static void execute(ConvLibrary *l, dnnl_primitive_t primitive, int n, const dnnl_exec_arg_t *args,
                    const void *const *data) {
    for (int i = 0; i < n; i++)
        conv_check(dnnl_memory_set_data_handle(args[i].memory, (void *)data[i]), "set_data_handle");
    conv_check(dnnl_primitive_execute(primitive, l->stream, n, args), "execute");
    conv_check(dnnl_stream_wait(l->stream), "stream_wait");
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
