/* The T5 v1.1 encoder (Raffel et al. 2020; transformers' T5EncoderModel): token ids to the
 * embeddings that condition the diffusion transformer.
 *
 *     x = E[id]      then in each layer   x += O attention(rms(x))   x += wo geglu(wi rms(x))
 *     attention: 64 heads, scores q k^T + bias[h, bucket(key - query)], neither scaled nor masked
 *     embeddings = rms(x)
 *
 * The weights' home is the mapped file. Attention and feed-forward of a layer are blocks of their
 * own, gathered one after the other, and their pages are released after use: T5-XXL, 9 or 18 GiB
 * on disk, needs about 1 GiB. Rows of the embedding table are looked up in the file. Arithmetic is
 * f32, whatever type the weights are stored in.
 *
 *     Error e;
 *     T5 *t = t5_open("CogVideoX-2b/text_encoder", &BACKEND_CPU, &e);
 *     if (!t) die_error(&e);
 *     if (!t5_encode(t, ids, n, 226, embeddings, &e)) die_error(&e);
 *     t5_close(t);
 */
#pragma once

#include "autograd/ops.h"
#include "autograd/run.h"
#include "data/weights.h"

typedef struct {
    int64_t vocabulary, width, layers; /* vocab_size, d_model, num_layers */
    int64_t heads, head_size;          /* num_heads, d_kv */
    int64_t hidden;                    /* d_ff */
    int64_t buckets, max_distance;     /* of the relative positions */
    double eps;                        /* layer_norm_epsilon */
    DType stored;                      /* dtype or torch_dtype; F32 where neither is there */
} T5Config;

/* Reads text_encoder/config.json; absent keys have the defaults of transformers' T5Config. Another
 * encoder than T5 v1.1's (gated, gelu_new) is an error. */
bool t5_config_read(T5Config *c, const char *path, Error *e);

/* The row of relative_attention_bias for `relative` = key - query, in transformers' f32. */
int64_t t5_bucket(const T5Config *c, int64_t relative);

/* Parameters of one layer. */
typedef struct {
    int norm1, qkv, out; /* qkv: the first of q, k, v, which lie side by side */
    int norm2, wi, wo;   /* wi: the first of wi_0 (through gelu), wi_1 */
} T5Layer;

typedef struct {
    T5Config config;
    Weights weights; /* mapped; parameters point into it */
    ParamSet *params;
    T5Layer *layers;
    int norm;               /* final_layer_norm */
    SafetensorsTensor rows; /* the embedding table [vocabulary, D] */
    float *bias;            /* [buckets, N] relative_attention_bias */
    Memory memory;
    Stream *stream;
    /* One pass over some captions of one length, planned when t5_encode first meets that shape. */
    struct T5Pass *pass;
    bool poison; /* tests: see Run */
} T5;

/* Opens a text_encoder folder: config.json and the weights' headers; every tensor must be one of
 * the encoder's, with its shape. NULL: *e says what to do. */
T5 *t5_open(const char *folder, const Backend *k, Error *e);
void t5_close(T5 *t);

/* The longest text that t5_encode takes, in tokens. */
enum { T5_MAX_LENGTH = 4096 };

/* embeddings [n,L,D] of ids [n,L]. A caption's embeddings do not depend on the others. false: an id
 * is outside the vocabulary (EXIT_USER), or what came out is not finite (EXIT_USER: damaged
 * weights). */
bool t5_encode(T5 *t, const int64_t *ids, int64_t n, int64_t length, float *embeddings, Error *e);

/* Device memory that a pass over n captions of one length takes. */
int64_t t5_bytes(const T5 *t, int64_t n, int64_t length);

/* What t5_encode is made of; for tests. */
typedef struct {
    Tensor *x;        /* input [n*L, D]: rows of the table */
    Tensor *bias;     /* input [N,L,L] */
    Tensor **streams; /* [2 * layers] x after each sub-layer */
    Tensor *out;      /* output [n*L, D] */
} T5Graph;

T5Graph t5_record(const T5 *t, Graph *g, int64_t n, int64_t length);
/* rows [count,D] of the embedding table. */
void t5_rows(const T5 *t, const int64_t *ids, int64_t count, float *rows);
/* bias [N,L,L] for L tokens. */
void t5_bias(const T5 *t, int64_t length, float *bias);
