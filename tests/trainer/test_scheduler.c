/* The samplers against the numbers of the published ones: timesteps, traces of DDIM and DPM in f32
 * and bf16, the dynamic guidance. Bounds are those of the README beside the data. */
#define _GNU_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "data/safetensors.h"
#include "kernels/kernels.h"
#include "tests/data/golden.h"
#include "trainer/scheduler.h"

#include <jansson.h>

static const double F32_BOUND = 4e-6, BF16_BOUND = 0.07;

/* ---- tensors ----------------------------------------------------------------------------------
 */

typedef struct {
    float *x;
    int64_t n, rows; /* rows: of the first axis */
} Array;

static Array read_array(const Safetensors *file, const char *name) {
    const SafetensorsTensor *t = safetensors_find(file, name);
    if (!t) fail_msg("%s: there is no %s", file->path, name);
    Array a = {.n = 1, .rows = t->shape[0]};
    for (int i = 0; i < t->n_dims; i++) a.n *= t->shape[i];
    a.x = xcalloc((size_t)a.n, sizeof *a.x);
    void *typed = memcpy(xcalloc(t->bytes, 1), t->data, t->bytes);
    BACKEND_CPU.cast(NULL, t->dtype, DT_F32, a.n, typed, a.x);
    free(typed);
    return a;
}

static float *row(const Array *a, int64_t i) { return a->x + i * (a->n / a->rows); }

static double distance(const float *a, const float *b, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= most)) most = d;
    }
    return most;
}

static void round_to_bf16(float *x, int64_t n) {
    uint16_t *half = xcalloc((size_t)n, sizeof *half);
    BACKEND_CPU.cast(NULL, DT_F32, DT_BF16, n, x, half);
    BACKEND_CPU.cast(NULL, DT_BF16, DT_F32, n, half, x);
    free(half);
}

static Schedule schedule_of(double shift) {
    Schedule s;
    schedule_make(&s, &(ScheduleConfig){0.00085, 0.012, shift, true});
    return s;
}

/* ---- traces -----------------------------------------------------------------------------------
 */

typedef struct {
    const char *name;
    SchedulerKind kind;
    double shift;
    int64_t steps;
    bool bf16;
} Case;

static const Case CASES[] = {
    {"ddim_snr1_n30", SCHEDULER_KIND_DDIM, 1, 30, false},
    {"ddim_snr1_n7", SCHEDULER_KIND_DDIM, 1, 7, false},
    {"ddim_snr1_n8", SCHEDULER_KIND_DDIM, 1, 8, false},
    {"ddim_snr3_n8", SCHEDULER_KIND_DDIM, 3, 8, false},
    {"ddim_snr1_n8_bf16", SCHEDULER_KIND_DDIM, 1, 8, true},
    {"dpm_snr1_n30", SCHEDULER_KIND_DPM, 1, 30, false},
    {"dpm_snr1_n7", SCHEDULER_KIND_DPM, 1, 7, false},
    {"dpm_snr1_n8", SCHEDULER_KIND_DPM, 1, 8, false},
    {"dpm_snr3_n8", SCHEDULER_KIND_DPM, 3, 8, false},
    {"dpm_snr1_n8_bf16", SCHEDULER_KIND_DPM, 1, 8, true},
};

static void check_timesteps(const Safetensors *file, const Scheduler *s) {
    const SafetensorsTensor *t = safetensors_find(file, "timesteps");
    assert_true(t && t->shape[0] == s->count);
    assert_memory_equal(t->data, s->timesteps, t->bytes);
}

/* The steps that drew each noise of the file, in order. */
static void check_draws(const Safetensors *file, const Scheduler *s) {
    const SafetensorsTensor *t = safetensors_find(file, "noise_step");
    int64_t at = 0;
    if (!t) {
        assert_int_equal(scheduler_all_draws(s), 0);
        return;
    }
    assert_int_equal(scheduler_all_draws(s), t->shape[0]);
    for (int64_t i = 0; i < s->count; i++)
        for (int k = 0; k < scheduler_draws(s, i); k++, at++) {
            int64_t step;
            memcpy(&step, (const int64_t *)t->data + at, sizeof step);
            assert_int_equal(step, i);
        }
}

