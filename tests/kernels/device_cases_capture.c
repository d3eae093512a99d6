/* Work that is captured and done again: what lies in the device's memory then is what counts. */
#include "tests/kernels/device_cases.h"

#include <string.h>

enum { ROWS = 24, WIDTH = 40, OUT = 16, N = ROWS * WIDTH };

/* On two streams, with numbers that go to the host, are changed there, and come back. */
typedef struct {
    Trial *c;
    Stream *beside;
    void *state, *host; /* of dropout, on the device; page-locked, of N elements */
    Array *x, *w, *ordinal, *dropped, *back, *product;
} Work;

/* Turns the signs of numbers in host memory. */
typedef struct {
    char *host;
    size_t size; /* of a number */
} Turn;

static void turn(const void *args) {
    const Turn *t = args;
    for (size_t i = 0; i < N; i++) t->host[i * t->size + t->size - 1] ^= (char)0x80;
}

static void work(const Work *w) {
    static const int64_t cu_rows[] = {0, ROWS};
    Trial *c = w->c;
    const Backend *k = c->device;
    size_t bytes = N * dtype_size(c->t);
    Dropout d = {.t = c->t,
                 .width = WIDTH,
                 .segments = 1,
                 .cu_rows = cu_rows,
                 .ordinals = w->ordinal->at,
                 .p = (real)0.3,
                 .state = w->state,
                 .purpose = 9};
    Gemm g = {.type = c->t,
              .type_c = c->t,
              .m = ROWS,
              .n = OUT,
              .k = WIDTH,
              .batch = 1,
              .b_transposed = true,
              .lda = WIDTH,
              .ldb = WIDTH,
              .ldc = OUT,
              .alpha = 1};
    k->dropout(c->stream, &d, w->x->at, 0, w->dropped->at);
    k->stream_after(w->beside, c->stream);
    k->download(w->beside, w->host, w->dropped->at, bytes);
    k->host_call(w->beside, turn, &(Turn){w->host, dtype_size(c->t)}, sizeof(Turn));
    k->upload(w->beside, w->back->at, w->host, bytes);
    k->gemm(c->stream, &g, w->dropped->at, w->w->at, NULL, w->product->at);
    k->stream_after(c->stream, w->beside);
    k->axpy(c->stream, c->t, N, (real)0.5, w->x->at, 1, w->back->at);
}

/* What the work has come to, product and sums, in the type. */
static void take(const Work *w, char *to) {
    const Backend *k = w->c->device;
    size_t size = dtype_size(w->c->t), product = ROWS * OUT * size;
    k->download(w->c->stream, to, w->product->at, product);
    k->download(w->c->stream, to + product, w->back->at, N * size);
    k->zero(w->c->stream, w->product->at, product);
    k->zero(w->c->stream, w->back->at, N * size);
    k->stream_sync(w->c->stream);
}

static void give(const Work *w, int turn) {
    const DropoutState state = {.seed = 77 + (uint64_t)turn, .step = (uint32_t)turn};
    for (int i = 0; i < N; i++) values(w->x)[i] += (real)turn / 8;
    upload_again(w->c, w->x);
    w->c->device->upload(w->c->stream, w->state, &state, sizeof state);
}

static void replay(const Work *w, Captured *captured) {
    enum { MOST = (ROWS * OUT + N) * sizeof(float) };
    static char want[MOST], got[MOST];
    Trial *c = w->c;
    size_t bytes = (ROWS * OUT + N) * dtype_size(c->t);
    for (int turn = 1; turn < 4; turn++) {
        give(w, turn);
        work(w);
        take(w, want);
        c->device->replay(c->stream, captured);
        take(w, got);
        if (memcmp(got, want, bytes)) refuse(c, "replay %d has other bits", turn);
    }
}

static void captured_case(Trial *c) {
    static const uint32_t ordinal = 5;
    const DropoutState state = {0};
    const Backend *k = c->device;
    if (!k->capture_begin) return;
    Work w = {.c = c,
              .beside = k->stream_open(),
              .state = bytes_at(c, sizeof state, 0, &state),
              .host = k->alloc_host(N * dtype_size(c->t)),
              .x = input(c, c->t, N, 1, 1),
              .w = input(c, c->t, OUT * WIDTH, 2, 1),
              .ordinal = indices(c, 1, &ordinal),
              .dropped = output(c, c->t, N, 0, 3, 1),
              .back = output(c, c->t, N, 0, 4, 1),
              .product = output(c, c->t, ROWS * OUT, 0, 5, 1)};
    work(&w); /* as the first run of a plan does, so that libraries have what they need */
    k->stream_sync(c->stream);
    Captured *captured = k->capture_begin(c->stream) ? (work(&w), k->capture_end(c->stream)) : NULL;
    if (captured)
        replay(&w, captured);
    else
        refuse(c, "nothing was captured");
    if (captured) k->captured_close(captured);
    k->stream_close(w.beside);
    k->release_host(w.host);
}

const DeviceCase CAPTURE_CASES[] = {
    {"captured", captured_case},
    {NULL, NULL},
};
