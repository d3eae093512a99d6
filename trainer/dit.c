/* Owns the transformer's graph: one pack, from noisy latents to velocity and loss.
 *
 * Per block, c = silu(time embedding), rows X [S,D], modulation tables [2B,3D] with columns
 * shift | scale | gate, row 2 * sample for video, + 1 for text:
 *     X += gate1 * to_out(attention(rotate(norm(q, k)), v)),  q|k|v of norm1(X) modulated
 *     X += gate2 * ff2(gelu(ff1(norm2(X) modulated)))
 * What text rows do after the last block's attention reaches nothing, so only video rows go on.
 */
#include "trainer/dit.h"

#include "trainer/positions.h"

#include <stdlib.h>
#include <string.h>

static const real QK_NORM_EPS = (real)1e-6;

bool dit_check_sample(const DitConfig *c, int64_t f, int64_t h, int64_t w, int64_t text, Error *e) {
    if (f < 1 || h < 1 || w < 1 || f % c->patch_t || h % c->patch || w % c->patch)
        return error_set(e, EXIT_USER,
                         "latents of %lld x %lld x %lld: expected multiples of %lld frames, %lld "
                         "rows and %lld columns",
                         (long long)f, (long long)h, (long long)w, (long long)c->patch_t,
                         (long long)c->patch, (long long)c->patch);
    bool sincos = !c->rotary && !c->learned;
    if ((sincos || c->learned) && text != c->text_length)
        return error_set(e, EXIT_USER, "text of %lld rows: this model needs exactly %lld",
                         (long long)text, (long long)c->text_length);
    if (text < 1)
        return error_set(e, EXIT_USER, "text of no rows: expected up to %lld",
                         (long long)c->text_length);
    if (!c->learned) return true;
    int64_t native = (c->sample_frames - 1) / c->temporal_ratio + 1;
    if (h != c->sample_height || w != c->sample_width || f > native)
        return error_set(e, EXIT_USER,
                         "latents of %lld x %lld x %lld: this model's learned positions are for "
                         "%lld x %lld and up to %lld frames",
                         (long long)f, (long long)h, (long long)w, (long long)c->sample_height,
                         (long long)c->sample_width, (long long)native);
    return true;
}

/* A constant table given in f32 (f64 in the f64 build), in the graph's type. */
static Tensor *const_table(Graph *g, const char *name, Shape shape, DType type,
                           const real *values) {
    Tensor *t = graph_tensor(g, name, shape, type, ROLE_CONST);
    t->host = graph_alloc(g, tensor_bytes(t));
    BACKEND_CPU.cast(NULL, DT_REAL, type, shape_count(shape), values, (void *)t->host);
    return t;
}

typedef struct {
    const Dit *d;
    Graph *g;
    DitGraph *out;
    const PackTables *t;
    Tensor *rope; /* [S,E] f32, or NULL */
    Tensor *c;    /* [B, time_dim] */
} Build;

static Tensor *linear_of(const Build *b, const Linear *l, Tensor *x, Segments rows) {
    return linear_forward(b->g, l, x, rows, b->out->ordinals);
}

static Tensor *norm_param(const Build *b, int param, int64_t width) {
    return graph_param(b->g, param, 1, SHAPE(width));
}

static Tensor *norm_of(const Build *b, const LayerNorm *n, Tensor *x, Tensor *mod,
                       Tensor *mod_row) {
    return op_norm(b->g, x, norm_param(b, n->gamma, n->width), norm_param(b, n->beta, n->width),
                   (real)b->d->config.norm_eps, mod, mod_row);
}

/* ---- what comes before the blocks -------------------------------------------------------------
 */

static Tensor *rope_table(const Build *b, const Pack *pack) {
    const DitConfig *c = &b->d->config;
    if (!c->rotary) return NULL;
    Segments whole = b->t->whole, mine = b->t->rows;
    int64_t rows = mine.cu[mine.n], e = c->head_size;
    float *table = xcalloc((size_t)(whole.cu[whole.n] * e), sizeof *table);
    for (int i = 0; i < pack->samples; i++) {
        float *at = table + whole.cu[i] * e;
        const int64_t *s = pack->fhw[i];
        rotary_identity(pack->text_rows[i], e, at);
        rotary_table(c, s[0], s[1], s[2], at + pack->text_rows[i] * e);
    }
    Tensor *t = graph_tensor(b->g, "rope", SHAPE(rows, e), DT_REAL, ROLE_CONST);
    real *values = graph_alloc(b->g, tensor_bytes(t));
    for (int run = 0; run < mine.n; run++) {
        const float *at = table + (whole.cu[mine.sample[run]] + mine.first[run]) * e;
        for (int64_t i = mine.cu[run] * e; i < mine.cu[run + 1] * e; i++) values[i] = *at++;
    }
    t->host = values;
    free(table);
    return t;
}

