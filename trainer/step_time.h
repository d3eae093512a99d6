/* How long an optimizer step is predicted to take, and where its seconds go. */
#pragma once

#include "trainer/learner.h"
#include "trainer/profile.h"

/* Seconds, which add up to the step's. */
typedef struct {
    double products, attention, memory; /* steps, by what bounds them */
    double exchange; /* ranks that share a sample wait for each other's rows and heads */
    double moves;  /* steps wait for GATHER, REDUCE, STASH, FETCH, and for updates in host memory */
    double update; /* the optimizer, after the last micro-step */
} StepTime;

/* Of a planned learner. The plan's steps one after the other, each at the slowest of its
 * arithmetic, its memory traffic and what it sends. On a GPU moves that something waits for run
 * beside them, and so do updates in host memory (see bucket_update). */
StepTime step_time(const Config *c, const Profile *p, const Learner *l);
/* The sum of its parts. */
double step_seconds(const StepTime *t);
/* That of step_time. */
double predicted_seconds(const Config *c, const Profile *p, const Learner *l);
