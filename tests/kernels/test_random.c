/* Philox's published answers, the layout of kernels/random.h, and the moments of the draws. */
#define _GNU_SOURCE
#include "kernels/random.h"
#include "tests/kernels/fixture.h"

enum { N = 1 << 20 };

/* Random123 1.09, tests/kat_vectors, "philox4x32 10": counter, key, output. */
static void philox_known_answers(void **state) {
    (void)state;
    static const struct {
        Draw draw;
        int64_t group;
        uint32_t want[4];
    } answers[] = {
        {{0, 0, 0, 0}, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{UINT64_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX},
         UINT32_MAX,
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x299f31d0a4093822, 0x85a308d3, 0x13198a2e, 0x03707344},
         0x243f6a88,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < COUNT(answers); i++) {
        uint32_t bits[4];
        random_bits(answers[i].draw, 4 * answers[i].group, 4, bits);
        assert_memory_equal(bits, answers[i].want, sizeof bits);
    }
}

static void a_draw_does_not_depend_on_its_neighbours(void **state) {
    (void)state;
    enum { SOME = 4099 };
    Draw d = {.seed = 7, .ordinal = 3, .step = 2, .purpose = PURPOSE_NOISE};
    uint32_t *bits = xcalloc(SOME, sizeof *bits), bit[9];
    float *u = xcalloc(SOME, sizeof *u), *z = xcalloc(SOME, sizeof *z), some[9];
    random_bits(d, 0, SOME, bits);
    random_uniform(d, 0, SOME, u);
    random_normal(d, 0, SOME, z);
    for (int64_t first = 0; first + 9 <= SOME; first++)
        for (int64_t n = 0; n <= 9; n += 3) {
            random_bits(d, first, n, bit);
            assert_memory_equal(bit, bits + first, (size_t)n * sizeof *bit);
            random_uniform(d, first, n, some);
            assert_memory_equal(some, u + first, (size_t)n * sizeof *some);
            random_normal(d, first, n, some);
            assert_memory_equal(some, z + first, (size_t)n * sizeof *some);
        }
    free(bits), free(u), free(z);
}

static void every_field_changes_the_draw(void **state) {
    (void)state;
    Draw draws[] = {{1, 2, 3, 4}, {2, 2, 3, 4}, {1, 3, 3, 4},
                    {1, 2, 4, 4}, {1, 2, 3, 5}, {1 + (UINT64_C(1) << 32), 2, 3, 4}};
    uint32_t bits[COUNT(draws)];
    for (size_t i = 0; i < COUNT(draws); i++) {
        random_bits(draws[i], 5, 1, bits + i);
        for (size_t j = 0; j < i; j++) assert_true(bits[i] != bits[j]);
    }
}

/* Within five standard errors of the distribution's moments. */
static void expect_moment(const char *what, double got, double want, double deviation) {
    if (fabs(got - want) > 5 * deviation / sqrt(N))
        fail_msg("%s is %.6f, not %.6f +- %.6f", what, got, want, 5 * deviation / sqrt(N));
}

static void normals_are_normal(void **state) {
    (void)state;
    float *z = xcalloc(N, sizeof *z);
    double power[5] = {0}, pairs = 0;
    random_normal((Draw){.seed = 1, .purpose = PURPOSE_NOISE}, 0, N, z);
    for (int i = 0; i < N; i++)
        for (int k = 1; k < 5; k++) power[k] += pow((double)z[i], k) / N;
    for (int i = 1; i < N; i++) pairs += (double)z[i] * (double)z[i - 1] / N;
    expect_moment("mean", power[1], 0, 1);
    expect_moment("variance", power[2], 1, sqrt(2));
    expect_moment("skewness", power[3], 0, sqrt(15));
    expect_moment("kurtosis", power[4], 3, sqrt(96));
    expect_moment("correlation of neighbours", pairs, 0, 1);
    free(z);
}

/* As the header of kernels/random.h has it, for others to reproduce. */
static void normals_are_pairs_of_uniforms(void **state) {
    (void)state;
    enum { COUNT_OF_PAIRS = 500 };
    float z[2 * COUNT_OF_PAIRS], u[2 * COUNT_OF_PAIRS];
    Draw draw = {.seed = 5, .ordinal = 2, .step = 9, .purpose = PURPOSE_NOISE};
    random_normal(draw, 0, COUNT(z), z);
    random_uniform(draw, 0, COUNT(u), u);
    for (int i = 0; i < 2 * COUNT_OF_PAIRS; i += 2) {
        double r = sqrt(-2 * log((double)u[i])), a = 2 * acos(-1.0) * (double)u[i + 1];
        assert_true(fabs((double)z[i] - r * cos(a)) < 1e-5);
        assert_true(fabs((double)z[i + 1] - r * sin(a)) < 1e-5);
    }
}

