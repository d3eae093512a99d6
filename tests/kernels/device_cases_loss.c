/* The loss, dropout and the optimizer. */
#include "tests/kernels/device_cases.h"

#include <math.h>
#include <stdlib.h>

/* ---- dropout ----------------------------------------------------------------------------------
 */

static const int64_t ONE_ROW[] = {0, 1}, PACK[] = {0, 3, 3, 20, 61}, PARTS[] = {5, 0, 1, 3};

/* With keep 0 the same bits: the same elements are zero, and the others are one product. */
static void check_dropout(Trial *c, int segments, const int64_t *cu_rows, const int64_t *first,
                          int64_t width, real p, real keep) {
    static const uint32_t ordinals[] = {7, 1u << 31, 0, 123456789};
    static const int32_t sample[] = {1, 1, 0, 3};
    int64_t n = cu_rows[segments] * width;
    Array *x = input(c, c->t, n, 1, 4), *y = output(c, c->t, n, (double)keep, 2, 3);
    const DropoutState state = {UINT64_C(0xfedcba9876543210), 31};
    Array *words = indices(c, segments, ordinals);
    Dropout d = {.t = DT_F32, .width = width, .segments = segments, .cu_rows = cu_rows, .p = p};
    d.first = first;
    d.sample = first ? sample : NULL;
    d.purpose = (1 << 16) + 5;
    Dropout on_device = d;
    on_device.t = c->t;
    d.ordinals = words->host;
    on_device.ordinals = words->at;
    d.state = &state;
    on_device.state = bytes_at(c, sizeof state, 0, &state);
    c->cpu->dropout(c->cpu_stream, &d, x->host, keep, y->host);
    c->device->dropout(c->stream, &on_device, x->at, keep, y->at);
    if (keep == 0)
        expect_bits(c, "y", y);
    else
        expect(c, "y", y, 2, 3 + 4 / (1 - (double)p));
}

static void dropout_case(Trial *c) {
    for (int keep = 0; keep < 2; keep++) {
        check_dropout(c, 1, ONE_ROW, NULL, 1, (real)0.5, (real)keep);
        check_dropout(c, 1, ONE_ROW, NULL, 4101, (real)0.1, (real)keep);
        check_dropout(c, 4, PACK, NULL, 64, (real)0.25, (real)keep);
        check_dropout(c, 4, PACK, NULL, 13, (real)0.9, (real)keep);
        check_dropout(c, 4, PACK, NULL, 20, 0, (real)keep);
        check_dropout(c, 4, PACK, PARTS, 13, (real)0.4, (real)keep);
        check_dropout(c, 4, PACK, PARTS, 24, (real)0.4, (real)keep);
    }
}

/* ---- the loss ---------------------------------------------------------------------------------
 */

static const int64_t SAMPLES[][5] = {{0, 1}, {0, 1, 1000, 20003}, {0, 8192, 16385, 16393, 24585}};

static int samples_of(const int64_t *cu) {
    int samples = 1;
    while (samples < 4 && cu[samples + 1]) samples++;
    return samples;
}

static void mse_case(Trial *c) {
    for (size_t i = 0; i < COUNT(SAMPLES); i++) {
        const int64_t *cu = SAMPLES[i];
        int samples = samples_of(cu);
        Array *x = input(c, c->t, cu[samples], 1, 2), *target = input(c, DT_F32, x->n, 2, 2);
        Array *loss = output(c, DT_F32, 1, 0, 3, 1), *each = output(c, DT_F32, samples, 0, 4, 1);
        c->cpu->mse(c->cpu_stream, DT_F32, samples, cu, x->host, target->host, loss->host,
                    each->host);
        c->device->mse(c->stream, c->t, samples, cu, x->at, target->at, loss->at, each->at);
        expect(c, "loss", loss, 1, fabs((double)values(loss)[0])); /* f64 sums: one rounding */
        double sizes[4];
        for (int b = 0; b < samples; b++) sizes[b] = fabs((double)values(each)[b]);
        expect_sizes(c, "per_sample", each, 1, sizes);
    }
}

