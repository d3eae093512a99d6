/* `cogsmith train`: a run from its folder to its result. The parts, for trainer/train*.c alone. */
#pragma once

#include "trainer/clip_size.h"
#include "trainer/learner.h"
#include "trainer/loader.h"
#include "trainer/progress.h"
#include "trainer/run_folder.h"

typedef struct Previews Previews;

/* Held-out losses: a forward-only plan beside the training one. */
typedef struct {
    Learner *learner; /* NULL: nothing is held out, or nobody asks */
    Prepared prepared;
    float *prediction;
} Holdout;

typedef struct {
    const Config *config;
    Model *model;
    Samples *samples;
    Learner *learner;
    Loader *loader;
    Saver *saver;
    Holdout holdout;
    Previews *previews; /* NULL: none */
    RunFolder run;      /* of rank 0 */
    Position at;
    int64_t saved_step; /* of the newest checkpoint; -1: none */
    Progress *progress; /* of rank 0 */
    bool diverged;      /* a loss or gradient is not finite; every rank knows */
    double accounted;   /* the moment up to which steps account for their time */
    double loss_average;
    double holdout_loss; /* the last one */
} Train;

/* What a step came to, and where its time went: step_ms is all of it since the record of the step
 * before (previews apart), the others are parts of it. */
typedef struct {
    int64_t step; /* from 1 */
    double loss, grad_norm, learning_rate;
    double step_ms;
    double wait_ms;             /* for the cache */
    double compute_ms;          /* forward and backward */
    double update_ms;           /* norm and optimizer */
    double holdout_ms, copy_ms; /* the held-out loss; what a checkpoint keeps the step waiting */
    double holdout_loss;        /* NaN: not asked for at this step */
    bool skipped; /* f16: gradients overflowed, the step left the weights as they were */
} StepRecord;

/* ---- train_report.c ---- */
void report_start(const Train *t, bool resumed);
/* The live line and a line of metrics.jsonl. */
bool report_step(Train *t, const StepRecord *r, Error *e);

/* ---- train_trouble.c ---- */
/* A loss or gradient norm that is not finite: names step, samples and tensor in *e (EXIT_WORLD),
 * the same on every rank; every rank must call it. */
void trouble_loss(Train *t, const Batch *batch, const Micro *micro, Error *e);
void trouble_gradient(Train *t, Error *e);

/* ---- train_holdout.c ---- */
Holdout holdout_open(const Train *t, int64_t available);
void holdout_close(Holdout *h);
/* The mean over held-out samples and fixed timesteps; the same on every rank. */
bool holdout_loss(Train *t, double *loss, Error *e);

/* ---- train_preview.c ---- */
/* Reads prompts and encodes what is needed before the transformer is opened. NULL:
 * train.sample_every is 0. */
Previews *previews_open(const Config *c, Samples *s);
void previews_close(Previews *p);
/* The size of those that a config asks for; false: there are none. */
bool previews_size(const Config *c, const DitConfig *model, ClipSize *size);
/* What they will take of the host's memory, on rank 0 or another. */
int64_t previews_host_bytes(const Config *c, const DitConfig *model, bool first);
/* What their decoder takes of the device at least, foreign as for model_open; 0: there are none. */
int64_t previews_decode_bytes(const Config *c, const DitConfig *model, bool foreign);
/* What they take of the device beside the training. Every rank must call it. */
int64_t previews_bytes(Model *m, const Config *c);
/* Ends the program where there is no memory for them beside the training. Every rank must call it.
 */
void previews_check(const Train *t);
/* Samples every prompt with the weights as they are, into run/samples. Every rank must call it. */
bool previews_make(Train *t, Error *e);
