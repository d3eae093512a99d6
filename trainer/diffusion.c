/* Owns the schedule table and the forward process. */
#include "trainer/diffusion.h"

#include "data/json.h"

#include <math.h>
#include <string.h>

ScheduleConfig schedule_published(bool rotary) {
    return (ScheduleConfig){0.00085, 0.012, rotary ? 1.0 : 3.0, true};
}

bool schedule_read(ScheduleConfig *c, const char *path, Error *e) {
    Json j;
    *c = (ScheduleConfig){0.00085, 0.012, 3.0, false}; /* diffusers' class defaults */
    const char *kind = "scaled_linear", *target = "epsilon";
    int64_t steps = TRAIN_TIMESTEPS;
    if (!json_open(&j, path, e)) return false;
    bool ok = json_get_double(&j, "beta_start", &c->beta_start, e) &&
              json_get_double(&j, "beta_end", &c->beta_end, e) &&
              json_get_double(&j, "snr_shift_scale", &c->snr_shift_scale, e) &&
              json_get_bool(&j, "rescale_betas_zero_snr", &c->zero_terminal_snr, e) &&
              json_get_string(&j, "beta_schedule", &kind, e) &&
              json_get_string(&j, "prediction_type", &target, e) &&
              json_get_int(&j, "num_train_timesteps", &steps, e);
    if (ok && (strcmp(kind, "scaled_linear") || strcmp(target, "v_prediction") ||
               steps != TRAIN_TIMESTEPS || json_has(&j, "trained_betas")))
        ok = error_set(e, EXIT_USER,
                       "%s: expected beta_schedule \"scaled_linear\", prediction_type "
                       "\"v_prediction\" and num_train_timesteps 1000, as in every published "
                       "CogVideoX",
                       path);
    if (ok && !(c->beta_start > 0 && c->beta_start < c->beta_end && c->beta_end < 1 &&
                c->snr_shift_scale >= 1e-3 && c->snr_shift_scale <= 1e3))
        ok = error_set(
            e, EXIT_USER,
            "%s: expected 0 < beta_start < beta_end < 1 and snr_shift_scale from 0.001 to 1000",
            path);
    json_close(&j);
    return ok;
}

void schedule_make(Schedule *s, const ScheduleConfig *c) {
    double *a = s->alpha_bar, product = 1;
    double start = sqrt(c->beta_start), end = sqrt(c->beta_end);
    double step = (end - start) / (TRAIN_TIMESTEPS - 1), k = c->snr_shift_scale;
    for (int i = 0; i < TRAIN_TIMESTEPS; i++) {
        int from_end = TRAIN_TIMESTEPS - 1 - i;
        double root = i < TRAIN_TIMESTEPS / 2 ? start + i * step : end - from_end * step;
        product *= 1 - root * root;
        a[i] = product / (k + (1 - k) * product);
    }
    if (!c->zero_terminal_snr) return;
    double first = sqrt(a[0]), last = sqrt(a[TRAIN_TIMESTEPS - 1]);
    for (int i = 0; i < TRAIN_TIMESTEPS; i++) {
        double r = (sqrt(a[i]) - last) * (first / (first - last));
        a[i] = r * r;
    }
}

void diffuse(const Schedule *s, int64_t t, int64_t n, const float *x0, const float *noise,
             float *noisy, float *velocity) {
    double a = sqrt(s->alpha_bar[t]), b = sqrt(1 - s->alpha_bar[t]);
    for (int64_t i = 0; i < n; i++) {
        if (noisy) noisy[i] = (float)(a * x0[i] + b * noise[i]);
        if (velocity) velocity[i] = (float)(a * noise[i] - b * x0[i]);
    }
}