static void uniforms_lie_within_the_interval(void **state) {
    (void)state;
    float *u = xcalloc(N, sizeof *u), least = 1, most = 0;
    double mean = 0, square = 0;
    random_uniform((Draw){.seed = 2, .purpose = PURPOSE_TIMESTEP}, 0, N, u);
    for (int i = 0; i < N; i++) {
        mean += (double)u[i] / N;
        square += (double)u[i] * (double)u[i] / N;
        least = MIN(least, u[i]);
        most = MAX(most, u[i]);
    }
    assert_true(least > 0 && most < 1 && least < 1e-4f && most > 0.9999f);
    expect_moment("mean", mean, 0.5, sqrt(1 / 12.0));
    expect_moment("mean square", square, 1 / 3.0, sqrt(4 / 45.0));
    free(u);
}

static void dropout_zeroes_what_was_drawn(void **state) {
    (void)state;
    enum { WIDTH = 700, ROWS = 30, SIZE = ROWS * WIDTH };
    const int64_t cu[] = {0, 7, ROWS};
    const uint32_t ordinals[] = {11, 5};
    const DropoutState draws = {9, 4};
    Dropout d = {.t = DT_REAL,
                 .width = WIDTH,
                 .segments = 2,
                 .cu_rows = cu,
                 .ordinals = ordinals,
                 .p = (real)0.3,
                 .state = &draws,
                 .purpose = PURPOSE_DROPOUT + 2};
    uint32_t threshold = (uint32_t)((double)d.p * 65536 + 0.5), bits[SIZE / 2 + 1];
    for (int keep = 0; keep < 2; keep++) {
        real *x = numbers(SIZE, 1), *y = output(SIZE, (real)keep, 2), *old = copy_of(y, SIZE);
        BACKEND_CPU.dropout(NULL, &d, x, (real)keep, y);
        for (int b = 0; b < 2; b++) {
            int64_t begin = cu[b] * WIDTH, n = cu[b + 1] * WIDTH - begin;
            random_bits((Draw){9, ordinals[b], 4, PURPOSE_DROPOUT + 2}, 0, (n + 1) / 2, bits);
            for (int64_t i = 0; i < n; i++) {
                uint32_t u = bits[i / 2] >> i % 2 * 16 & 0xffff;
                double kept = u < threshold ? 0 : (double)x[begin + i] / (1 - threshold / 65536.0);
                expect_near("y", begin + i, (double)y[begin + i],
                            plus_kept((real)keep, old[begin + i], kept), 4, fabs(kept) + 2 * keep);
            }
        }
        release(3, x, y, old);
    }
}

/* What a part of a sample's rows draws is what the whole draws there, also at odd elements. */
static void dropout_of_parts_is_that_of_the_whole(void **state) {
    (void)state;
    enum { WIDTH = 701, ROWS = 30, SIZE = ROWS * WIDTH };
    const int64_t whole[] = {0, 13, ROWS}, parts[] = {0, 9, 14}, first[] = {4, 2};
    const int32_t sample[] = {0, 1};
    const uint32_t ordinals[] = {11, 5};
    const DropoutState draws = {9, 0};
    real *x = numbers(SIZE, 1), *y = output(SIZE, 0, 2), *part = output(14 * WIDTH, 0, 3);
    Dropout d = {.t = DT_REAL,
                 .width = WIDTH,
                 .segments = 2,
                 .cu_rows = whole,
                 .ordinals = ordinals,
                 .p = (real)0.3,
                 .state = &draws};
    BACKEND_CPU.dropout(NULL, &d, x, 0, y);
    real *mine = output(14 * WIDTH, 0, 4);
    memcpy(mine, x + 4 * WIDTH, 9 * WIDTH * sizeof *x);
    memcpy(mine + 9 * WIDTH, x + (13 + 2) * WIDTH, 5 * WIDTH * sizeof *x);
    d.cu_rows = parts;
    d.first = first;
    d.sample = sample;
    BACKEND_CPU.dropout(NULL, &d, mine, 0, part);
    expect_same("first part", part, y + 4 * WIDTH, 9 * WIDTH * sizeof *y);
    expect_same("second part", part + 9 * WIDTH, y + 15 * WIDTH, 5 * WIDTH * sizeof *y);
    release(4, x, y, part, mine);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_known_answers),
        cmocka_unit_test(a_draw_does_not_depend_on_its_neighbours),
        cmocka_unit_test(every_field_changes_the_draw),
        cmocka_unit_test(normals_are_normal),
        cmocka_unit_test(normals_are_pairs_of_uniforms),
        cmocka_unit_test(uniforms_lie_within_the_interval),
        cmocka_unit_test(dropout_zeroes_what_was_drawn),
        cmocka_unit_test(dropout_of_parts_is_that_of_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
