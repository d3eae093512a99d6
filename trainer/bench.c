/* Owns the rows of `bench` and how they are printed. */
#include "trainer/bench.h"

#include "trainer/device.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Seconds from starting next to nothing to the end of waiting for it. */
static double idle_seconds(const Backend *k) {
    enum { TRIES = 1000 };
    Stream *s = k->stream_open();
    void *p = k->alloc(256);
    double best = 1;
    for (int i = 0; p && i < TRIES; i++) {
        double start = now_seconds();
        k->zero(s, p, 256);
        k->stream_sync(s);
        best = MIN(best, now_seconds() - start);
    }
    k->release(p);
    k->stream_close(s);
    return best;
}

enum { HOST_BUFFER = 64 << 20, GPU_BUFFER = 256 << 20 };

static int64_t buffer_bytes(const Backend *k) {
    return k == &BACKEND_CPU ? HOST_BUFFER : GPU_BUFFER;
}

static void *buffer_of(const Backend *k, Stream *s) {
    void *p = k->alloc((size_t)buffer_bytes(k));
    if (!p) {
        Error e;
        error_set(&e, EXIT_WORLD, "no %lld MiB of %s memory left to copy in",
                  (long long)buffer_bytes(k) >> 20, k->name);
        die_error(&e);
    }
    k->zero(s, p, (size_t)buffer_bytes(k));
    return p;
}

static Copies copies_open(const Backend *k) {
    Copies c = {.stream = k->stream_open()};
    c.from = buffer_of(k, c.stream);
    c.to = buffer_of(k, c.stream);
    k->stream_sync(c.stream);
    return c;
}

static void copies_close(Copies *c, const Backend *k) {
    k->release(c->from);
    k->release(c->to);
    k->stream_close(c->stream);
}

/* Seconds of a copy that moves so many bytes, half of them read; of what no cache holds. */
static double copy_seconds(Copies *c, const Backend *k, double bytes) {
    int64_t buffer = buffer_bytes(k), left = (int64_t)(bytes / 2) / 16 * 16 + 16;
    double start = now_seconds();
    while (left > 0) {
        if (c->at == buffer) c->at = 0;
        int64_t part = MIN(left, buffer - c->at);
        if (k == &BACKEND_CPU) /* whose copy() is one thread's */
            k->axpy(c->stream, DT_F32, part / 4, 1, c->from + c->at, 0, c->to + c->at);
        else
            k->copy(c->stream, c->to + c->at, c->from + c->at, (size_t)part);
        c->at += part;
        left -= part;
    }
    k->stream_sync(c->stream);
    return now_seconds() - start;
}

Bench bench_open(const Config *c) {
    const Backend *k = device_backend(c);
    return (Bench){.config = c,
                   .limit = profile_limits((Device){k, device_compute(c, k, DT_BF16)}),
                   .idle = k == &BACKEND_CPU ? 0 : idle_seconds(k),
                   .repeat = (int)c->bench.repeat};
}

void bench_close(Bench *b) {
    for (int i = 0; i < b->n_rows; i++) {
        free(b->rows[i].seconds);
        free(b->rows[i].compared);
    }
    free(b->rows);
    if (b->copies.stream) copies_close(&b->copies, device_backend(b->config));
}

BenchRow *bench_row(Bench *b, const char *name) {
    for (int i = 0; i < b->n_rows; i++)
        if (!strcmp(b->rows[i].name, name)) return &b->rows[i];
    b->rows = xrealloc(b->rows, (size_t)(b->n_rows + 1) * sizeof *b->rows);
    BenchRow *row = &b->rows[b->n_rows++];
    *row = (BenchRow){.seconds = xcalloc((size_t)b->repeat, sizeof *row->seconds),
                      .compared = xcalloc((size_t)b->repeat, sizeof *row->compared)};
    snprintf(row->name, sizeof row->name, "%s", name);
    return row;
}

/* "linear backward [2026,1920]x[7680,1920]", "conv forward [11,96,96,128]->[9,96,96,128]": op,
 * phase, and the shapes that set the work. */
static void step_name(const Plan *p, const Step *s, char name[96]) {
    char a[64], w[64];
    if (!s->node) {
        snprintf(name, 96, "%s %lld", s->phase == GATHER ? "gather" : "reduce",
                 (long long)p->graph->params->bucket[s->bucket].count);
        return;
    }
    const Node *n = s->node;
    const char *phase = s->phase == BACKWARD ? "backward" : "forward";
    bool linear = n->in[1] && n->in[1]->role == ROLE_PARAM && n->in[1]->shape.rank > 1;
    bool frames = n->in[0]->shape.rank == 4 && n->out[0]->shape.rank == 4;
    Shape second = linear ? n->in[1]->shape : n->out[0]->shape;
    snprintf(name, 96, "%s%s%s %s %s%s%s", n->op->name, s->then ? "+" : "",
             s->then ? s->then->op->name : "", phase, shape_text(n->in[0]->shape, a),
             linear   ? "x"
             : frames ? "->"
                      : "",
             linear || frames ? shape_text(second, w) : "");
}

