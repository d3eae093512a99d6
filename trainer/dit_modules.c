/* Owns the transformer's modules: their published names, shapes, and order in the parameter set. */
#include "trainer/dit.h"

#include <stdlib.h>

static Linear linear(int block, char *module, Shape shape, bool has_bias) {
    return (Linear){.module = module, .shape = shape, .block = block, .has_bias = has_bias};
}

static LayerNorm layer_norm(int block, char *module, int64_t width) {
    return (LayerNorm){.module = module, .block = block, .width = width};
}

static DitBlock open_block(const DitConfig *c, int i) {
    int64_t D = c->width, E = c->head_size;
    int at = i + 1;
    DitBlock b = {
        .mod1 = linear(at, NULL, SHAPE(6 * D, c->time_dim), true),
        .norm1 = layer_norm(at, xprintf("transformer_blocks.%d.norm1.norm", i), D),
        .norm_q = layer_norm(at, xprintf("transformer_blocks.%d.attn1.norm_q", i), E),
        .norm_k = layer_norm(at, xprintf("transformer_blocks.%d.attn1.norm_k", i), E),
        .mod2 = linear(at, NULL, SHAPE(6 * D, c->time_dim), true),
        .norm2 = layer_norm(at, xprintf("transformer_blocks.%d.norm2.norm", i), D),
    };
    b.mod1.module = xprintf("transformer_blocks.%d.norm1.linear", i);
    b.mod2.module = xprintf("transformer_blocks.%d.norm2.linear", i);
    for (int j = 0; j < 3; j++)
        b.qkv[j] = linear(at, xprintf("transformer_blocks.%d.attn1.to_%c", i, "qkv"[j]),
                          SHAPE(D, D), c->attention_bias);
    b.out = linear(at, xprintf("transformer_blocks.%d.attn1.to_out.0", i), SHAPE(D, D), true);
    b.ff1 = linear(at, xprintf("transformer_blocks.%d.ff.net.0.proj", i), SHAPE(4 * D, D), true);
    b.ff2 = linear(at, xprintf("transformer_blocks.%d.ff.net.2", i), SHAPE(D, 4 * D), true);
    return b;
}

/* The patch projection is a convolution in the 1.0 models, a linear map in the 1.5 models. */
static Shape patch_shape(const DitConfig *c) {
    if (!c->temporal_patch) return SHAPE(c->width, c->in_channels, c->patch, c->patch);
    return SHAPE(c->width, c->in_channels * c->patch_t * c->patch * c->patch);
}

static void list(Dit *d, Linear *l) {
    l->ordinal = (uint32_t)d->n_linears;
    d->linears[d->n_linears++] = l;
}

/* All linear maps, for patterns and loading. The ordinal of a map names its random draws. */
static void list_linears(Dit *d) {
    d->linears = xcalloc((size_t)(8 * d->config.layers + 8), sizeof *d->linears);
    list(d, &d->patch);
    list(d, &d->text);
    list(d, &d->time1);
    list(d, &d->time2);
    if (d->config.ofs_dim) {
        list(d, &d->ofs1);
        list(d, &d->ofs2);
    }
    for (int64_t i = 0; i < d->config.layers; i++) {
        DitBlock *b = &d->blocks[i];
        list(d, &b->mod1);
        for (int j = 0; j < 3; j++) list(d, &b->qkv[j]);
        list(d, &b->out);
        list(d, &b->mod2);
        list(d, &b->ff1);
        list(d, &b->ff2);
    }
    list(d, &d->mod_out);
    list(d, &d->proj_out);
}

Dit *dit_open(const DitConfig *config) {
    Dit *d = xcalloc(1, sizeof *d);
    d->config = *config;
    const DitConfig *c = &d->config;
    int last = (int)c->layers + 1;
    int64_t D = c->width, patch = c->patch_t * c->patch * c->patch;
    d->patch = linear(0, xstrdup("patch_embed.proj"), patch_shape(c), true);
    d->text = linear(0, xstrdup("patch_embed.text_proj"), SHAPE(D, c->text_dim), true);
    d->time1 = linear(0, xstrdup("time_embedding.linear_1"), SHAPE(c->time_dim, D), true);
    d->time2 = linear(0, xstrdup("time_embedding.linear_2"), SHAPE(c->time_dim, c->time_dim), true);
    Shape ofs = SHAPE(c->ofs_dim, c->ofs_dim);
    d->ofs1 = linear(0, xstrdup("ofs_embedding.linear_1"), ofs, true);
    d->ofs2 = linear(0, xstrdup("ofs_embedding.linear_2"), ofs, true);
    d->blocks = xcalloc((size_t)c->layers, sizeof *d->blocks);
    for (int i = 0; i < c->layers; i++) d->blocks[i] = open_block(c, i);
    d->norm_final = layer_norm(last, xstrdup("norm_final"), D);
    d->mod_out = linear(last, xstrdup("norm_out.linear"), SHAPE(2 * D, c->time_dim), true);
    d->norm_out = layer_norm(last, xstrdup("norm_out.norm"), D);
    d->proj_out = linear(last, xstrdup("proj_out"), SHAPE(c->out_channels * patch, D), true);
    list_linears(d);
    return d;
}

