/* Owns the timesteps of sampling and the arithmetic of one step. */
#define _XOPEN_SOURCE 700
#include "trainer/scheduler.h"

#include "data/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const SchedulerConfig SCHEDULER_PUBLISHED = {SCHEDULER_KIND_DDIM, SPACING_TRAILING, 0, true};

/* ---- the config -------------------------------------------------------------------------------
 */

static bool read_names(SchedulerConfig *c, const Json *j, Error *e) {
    static const char *const SPACINGS[] = {"leading", "linspace", "trailing"};
    const char *spacing = SPACINGS[SPACING_LEADING], *class = "";
    if (!json_get_string(j, "timestep_spacing", &spacing, e) ||
        !json_get_string(j, "_class_name", &class, e))
        return false;
    c->kind = !strcmp(class, "CogVideoXDDIMScheduler")  ? SCHEDULER_KIND_DDIM
              : !strcmp(class, "CogVideoXDPMScheduler") ? SCHEDULER_KIND_DPM
                                                        : SCHEDULER_KIND_OTHER;
    for (size_t i = 0; i < COUNT(SPACINGS); i++) {
        if (strcmp(spacing, SPACINGS[i])) continue;
        c->spacing = (Spacing)i;
        return true;
    }
    return error_set(e, EXIT_USER,
                     "%.300s: timestep_spacing: expected \"leading\", \"linspace\" or "
                     "\"trailing\", found \"%.40s\"",
                     j->path, spacing);
}

bool scheduler_read(SchedulerConfig *c, const char *path, Error *e) {
    Json j;
    *c = (SchedulerConfig){.set_alpha_to_one = true};
    if (!json_open(&j, path, e)) return false;
    bool ok = read_names(c, &j, e) && json_get_int(&j, "steps_offset", &c->steps_offset, e) &&
              json_get_bool(&j, "set_alpha_to_one", &c->set_alpha_to_one, e);
    if (ok && (c->steps_offset < 0 || c->steps_offset >= TRAIN_TIMESTEPS))
        ok = error_set(e, EXIT_USER, "%.300s: steps_offset: expected 0 to %d", path,
                       TRAIN_TIMESTEPS - 1);
    json_close(&j);
    return ok;
}

/* ---- timesteps --------------------------------------------------------------------------------
 */

/* numpy's arange(1000, 0, -1000 / N), rounded to even, less 1. */
static int64_t list_trailing(int64_t n, int64_t *out) {
    double step = (double)TRAIN_TIMESTEPS / (double)n;
    double delta = (TRAIN_TIMESTEPS - step) - TRAIN_TIMESTEPS;
    int64_t count = (int64_t)ceil(TRAIN_TIMESTEPS / step);
    for (int64_t i = 0; i < count; i++)
        out[i] = (int64_t)rint(TRAIN_TIMESTEPS + (double)i * delta) - 1;
    return count;
}

/* linspace(0, 999, N) rounded to even, backwards. */
static int64_t list_linspace(int64_t n, int64_t *out) {
    double step = n > 1 ? (double)(TRAIN_TIMESTEPS - 1) / (double)(n - 1) : 0;
    for (int64_t i = 0; i < n; i++) {
        double at = i == n - 1 && n > 1 ? TRAIN_TIMESTEPS - 1 : (double)i * step;
        out[n - 1 - i] = (int64_t)rint(at);
    }
    return n;
}

static int64_t list_leading(int64_t n, int64_t offset, int64_t *out) {
    for (int64_t i = 0; i < n; i++) out[n - 1 - i] = i * (TRAIN_TIMESTEPS / n) + offset;
    return n;
}

/* Fills out [N + 1]; returns how many. */
static int64_t list_timesteps(const SchedulerConfig *c, int64_t n, int64_t *out) {
    switch (c->spacing) {
    case SPACING_LEADING:
        return list_leading(n, c->steps_offset, out);
    case SPACING_LINSPACE:
        return list_linspace(n, out);
    case SPACING_TRAILING:
        break;
    }
    return list_trailing(n, out);
}

static bool is_whole(const SchedulerConfig *c, int64_t n) {
    if (n < 1 || n > TRAIN_TIMESTEPS) return false;
    int64_t *list = xcalloc((size_t)n + 1, sizeof *list), count = list_timesteps(c, n, list);
    bool whole = count == n && list[0] < TRAIN_TIMESTEPS && list[n - 1] >= 0;
    free(list);
    return whole;
}

static bool refuse(const SchedulerConfig *c, int64_t steps, Error *e) {
    int64_t below = steps, above = steps;
    if (steps < 1 || steps > TRAIN_TIMESTEPS)
        return error_set(e, EXIT_USER, "expected 1 to %d steps, found %lld", TRAIN_TIMESTEPS,
                         (long long)steps);
    while (below > 0 && !is_whole(c, below)) below--;
    while (above <= TRAIN_TIMESTEPS && !is_whole(c, above)) above++;
    char near[64] = "";
    if (below > 0 && above <= TRAIN_TIMESTEPS)
        snprintf(near, sizeof near, "; expected %lld or %lld", (long long)below, (long long)above);
    else if (below > 0 || above <= TRAIN_TIMESTEPS)
        snprintf(near, sizeof near, "; expected %lld", (long long)(below > 0 ? below : above));
    return error_set(e, EXIT_USER,
                     "%lld: the published scheduler's list for this many steps leaves the range of "
                     "timesteps 0 to %d%s",
                     (long long)steps, TRAIN_TIMESTEPS - 1, near);
}