static Tensor *axis_table(const Build *b, const char *name, int64_t count, int64_t dim,
                          double scale) {
    double *table = xcalloc((size_t)(count * dim), sizeof *table);
    real *values = xcalloc((size_t)(count * dim), sizeof *values);
    sincos_axis(count, dim, scale, table);
    for (int64_t i = 0; i < count * dim; i++) values[i] = (real)table[i];
    Tensor *t = const_table(b->g, name, SHAPE(count, dim), b->g->dtype, values);
    free(table);
    free(values);
    return t;
}

/* 3-D sincos positions on video rows: the tables reach as far as the largest sample. */
static Tensor *add_sincos(const Build *b, Tensor *video) {
    const DitConfig *c = &b->d->config;
    LatentSizes grid = b->t->grid;
    int64_t most[3] = {0};
    for (int i = 0; i < grid.n; i++)
        for (int j = 0; j < 3; j++) most[j] = MAX(most[j], grid.fhw[i][j]);
    Tensor *tf = axis_table(b, "sincos.frames", most[0], c->width / 4, c->temporal_scale);
    Tensor *th = axis_table(b, "sincos.height", most[1], c->width / 8 * 3, c->spatial_scale);
    Tensor *tw = axis_table(b, "sincos.width", most[2], c->width / 8 * 3, c->spatial_scale);
    return op_add_axes(b->g, video, grid, b->t->video, tf, tw, th);
}

/* The learned table: every sample takes its first rows. */
static Tensor *add_learned(const Build *b, Tensor *x) {
    Shape shape = b->d->params->param[b->d->pos_embedding].shape;
    int64_t rows = x->shape.dim[0], width = shape.dim[2];
    Tensor *table = graph_param(b->g, b->d->pos_embedding, 1, SHAPE(shape.dim[1], width));
    bool first_rows = b->t->samples.n == 1 && !b->t->video_here;
    Tensor *mine = first_rows ? graph_view(b->g, table, 0, SHAPE(rows, width))
                              : op_gather_rows(b->g, table, b->t->row_in_sample);
    return op_add(b->g, x, mine);
}

static Tensor *mlp(const Build *b, const Linear *first, const Linear *second, Tensor *x) {
    Tensor *h = op_silu(b->g, linear_of(b, first, x, b->t->samples));
    return linear_of(b, second, h, b->t->samples);
}

static Tensor *rows_here(const Build *b, Tensor *x, Tensor *here) {
    return here ? op_gather_rows(b->g, x, here) : x;
}

static Tensor *embed(const Build *b) {
    const Dit *d = b->d;
    const DitConfig *c = &d->config;
    DitGraph *in = b->out;
    Tensor *text = linear_of(b, &d->text, rows_here(b, in->text, b->t->text_here), b->t->text);
    Tensor *patches = op_patchify(b->g, in->latents, in->image, b->t->latents, c->out_channels,
                                  c->patch, c->patch_t);
    Tensor *video = linear_of(b, &d->patch, rows_here(b, patches, b->t->video_here), b->t->video);
    if (!c->rotary && !c->learned) video = add_sincos(b, video);
    Tensor *x = op_join(b->g, text, video, b->t->source);
    return c->learned ? add_learned(b, x) : x;
}

static Tensor *time_embedding(const Build *b) {
    Tensor *emb = mlp(b, &b->d->time1, &b->d->time2, b->out->time);
    if (b->out->ofs) emb = op_add(b->g, emb, mlp(b, &b->d->ofs1, &b->d->ofs2, b->out->ofs));
    return op_silu(b->g, emb);
}

/* ---- blocks -----------------------------------------------------------------------------------
 */

static Tensor *modulation(const Build *b, const Linear *l) {
    Tensor *mod = linear_of(b, l, b->c, b->t->samples);
    return graph_reshape(b->g, mod, SHAPE(2 * b->t->samples.n, linear_out(l) / 2));
}

