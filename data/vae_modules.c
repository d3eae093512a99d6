/* Owns the autoencoder's modules: their parameters, under their published names. */
#include "data/vae_graph.h"

#include <stdlib.h>

static const double FIXED_EPS = 1e-6; /* of every norm that the config's norm_eps does not reach */

/* Parameters as they are registered: convolutions' weights in a block each, all else of a half in
 * one. */
typedef struct {
    VaeNet *net;
    VaeHalf *half;
    bool decoder;
    char **blocks; /* names, [n_blocks] */
    int n_blocks, small;
} Maker;

static int new_block(Maker *m, const char *name) {
    m->blocks = xrealloc(m->blocks, (size_t)(m->n_blocks + 1) * sizeof *m->blocks);
    m->blocks[m->n_blocks] = xstrdup(name);
    return m->n_blocks++;
}

static int add(const Maker *m, int block, const char *module, const char *leaf, Shape shape) {
    char *name = xprintf("%s.%s", module, leaf);
    int param = params_add(m->net->params, name, shape, block, false);
    free(name);
    return param;
}

static VaeConv make_conv(Maker *m, const char *module, int64_t in, int64_t out, int64_t kt) {
    Shape shape = kt == 1 ? SHAPE(out, in, 3, 3) : SHAPE(out, in, kt, 3, 3);
    return (VaeConv){.id = m->half->n_convs++,
                     .w = add(m, new_block(m, module), module, "conv.weight", shape),
                     .b = add(m, m->small, module, "conv.bias", SHAPE(out)),
                     .kt = kt,
                     .in = in,
                     .out = out};
}

static VaeMap make_map(const Maker *m, const char *module, const char *prefix, int64_t in,
                       int64_t out) {
    char *full = xprintf("%s.%s", module, prefix);
    VaeMap map = {.w = add(m, m->small, full, "weight", SHAPE(out, in, 1, 1, 1)),
                  .b = add(m, m->small, full, "bias", SHAPE(out)),
                  .in = in,
                  .out = out};
    free(full);
    return map;
}

static VaeNorm make_norm(Maker *m, const char *module, int64_t channels, double eps) {
    char *own = m->decoder ? xprintf("%s.norm_layer", module) : xstrdup(module);
    int64_t latent = m->net->model.latent;
    VaeNorm norm = {.id = m->half->n_norms++,
                    .gamma = add(m, m->small, own, "weight", SHAPE(channels)),
                    .beta = add(m, m->small, own, "bias", SHAPE(channels)),
                    .channels = channels,
                    .eps = m->decoder ? FIXED_EPS : eps};
    free(own);
    if (!m->decoder) return norm;
    norm.scale = make_map(m, module, "conv_y.conv", latent, channels);
    norm.shift = make_map(m, module, "conv_b.conv", latent, channels);
    return norm;
}

/* The module NAME of `parent`. */
static VaeNorm norm_in(Maker *m, const char *parent, const char *name, int64_t channels,
                       double eps) {
    char *module = xprintf("%s.%s", parent, name);
    VaeNorm norm = make_norm(m, module, channels, eps);
    free(module);
    return norm;
}

static VaeConv conv_in(Maker *m, const char *parent, const char *name, int64_t in, int64_t out,
                       int64_t kt) {
    char *module = xprintf("%s.%s", parent, name);
    VaeConv conv = make_conv(m, module, in, out, kt);
    free(module);
    return conv;
}

static VaeResnet make_resnet(Maker *m, const char *module, int64_t in, int64_t out) {
    double eps = m->net->model.norm_eps;
    VaeResnet r = {.norm1 = norm_in(m, module, "norm1", in, eps),
                   .norm2 = norm_in(m, module, "norm2", out, eps),
                   .conv1 = conv_in(m, module, "conv1", in, out, 3),
                   .conv2 = conv_in(m, module, "conv2", out, out, 3),
                   .shortcut = {.w = -1}};
    if (in != out) r.shortcut = make_map(m, module, "conv_shortcut", in, out);
    return r;
}

static VaeStage make_stage(Maker *m, const char *module, int n, int64_t in, int64_t out) {
    VaeStage s = {.resnets = xcalloc((size_t)n, sizeof *s.resnets), .n = n};
    for (int i = 0; i < n; i++) {
        char *name = xprintf("%s.resnets.%d", module, i);
        s.resnets[i] = make_resnet(m, name, i ? out : in, out);
        free(name);
    }
    return s;
}

/* Level i of the half, from `in` channels. */
static VaeStage make_level(Maker *m, int i, int64_t in) {
    const VaeModel *model = &m->net->model;
    int64_t out = model->channels[m->decoder ? VAE_LEVELS - 1 - i : i];
    char *module = xprintf(m->decoder ? "decoder.up_blocks.%d" : "encoder.down_blocks.%d", i);
    VaeStage s = make_stage(m, module, (int)model->layers + m->decoder, in, out);
    s.samples = i < VAE_LEVELS - 1;
    s.time = i < 2; /* log2 of VAE_TIME */
    if (s.samples)
        s.sampler = conv_in(m, module, m->decoder ? "upsamplers.0" : "downsamplers.0", out, out, 1);
    free(module);
    return s;
}

static void make_half(Maker *m, VaeHalfName which) {
    const VaeModel *model = &m->net->model;
    const char *name = which == VAE_DECODER ? "decoder" : "encoder";
    VaeHalf *h = m->half = &m->net->halves[which];
    int64_t deep = model->channels[VAE_LEVELS - 1], shallow = model->channels[0];
    m->decoder = which == VAE_DECODER;
    m->small = new_block(m, name);
    h->conv_in = conv_in(m, name, "conv_in", m->decoder ? model->latent : VAE_COLORS,
                         m->decoder ? deep : shallow, 3);
    char *middle = xprintf("%s.mid_block", name);
    if (m->decoder) h->stages[0] = make_stage(m, middle, 2, deep, deep);
    int64_t width = m->decoder ? deep : shallow;
    for (int i = 0; i < VAE_LEVELS; i++) {
        h->stages[m->decoder + i] = make_level(m, i, width);
        width = model->channels[m->decoder ? VAE_LEVELS - 1 - i : i];
    }
    if (!m->decoder) h->stages[VAE_LEVELS] = make_stage(m, middle, 2, deep, deep);
    free(middle);
    h->norm_out = norm_in(m, name, "norm_out", width, FIXED_EPS);
    h->conv_out =
        conv_in(m, name, "conv_out", width, m->decoder ? VAE_COLORS : 2 * model->latent, 3);
}

VaeNet *vae_net_open(const VaeModel *model) {
    VaeNet *net = xcalloc(1, sizeof *net);
    net->model = *model;
    net->params = params_open();
    Maker m = {.net = net};
    for (int i = 0; i < VAE_HALVES; i++) make_half(&m, (VaeHalfName)i);
    params_layout(net->params, (const char *const *)m.blocks, 1);
    for (int i = 0; i < m.n_blocks; i++) free(m.blocks[i]);
    free(m.blocks);
    return net;
}

void vae_net_close(VaeNet *n) {
    for (int i = 0; i < VAE_HALVES; i++)
        for (int j = 0; j <= VAE_LEVELS; j++) free(n->halves[i].stages[j].resnets);
    free(n);
}
