/* The planner: where a run's memory lies, so that it fits the budget and takes the least time.
 *
 * It tries the homes that the config leaves open (auto), each with the least recomputation that
 * fits, and takes the fastest by a device's profile. Every choice gives the same numbers. */
#pragma once

#include "trainer/learner.h"
#include "trainer/step_time.h"

/* One way to hold it. */
typedef struct {
    PlaceChoice base, optimizer, activations; /* as in memory.*.home */
    PrefetchChoice prefetch;                  /* on or off */
    RecomputeChoice recompute;
    int64_t hard_blocks; /* see Learner */
    LearnerBytes bytes;
    double seconds; /* of an optimizer step, predicted */
    bool fits;
} MemoryChoice;

typedef struct {
    MemoryChoice *tried; /* [n] */
    int n;
    int chosen;               /* the fastest that fits; else the smallest */
    int next;                 /* the fastest of the others that fit; -1: none */
    double unlimited_seconds; /* the fastest of all, were there no limit */
} Planning;

/* Tries them on models without memory; `foreign` as for model_open. */
Planning planner_try(const Config *c, Training training, const Profile *profile, bool foreign,
                     int64_t available);
void planner_close(Planning *p);
/* Writes the chosen homes into the config. Ends the program (exit 2) where nothing fits
 * memory.budget, saying the least that would, and how. */
void planner_apply(Config *c, const Planning *p, int64_t available);

/* For a run on this machine with memory.budget set: tries and applies, the same on every rank. */
void planner_decide(Config *c, Training training);
