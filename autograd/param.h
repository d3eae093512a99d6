/* Parameters and their buckets: the flat runs in which parameters rest, travel and are updated.
 *
 * A block's parameters are two buckets, one frozen and one trained. Inside a bucket, matrices come
 * before vectors (so that "which parameters decay" is a range), otherwise in the order of
 * params_add; each begins at a multiple of PARAM_ALIGN elements, but where params_beside says
 * otherwise. Gaps and the padding are zero.
 *
 * A bucket's home is where it rests when no step uses it, its form the type in which it rests:
 *   HOME_DEVICE  `resident`, flat, in `form`. Where form is what steps compute in, nothing moves.
 *   HOME_HOST    the same in host memory, gradient and moments too: they are updated there.
 *   HOME_RANKS   the same, cut into equal shards, one a rank: [shard_from, shard_from +
 * shard_count). HOME_FILE    `sources`: runs of mapped, read-only memory, each in its own form.
 * Trained buckets rest as f32 masters, with gradient and moments beside them. Over several ranks
 * (ZeRO, Rajbhandari et al. 2020) stages 1 and 2 shard the moments and the gradients, 3 the masters
 * too: gradients are summed over ranks each micro-step, after which stage 1 has no use for more of
 * them than stage 2.
 */
#pragma once

#include "autograd/memory.h"
#include "autograd/op.h"

enum { PARAM_ALIGN = 64, BUCKET_ALIGN = 1024 };

typedef enum { HOME_DEVICE, HOME_HOST, HOME_RANKS, HOME_FILE } Home;

typedef struct {
    const char *name;
    Shape shape;
    int block; /* as given to params_add */
    bool trained;
    bool beside; /* no gap between this and the one added before it */
    int bucket;
    int64_t offset; /* elements from the bucket's first */
} Param;

/* `count` elements of form `form` at `data` are elements [offset, offset + count) of the bucket. */
typedef struct {
    const void *data;
    DType form;
    int64_t offset, count;
} Source;

/* One AdamW step of a bucket: its first `decayed` elements with step.weight_decay, the others with
 * none. */
typedef struct {
    AdamW step;
    int64_t decayed;
} Update;

typedef struct {
    const char *name; /* "block.3", "block.3.trained" */
    int block;
    bool trained;
    int64_t count;    /* elements, a multiple of BUCKET_ALIGN * world */
    int64_t used;     /* elements up to the end of the last parameter */
    int64_t matrices; /* elements up to the end of the last matrix */
    Home home;
    DType form;
    Range shard;     /* this rank's part of the elements; all of them on one rank */
    Range rests;     /* which elements `resident` holds: all, the shard, or none (HOME_FILE) */
    void *resident;  /* [rests.count] of form */
    Source *sources; /* HOME_FILE, and while frozen buckets are filled */
    int n_sources;
    bool host;            /* what rests here does so in host memory: HOME_HOST, or shards of it */
    Range grads, moments; /* trained: which elements `grad`, and `m` and `v`, hold */
    real *grad, *m, *v;   /* the accumulated gradient and Adam's moments */
    Update update;        /* that waits, where `owed`; read and settled by calls of the host */
    bool owed;
} Bucket;

typedef struct ParamSet {
    Param *param;
    int n_params;
    Bucket *bucket;
    int n_buckets;
    Comm *comm; /* the data-parallel group; NULL: one rank */
    int zero;   /* ZeRO stage */
    /* Called with mapped memory that a GATHER has just read; NULL: nobody wants to know. */
    void (*release)(void *context, const void *data, size_t bytes);
    void *release_context;
    void *passing; /* host memory that gradients pass through on their way there */
} ParamSet;

ParamSet *params_open(void);
void params_close(ParamSet *p, Memory *m);
/* Adds a parameter of block `block` (0: embed, 1..: blocks, the last: final); returns its index. */
int params_add(ParamSet *p, const char *name, Shape shape, int block, bool trained);
/* Parameter `param` begins where the one added before it, of its block and kind, ends: several then
 * are one matrix for graph_param, at any width. */
