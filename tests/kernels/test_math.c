/* The scalar formulas: conversions over all halves, polynomials against libm in double. */
#define _GNU_SOURCE
#include "kernels/math.h"
#include "tests/kernels/fixture.h"

static bool is_nan16(uint16_t h, int exponent_bits) {
    return (h & 0x7fff) > ((1 << exponent_bits) - 1) << (15 - exponent_bits);
}

/* The value of a 16-bit float by the definition of its format. */
static double value16(uint16_t h, int exponent_bits) {
    int fraction_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = (h & 0x7fff) >> fraction_bits, fraction = h & ((1 << fraction_bits) - 1);
    double sign = h & 0x8000 ? -1 : 1;
    if (exponent == 2 * bias + 1) return fraction ? NAN : sign * INFINITY;
    if (!exponent) return sign * ldexp(fraction, 1 - bias - fraction_bits);
    return sign * ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

typedef struct {
    int exponent_bits;
    float (*widen)(uint16_t);
    uint16_t (*narrow)(float);
} Format;

static const Format FORMATS[] = {{8, float_from_bf16, bf16_from_float},
                                 {5, float_from_f16, f16_from_float}};

static void every_half_survives(void **state) {
    (void)state;
    for (size_t f = 0; f < COUNT(FORMATS); f++)
        for (int h = 0; h < 65536; h++) {
            float x = FORMATS[f].widen((uint16_t)h);
            double want = value16((uint16_t)h, FORMATS[f].exponent_bits);
            uint16_t back = FORMATS[f].narrow(x);
            if (isnan(want)) {
                assert_true(isnan(x) && is_nan16(back, FORMATS[f].exponent_bits));
                assert_int_equal(back & 0x8000, h & 0x8000);
            } else {
                assert_true((double)x == want && !signbit(x) == !(h & 0x8000));
                assert_int_equal(back, h);
            }
        }
}

/* Between neighbouring halves: the middle goes to the even one, its neighbours to the nearest. */
static void narrowing_rounds_to_nearest_even(void **state) {
    (void)state;
    for (size_t f = 0; f < COUNT(FORMATS); f++) {
        int bits = FORMATS[f].exponent_bits, last = (((1 << bits) - 1) << (15 - bits)) - 1;
        for (int h = 0; h <= last; h++) {
            double low = value16((uint16_t)h, bits), step = low - value16((uint16_t)(h - 1), bits);
            double high = h < last ? value16((uint16_t)(h + 1), bits) : low + step;
            float middle = (float)((low + high) / 2);
            if ((double)middle != (low + high) / 2) continue; /* below float's subnormals */
            for (int sign = 0; sign < 2; sign++) {
                float s = sign ? -1 : 1;
                int add = sign << 15;
                assert_int_equal(FORMATS[f].narrow(s * middle), add + h + (h & 1));
                assert_int_equal(FORMATS[f].narrow(s * nextafterf(middle, 0)), add + h);
                assert_int_equal(FORMATS[f].narrow(s * nextafterf(middle, INFINITY)), add + h + 1);
            }
        }
    }
}

static void narrowing_overflows_and_keeps_nan(void **state) {
    (void)state;
    assert_int_equal(f16_from_float(65519.996f), 0x7bff);
    assert_int_equal(f16_from_float(65520), 0x7c00);
    assert_int_equal(f16_from_float(-1e30f), 0xfc00);
    assert_int_equal(f16_from_float(1e-30f), 0);
    assert_int_equal(bf16_from_float(3.4e38f), 0x7f80);
    for (uint32_t payload = 1; payload < 1 << 23; payload = payload * 2 + 1)
        for (size_t f = 0; f < COUNT(FORMATS); f++) {
            float x = float_from_bits(0x7f800000u | payload);
            assert_true(is_nan16(FORMATS[f].narrow(x), FORMATS[f].exponent_bits));
        }
}

/* cast walks blocks; every type to every type. */
static void cast_there_and_back(void **state) {
    (void)state;
    enum { N = 40007 };
    static const DType types[] = {DT_F32, DT_BF16, DT_F16, DT_REAL};
    real *x = numbers(N, 1), *y = output(N, 0, 2), *narrow = output(N, 0, 3), *z = output(N, 0, 4);
    for (size_t i = 0; i < COUNT(types); i++)
        for (size_t j = 0; j < COUNT(types); j++) {
            BACKEND_CPU.cast(NULL, DT_REAL, types[i], N, x, y);
            BACKEND_CPU.cast(NULL, types[i], types[j], N, y, narrow);
            BACKEND_CPU.cast(NULL, types[j], DT_REAL, N, narrow, z);
            static const double units[] = {
                [DT_F32] = 0x1p-24, [DT_BF16] = 0x1p-8, [DT_F16] = 0x1p-11, [DT_F64] = 0x1p-53};
            /* Numbers below 2^-14 are subnormal in F16: 2^-25 from its grid. */
            for (int k = 0; k < N; k++)
                assert_true(fabs((double)z[k] - (double)x[k]) <=
                            2.01 * fmax(units[types[i]], units[types[j]]) * fabs((double)x[k]) +
                                0x1p-24);
        }
    release(4, x, y, narrow, z);
}

/* As tensors lie in a file. */
static void cast_reads_any_address(void **state) {
    (void)state;
    enum { N = 5000 };
    static const DType types[] = {DT_F32, DT_BF16, DT_F16, DT_REAL};
    real *x = numbers(N, 1), *y = output(N + 1, 0, 2), *want = output(N, 0, 3), *got;
    for (size_t i = 0; i < COUNT(types); i++)
        for (size_t odd = 1; odd < sizeof(real); odd++) {
            BACKEND_CPU.cast(NULL, DT_REAL, types[i], N, x, y);
            BACKEND_CPU.cast(NULL, types[i], DT_REAL, N, y, want);
            memmove((char *)y + odd, y, N * dtype_size(types[i]));
            got = output(N, 0, 4);
            BACKEND_CPU.cast(NULL, types[i], DT_REAL, N, (char *)y + odd, got);
            expect_same("cast", got, want, N * sizeof *got);
            release(1, got);
        }
    release(3, x, y, want);
}

/* The distance of got from want in units of want's last place. */
static double ulps(float got, double want) {
    int exponent;
    frexp(want, &exponent);
    return fabs((double)got - want) / ldexp(1, MAX(exponent - 24, -149));
}

static void exp_is_within_one_ulp(void **state) {
    (void)state;
    double worst = 0;
    for (float x = -87.33f; x < 88.72f; x += 1.37e-5f * (1 + fabsf(x)))
        worst = fmax(worst, ulps(exp_float(x), exp((double)x)));
    print_message("exp_float: %.3f ulp\n", worst);
    assert_true(worst <= 1);
    assert_true(exp_float(0) == 1 && exp_float(-0.0f) == 1);
    assert_true(exp_float(-INFINITY) == 0 && exp_float(-1e30f) == 0 && exp_float(-88) == 0);
    assert_true(isinf(exp_float(INFINITY)) && isinf(exp_float(88.7229f)));
    assert_true(isnan(exp_float(NAN)) && isnan(exp_float(float_from_bits(0x7f800001u))));
    assert_true(exp_float(88.72283f) < INFINITY && exp_float(-87.3365f) >= 0x1p-126f);
}

static void log_is_within_two_ulps(void **state) {
    (void)state;
    double worst = 0;
    for (uint32_t u = 0x00800000u; u < 0x7f800000u; u += 97)
        worst = fmax(worst, ulps(log_float(float_from_bits(u)), log((double)float_from_bits(u))));
    print_message("log_float: %.3f ulp\n", worst);
    assert_true(worst <= 2);
    assert_true(log_float(1) == 0);
}

/* Close to zero the error is that of the reduced angle's rounding: relative to one. */
static void sincos_is_within_one_unit(void **state) {
    (void)state;
    double worst = 0;
    for (int i = 0; i <= 1 << 23; i += 7) {
        float u = (float)i * 0x1p-23f, s, c;
        sincos_turns(u, &s, &c);
        worst = fmax(worst, fabs((double)s - sin(2 * M_PI * (double)u)) * 0x1p24);
        worst = fmax(worst, fabs((double)c - cos(2 * M_PI * (double)u)) * 0x1p24);
    }
    print_message("sincos_turns: %.3f half units of one\n", worst);
    assert_true(worst <= 2);
    static const float quarters[][3] = {{0, 0, 1}, {0.25f, 1, 0}, {0.5f, 0, -1}, {0.75f, -1, 0}};
    for (size_t i = 0; i < COUNT(quarters); i++) {
        float s, c;
        sincos_turns(quarters[i][0], &s, &c);
        assert_true(s == quarters[i][1] && c == quarters[i][2]);
    }
}

static void gelu_and_silu_at_the_ends(void **state) {
    (void)state;
    assert_true(gelu(0) == 0 && silu(0) == 0 && silu_grad(0) == (real)0.5 &&
                gelu_grad(0) == (real)0.5);
    assert_true(gelu(50) == 50 && fabs((double)gelu(-50)) < 1e-30 && gelu_grad(50) == 1);
    assert_true(silu(200) == 200 && fabs((double)silu(-200)) < 1e-30 && silu_grad(200) == 1);
    assert_true(isnan((double)gelu((real)NAN)) && isnan((double)silu((real)NAN)));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_survives),
        cmocka_unit_test(narrowing_rounds_to_nearest_even),
        cmocka_unit_test(narrowing_overflows_and_keeps_nan),
        cmocka_unit_test(cast_there_and_back),
        cmocka_unit_test(cast_reads_any_address),
        cmocka_unit_test(exp_is_within_one_ulp),
        cmocka_unit_test(log_is_within_two_ulps),
        cmocka_unit_test(sincos_is_within_one_unit),
        cmocka_unit_test(gelu_and_silu_at_the_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
