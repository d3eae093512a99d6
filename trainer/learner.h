/* What learns: a model's graphs, plans and arena for the packs it will see, and one micro-step. */
#pragma once

#include "autograd/run.h"
#include "trainer/model.h"
#include "trainer/optim.h"

/* One shape of pack, recorded, planned and placed. */
typedef struct {
    Graph *graph;
    Plan *plan;
    Run *run;
    DitGraph io;
} Shaped;

typedef struct {
    Model *model;
    Recompute *policy; /* [layers + 1] by segment */
    /* What was chosen: for blocks 1 .. hard_blocks; the others have the choice before it. */
    RecomputeChoice recompute;
    int64_t hard_blocks;
    Shaped *shaped; /* [n_shaped] in the order of the packs given */
    int n_shaped;
    char *arena;
    size_t arena_bytes; /* of the largest plan, workspace included */
    Optim optim;
    real *losses; /* device, [ranks] */
    bool trains;
} Learner;

/* Memory that a learner needs, in bytes: on the device, in parts and in total, and on the host. */
typedef struct {
    int64_t arena, workspace, constants, resident;
    int64_t sums;     /* of losses, and for the gradient's norm */
    int64_t captured; /* of runs that a GPU captures: estimated */
    int64_t total;
    int64_t host; /* what rests or is parked there */
} LearnerBytes;

/* Records and places every pack; nothing is allocated on a device yet. trains: with loss and, where
 * the model has trained parameters, gradients; else the prediction alone. The recomputation is the
 * config's; auto takes the least whose total stays within `available` bytes: of all blocks none, or
 * of as many as must be selective, or block. A plan above memory.budget ends the program, saying
 * what it would take (exit 2). */
Learner *learner_plan(Model *m, const Config *c, const Pack *packs, int n_packs, bool trains,
                      int64_t available);
/* The same without an end: what is planned may need more than there is. */
Learner *learner_try(Model *m, const Config *c, const Pack *packs, int n_packs, bool trains,
                     int64_t available);
/* Of a plan for one sample of that size, the prediction alone: what it takes of the device beside
 * the parameters. */
int64_t learner_forward_bytes(Model *m, const Config *c, const int64_t fhw[3]);
/* Allocates, binds and seals. poison: see Run. */
void learner_bind(Learner *l, bool poison);
void learner_close(Learner *l);
LearnerBytes learner_bytes(const Learner *l);
/* What that takes of the host's memory: a CPU's own is the same. */
int64_t learner_on_host(const Learner *l);

/* The numbers of one micro-step of pack `shape`, on the host, samples end to end. */
typedef struct {
    int shape;
    const float *noisy, *image, *text, *target; /* image, target may be NULL */
    const int64_t *timesteps;                   /* [B] */
    const uint32_t *ordinals;                   /* [B]; NULL: 0, 1, ... */
    uint64_t seed;
    uint32_t step;     /* optimizer step from 0 */
    int micro, micros; /* micro-step of the step, and how many there are */
} Micro;

/* Runs it; the loss is the mean over the ranks' packs. Gradients go where optim_step finds them. */
double learner_micro(Learner *l, const Micro *micro);
/* Reads prediction [sum of F*C*H*W] or losses per sample [B] of the micro-step just run. */
void learner_prediction(Learner *l, int shape, float *out);
void learner_losses(Learner *l, int shape, float *out);