static Tensor *attend(const Build *b, const DitBlock *block, Tensor *n1) {
    const DitConfig *c = &b->d->config;
    int64_t S = n1->shape.dim[0], D = c->width, E = c->head_size;
    Tensor *qkv = linear_forward_fused(b->g, block->qkv, 3, n1, b->t->rows, b->out->ordinals);
    Tensor *qk = graph_view(b->g, qkv, 0, SHAPE(2, S, D));
    Tensor *v = graph_view(b->g, qkv, 2 * S * D, SHAPE(S, D));
    const LayerNorm *nq = &block->norm_q, *nk = &block->norm_k;
    qk = op_qk_norm(b->g, qk, norm_param(b, nq->gamma, E), norm_param(b, nq->beta, E),
                    norm_param(b, nk->gamma, E), norm_param(b, nk->beta, E), b->rope, c->heads,
                    QK_NORM_EPS);
    qk = op_rows_to_heads(b->g, qk, b->t->runs);
    v = op_rows_to_heads(b->g, v, b->t->runs);
    Tensor *a = op_attention(b->g, qk, v, v->shape.dim[1] / E, b->t->whole);
    return op_heads_to_rows(b->g, a, b->t->runs);
}

static Tensor *record_block(const Build *b, const DitBlock *block, Tensor *x, bool last) {
    int64_t gate = 2 * b->d->config.width;
    Tensor *mod1 = modulation(b, &block->mod1), *mod_row = b->t->mod_row;
    Segments rows = b->t->rows;
    Tensor *a = attend(b, block, norm_of(b, &block->norm1, x, mod1, mod_row));
    if (last) {
        a = op_gather_rows(b->g, a, b->t->video_index);
        x = op_gather_rows(b->g, x, b->t->video_index);
        mod_row = b->t->mod_row_video;
        rows = b->t->video;
    }
    x = op_gate(b->g, x, linear_of(b, &block->out, a, rows), mod1, mod_row, gate);
    Tensor *mod2 = modulation(b, &block->mod2);
    Tensor *n2 = norm_of(b, &block->norm2, x, mod2, mod_row);
    Tensor *h = op_gelu(b->g, linear_of(b, &block->ff1, n2, rows));
    return op_gate(b->g, x, linear_of(b, &block->ff2, h, rows), mod2, mod_row, gate);
}

/* ---- the whole --------------------------------------------------------------------------------
 */

static void make_inputs(Build *b, const Pack *pack, bool with_loss) {
    const DitConfig *c = &b->d->config;
    Graph *g = b->g;
    DitGraph *in = b->out;
    int64_t n = pack->samples, elements = b->t->elements.cu[n];
    in->latents = graph_input(g, "latents", SHAPE(elements), g->dtype);
    if (c->in_channels != c->out_channels)
        in->image = graph_input(g, "image_latents", SHAPE(elements), g->dtype);
    int64_t text = b->t->whole.cu[n] - b->t->video_runs.cu[n];
    in->text = graph_input(g, "text", SHAPE(text, c->text_dim), g->dtype);
    in->time = graph_input(g, "timesteps", SHAPE(n, c->width), g->dtype);
    if (c->ofs_dim) in->ofs = graph_input(g, "ofs", SHAPE(n, c->ofs_dim), g->dtype);
    for (int i = 0; with_loss && i < b->d->n_linears && !in->ordinals; i++)
        if (b->d->linears[i]->rank && b->d->linears[i]->dropout > 0)
            in->ordinals = graph_input(g, "ordinals", SHAPE(n), DT_U32);
    if (with_loss) in->target = graph_input(g, "target", SHAPE(elements), DT_REAL);
}

DitGraph dit_record(const Dit *d, Graph *g, const Pack *pack, bool with_loss) {
    const DitConfig *c = &d->config;
    DitGraph out = {.tables = pack_tables(g, c, pack)};
    Build b = {.d = d, .g = g, .out = &out, .t = &out.tables};
    make_inputs(&b, pack, with_loss);
    b.rope = rope_table(&b, pack);
    b.c = time_embedding(&b);
    Tensor *x = embed(&b);
    for (int64_t i = 0; i < c->layers; i++) {
        g->segment = (int)i + 1;
        x = record_block(&b, &d->blocks[i], x, i == c->layers - 1);
    }
    g->segment = 0;
    Tensor *mod = linear_of(&b, &d->mod_out, b.c, out.tables.samples);
    x = norm_of(&b, &d->norm_final, x, NULL, NULL);
    x = norm_of(&b, &d->norm_out, x, mod, out.tables.sample_of_video);
    x = linear_of(&b, &d->proj_out, x, out.tables.video);
    x = op_whole_rows(g, x, out.tables.video_runs);
    out.prediction = op_unpatchify(g, x, out.tables.latents, c->out_channels, c->patch, c->patch_t);
    out.prediction->output = true;
    if (!with_loss) return out;
    out.loss = op_mse(g, out.prediction, out.target, out.tables.elements);
    out.per_sample = out.loss->from->out[1];
    out.loss->output = out.per_sample->output = true;
    return out;
}