static void check_trace(const Case *c, const Safetensors *file, const Scheduler *s) {
    Array v = read_array(file, "model_output"), x = read_array(file, "x");
    Array clean = read_array(file, "x0"), noise = {0};
    int64_t n = v.n / v.rows, draw = 0;
    double off = 0, bound = c->bf16 ? BF16_BOUND : F32_BOUND;
    float *now = xcalloc((size_t)n, sizeof *now), *x0 = xcalloc((size_t)n, sizeof *x0);
    if (c->kind == SCHEDULER_KIND_DPM) noise = read_array(file, "noise");
    memcpy(now, x.x, (size_t)n * sizeof *now);
    for (int64_t i = 0; i < s->count; i++) {
        draw += scheduler_draws(s, i);
        scheduler_step(s, i, n, row(&v, i), draw ? row(&noise, draw - 1) : NULL, now, x0);
        if (c->bf16) round_to_bf16(now, n);
        off = fmax(off, distance(now, row(&x, i + 1), n));
        off = fmax(off, distance(x0, row(&clean, i), n));
    }
    print_message("%s: %.2g\n", c->name, off);
    if (!(off <= bound)) fail_msg("%s: off by %g", c->name, off);
    free(now);
    free(x0);
    free(v.x);
    free(x.x);
    free(clean.x);
    free(noise.x);
}

static void traces_are_the_published_ones(void **state) {
    (void)state;
    int there = 0;
    for (size_t i = 0; i < COUNT(CASES); i++) {
        const Case *c = &CASES[i];
        char *name = xprintf("schedule/%s.safetensors", c->name), *path = golden_find(name);
        Schedule schedule = schedule_of(c->shift);
        SchedulerConfig config = {c->kind, SPACING_TRAILING, 0, true};
        Safetensors file;
        Scheduler s;
        Error e;
        if (access(path, F_OK)) {
            print_message("SKIPPED %s: not in tests/golden, and ../shared is not here\n", c->name);
        } else {
            assert_true(safetensors_open(&file, path, &e));
            assert_true(scheduler_open(&s, &config, &schedule, c->steps, &e));
            check_timesteps(&file, &s);
            check_draws(&file, &s);
            check_trace(c, &file, &s);
            scheduler_close(&s);
            safetensors_close(&file);
            there++;
        }
        free(name);
        free(path);
    }
    assert_true(there >= 1);
}

/* ---- timesteps --------------------------------------------------------------------------------
 */

static const Schedule *any_schedule(void) {
    static Schedule s;
    s = schedule_of(1);
    return &s;
}

typedef struct {
    Spacing spacing;
    int refused;
} Lists;

static bool check_list(void *context, const Json *j, const char *key, Error *e) {
    Lists *lists = context;
    SchedulerConfig config = {SCHEDULER_KIND_DDIM, lists->spacing, 0, true};
    int64_t want[1001];
    size_t n = 0;
    Scheduler s;
    int64_t steps = atoll(key);
    if (!json_get_ints(j, key, want, COUNT(want), &n, e)) return false;
    if ((int64_t)n != steps || want[n - 1] < 0) {
        assert_false(scheduler_open(&s, &config, any_schedule(), steps, e));
        assert_int_equal(e->exit_code, EXIT_USER);
        *e = (Error){0};
        lists->refused++;
        return true;
    }
    assert_true(scheduler_open(&s, &config, any_schedule(), steps, e));
    assert_int_equal(s.count, n);
    assert_memory_equal(s.timesteps, want, n * sizeof *want);
    scheduler_close(&s);
    return true;
}

static void timesteps_are_the_published_ones(void **state) {
    (void)state;
    static const char *const NAMES[] = {"leading", "linspace", "trailing"};
    char *path = golden_find("schedule/timesteps.json");
    Json file, lists;
    Error e = {0};
    assert_true(json_open(&file, path, &e));
    for (int i = 0; i < 3; i++) {
        Lists context = {(Spacing)i, 0};
        assert_true(json_get_object(&file, NAMES[i], &lists, &e));
        if (!json_each_key(&lists, check_list, &context, &e)) fail_msg("%s", e.text);
        assert_int_equal(context.refused, i == SPACING_TRAILING ? 1 : 0);
    }
    json_close(&file);
    free(path);
}

