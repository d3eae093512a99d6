/* The diffusion objective: noise schedule, noising, velocity (spec: Ho et al. 2020 with
 * v-prediction of Salimans and Ho 2022, SNR shift, and zero terminal SNR of Lin et al. 2024). */
#pragma once

#include "kernels/base.h"

enum { TRAIN_TIMESTEPS = 1000 };

typedef struct {
    double alpha_bar[TRAIN_TIMESTEPS]; /* cumulative products, f64 */
} Schedule;

typedef struct {
    double beta_start, beta_end;
    double snr_shift_scale;
    bool zero_terminal_snr;
} ScheduleConfig;

/* What a model without the file has: that of the published models of its kind, 5B and 1.5 (with
 * rotary positions) or 2B (without). */
ScheduleConfig schedule_published(bool rotary);

/* Reads scheduler/scheduler_config.json. Kinds of schedule that CogVideoX never used are errors. */
bool schedule_read(ScheduleConfig *c, const char *path, Error *e);
/* The table; ends the run of products with exactly 0 when zero_terminal_snr. */
void schedule_make(Schedule *s, const ScheduleConfig *c);

/* n elements: noisy = sqrt(a) x0 + sqrt(1-a) noise, velocity = sqrt(a) noise - sqrt(1-a) x0, with
 * f64 coefficients of timestep t; either output may be NULL. */
void diffuse(const Schedule *s, int64_t t, int64_t n, const float *x0, const float *noise,
             float *noisy, float *velocity);