bool scheduler_open(Scheduler *s, const SchedulerConfig *config, const Schedule *schedule,
                    int64_t steps, Error *e) {
    *s = (Scheduler){.config = *config, .schedule = schedule, .steps = steps};
    if (!is_whole(config, steps)) return refuse(config, steps, e);
    s->timesteps = xcalloc((size_t)steps + 1, sizeof *s->timesteps);
    s->count = list_timesteps(config, steps, s->timesteps);
    return true;
}

void scheduler_close(Scheduler *s) {
    free(s->timesteps);
    *s = (Scheduler){0};
}

bool scheduler_cut(Scheduler *s, double strength) {
    int64_t keep = MIN((int64_t)((double)s->steps * strength), s->steps);
    memmove(s->timesteps, s->timesteps + s->count - keep, (size_t)keep * sizeof *s->timesteps);
    s->count = keep;
    return keep > 0;
}

int64_t scheduler_end(const Scheduler *s, int64_t i) {
    return s->timesteps[i] - TRAIN_TIMESTEPS / s->steps;
}

/* ---- one step ---------------------------------------------------------------------------------
 */

static double alpha_at(const Scheduler *s, int64_t t) {
    if (t < 0 && s->config.set_alpha_to_one) return 1;
    return s->schedule->alpha_bar[MAX(t, 0)];
}

static bool second_order(const Scheduler *s, int64_t i) {
    return i > 0 && scheduler_end(s, i) >= 0;
}

int scheduler_draws(const Scheduler *s, int64_t i) {
    return s->config.kind == SCHEDULER_KIND_DDIM ? 0 : second_order(s, i) ? 2 : 1;
}

int64_t scheduler_all_draws(const Scheduler *s) {
    int64_t n = 0;
    for (int64_t i = 0; i < s->count; i++) n += scheduler_draws(s, i);
    return n;
}

/* Half the logarithm of the signal to noise ratio: -inf for a = 0, inf for a = 1. */
static double lambda_of(double a) { return log(sqrt(a / (1 - a))); }

/* x' = x * m1 - m2 * (m3 * x0 - m4 * old) + mn * noise */
typedef struct {
    double m1, m2, m3, m4, mn;
} Multipliers;

static Multipliers dpm_multipliers(const Scheduler *s, int64_t i) {
    double a = alpha_at(s, s->timesteps[i]), end = alpha_at(s, scheduler_end(s, i));
    double h = lambda_of(end) - lambda_of(a);
    Multipliers m = {.m1 = sqrt((1 - end) / (1 - a)) * exp(-h),
                     .m2 = expm1(-2 * h) * sqrt(end),
                     .m3 = 1,
                     .mn = sqrt(1 - end) * sqrt(1 - exp(-2 * h))};
    if (!second_order(s, i)) return m;
    double r = (lambda_of(a) - lambda_of(alpha_at(s, s->timesteps[i - 1]))) / h;
    m.m4 = 1 / (2 * r);
    m.m3 = 1 + m.m4;
    return m;
}

/* Each coefficient is rounded to f32, and each product, as torch has it. */
static void ddim_step(const Scheduler *s, int64_t i, int64_t n, float *x, const float *x0) {
    double a = alpha_at(s, s->timesteps[i]), end = alpha_at(s, scheduler_end(s, i));
    double slope = sqrt((1 - end) / (1 - a));
    float keep = (float)slope, add = (float)(sqrt(end) - sqrt(a) * slope);
    for (int64_t k = 0; k < n; k++) x[k] = keep * x[k] + add * x0[k];
}

void scheduler_step(const Scheduler *s, int64_t i, int64_t n, const float *velocity,
                    const float *noise, float *x, float *x0) {
    bool ddim = s->config.kind == SCHEDULER_KIND_DDIM, second = second_order(s, i);
    double a = alpha_at(s, s->timesteps[i]);
    float signal = (float)sqrt(a), loss = (float)sqrt(1 - a);
    Multipliers m = ddim ? (Multipliers){0} : dpm_multipliers(s, i);
    float m1 = (float)m.m1, m2 = (float)m.m2, m3 = (float)m.m3, m4 = (float)m.m4, mn = (float)m.mn;
    CHECK(ddim == !noise, "step %lld: noise goes with DPM alone", (long long)i);
    for (int64_t k = 0; k < n; k++) {
        float clean = signal * x[k] - loss * velocity[k];
        float ahead = second ? m3 * clean - m4 * x0[k] : clean;
        x0[k] = clean;
        if (!ddim) x[k] = (m1 * x[k] - m2 * ahead) + mn * noise[k];
    }
    if (ddim) ddim_step(s, i, n, x, x0);
}

double guidance_at(double guidance, bool dynamic, int64_t count, int64_t t) {
    if (!dynamic) return guidance;
    double share = (double)(count - t) / (double)count;
    return 1 + guidance * ((1 - cos(M_PI * pow(share, 5.0))) / 2);
}
