/* What `cogsmith plan` says, for verb_plan.c, plan_text.c and plan_json.c alone. Text and JSON are
 * printed from the same rows: what the one says the other has. */
#pragma once

#include "trainer/native.h"
#include "trainer/planner.h"

typedef struct {
    const char *key, *label, *note;
    double value;
} PlanRow;

enum { PLAN_ROWS = 12 };

typedef struct {
    const char *key, *title;
    PlanRow rows[PLAN_ROWS];
    int n;
} PlanTable;

typedef struct {
    const Config *config;
    const Model *model;
    const Learner *learner; /* of the chosen plan */
    NativePack native;
    Profile profile;
    Planning planning;
    const MemoryChoice *chosen, *next; /* next: NULL where there is none */
    int64_t device_limit;              /* bytes of the device, context included */
    int64_t device_peak;               /* the sum of its rows, as those of the host are host_peak */
    int64_t host_peak;
    Cost step;         /* one optimizer step */
    double micro_sent; /* bytes that a rank sends in a micro-step */
    double seconds;    /* the sum of the rows of `time` */
    /* Bytes on one rank; bytes in an optimizer step; seconds of it. */
    PlanTable device, host, traffic, time;
} PlanReport;

/* "none", "selective" or "block" */
const char *recompute_name(RecomputeChoice choice);

void plan_text(const PlanReport *r);
void plan_json(const PlanReport *r);