static void check_mse_grad(Trial *c, const int64_t *cu, real keep) {
    int samples = samples_of(cu);
    Array *x = input(c, c->t, cu[samples], 1, 2), *target = input(c, DT_F32, x->n, 2, 2);
    Array *dx = output(c, c->t, x->n, (double)keep, 3, 1e-3), *dloss = input(c, DT_F32, 1, 4, 8);
    double *sizes = calloc((size_t)x->n, sizeof *sizes);
    for (int b = 0; b < samples; b++)
        for (int64_t i = cu[b]; i < cu[b + 1]; i++) {
            double scale = (double)values(dloss)[0] * 2 / samples / (double)(cu[b + 1] - cu[b]);
            double difference = (double)values(x)[i] - (double)values(target)[i];
            sizes[i] = fabs(scale * difference) + (keep != 0 ? fabs((double)values(dx)[i]) : 0);
        }
    c->cpu->mse_grad(c->cpu_stream, DT_F32, samples, cu, x->host, target->host, dloss->host, keep,
                     dx->host);
    c->device->mse_grad(c->stream, c->t, samples, cu, x->at, target->at, dloss->at, keep, dx->at);
    expect_sizes(c, "dx", dx, 4, sizes);
    free(sizes);
}

static void mse_grad_case(Trial *c) {
    for (size_t i = 0; i < COUNT(SAMPLES); i++)
        for (int keep = 0; keep < 2; keep++) check_mse_grad(c, SAMPLES[i], (real)keep);
}

/* ---- the optimizer ----------------------------------------------------------------------------
 */

/* The optimizer has the same bits everywhere. */
static void check_adamw(Trial *c, int64_t n, const AdamW *a) {
    Array *grad = input(c, DT_F32, n, 1, 3), *master = output(c, DT_F32, n, 1, 2, 1);
    Array *m = output(c, DT_F32, n, 1, 3, 1), *v = output(c, DT_F32, n, 1, 4, 1);
    for (int64_t i = 0; i < n; i++) values(v)[i] = (real)fabs((double)values(v)[i]);
    upload_again(c, v);
    c->cpu->adamw(c->cpu_stream, a, n, grad->host, master->host, m->host, v->host);
    c->device->adamw(c->stream, a, n, grad->at, master->at, m->at, v->at);
    expect_bits(c, "m", m);
    expect_bits(c, "v", v);
    expect_bits(c, "master", master);
}

static void adamw_case(Trial *c) {
    AdamW a = {.learning_rate = (real)1e-2, .beta1 = (real)0.9, .beta2 = (real)0.95};
    a.eps = (real)1e-8;
    a.correction1 = (real)0.19;
    a.correction2 = (real)0.0975;
    a.grad_scale = (real)0.37;
    static const int64_t sizes[] = {1, 3, 4, 1024, 4099};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        a.weight_decay = (real)(i % 2 * 0.1);
        check_adamw(c, sizes[i], &a);
    }
}

/* Each chunk's sum is its own: nothing is written after the last. */
static void sum_squares_case(Trial *c) {
    static const int64_t sizes[] = {1, 7, 1023, 1024, 1025, 9000, 16384};
    enum { CHUNKS = 17 };
    for (size_t i = 0; i < COUNT(sizes); i++) {
        Array *x = input(c, DT_F32, sizes[i], 1, 3);
        double want[CHUNKS], got[CHUNKS];
        for (int k = 0; k < CHUNKS; k++) want[k] = -1;
        void *at = bytes_at(c, sizeof want, 8 * (size_t)c->shift, want);
        c->cpu->sum_squares(c->cpu_stream, sizes[i], x->host, want);
        c->device->sum_squares(c->stream, sizes[i], x->at, at);
        c->device->download(c->stream, got, at, sizeof got);
        c->device->stream_sync(c->stream);
        for (int k = 0; k < CHUNKS; k++)
            if (got[k] != want[k])
                refuse(c, "partial[%d] of %lld is %.17g, not %.17g", k, (long long)sizes[i], got[k],
                       want[k]);
    }
}

const DeviceCase LOSS_CASES[] = {
    {"dropout", dropout_case},         {"mse", mse_case},
    {"mse_grad", mse_grad_case},       {"adamw", adamw_case},
    {"sum_squares", sum_squares_case}, {NULL, NULL},
};
