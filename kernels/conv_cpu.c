/* Convolutions: the choice of how, the frames one after the other, and the compiled convolutions
 * of a stream, kept by what they depend on. */
#include "kernels/conv.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

typedef struct CompiledFrame CompiledFrame;
struct CompiledFrame {
    FramePart part;
    FrameConv *conv;
    CompiledFrame *next;
};

struct ConvCache {
    ConvLibrary *library;
    CompiledFrame *first;
    Stream *lanes; /* [n_lanes] */
    int n_lanes;
};

ConvCache *conv_cache_open(void) {
    ConvCache *c = xcalloc(1, sizeof *c);
    c->library = conv_library_open();
    return c;
}

void conv_cache_close(ConvCache *c) {
    for (CompiledFrame *f = c->first, *next; f; f = next) {
        next = f->next;
        frame_conv_free(f->conv);
        free(f);
    }
    for (int i = 0; i < c->n_lanes; i++) gemm_cache_close(c->lanes[i].gemms);
    free(c->lanes);
    conv_library_close(c->library);
    free(c);
}

Stream *conv_lanes(Stream *s, int n) {
    ConvCache *c = s->convs;
    if (n > c->n_lanes) c->lanes = xrealloc(c->lanes, (size_t)n * sizeof *c->lanes);
    for (; c->n_lanes < n; c->n_lanes++)
        c->lanes[c->n_lanes] = (Stream){.gemms = gemm_cache_open()};
    return c->lanes;
}

static const FrameConv *frame_conv(Stream *s, const Conv *c) {
    FramePart part = {.height = c->height * c->enlarge,
                      .width = c->width * c->enlarge,
                      .in = c->in,
                      .out = c->out,
                      .kt = c->kt,
                      .stride = c->stride,
                      .add = c->add,
                      .threads = omp_get_max_threads()};
    for (CompiledFrame *f = s->convs->first; f; f = f->next)
        if (!memcmp(&f->part, &part, sizeof part)) return f->conv;
    CompiledFrame *f = xcalloc(1, sizeof *f);
    f->part = part;
    f->conv = frame_conv_create(s->convs->library, &part);
    f->next = s->convs->first;
    s->convs->first = f;
    return f->conv;
}

static void check_conv(const Conv *c) {
    check_type(c->t, "conv");
    CHECK((c->kt == 1 || c->kt == 3) && (c->stride == 1 || c->stride == 2) &&
              (c->enlarge == 1 || (c->enlarge == 2 && c->kt == 1 && c->stride == 1)),
          "conv: kt %lld, stride %lld, enlarge %lld", (long long)c->kt, (long long)c->stride,
          (long long)c->enlarge);
}

int64_t cpu_conv_packed(const Conv *c) {
    check_conv(c);
    /* The library's form has whole blocks of channels. */
    return winograd_suits(c) ? winograd_packed(c)
                             : align_up(c->out, 64) * align_up(c->in, 16) * c->kt * 9;
}

/* Bytes of one enlarged frame. */
static size_t enlarged_bytes(const Conv *c) {
    return c->enlarge == 1 ? 0 : (size_t)(4 * c->height * c->width * c->in) * sizeof(real);
}

size_t cpu_conv_workspace(Stream *s, const Conv *c) {
    check_conv(c);
    if (winograd_suits(c)) return winograd_workspace(s, c);
    return (size_t)align_up((int64_t)enlarged_bytes(c), 256) +
           frame_conv_workspace(frame_conv(s, c));
}

static void check_workspace(const Stream *s, size_t bytes) {
    CHECK(bytes <= s->workspace_bytes, "conv: needs %zu bytes of workspace, has %zu", bytes,
          s->workspace_bytes);
}

void cpu_conv_pack(Stream *s, const Conv *c, const void *w, void *packed) {
    check_conv(c);
    if (winograd_suits(c)) {
        winograd_pack(c, w, packed);
        return;
    }
    const FrameConv *f = frame_conv(s, c);
    check_workspace(s, frame_conv_workspace(f));
    CHECK(frame_conv_packed(f) <= cpu_conv_packed(c), "conv: weights of %lld elements when packed",
          (long long)frame_conv_packed(f));
    frame_conv_pack(s->convs->library, f, w, packed, s->workspace);
}

/* Every pixel of x [H,W,I] as 2 x 2 of y. */
static void enlarge_frame(const Conv *c, const real *x, real *y) {
    int64_t line = 2 * c->width * c->in;
    size_t pixel = (size_t)c->in * sizeof *x;
#pragma omp parallel for schedule(static)
    for (int64_t h = 0; h < c->height; h++) {
        real *to = y + 2 * h * line;
        for (int64_t w = 0; w < 2 * c->width; w++)
            memcpy(to + w * c->in, x + (h * c->width + w / 2) * c->in, pixel);
        memcpy(to + line, to, (size_t)line * sizeof *x);
    }
}

static void direct_run(Stream *s, const Conv *c, const real *x, const real *packed,
                       const real *bias, real *y) {
    const FrameConv *f = frame_conv(s, c);
    size_t enlarged = (size_t)align_up((int64_t)enlarged_bytes(c), 256);
    check_workspace(s, enlarged + frame_conv_workspace(f));
    real *large = s->workspace;
    char *scratch = (char *)s->workspace + enlarged;
    int64_t from = c->height * c->width * c->in;
    int64_t to = conv_out_size(c, c->height) * conv_out_size(c, c->width) * c->out;
    for (int64_t t = 0; t < c->frames; t++) {
        const real *in = x + t * from;
        if (c->enlarge == 2) enlarge_frame(c, in, large);
        frame_conv_run(s->convs->library, f, c->enlarge == 2 ? large : in, packed, bias, y,
                       scratch);
        if (conv_copies(c, t) == 2) {
            memcpy(y + to, y, (size_t)to * sizeof *y);
            y += to;
        }
        y += to;
    }
}

void cpu_conv(Stream *s, const Conv *c, const void *x, const void *packed, const void *bias,
              void *y) {
    check_conv(c);
    CHECK(!c->add || !c->repeat, "conv: adds to frames that it repeats");
    if (winograd_suits(c))
        winograd_run(s, c, x, packed, bias, y);
    else
        direct_run(s, c, x, packed, bias, y);
}
