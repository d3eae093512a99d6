/* cogsmith's own CUDA attention, over the shim, against the CPU backend: sizes on both sides of a
 * tile, head sizes on both sides of the tiles' change, packs, a bias, and 16-bit types. */
#include "kernels/attention_cuda.h"
#include "kernels/math.h"
#include "tests/kernels/fixture.h"

#include <stdio.h>

typedef struct {
    DType t;
    int64_t heads, size, cu[4]; /* cu: up to three segments, ended by 0 */
    bool bias;
} Case;

static const Case CASES[] = {
    {DT_F32, 1, 8, {0, 1}, false},          {DT_F32, 2, 64, {0, 33, 100}, false},
    {DT_F32, 3, 40, {0, 5, 37, 101}, true}, {DT_F32, 1, 80, {0, 17, 50}, true},
    {DT_F32, 2, 128, {0, 31}, false},       {DT_F32, 2, 1, {0, 64}, false},
    {DT_BF16, 2, 64, {0, 70}, true},        {DT_F16, 2, 48, {0, 7, 40}, false},
};

/* The reference's, one for all. */
static Stream *cpu_stream(void) {
    static Stream *s;
    if (!s) s = open_stream(64 << 20);
    return s;
}

static double unit_of(DType t) { return t == DT_F32 ? 0 : t == DT_BF16 ? 0x1p-8 : 0x1p-11; }

static int segments_of(const Case *c) {
    int n = 1;
    while (n < 3 && c->cu[n + 1]) n++;
    return n;
}

/* x as its type stores it; x itself becomes what that holds. */
static void *stored(DType t, int64_t n, real *x, Stream *s) {
    void *y = BACKEND_CPU.alloc((size_t)n * sizeof(real));
    BACKEND_CPU.cast(s, DT_F32, t, n, x, y);
    BACKEND_CPU.cast(s, t, DT_F32, n, y, x);
    return y;
}

/* Of n results of type t, whose f32 reference errs by `roundings`, of numbers up to `size`. */
static void compare(const char *what, DType t, int64_t n, const void *got, const real *want,
                    double roundings, double size, Stream *s) {
    real *x = BACKEND_CPU.alloc((size_t)n * sizeof *x);
    BACKEND_CPU.cast(s, t, DT_F32, n, got, x);
    for (int64_t i = 0; i < n; i++) {
        double bound = 2 * roundings * UNIT * size + unit_of(t) * fabs((double)want[i]) + 0x1p-24;
        if (!(fabs((double)x[i] - (double)want[i]) <= bound))
            fail_msg("%s[%lld] is %.9g, not %.9g: may be off by %.3g", what, (long long)i,
                     (double)x[i], (double)want[i], bound);
    }
    BACKEND_CPU.release(x);
}

static void check_case(const Case *c) {
    Stream *s = cpu_stream();
    int n_segments = segments_of(c);
    int64_t rows = c->cu[n_segments], width = c->heads * c->size, n = rows * width, longest = rows;
    real *x[4], *want[4], *lse[2], *bias = numbers(c->heads * longest * longest, 9);
    void *device[4], *got[4];
    for (uint32_t i = 0; i < 4; i++) {
        x[i] = numbers(n, i);
        device[i] = stored(c->t, n, x[i], s);
        want[i] = output(n, 0, 0);
        got[i] = output(n, 0, 0);
    }
    for (int i = 0; i < 2; i++) lse[i] = output(c->heads * rows, 0, 0);
    Attention a = {.t = DT_F32, .rows = rows, .heads = c->heads, .head_size = c->size};
    a.scale = (real)(1 / sqrt((double)c->size));
    a.segments = n_segments;
    a.cu_rows = c->cu;
    a.bias = c->bias ? bias : NULL;
    a.bias_rows = longest;
    Attention own = a;
    own.t = c->t;
    a.q = x[0], a.k = x[1], a.v = x[2];
    own.q = device[0], own.k = device[1], own.v = device[2];
    BACKEND_CPU.attention(s, &a, want[0], lse[0]);
    for (int i = 0; i < n_segments; i++)
        attention_own(s, &own, c->cu[i], c->cu[i + 1] - c->cu[i], got[0], lse[1]);
    double sum = (double)(rows + c->size) + 32;
    compare("out", c->t, n, got[0], want[0], sum, 4, s);
    compare("lse", DT_F32, c->heads * rows, lse[1], lse[0], sum, 8, s);
    if (!c->bias) {
        memcpy(lse[1], lse[0], (size_t)(c->heads * rows) * sizeof(real));
        void *out = stored(c->t, n, want[0], s);
        BACKEND_CPU.attention_grad(s, &a, want[0], lse[0], x[3], want[1], want[2], want[3]);
        for (int i = 0; i < n_segments; i++)
            attention_own_grad(s, &own, c->cu[i], c->cu[i + 1] - c->cu[i], out, lse[1], device[3],
                               got[1], got[2], got[3]);
        const char *names[] = {"", "dq", "dk", "dv"};
        for (int i = 1; i < 4; i++)
            compare(names[i], c->t, n, got[i], want[i], sum, 4 * (double)c->size, s);
        BACKEND_CPU.release(out);
    }
    for (int i = 0; i < 4; i++) release(4, x[i], device[i], want[i], got[i]);
    release(3, bias, lse[0], lse[1]);
}

static void own_is_as_cpu(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(CASES); i++) check_case(&CASES[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(own_is_as_cpu)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
