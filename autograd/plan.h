/* The plan: one flat list of steps, and the passes that work on it.
 *
 *   plan_open        one FORWARD step per node
 *   plan_backward    appends a BACKWARD step for each node that a trained parameter needs
 *   plan_recompute   inserts RECOMPUTE steps                       (plan_recompute.c)
 *   plan_fuse        makes one step of two nodes' where an op can  (plan_fuse.c)
 *   plan_homes       inserts GATHER and REDUCE steps               (plan_home.c)
 *   plan_stash       inserts STASH and FETCH steps                 (plan_stash.c)
 *   plan_prefetch    sends moves out early, inserts WAIT steps     (plan_prefetch.c)
 *   plan_place       lifetimes, addresses, peak memory             (plan_place.c)
 *   plan_print       all of it as text                             (plan_print.c)
 *
 * step_touch alone says what a step reads and writes. A pass that inserts a new kind of step adds a
 * phase, a case in step_touch and a case in run.c; ops, models and the training loop never change.
 */
#pragma once

#include <stdio.h>

#include "autograd/graph.h"

typedef struct {
    Phase phase;
    Node *node;      /* FORWARD, RECOMPUTE, BACKWARD */
    Node *then;      /* those: whose work is done in the same step, as Ctx says; NULL: nobody's */
    unsigned wanted; /* with `then`, FORWARD and RECOMPUTE: WANTED_* */
    int bucket;      /* GATHER, REDUCE */
    Tensor *parked;  /* STASH, FETCH; else NULL: what lies at host_offset meanwhile */
    int64_t host_offset;
    Phase of;       /* WAIT: which kind of move it waits for; the rest is as in that move */
    bool waited;    /* a move beside the steps that follow, for which a WAIT waits */
    unsigned first; /* BACKWARD, IN(i): the gradient of input i is assigned here, not added to */
} Step;

/* One life of a root tensor: steps [from, to], and where it lies meanwhile. */
typedef struct {
    Tensor *tensor;
    int from, to;
    int before;     /* the same tensor's life before this one, or -1 */
    int taken_from; /* the life whose memory this one goes on in, or -1 */
    bool given;     /* another life goes on in this one's memory */
    int64_t offset; /* bytes into the arena */
} Life;

typedef enum { RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_BLOCK } Recompute;

typedef struct Plan {
    Graph *graph;
    Tensor *loss;   /* NULL: forward only */
    int accumulate; /* micro-steps in an optimizer step */
    Step *steps;
    int n_steps;
    Life *lives; /* by plan_place, ordered by `from` */
    int *ends;   /* [n_lives] lives ordered by `to` */
    int n_lives;
    int64_t arena_bytes;     /* the end of the highest life */
    int64_t live_bytes;      /* most bytes alive in one step: what a perfect placement would need */
    int64_t workspace_bytes; /* of the steps, then of moves beside them */
    int64_t moves_offset;    /* into the workspace: where the moves' begins */
    int64_t const_bytes;     /* ROLE_CONST tensors */
    int64_t host_bytes;      /* what STASH steps park */
} Plan;

/* `define`: the step gives the tensor its contents; otherwise it reads them. */
typedef void (*Visit)(Tensor *t, bool define, void *arg);
void step_touch(const Plan *p, const Step *s, Visit visit, void *arg);

Plan *plan_open(Graph *g);
void plan_close(Plan *p);

/* Differentiates `loss` [1] with respect to everything that needs a gradient. loss->grad becomes an
 * input of the plan: the factor that all gradients carry. */
void plan_backward(Plan *p, Tensor *loss);

/* policy[segment] for segments 1 .. n_segments; index 0 is not used. Values of a segment that its
 * backward needs are computed again just before, except those that the policy keeps: block keeps
 * what comes in from other segments, selective also the outputs of expensive ops (attention). */
void plan_recompute(Plan *p, const Recompute *policy, int n_segments);

/* Makes one step of two where the first's op can do the second's work: a linear map with the GELU
 * that reads its output, and the gradient of a linear map's input with that of the GELU which wrote
 * it. A value between the two that nobody else reads takes no memory. After plan_recompute. */
void plan_fuse(Plan *p);

/* GATHER for each bucket that does not rest where and as steps compute, before its first use in the
 * forward half and again in the backward half (unless nothing was gathered in between); REDUCE
 * after a bucket's last gradient where gradients accumulate over micro-steps or ranks. */
void plan_homes(Plan *p, int accumulate);

/* Parks in host memory every value that lives from the forward half into the backward half, from
 * after its last use in the one to before its first use in the other; values of the last segment
 * are needed again at once and stay. After plan_homes. */
void plan_stash(Plan *p);

/* Lets moves run beside the steps: GATHER and FETCH set out one segment before their first use,
 * REDUCE and STASH have one segment's time; WAIT steps stand where they must be done. Takes the
 * memory of one more segment's moves. After the other passes. */
void plan_prefetch(Plan *p);

/* Fixes every address. `c` supplies backend and stream, which know the workspaces; without a
 * backend (a plan for a device that is not here) none are counted. */
void plan_place(Plan *p, const Ctx *c);

/* Stable text: a header, then a line per step with what it defines and where. */
void plan_print(const Plan *p, FILE *out);

/* Work of one step; for GATHER and REDUCE the bytes that they move. */
Cost step_cost(const Plan *p, const Step *s);
/* Sum of the steps' costs, by phase when phase >= 0. */
Cost plan_cost(const Plan *p, int phase);

/* Whether its runs are alike but for what lies in the device's memory, and in host memory that
 * steps copy and compute with in the stream's order: they read no files and meet no other ranks. A
 * device may then capture them. */
bool plan_repeats(const Plan *p);
/* Device memory that captured runs take, by the number of steps; 0: none repeats. */
int64_t plan_captured_bytes(const Plan *p);

/* Inserts a step before index i. */
void plan_insert(Plan *p, int i, Step s);

/* What to insert before which of the old steps; of one place in rising order. */
typedef struct {
    int before, order;
    Step step;
} Insert;
void plan_merge(Plan *p, Insert *in, int n);
