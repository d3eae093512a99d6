/* The executor: binds a placed plan to memory and runs its steps in order. */
#pragma once

#include "autograd/plan.h"

/* How often a kind of run came, and what was captured of it. */
typedef struct {
    int64_t runs;
    Captured *captured;   /* NULL: not yet, or it cannot be */
    int64_t copied_bytes; /* of host memory, in one of them */
} Repeated;

typedef struct Run {
    Plan *plan;
    Memory *memory;
    Stream *stream;
    char *arena, *constants; /* device memory; the workspace is the arena's tail */
    char *host;              /* where STASH steps park; NULL: there are none */
    Stream *coming, *going;  /* of moves beside the steps; NULL: there are none */
    bool owns_arena;
    bool repeats;             /* its runs may be captured, and replayed */
    Repeated repeated[2];     /* micro-step 0, which starts gradients anew, and those that follow */
    bool eager;               /* tests: nothing is captured */
    bool poison;              /* tests: memory is NaN before a life and after it */
    bool late;                /* tests: moves beside the steps happen as late as they may */
    int64_t high_water_bytes; /* highest byte of the arena that was alive so far */
    double *seconds;          /* [plan->n_steps] of each step of the last run, where not NULL; the
                                 caller's memory. The stream is then synced after each step */
    /* To find where numbers go wrong: after each step its tensors are read, and the first one with
     * a value that is not finite is `bad`. Slow. */
    bool watch;
    const Tensor *bad; /* of the last run; NULL: none */
} Run;

/* Allocates constants, and the arena when `arena` is NULL (else it must hold arena + workspace). */
Run *run_open(Plan *p, Memory *m, Stream *s, void *arena);
void run_close(Run *r);

/* Writes an input. `host` holds tensor_count elements of t->dtype. */
void run_input(Run *r, Tensor *t, const void *host);
/* Reads an output (a tensor marked so) after a run. */
void run_output(Run *r, const Tensor *t, void *host);
/* The same with f32 numbers, rounded to the tensor's type or widened from it. */
void run_input_f32(Run *r, Tensor *t, const float *host);
void run_output_f32(Run *r, const Tensor *t, float *host);

typedef struct {
    uint64_t seed;
    uint32_t step;  /* optimizer step from 0, for dropout */
    int micro;      /* micro-step of it, from 0: 0 starts the accumulated gradients anew */
    real loss_grad; /* the factor that all gradients carry: 1 / (micro-steps x ranks) */
} RunArgs;

/* The second run is captured where the device can do that, and later ones are replayed: a run may
 * differ from another in the contents of memory alone. */
void run_plan(Run *r, const RunArgs *args);
