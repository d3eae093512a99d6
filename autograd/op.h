/* What an op is: one const table per op family member, next to its equations in op_*.c. */
#pragma once

#include "autograd/tensor.h"
#include "kernels/comm.h"

enum { MAX_IN = 6, MAX_OUT = 2 };

/* Bits that name a node's inputs and outputs. */
#define IN(i) (1u << (i))
#define OUT(i) (1u << (8 + (i)))

/* Results of a step of two nodes that are read later. */
enum { WANTED_NODE = 1, WANTED_THEN = 2 };

typedef enum {
    FORWARD,   /* a node's forward */
    RECOMPUTE, /* the same, once more, during the backward half */
    BACKWARD,  /* a node's backward */
    GATHER,    /* brings a parameter bucket from its home and form to where steps compute */
    REDUCE,    /* takes a bucket's gradient of this micro-step to its home */
    STASH,     /* parks a value in host memory: its life on the device ends */
    FETCH,     /* brings it back, to another life */
    WAIT,      /* until a move that set out earlier is done */
} Phase;

/* Runs of rows (or elements) that belong to one sample each. `cu` is [n + 1], from 0. Where they
 * are parts of samples, `first` [n] says at which of its sample's rows each begins, and `sample`
 * [n] whose it is; NULL: they are the samples. `single`: one row each, whatever the samples. */
typedef struct {
    int n;
    const int64_t *cu;
    const int64_t *first;
    const int32_t *sample;
    bool single;
} Segments;

/* Latent sizes of the samples of a pack. */
typedef struct {
    int n;
    const int64_t (*fhw)[3]; /* [n] F, H, W */
} LatentSizes;

typedef union {
    struct {
        real alpha;
        int slice; /* of the residual's leading axis */
        bool of_samples;
    } linear;
    struct {
        real p;
        uint32_t purpose;
        Segments rows;
    } dropout;
    struct {
        real eps;
    } norm;
    struct {
        int64_t offset;
    } gate;
    struct {
        int64_t heads;
        real eps;
    } qk_norm;
    struct {
        int64_t heads;
        real scale;
        Segments rows;
    } attention;
    struct {
        LatentSizes sizes;
        int64_t channels, patch, patch_t;
    } patch;
    struct {
        LatentSizes grid; /* F', H', W' of each sample */
        Segments rows;    /* those of its rows that are here */
    } axes;
    struct {
        Comm *comm;
        Segments runs;
        bool to_heads;
    } ranks;
    struct {
        Segments samples;
    } mse;
    Conv conv;
    struct {
        int64_t first;
    } frames;
    struct {
        int64_t groups;
        real eps;
    } group_norm;
} Attr;

typedef struct Op Op;

struct Node {
    const Op *op;
    Tensor *in[MAX_IN]; /* NULL where an optional input is absent */
    Tensor *out[MAX_OUT];
    Attr attr;
    int segment; /* which block it belongs to, from 1; 0: none (never recomputed) */
    int id;
};

/* What a step of the plan runs with. */
typedef struct {
    const Backend *k;
    Stream *stream;
    unsigned first;  /* IN(i): this step assigns the gradient of input i; else it adds to it */
    void *workspace; /* of as many bytes as the op wants */
    /* Another node whose work this step does too, as the op said that it can; NULL: none. FORWARD:
     * it reads the node's output; the results that WANTED_* name are written. BACKWARD: the node
     * reads its output, and in place of that tensor's gradient the step assigns its input's. */
    const Node *then;
    unsigned wanted;
} Ctx;

/* Work of one step: multiply-adds count 2 flops; bytes are those of device memory moved at least,
 * sent those that go to other ranks, copied those that go to host memory or come from there. */
typedef struct {
    double flops, bytes, sent, copied;
} Cost;

static inline Cost cost_of(double flops, double bytes) {
    return (Cost){.flops = flops, .bytes = bytes};
}

struct Op {
    const char *name;
    unsigned consumes; /* inputs whose memory output 0 may take over when nobody reads them later */
    unsigned passes;   /* inputs whose gradient may take over that of output 0, likewise */
    bool expensive;    /* kept by selective recomputation */
    bool cheap;        /* one pass over memory: recomputed rather than held */
    void (*forward)(const Node *n, const Ctx *c);
    void (*backward)(const Node *n, const Ctx *c); /* NULL: the op is forward only */
    unsigned (*needs)(const Node *n);              /* what backward will read of this node */
    Cost (*cost)(const Node *n, Phase p);
    /* Whether a step of n can do `then`'s work, too (see Ctx); NULL: never. */
    bool (*fuses)(const Node *n, const Node *then, Phase p);
    /* Bytes of workspace that the kernels of this step want; NULL: none. */
    size_t (*workspace)(const Node *n, Phase p, const Ctx *c);
};

/* 0 where the step assigns the gradient of input i, 1 where it adds. */
static inline real ctx_keep(const Ctx *c, int i) { return c->first & IN(i) ? 0 : 1; }
/* The gradient's address, or NULL when nobody needs it. */
static inline void *grad_data(const Tensor *t) {
    return t && t->grad ? tensor_data(t->grad) : NULL;
}
static inline bool wants_grad(const Tensor *t) { return t && t->needs_grad; }
