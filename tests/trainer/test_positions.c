/* Rotary angles against diffusers' at sizes that the variants' cases do not reach: grids that are
 * larger, smaller and of other proportions than the native one (tests/golden/make_narrow.py). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "data/safetensors.h"
#include "trainer/positions.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD = 16, FRAMES = HEAD / 4, SIDE = HEAD / 8 * 3 };

/* The rows of a table [n, SIDE] are those of `table` at column `at`, `stride` rows apart. */
static void check_axis(const SafetensorsTensor *t, const float *table, int64_t at, int64_t stride) {
    assert_true(t->dtype == DT_F32 && t->n_dims == 2 && t->shape[1] == SIDE);
    for (int64_t i = 0; i < t->shape[0]; i++)
        for (int64_t k = 0; k < SIDE; k++) {
            float want, got = table[i * stride * HEAD + at + k];
            memcpy(&want, (const float *)t->data + i * SIDE + k, sizeof want);
            if (!(fabsf(got - want) <= 2e-7f))
                fail_msg("%s: row %lld: %.9g, not %.9g", t->name, (long long)i, (double)got,
                         (double)want);
        }
}

static void grids(void **state) {
    (void)state;
    DitConfig c = {.head_size = HEAD,
                   .patch = 2,
                   .patch_t = 1,
                   .sample_height = 60,
                   .sample_width = 90,
                   .rotary = true};
    Safetensors file;
    Error e;
    if (!safetensors_open(&file, "tests/golden/dit/positions.safetensors", &e)) die_error(&e);
    for (size_t i = 0; i < file.n_tensors; i++) {
        int h, w;
        char axis;
        assert_int_equal(sscanf(file.tensors[i].name, "%dx%d.%c", &h, &w, &axis), 3);
        float *table = xcalloc((size_t)(h * w * HEAD), sizeof *table);
        rotary_table(&c, 1, 2 * h, 2 * w, table);
        assert_int_equal(file.tensors[i].shape[0], axis == 'h' ? h : w);
        check_axis(&file.tensors[i], table, axis == 'h' ? FRAMES : FRAMES + SIDE,
                   axis == 'h' ? w : 1);
        free(table);
    }
    assert_true(file.n_tensors == 20);
    safetensors_close(&file);
}

/* The order of the halves, and the shift: with 1 the last frequency is 1/10000. */
static void sinusoids(void **state) {
    (void)state;
    float cos_first[HEAD], sin_first[HEAD], shifted[HEAD];
    timestep_sinusoid(5000, HEAD, true, 0, cos_first);
    timestep_sinusoid(5000, HEAD, false, 0, sin_first);
    timestep_sinusoid(5000, HEAD, true, 1, shifted);
    for (int i = 0; i < HEAD; i++) assert_true(cos_first[i] == sin_first[(i + HEAD / 2) % HEAD]);
    assert_true(fabs((double)shifted[HEAD / 2 - 1] - cos(0.5)) < 1e-6);
    assert_true(fabs((double)shifted[HEAD - 1] - sin(0.5)) < 1e-6);
    assert_true(fabs((double)cos_first[0] - cos(5000)) < 1e-6);
    assert_true(fabs((double)cos_first[HEAD - 1] - sin(5000 * pow(10000, -7. / 8))) < 1e-3);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(grids), cmocka_unit_test(sinusoids)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
