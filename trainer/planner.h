/* The planner: where a run's memory lies, so that it fits the budget and takes the least time.
 *
 * It tries the homes that the config leaves open (auto), each with the least recomputation that
 * fits, where activations wait in host memory also with more, and takes the fastest by a device's
 * profile. Every choice gives the same numbers. */
#pragma once

#include "trainer/host_needs.h"
#include "trainer/step_time.h"

/* One way to hold it. */
typedef struct {
    PlaceChoice base, optimizer, activations; /* as in memory.*.home */
    PrefetchChoice prefetch;                  /* on or off */
    RecomputeChoice asked;     /* as in memory.recompute; auto: the least that fits */
    RecomputeChoice recompute; /* and hard_blocks: what that is, see Learner */
    int64_t hard_blocks;
    bool ahead; /* there are moves that set out ahead */
    /* Where that is, by name: "device", "host", "ranks", "file"; "none": there are none. */
    const char *base_home, *optimizer_home, *activations_home;
    int64_t holdout_bytes; /* of the plans for held-out losses and previews; 0: there are none */
    LearnerBytes bytes;    /* the total with that */
    HostNeeds host;        /* of rank 0, beside the plan */
    int64_t host_bytes;    /* of rank 0, plan and all */
    int64_t host_left;     /* of the host's memory, for the plan of one rank */
    int64_t host_together; /* of all ranks on rank 0's host; on a CPU with the device's, its own */
    double seconds;        /* of an optimizer step, predicted */
    bool fits;
} MemoryChoice;

typedef struct {
    MemoryChoice *tried; /* [n] */
    int n;
    int chosen;               /* the fastest that fits, of those within 0.5 % the one that takes
                               * least of the host; else the smallest that the host can hold */
    int next;                 /* the fastest of the others that fit; -1: none */
    double unlimited_seconds; /* the fastest of all, were there no limit */
    int64_t host_limit;       /* bytes of host memory that there are, for all ranks there */
    int host_ranks;           /* that share it */
    bool one_memory;          /* a CPU's: what its device holds is in the host's, too */
    int64_t decoder_bytes;    /* of previews, once they are sampled, on rank 0 */
} Planning;

/* Tries them on models without memory; `foreign` as for model_open. */
Planning planner_try(const Config *c, Training training, const Profile *profile, bool foreign,
                     int64_t available);
void planner_close(Planning *p);
/* Writes the chosen homes into the config. Ends the program (exit 2) where no device memory of
 * memory.budget is enough, saying the least that would be, and how. */
void planner_apply(Config *c, const Planning *p, int64_t available);

/* Before a run: tries and applies what the device of the config can hold, by its profile, the same
 * on every rank: rank 0's figures and the least memory of all. On a CPU only memory.budget is a
 * limit. Ends the program (exit 2) where nothing fits. */
void planner_decide(Config *c, Training training, Comm *ranks);
/* The same for a device with these figures, which has so much. */
void planner_choose(Config *c, Training training, Comm *ranks, const Profile *mine,
                    int64_t available);