void dit_close(Dit *d) {
    if (!d) return;
    for (int i = 0; i < d->n_linears; i++) free(d->linears[i]->module);
    for (int64_t i = 0; i < d->config.layers; i++) {
        DitBlock *b = &d->blocks[i];
        free(b->norm1.module);
        free(b->norm2.module);
        free(b->norm_q.module);
        free(b->norm_k.module);
    }
    if (!d->config.ofs_dim) {
        free(d->ofs1.module);
        free(d->ofs2.module);
    }
    free(d->norm_final.module);
    free(d->norm_out.module);
    free(d->linears);
    free(d->blocks);
    free(d);
}

/* ---- parameters -------------------------------------------------------------------------------
 */

static int add(ParamSet *p, const char *module, const char *leaf, Shape shape, int block,
               bool trained) {
    char *name = xprintf("%s.%s", module, leaf);
    int index = params_add(p, name, shape, block, trained);
    free(name);
    return index;
}

/* n maps side by side: all weights, then all biases, then the adapters. */
static void add_linears(ParamSet *p, Linear *l, int n, bool trained) {
    for (int i = 0; i < n; i++) {
        l[i].w = add(p, l[i].module, "weight", l[i].shape, l[i].block, trained);
        if (i) params_beside(p, l[i].w);
    }
    for (int i = 0; i < n; i++) {
        l[i].b = -1;
        if (!l[i].has_bias) continue;
        l[i].b = add(p, l[i].module, "bias", SHAPE(l[i].shape.dim[0]), l[i].block, trained);
        if (i) params_beside(p, l[i].b);
    }
    for (int i = 0; i < n; i++) linear_add_adapter(p, &l[i]);
}

static void add_norm(ParamSet *p, LayerNorm *n, bool trained) {
    n->gamma = add(p, n->module, "weight", SHAPE(n->width), n->block, trained);
    n->beta = add(p, n->module, "bias", SHAPE(n->width), n->block, trained);
}

static void add_block(ParamSet *p, DitBlock *b, bool trained) {
    add_linears(p, &b->mod1, 1, trained);
    add_norm(p, &b->norm1, trained);
    add_norm(p, &b->norm_q, trained);
    add_norm(p, &b->norm_k, trained);
    add_linears(p, b->qkv, 3, trained);
    add_linears(p, &b->out, 1, trained);
    add_linears(p, &b->mod2, 1, trained);
    add_norm(p, &b->norm2, trained);
    add_linears(p, &b->ff1, 1, trained);
    add_linears(p, &b->ff2, 1, trained);
}

static void lay_out(const Dit *d, ParamSet *p, int world) {
    int64_t n = d->config.layers + 2;
    char **names = xcalloc((size_t)n, sizeof *names);
    for (int64_t i = 0; i < n; i++)
        names[i] = i == 0       ? xstrdup("embed")
                   : i == n - 1 ? xstrdup("final")
                                : xprintf("block.%lld", (long long)i - 1);
    params_layout(p, (const char *const *)names, world);
    for (int64_t i = 0; i < n; i++) free(names[i]);
    free(names);
}

void dit_params(Dit *d, ParamSet *p, bool train_base, int world) {
    const DitConfig *c = &d->config;
    d->params = p;
    add_linears(p, &d->patch, 1, train_base);
    add_linears(p, &d->text, 1, train_base);
    d->pos_embedding = -1;
    if (c->learned) {
        int64_t frames = (c->sample_frames - 1) / c->temporal_ratio + 1;
        int64_t rows = dit_video_rows(c, frames, c->sample_height, c->sample_width);
        d->pos_embedding = params_add(p, "patch_embed.pos_embedding",
                                      SHAPE(1, c->text_length + rows, c->width), 0, false);
    }
    add_linears(p, &d->time1, 1, train_base);
    add_linears(p, &d->time2, 1, train_base);
    if (c->ofs_dim) {
        add_linears(p, &d->ofs1, 1, train_base);
        add_linears(p, &d->ofs2, 1, train_base);
    }
    for (int64_t i = 0; i < c->layers; i++) add_block(p, &d->blocks[i], train_base);
    add_norm(p, &d->norm_final, train_base);
    add_linears(p, &d->mod_out, 1, train_base);
    add_norm(p, &d->norm_out, train_base);
    add_linears(p, &d->proj_out, 1, train_base);
    lay_out(d, p, world);
}