void params_beside(ParamSet *p, int param);
/* -1: there is none. */
int params_find(const ParamSet *p, const char *name);
/* Fixes buckets and offsets; `block_names[block]` names them. Nothing may be added afterwards. */
void params_layout(ParamSet *p, const char *const *block_names, int world);

int64_t param_count(const Param *p);
/* Spreads trained buckets over the ranks of `comm` as the ZeRO stage says; after params_layout with
 * comm->size, before any graph is made. */
void params_shard(ParamSet *p, Comm *comm, int zero);
int params_world(const ParamSet *p);
/* Where frozen buckets rest, and in which form; before any graph is made. */
void params_rest(ParamSet *p, Home home, DType form);
/* Masters, gradients and moments of trained buckets rest in host memory, whole or in shards. Before
 * any graph is made. */
void params_rest_trained_on_host(ParamSet *p);
/* Says where in mapped memory a frozen parameter lies, and in which form. */
void param_source(ParamSet *p, int param, const void *data, DType form);
/* Copies the sources of frozen buckets that rest on the device, whole or sharded, to there. */
void params_settle(ParamSet *p, Memory *m, Stream *s);
/* Memory of the trained buckets (masters, gradients, moments; zeroed) and of frozen ones whose home
 * is the device. */
void params_allocate(ParamSet *p, Memory *m);
/* The whole f32 master or gradient of a trained parameter, on the device; CHECKs that it rests here
 * whole. */
real *param_master(const ParamSet *p, int param);
real *param_grad(const ParamSet *p, int param);
/* Gives a parameter that rests in f32 its values; keeps those that rest on this rank. `values`
 * [count] are host memory. */
void param_write(ParamSet *p, int param, const real *values, Memory *m, Stream *s);

typedef enum { PART_MASTER, PART_GRAD, PART_M, PART_V } Part;
/* One part of a trained bucket, whole, to host memory [count]; every rank must call it. */
void bucket_read(const ParamSet *p, int bucket, Part part, real *host, Memory *m, Stream *s);
/* Brings a bucket from its home and form to `copy` [count] of type `type`; workspace is of the
 * bytes that bucket_gather_workspace says. */
void bucket_gather(const ParamSet *p, int bucket, DType type, void *copy, void *workspace,
                   Memory *m, Stream *s);
size_t bucket_gather_workspace(const ParamSet *p, int bucket, DType type);
/* Takes one micro-step's gradient [count] to the accumulated one: summed over ranks in their order,
 * then assigned (micro-step 0) or added. What lies in `grad` between parameters does not count. */
void bucket_reduce(const ParamSet *p, int bucket, real *grad, int micro, Memory *m, Stream *s);

/* Updates a trained bucket from its accumulated gradient, as far as its moments rest here; ranks
 * then exchange masters that rest whole. On the device it is queued. In host memory it waits until
 * the bucket is next gathered, read or given a gradient, so that it runs on the CPU beside the
 * device's steps. */
void bucket_update(ParamSet *p, int bucket, const Update *u, Memory *m, Stream *s);
/* Does, in the order of the stream, an update that waits. */
void bucket_settle(const ParamSet *p, int bucket, Memory *m, Stream *s);
/* Whether the bucket's updates wait as bucket_update says. */
bool bucket_waits(const Bucket *b);
/* What an update moves on this rank: gradient, master and moments once over, and masters to the
 * other ranks where their moments are sharded. */
Cost bucket_update_cost(const ParamSet *p, int bucket);

/* Bytes that rest on the device, and in host memory: masters, gradients, moments, frozen buckets
 * that live there; on the host also what gradients pass through. */
int64_t params_device_bytes(const ParamSet *p);
int64_t params_host_bytes(const ParamSet *p);
/* The sum of counts over parameters: trained ones, or all. */
int64_t params_total(const ParamSet *p, bool trained_only);