/* What takes a device no time at all counts as this. */
static const double LEAST_SECONDS = 1e-6;

static double without_idle(const Bench *b, double seconds) {
    return b->idle ? MAX(seconds - b->idle, LEAST_SECONDS) : seconds;
}

static bool memory_bound(const Bench *b, Cost c) {
    return c.bytes && c.flops / b->limit.matmul_flops < c.bytes / b->limit.memory_rate;
}

void bench_add_steps(Bench *b, const Plan *p, const double *seconds, int turn) {
    const Backend *k = device_backend(b->config);
    if (!b->copies.stream) b->copies = copies_open(k);
    for (int i = 0; i < p->n_steps; i++) {
        char name[96];
        step_name(p, &p->steps[i], name);
        BenchRow *row = bench_row(b, name);
        Cost c = step_cost(p, &p->steps[i]);
        row->seconds[turn] += without_idle(b, seconds[i]);
        if (memory_bound(b, c))
            row->compared[turn] += without_idle(b, copy_seconds(&b->copies, k, c.bytes));
        if (turn) continue;
        row->cost.flops += c.flops;
        row->cost.bytes += c.bytes;
    }
}

/* The least time that the measured limits allow, over the time taken; both are sorted. */
static double share_of(const Bench *b, const BenchRow *r) {
    double flops = r->cost.flops / b->limit.matmul_flops;
    if (r->compared[0]) return r->compared[b->repeat / 2];
    return MAX(flops, r->cost.bytes / b->limit.memory_rate) / r->seconds[0];
}

static void print_table(const Bench *b) {
    printf("limit: %.4g GFLOP/s (products), %.4g GB/s (copy)\n", b->limit.matmul_flops / 1e9,
           b->limit.memory_rate / 1e9);
    for (int i = 0; i < b->n_rows; i++) {
        const BenchRow *r = &b->rows[i];
        if (!r->peak_bytes) continue;
        printf("%s: %.3f GiB at the peak", r->name, (double)r->peak_bytes / (1 << 30));
        if (r->host_bytes) printf(", %.3f GiB on the host", (double)r->host_bytes / (1 << 30));
        if (r->rows) printf(", %lld rows", (long long)r->rows);
        printf("\n");
    }
    printf("%-52s %10s %10s %10s %8s %6s\n", "name", "min ms", "median ms", "GFLOP/s", "GB/s",
           "share");
    for (int i = 0; i < b->n_rows; i++) {
        const BenchRow *r = &b->rows[i];
        printf("%-52s %10.3f %10.3f %10.1f %8.1f %6.2f\n", r->name, 1e3 * r->seconds[0],
               1e3 * r->seconds[b->repeat / 2], r->cost.flops / r->seconds[0] / 1e9,
               r->cost.bytes / r->seconds[0] / 1e9, share_of(b, r));
    }
}

static void print_json(const Bench *b) {
    json_t *list = json_array();
    for (int i = 0; i < b->n_rows; i++) {
        const BenchRow *r = &b->rows[i];
        json_t *j =
            json_pack("{s:s, s:f, s:f, s:f, s:f, s:f}", "name", r->name, "min_ms",
                      1e3 * r->seconds[0], "median_ms", 1e3 * r->seconds[b->repeat / 2], "flops",
                      r->cost.flops, "bytes", r->cost.bytes, "share", share_of(b, r));
        CHECK(j, "bench: JSON of %s", r->name);
        if (r->rows) {
            json_object_set_new(j, "rows", json_integer(r->rows));
            json_object_set_new(j, "host_bytes", json_integer(r->host_bytes));
        }
        if (r->peak_bytes) json_object_set_new(j, "peak_bytes", json_integer(r->peak_bytes));
        json_array_append_new(list, j);
    }
    json_dumpf(list, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(list);
}

static int by_value(const void *x, const void *y) {
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

void bench_print(Bench *b, bool json) {
    for (int i = 0; i < b->n_rows; i++) {
        BenchRow *r = &b->rows[i];
        for (int turn = 0; turn < b->repeat; turn++) r->compared[turn] /= r->seconds[turn];
        qsort(r->seconds, (size_t)b->repeat, sizeof(double), by_value);
        qsort(r->compared, (size_t)b->repeat, sizeof(double), by_value);
    }
    if (json)
        print_json(b);
    else
        print_table(b);
}
