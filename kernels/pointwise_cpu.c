/* Kernels that treat each element by itself, and the gate of a residual. */
#include "kernels/cpu.h"
#include "kernels/math.h"
#include "kernels/random.h"

#include <string.h>

void cpu_gelu(Stream *s, DType t, int64_t n, const void *x, void *y) {
    (void)s;
    check_type(t, "gelu");
    const real *from = x;
    real *to = y;
#pragma omp parallel for simd schedule(static) if (parallel : n >= PARALLEL_MIN)
    for (int64_t i = 0; i < n; i++) to[i] = gelu(from[i]);
}

void cpu_gelu_grad(Stream *s, DType t, int64_t n, const void *x, const void *dy, real keep,
                   void *dx) {
    (void)s;
    check_type(t, "gelu_grad");
    const real *from = x, *grad = dy;
    real *to = dx;
#pragma omp parallel for simd schedule(static) if (parallel : n >= PARALLEL_MIN)
    for (int64_t i = 0; i < n; i++) to[i] = kept(keep, to + i, gelu_grad(from[i]) * grad[i]);
}

void cpu_silu(Stream *s, DType t, int64_t n, const void *x, void *y) {
    (void)s;
    check_type(t, "silu");
    const real *from = x;
    real *to = y;
#pragma omp parallel for simd schedule(static) if (parallel : n >= PARALLEL_MIN)
    for (int64_t i = 0; i < n; i++) to[i] = silu(from[i]);
}

void cpu_silu_grad(Stream *s, DType t, int64_t n, const void *x, const void *dy, real keep,
                   void *dx) {
    (void)s;
    check_type(t, "silu_grad");
    const real *from = x, *grad = dy;
    real *to = dx;
#pragma omp parallel for simd schedule(static) if (parallel : n >= PARALLEL_MIN)
    for (int64_t i = 0; i < n; i++) to[i] = kept(keep, to + i, silu_grad(from[i]) * grad[i]);
}

void cpu_geglu(Stream *s, DType t, int64_t n, const void *gate, const void *x, void *y) {
    (void)s;
    check_type(t, "geglu");
    const real *a = gate, *b = x;
    real *to = y;
#pragma omp parallel for simd schedule(static) if (parallel : n >= PARALLEL_MIN)
    for (int64_t i = 0; i < n; i++) to[i] = gelu(a[i]) * b[i];
}

void cpu_axpy(Stream *s, DType t, int64_t n, real alpha, const void *x, real keep, void *y) {
    (void)s;
    check_type(t, "axpy");
    const real *from = x;
    real *to = y;
#pragma omp parallel for simd schedule(static) if (parallel : n >= PARALLEL_MIN)
    for (int64_t i = 0; i < n; i++) to[i] = kept(keep, to + i, alpha * from[i]);
}

/* Elements [first, first + n) of one sample, which lie at x and y, of `whole`. */
static void drop_block(const Dropout *d, uint32_t ordinal, int64_t first, int64_t n, int64_t whole,
                       const real *x, real keep, real *y) {
    enum { BLOCK = 1024 };
    Draw draw = {
        .seed = d->state->seed, .ordinal = ordinal, .step = d->state->step, .purpose = d->purpose};
    uint32_t threshold = dropout_threshold(d->p);
    real scale = 65536 / (real)(65536 - threshold);
    bool streamed = keep == 0 && is_streamed(1, whole, y);
    for (int64_t i = 0; i < n; i += BLOCK) {
        uint16_t drawn[BLOCK + 1];
        real passing[BLOCK], *to = streamed ? passing : y + i;
        int64_t count = MIN(BLOCK, n - i), odd = (first + i) % 2;
        random_halves(draw, first + i - odd, count + odd, drawn);
        const uint16_t *u = drawn + odd;
        for (int64_t j = 0; j < count; j++)
            to[j] = kept(keep, to + j, u[j] < threshold ? 0 : x[i + j] * scale);
        for (int64_t j = 0; streamed && j < count; j += LANES)
            STREAM_STORE((Vec *)(y + i + j), vec_load(passing + j));
    }
    STREAM_FENCE();
}

