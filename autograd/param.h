/* Parameters and their buckets: the flat runs in which parameters rest, travel and are updated.
 *
 * A block's parameters are two buckets, one frozen and one trained. Inside a bucket, matrices come
 * before vectors (so that "which parameters decay" is a range), otherwise in the order of
 * params_add; each begins at a multiple of PARAM_ALIGN elements. Gaps and the padding are zero.
 *
 * A bucket's home is where it rests when no step uses it, its form the type in which it rests:
 *   HOME_DEVICE  `resident`, flat, in `form`. Where form is what steps compute in, nothing moves.
 *   HOME_FILE    `sources`: runs of mapped, read-only memory, each in its own form.
 * Trained buckets rest as f32 masters, with gradient and moments beside them.
 */
#pragma once

#include "autograd/memory.h"
#include "autograd/tensor.h"

enum { PARAM_ALIGN = 64, BUCKET_ALIGN = 1024 };

typedef enum { HOME_DEVICE, HOME_FILE } Home;

typedef struct {
    const char *name;
    Shape shape;
    int block; /* as given to params_add */
    bool trained;
    int bucket;
    int64_t offset; /* elements from the bucket's first */
} Param;

/* `count` elements of form `form` at `data` are elements [offset, offset + count) of the bucket. */
typedef struct {
    const void *data;
    DType form;
    int64_t offset, count;
} Source;

typedef struct {
    const char *name; /* "block.3", "block.3.trained" */
    int block;
    bool trained;
    int64_t count;    /* elements, a multiple of BUCKET_ALIGN * world */
    int64_t used;     /* elements up to the end of the last parameter */
    int64_t matrices; /* elements up to the end of the last matrix */
    Home home;
    DType form;
    void *resident;  /* HOME_DEVICE: [count] of form */
    Source *sources; /* HOME_FILE */
    int n_sources;
    real *grad, *m, *v; /* trained: [count] accumulated gradient and Adam's moments */
} Bucket;

typedef struct ParamSet {
    Param *param;
    int n_params;
    Bucket *bucket;
    int n_buckets;
    /* Called with mapped memory that a GATHER has just read; NULL: nobody wants to know. */
    void (*release)(void *context, const void *data, size_t bytes);
    void *release_context;
} ParamSet;

ParamSet *params_open(void);
void params_close(ParamSet *p, Memory *m);
/* Adds a parameter of block `block` (0: embed, 1..: blocks, the last: final); returns its index. */
int params_add(ParamSet *p, const char *name, Shape shape, int block, bool trained);
/* -1: there is none. */
int params_find(const ParamSet *p, const char *name);
/* Fixes buckets and offsets; `block_names[block]` names them. Nothing may be added afterwards. */
void params_layout(ParamSet *p, const char *const *block_names, int world);

int64_t param_count(const Param *p);
/* Where frozen buckets rest, and in which form; before any graph is made. */
void params_rest(ParamSet *p, Home home, DType form);
/* Says where in mapped memory a frozen parameter lies, and in which form. */
void param_source(ParamSet *p, int param, const void *data, DType form);
/* Copies the sources of frozen buckets whose home is the device to where these now rest. */
void params_settle(ParamSet *p, Memory *m, Stream *s);
/* Memory of the trained buckets (masters, gradients, moments; zeroed) and of frozen ones whose home
 * is the device. */
void params_allocate(ParamSet *p, Memory *m);
/* The f32 master of a trained parameter, on the device. */
real *param_master(const ParamSet *p, int param);
real *param_grad(const ParamSet *p, int param);
/* Bytes that rest on the device: masters, gradients, moments, and frozen buckets that live there.
 */
int64_t params_device_bytes(const ParamSet *p);
/* The sum of counts over parameters: trained ones, or all. */
int64_t params_total(const ParamSet *p, bool trained_only);
