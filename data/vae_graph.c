/* Owns the recording of the autoencoder's graphs. */
#include "data/vae_graph.h"

/* ---- chunks -----------------------------------------------------------------------------------
 */

static const int64_t CHUNK[VAE_HALVES] = {8, 2};

/* The frames (or latents) of one. */
typedef struct {
    int64_t first, count;
} Chunk;

static int chunk_count(VaeHalfName half, int64_t frames) {
    return (int)MAX(frames / CHUNK[half], 1);
}

static Chunk chunk_at(VaeHalfName half, int64_t frames, int i) {
    int64_t size = CHUNK[half], rest = frames % size;
    int64_t first = i ? i * size + rest : 0, end = MIN((i + 1) * size + rest, frames);
    return (Chunk){first, end - first};
}

/* The frames that a chunk's frames become: a sampler in time leaves one frame of an odd number
 * alone. */
static int64_t chunk_out(VaeHalfName half, int64_t n) {
    for (int i = 0; i < 2; i++) {
        if (half == VAE_ENCODER) n = (n + 1) / 2;
        if (half == VAE_DECODER && n > 1) n = 2 * n - n % 2;
    }
    return n;
}

int64_t vae_frames_out(VaeHalfName half, int64_t frames) {
    int64_t n = 0;
    for (int i = 0; i < chunk_count(half, frames); i++)
        n += chunk_out(half, chunk_at(half, frames, i).count);
    return n;
}

/* ---- one chunk --------------------------------------------------------------------------------
 */

typedef struct {
    const VaeNet *net;
    const VaeHalf *half;
    Graph *g;
    const Backend *k;
    bool decoder, last; /* the last chunk leaves nothing to another */
    Tensor **packed;    /* [n_convs] weights in the convolution's form, from their first use on */
    Tensor **past;      /* [n_norms] what the convolution behind the norm keeps */
    Tensor *z;          /* the decoder's chunk of latents, [F,h,w,C] */
} Recorder;

static Tensor *vector(const Recorder *r, int param, int64_t n) {
    return graph_param(r->g, param, 1, SHAPE(n));
}

static Tensor *conv(const Recorder *r, const VaeConv *m, Conv shape, Tensor *x, Tensor *residual) {
    shape.frames = x->shape.dim[0] - (m->kt - 1);
    shape.height = x->shape.dim[1];
    shape.width = x->shape.dim[2];
    shape.in = m->in;
    shape.out = m->out;
    shape.kt = m->kt;
    if (!r->packed[m->id]) {
        Tensor *w = graph_param(r->g, m->w, 1, SHAPE(m->out, m->in, m->kt, 3, 3));
        r->packed[m->id] = op_conv_weight(r->g, w, &shape, r->k->conv_packed(&shape));
    }
    return op_conv(r->g, x, r->packed[m->id], vector(r, m->b, m->out), &shape, residual);
}

static Tensor *causal(const Recorder *r, const VaeConv *m, Tensor *x, Tensor *residual) {
    return conv(r, m, (Conv){.stride = 1, .enlarge = 1}, x, residual);
}

/* A 1x1x1 convolution of frames x. */
static Tensor *map_of(const Recorder *r, const VaeMap *m, Tensor *x) {
    Shape shape = x->shape;
    Tensor *rows = graph_reshape(r->g, x, SHAPE(tensor_count(x) / m->in, m->in));
    Tensor *y = op_linear(r->g, rows, graph_param(r->g, m->w, 1, SHAPE(m->out, m->in)),
                          vector(r, m->b, m->out));
    shape.dim[3] = m->out;
    return graph_reshape(r->g, y, shape);
}

/* silu(norm(x)), with the frames before it. */
static Tensor *norm(const Recorder *r, const VaeNorm *m, Tensor *x) {
    GroupNormArgs args = {.gamma = vector(r, m->gamma, m->channels),
                          .beta = vector(r, m->beta, m->channels),
                          .groups = r->net->model.groups,
                          .eps = (real)m->eps,
                          .past = r->past[m->id],
                          .next = r->last ? NULL : &r->past[m->id]};
    if (r->decoder) {
        args.scale = map_of(r, &m->scale, r->z);
        args.shift = map_of(r, &m->shift, r->z);
    }
    return op_group_norm(r->g, x, &args);
}

static Tensor *resnet(const Recorder *r, const VaeResnet *m, Tensor *x) {
    Tensor *y = norm(r, &m->norm1, x);
    if (m->shortcut.w >= 0) x = map_of(r, &m->shortcut, x);
    y = causal(r, &m->conv1, y, NULL);
    return causal(r, &m->conv2, norm(r, &m->norm2, y), x);
}

/* Half the size, or twice. Frames that a doubling repeats are computed once: its convolution sees
 * one frame at a time. */
static Tensor *sample(const Recorder *r, const VaeStage *s, Tensor *x) {
    if (r->decoder)
        return conv(r, &s->sampler, (Conv){.stride = 1, .enlarge = 2, .repeat = s->time}, x, NULL);
    if (s->time) x = op_pool_frames(r->g, x);
    return conv(r, &s->sampler, (Conv){.stride = 2, .enlarge = 1}, x, NULL);
}

static Tensor *record_chunk(Recorder *r, Tensor *in, Chunk chunk) {
    Tensor *x = op_take_frames(r->g, in, chunk.first, chunk.count);
    int64_t h = x->shape.dim[1], w = x->shape.dim[2], c = x->shape.dim[3];
    r->z = graph_view(r->g, x, CONTEXT * h * w * c, SHAPE(chunk.count, h, w, c));
    x = causal(r, &r->half->conv_in, x, NULL);
    for (int i = 0; i <= VAE_LEVELS; i++) {
        const VaeStage *s = &r->half->stages[i];
        for (int j = 0; j < s->n; j++) x = resnet(r, &s->resnets[j], x);
        if (s->samples) x = sample(r, s, x);
    }
    return causal(r, &r->half->conv_out, norm(r, &r->half->norm_out, x), NULL);
}

VaeGraph vae_record(const VaeNet *v, VaeHalfName half, Graph *g, const Backend *k, int64_t frames,
                    int64_t height, int64_t width) {
    const VaeHalf *h = &v->halves[half];
    int64_t channels = half == VAE_ENCODER ? VAE_COLORS : v->model.latent;
    VaeGraph out = {.n = chunk_count(half, frames)};
    out.in = graph_input(g, half == VAE_ENCODER ? "video" : "z",
                         SHAPE(channels, frames, height, width), g->dtype);
    out.out = graph_alloc(g, (size_t)out.n * sizeof(Tensor *));
    Recorder r = {.net = v,
                  .half = h,
                  .g = g,
                  .k = k,
                  .decoder = half == VAE_DECODER,
                  .packed = graph_alloc(g, (size_t)h->n_convs * sizeof(Tensor *)),
                  .past = graph_alloc(g, (size_t)h->n_norms * sizeof(Tensor *))};
    for (int i = 0; i < out.n; i++) {
        r.last = i == out.n - 1;
        out.out[i] = record_chunk(&r, out.in, chunk_at(half, frames, i));
        out.out[i]->output = true;
    }
    return out;
}