void cpu_dropout(Stream *s, const Dropout *d, const void *x, real keep, void *y) {
    (void)s;
    check_type(d->t, "dropout");
    enum { BLOCK = 8192 };
    for (int b = 0; b < d->segments; b++) {
        int64_t begin = d->cu_rows[b] * d->width, n = d->cu_rows[b + 1] * d->width - begin;
        int64_t first = d->first ? d->first[b] * d->width : 0;
        uint32_t ordinal = d->ordinals[d->sample ? d->sample[b] : b];
#pragma omp parallel for schedule(static) if (n >= PARALLEL_MIN)
        for (int64_t i = 0; i < n; i += BLOCK)
            drop_block(d, ordinal, first + i, MIN(BLOCK, n - i), n, (const real *)x + begin + i,
                       keep, (real *)y + begin + i);
    }
}

void cpu_gate(Stream *s, const Gate *g, const void *x, void *y) {
    (void)s;
    check_type(g->t, "gate");
    int64_t width = g->width;
#pragma omp parallel for schedule(static) if (g->rows * width >= PARALLEL_MIN)
    for (int64_t i = 0; i < g->rows; i++) {
        const real *from = (const real *)x + i * width, *a = (const real *)g->a + i * width;
        const real *gate = (const real *)g->mod + g->mod_row[i] * g->mod_width + g->offset;
        real *to = (real *)y + i * width;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) to[j] = from[j] + gate[j] * a[j];
    }
}

/* dmod = keep * dmod, or zero. */
static void begin_mod(const Gate *g, real keep, real *dmod) {
    for (int64_t i = 0; i < g->mod_rows * g->mod_width; i++) dmod[i] = kept(keep, dmod + i, 0);
}

static inline void add_product(const real *x, const real *y, int64_t n, real *restrict sum) {
    for (int64_t j = 0; j < n; j++) sum[j] += x[j] * y[j];
}

/* Rows [first, last), which share one gate: da, and sum[j] += dy * a; either may be NULL. */
static void gate_rows_grad(const Gate *g, const real *dy, int64_t first, int64_t last, real keep,
                           real *da, real *restrict sum) {
    const real *gate = (const real *)g->mod + g->mod_row[first] * g->mod_width + g->offset;
    for (int64_t i = first; i < last; i++) {
        const real *grad = dy + i * g->width;
        if (sum) add_product(grad, (const real *)g->a + i * g->width, g->width, sum);
        real *to = da ? da + i * g->width : NULL;
#pragma omp simd
        for (int64_t j = 0; j < (da ? g->width : 0); j++)
            to[j] = kept(keep, to + j, gate[j] * grad[j]);
    }
}

static void add_gate_sums(const Gate *g, int64_t row, const real *sum, real *dmod) {
    real *to = dmod + g->mod_row[row] * g->mod_width + g->offset;
    for (int64_t j = 0; j < g->width; j++) to[j] += sum[j];
}

void cpu_gate_grad(Stream *s, const Gate *g, const void *dy, real keep_da, void *da, real keep_dmod,
                   void *dmod) {
    (void)s;
    check_type(g->t, "gate_grad");
    CHECK(g->width <= MAX_WIDTH, "gate_grad: width %lld", (long long)g->width);
    if (dmod) begin_mod(g, keep_dmod, dmod);
#pragma omp parallel if (g->rows * g->width >= PARALLEL_MIN)
    for (int64_t first = 0, last; first < g->rows; first = last) {
        last = run_end(g->mod_row, first, g->rows);
#pragma omp for ordered schedule(static, 1)
        for (int64_t i = first; i < last; i += SUM_ROWS) {
            real sum[MAX_WIDTH];
            memset(sum, 0, (size_t)g->width * sizeof *sum);
            gate_rows_grad(g, dy, i, MIN(i + SUM_ROWS, last), keep_da, da, dmod ? sum : NULL);
#pragma omp ordered
            if (dmod) add_gate_sums(g, first, sum, dmod);
        }
    }
}
