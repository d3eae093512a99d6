/* The noise schedule against diffusers' tables, noising against its coefficients, and the learning
 * rates against the formulas of its get_scheduler. */
#include "data/safetensors.h"
#include "tests/trainer/models.h"
#include "trainer/optim.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static void check_table(const char *name, double shift) {
    Safetensors file;
    Error e;
    const char *path = "tests/golden/schedule/alphas_cumprod.safetensors";
    if (!safetensors_open(&file, path, &e)) fail_msg("%s", e.text);
    const SafetensorsTensor *t = safetensors_find(&file, name);
    assert_non_null(t);
    assert_int_equal(t->dtype, DT_F64);
    ScheduleConfig c = {0.00085, 0.012, shift, true};
    Schedule s;
    schedule_make(&s, &c);
    for (int i = 0; i < TRAIN_TIMESTEPS; i++) {
        double want;
        memcpy(&want, (const char *)t->data + 8 * i, 8);
        if (!(fabs(s.alpha_bar[i] - want) <= 1e-12))
            fail_msg("%s[%d]: expected %.15g, found %.15g", name, i, want, s.alpha_bar[i]);
    }
    assert_true(s.alpha_bar[TRAIN_TIMESTEPS - 1] == 0);
    safetensors_close(&file);
}

static void test_schedule(void **state) {
    (void)state;
    check_table("alphas_cumprod_snr1", 1);
    check_table("alphas_cumprod_snr3", 3);
}

static void test_noising(void **state) {
    (void)state;
    Schedule s;
    schedule_make(&s, &(ScheduleConfig){0.00085, 0.012, 1, true});
    const float x0[] = {0.5f, -2}, noise[] = {1.5f, 0.25f};
    const int64_t at[] = {0, 499, 999};
    for (size_t i = 0; i < COUNT(at); i++) {
        float noisy[2], velocity[2];
        diffuse(&s, at[i], 2, x0, noise, noisy, velocity);
        double a = sqrt(s.alpha_bar[at[i]]), b = sqrt(1 - s.alpha_bar[at[i]]);
        for (int j = 0; j < 2; j++) {
            /* x0 and noise come back from noisy and velocity. */
            assert_true(fabs(a * noisy[j] - b * velocity[j] - x0[j]) < 1e-6);
            assert_true(fabs(b * noisy[j] + a * velocity[j] - noise[j]) < 1e-6);
        }
    }
}

static void test_rates(void **state) {
    (void)state;
    TrainConfig c = {.learning_rate = 1e-3, .warmup_steps = 10, .steps = 110};
    assert_true(learning_rate_at(&c, 0) == 0);
    assert_true(fabs(learning_rate_at(&c, 5) - 5e-4) < 1e-12);
    assert_true(learning_rate_at(&c, 10) == 1e-3 && learning_rate_at(&c, 109) == 1e-3);
    c.schedule = SCHEDULE_LINEAR;
    assert_true(fabs(learning_rate_at(&c, 60) - 5e-4) < 1e-12);
    assert_true(learning_rate_at(&c, 110) == 0 && learning_rate_at(&c, 500) == 0);
    c.schedule = SCHEDULE_COSINE;
    assert_true(fabs(learning_rate_at(&c, 60) - 5e-4) < 1e-12);
    assert_true(fabs(learning_rate_at(&c, 35) - 1e-3 * 0.5 * (1 + cos(acos(-1) / 4))) < 1e-12);
}

/* Halves where gradients overflow, doubles after as many good steps as torch.amp.GradScaler, and
 * gives up at 1: then it is not the scale that is wrong. */
static void test_loss_scale(void **state) {
    (void)state;
    Optim o = {.scales = true, .scale = {LOSS_SCALE_FIRST, 0}};
    assert_true(optim_overflowed(&o, INFINITY));
    assert_true(optim_overflowed(&o, NAN));
    assert_true(o.scale.value == LOSS_SCALE_FIRST / 4);
    for (int i = 1; i < LOSS_SCALE_STEPS; i++) assert_false(optim_overflowed(&o, 3));
    assert_true(o.scale.value == LOSS_SCALE_FIRST / 4);
    assert_false(optim_overflowed(&o, 3));
    assert_true(o.scale.value == LOSS_SCALE_FIRST / 2 && o.scale.good_steps == 0);
    assert_false(optim_overflowed(&o, 3));
    assert_true(optim_overflowed(&o, INFINITY) && o.scale.good_steps == 0);
    while (optim_overflowed(&o, INFINITY)) assert_true(o.scale.value >= 1);
    assert_true(o.scale.value == 1);
    Optim plain = {.scale = {1, 0}};
    assert_false(optim_overflowed(&plain, INFINITY));
    assert_true(plain.scale.value == 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_schedule),
        cmocka_unit_test(test_noising),
        cmocka_unit_test(test_rates),
        cmocka_unit_test(test_loss_scale),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
