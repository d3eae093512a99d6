/* The samplers of a diffusion model that predicts velocity, as diffusers publishes them for
 * CogVideoX (CogVideoXDDIMScheduler, CogVideoXDPMScheduler):
 *
 *     x0 = sqrt(a_t) x - sqrt(1 - a_t) v
 *     DDIM (Song et al. 2021)
 *     x' = A x + B x0,  A = sqrt((1 - a_p) / (1 - a_t)),  B = sqrt(a_p) - A sqrt(a_t)
 *     DPM-Solver++ SDE 2M (Lu et al. 2022)
 *     x' = m1 x - m2 (m3 x0 - m4 x0_old) + mn noise
 *
 * with a_t of Schedule.alpha_bar at the timestep t, and a_p at p = t - stride.
 * The stride is 1000 / N in whole numbers, not the distance to the next timestep of the list; a
 * step that goes below 0 ends at the clean sample. Coefficients are f64, arithmetic on x is f32.
 */
#pragma once

#include "trainer/diffusion.h"

typedef enum {
    SCHEDULER_KIND_DDIM,
    SCHEDULER_KIND_DPM,
    SCHEDULER_KIND_OTHER /* to be decided by the user */
} SchedulerKind;
typedef enum { SPACING_LEADING, SPACING_LINSPACE, SPACING_TRAILING } Spacing;

/* What scheduler/scheduler_config.json says about sampling. */
typedef struct {
    SchedulerKind kind; /* _class_name */
    Spacing spacing;
    int64_t steps_offset;  /* of SPACING_LEADING */
    bool set_alpha_to_one; /* a_p below 0 is 1; else it is that of timestep 0 */
} SchedulerConfig;

/* What every published CogVideoX has: DDIM, trailing. */
extern const SchedulerConfig SCHEDULER_PUBLISHED;

/* Reads the file. Absent keys have diffusers' defaults. */
bool scheduler_read(SchedulerConfig *c, const char *path, Error *e);

typedef struct {
    SchedulerConfig config;
    const Schedule *schedule;
    int64_t steps;      /* N, which fixes the stride */
    int64_t *timesteps; /* [count] falling */
    int64_t count;      /* N, or fewer after scheduler_cut */
} Scheduler;

/* false: N timesteps cannot be had (the published trailing list for 61, 103, ... has N + 1 entries,
 * of which the last is -1); *e (EXIT_USER) names the nearest N that can. */
bool scheduler_open(Scheduler *s, const SchedulerConfig *config, const Schedule *schedule,
                    int64_t steps, Error *e);
void scheduler_close(Scheduler *s);

/* Keeps the last min(int(N strength), N) timesteps, for starting from a noised video. false: that
 * is none. */
bool scheduler_cut(Scheduler *s, double strength);

/* The timestep at which step i ends; below 0: the clean sample. */
int64_t scheduler_end(const Scheduler *s, int64_t i);

/* How many times step i draws noise: never with DDIM; with DPM once, and on its second-order steps
 * twice, of which the second counts. */
int scheduler_draws(const Scheduler *s, int64_t i);
int64_t scheduler_all_draws(const Scheduler *s);

/* Step i of n elements: x becomes x', and x0, which holds what the step before left there, the
 * clean sample as predicted now. noise: the draw that counts; NULL with DDIM. */
void scheduler_step(const Scheduler *s, int64_t i, int64_t n, const float *velocity,
                    const float *noise, float *x, float *x0);

/* The guidance weight of timestep t: constant, or "dynamic" as published for `count` steps:
 * 1 + g (1 - cos(pi ((count - t) / count)^5)) / 2. */
double guidance_at(double guidance, bool dynamic, int64_t count, int64_t t);