/* 62 counts have a trailing list that is one too long; each refusal names what works. */
static void broken_counts_are_refused(void **state) {
    (void)state;
    int refused = 0;
    for (int64_t n = 1; n <= 1000; n++) {
        Scheduler s;
        Error e = {0};
        if (scheduler_open(&s, &SCHEDULER_PUBLISHED, any_schedule(), n, &e)) {
            assert_int_equal(s.count, n);
            assert_true(s.timesteps[0] == 999 && s.timesteps[n - 1] >= 0);
            scheduler_close(&s);
        } else {
            refused++;
            if (n == 61) assert_non_null(strstr(e.text, "expected 60 or 62"));
        }
    }
    assert_int_equal(refused, 62);
    Scheduler s;
    Error e;
    assert_false(scheduler_open(&s, &SCHEDULER_PUBLISHED, any_schedule(), 0, &e));
    assert_false(scheduler_open(&s, &SCHEDULER_PUBLISHED, any_schedule(), 1001, &e));
}

static void strength_cuts_the_list(void **state) {
    (void)state;
    Scheduler s;
    Error e;
    assert_true(scheduler_open(&s, &SCHEDULER_PUBLISHED, any_schedule(), 50, &e));
    assert_true(scheduler_cut(&s, 0.8));
    assert_true(s.count == 40 && s.timesteps[0] == 799 && s.timesteps[39] == 19);
    assert_int_equal(scheduler_end(&s, 0), 779); /* the stride stays that of 50 */
    assert_false(scheduler_cut(&s, 0.01));
    scheduler_close(&s);
}

/* ---- guidance, config -------------------------------------------------------------------------
 */

static void guidance_is_the_published_one(void **state) {
    (void)state;
    char *path = golden_find("schedule/dynamic_cfg.json");
    json_t *j = json_load_file(path, 0, NULL), *timesteps = json_object_get(j, "timesteps");
    json_t *want = json_object_get(j, "guidance_per_step");
    double scale = json_number_value(json_object_get(j, "guidance_scale"));
    assert_true(json_array_size(timesteps) == 50 && json_array_size(want) == 50);
    for (size_t i = 0; i < 50; i++) {
        int64_t t = json_integer_value(json_array_get(timesteps, i));
        double got = guidance_at(scale, true, 50, t);
        if (fabs(got - json_number_value(json_array_get(want, i))) > 1e-14)
            fail_msg("t %d: %.17g", (int)t, got);
    }
    assert_true(guidance_at(scale, false, 50, 999) == scale);
    json_decref(j);
    free(path);
}

static bool read_text(SchedulerConfig *c, const char *text, Error *e) {
    char *folder = scratch_make(), *path = xprintf("%s/scheduler_config.json", folder);
    scratch_write(path, text, strlen(text));
    bool ok = scheduler_read(c, path, e);
    scratch_remove(folder);
    free(path);
    return ok;
}

static void config_is_read(void **state) {
    (void)state;
    SchedulerConfig c;
    Error e;
    assert_true(read_text(&c, "{}", &e));
    assert_true(c.kind == SCHEDULER_KIND_OTHER && c.spacing == SPACING_LEADING &&
                c.set_alpha_to_one && !c.steps_offset);
    assert_true(read_text(&c,
                          "{\"_class_name\": \"CogVideoXDPMScheduler\", \"steps_offset\": 1, "
                          "\"timestep_spacing\": \"trailing\", \"set_alpha_to_one\": false}",
                          &e));
    assert_true(c.kind == SCHEDULER_KIND_DPM && c.spacing == SPACING_TRAILING &&
                !c.set_alpha_to_one && c.steps_offset == 1);
    assert_false(read_text(&c, "{\"timestep_spacing\": \"trailling\"}", &e));
    assert_non_null(strstr(e.text, "trailling"));
    assert_false(read_text(&c, "{\"steps_offset\": -1}", &e));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(traces_are_the_published_ones),
        cmocka_unit_test(timesteps_are_the_published_ones),
        cmocka_unit_test(broken_counts_are_refused),
        cmocka_unit_test(strength_cuts_the_list),
        cmocka_unit_test(guidance_is_the_published_one),
        cmocka_unit_test(config_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
