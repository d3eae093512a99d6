/* Reads ahead while training: a thread that makes the next micro-steps of this rank ready, so that
 * a step does not wait for the cache. */
#pragma once

#include "trainer/samples.h"

/* One micro-step's numbers, samples end to end; valid until the next loader_next. */
typedef struct {
    float *noisy, *target, *text;
    float *image;       /* NULL unless the model is conditioned on images */
    int64_t *timesteps; /* [B] */
    uint32_t *ordinals; /* [B] */
    double waited_ms;   /* that loader_next waited for it */
} Batch;

typedef struct Loader Loader;

enum { LOADER_BATCHES = 3 }; /* that it keeps: two read ahead, and the one in use */

/* The micro-steps of data-parallel rank `rank` of so many. Begins at sample `consumed` of the run
 * and optimizer step `step`. */
Loader *loader_open(Samples *s, const Config *c, const Schedule *schedule, int rank, int ranks,
                    int64_t consumed, int64_t step);
void loader_close(Loader *l);
/* The next micro-step. NULL: a value of the cache cannot be read. */
const Batch *loader_next(Loader *l, Error *e);
