/* Owns device profiles: named ones, and what this machine is measured to do. */
#define _DEFAULT_SOURCE
#include "trainer/profile.h"

#include "kernels/comm.h"
#include "kernels/random.h"
#include "trainer/host_memory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GIB(n) ((int64_t)(n) << 30)
/* A tenth is the system's. */
#define HOST(n) (GIB(n) / 10 * 9)

/* Sources. h200: bf16 products and copies measured on one; attention from published D = 64 figures
 * (FlashAttention-3 on an H100). Others: the vendor's dense 16-bit rate with f32 accumulation at 80
 * % for products, attention at 60 % of that, 90 % of the memory rate; links are NVLink one way, or
 * the PCIe slot. Host rates: the slot's (16 lanes of PCIe 4 or 5) less 20 %; host memory: 8 to 12
 * channels of a server, 2 of a workstation, at 80 %; 1 TiB of it in a server, 96 GiB in a
 * workstation, are assumed, and 8 and 4 such devices. */
static const Profile PROFILES[] = {
    /* Two to four cores, for choices that must not depend on the moment. */
    {"cpu", false, 0, CPU_CONTEXT_BYTES, 2e11, 1.5e11, 1.5e11, 3e10, 7e9, 1.5e10, 0, 3e10, 0},
    {"h200", true, GIB(139), GPU_CONTEXT_BYTES, 790e12, 497e12, 474e12, 4.3e12, 4.5e11, 5.0e10,
     HOST(1024), 2e11, 8},
    {"h100", true, GIB(79), GPU_CONTEXT_BYTES, 790e12, 497e12, 474e12, 3.0e12, 4.5e11, 5.0e10,
     HOST(1024), 2e11, 8},
    {"a100", true, GIB(79), GPU_CONTEXT_BYTES, 250e12, 150e12, 140e12, 1.8e12, 3.0e11, 2.4e10,
     HOST(1024), 1e11, 8},
    {"rtx5090", true, GIB(31), GPU_CONTEXT_BYTES, 167e12, 100e12, 95e12, 1.6e12, 5.0e10, 5.0e10,
     HOST(96), 6e10, 4},
    {"rtx4090", true, GIB(23), GPU_CONTEXT_BYTES, 132e12, 80e12, 75e12, 0.9e12, 2.5e10, 2.4e10,
     HOST(96), 6e10, 4},
    {"rtx3090", true, GIB(23), GPU_CONTEXT_BYTES, 57e12, 34e12, 32e12, 0.84e12, 2.5e10, 2.4e10,
     HOST(96), 6e10, 4},
};

const Profile *profile_find(const char *name) {
    for (size_t i = 0; i < COUNT(PROFILES); i++)
        if (!strcmp(PROFILES[i].name, name)) return &PROFILES[i];
    return NULL;
}

void profile_list(char *text, size_t size) {
    size_t at = 0;
    for (size_t i = 0; i < COUNT(PROFILES) && at < size; i++)
        at += (size_t)snprintf(text + at, size - at, "%s%s", i ? ", " : "", PROFILES[i].name);
}

int64_t available_bytes(int64_t budget, const Profile *profile) {
    bool here = !profile || !profile->cuda;
    int64_t context = here ? CPU_CONTEXT_BYTES : profile->context_bytes;
    if (budget) return budget - context;
    if (!here) return profile->memory_bytes - context;
    return host_free_bytes() / comm_local_size() - context;
}

int profile_host_ranks(const Profile *p, int world) {
    int room = p->host_ranks ? p->host_ranks : (int)sysconf(_SC_NPROCESSORS_ONLN);
    return MAX(1, MIN(world, room));
}

/* Edges of the product and elements of the copy, which no cache holds; of the attention, on a CPU
 * alone, rows (an edge of them), heads and their size; tries, and numbers that are drawn. */
enum { HOST_EDGE = 768, HOST_COPY = 1 << 24, GPU_EDGE = 8192, GPU_COPY = 1 << 29 };
enum { HEADS = 4, HEAD = 64, TRIES = 3, DRAWN = 1 << 20 };

typedef struct {
    const Backend *k;
    Stream *stream;
    DType t;
    int64_t copy;    /* elements of a and of b */
    int calls;       /* in a row, so that starting them is hidden */
    void *a, *b, *c; /* c [edge, edge] */
    void *workspace;
    real *lse; /* [HEADS, edge] */
    Gemm gemm;
    Attention attention;
} Trial;

static void run_product(Trial *t) { t->k->gemm(t->stream, &t->gemm, t->a, t->b, NULL, t->c); }

static void run_forward(Trial *t) { t->k->attention(t->stream, &t->attention, t->c, t->lse); }

static void run_backward(Trial *t) {
    char *dq = (char *)t->c + t->attention.rows * HEADS * HEAD * (int64_t)dtype_size(t->t);
    t->k->attention_grad(t->stream, &t->attention, t->c, t->lse, t->b, dq, t->c, t->b);
}

static void run_axpy(Trial *t) { t->k->axpy(t->stream, t->t, t->copy, 1, t->a, 0, t->b); }

static void run_copy(Trial *t) {
    t->k->copy(t->stream, t->b, t->a, (size_t)t->copy * dtype_size(t->t));
}

/* Seconds of the fastest of a few runs. */
static double fastest(Trial *t, void (*run)(Trial *)) {
    double best = 1e9;
    for (int i = 0; i <= TRIES; i++) {
        double start = now_seconds();
        for (int j = 0; j < t->calls; j++) run(t);
        t->k->stream_sync(t->stream);
        double took = (now_seconds() - start) / t->calls;
        if (i && took < best) best = took; /* the first run warms up */
    }
    return MAX(best, 1e-9);
}

/* Normals, over and over: a GPU's rate falls with the bits that change. */
static void fill(Trial *t, char *to, int64_t n) {
    int64_t size = (int64_t)dtype_size(t->t);
    float *drawn = xcalloc(DRAWN, sizeof *drawn);
    random_normal((Draw){.purpose = PURPOSE_NOISE}, 0, MIN(n, DRAWN), drawn);
    t->k->upload_cast(t->stream, DT_F32, t->t, MIN(n, DRAWN), drawn, to);
    for (int64_t have = DRAWN; have < n; have *= 2)
        t->k->copy(t->stream, to + have * size, to, (size_t)(MIN(have, n - have) * size));
    free(drawn);
}

static void *take(const Trial *t, size_t bytes) {
    void *p = t->k->alloc(MAX(bytes, 1));
    Error e;
    if (p) return p;
    error_set(&e, EXIT_WORLD, "no %.2f GiB of %s memory left to measure its limits with",
              (double)bytes / (1 << 30), t->k->name);
    die_error(&e);
}

static void give_workspace(Trial *t, size_t bytes) {
    t->workspace = take(t, bytes);
    t->k->stream_workspace(t->stream, t->workspace, bytes);
}

/* All ranks of a host measure at the same time, in an eighth at most of what is free there. */
static int64_t host_copy(void) {
    int64_t room = host_free_bytes() / comm_local_size() / 16 / (int64_t)sizeof(real);
    return MIN(HOST_COPY, MAX(room, HOST_EDGE * HOST_EDGE));
}

static Trial trial_open(Device d) {
    bool cpu = d.k == &BACKEND_CPU;
    Trial t = {.k = d.k, .stream = d.k->stream_open(), .t = d.compute, .calls = cpu ? 1 : 10};
    int64_t edge = cpu ? HOST_EDGE : GPU_EDGE;
    t.copy = cpu ? host_copy() : GPU_COPY;
    t.a = take(&t, (size_t)t.copy * dtype_size(t.t));
    t.b = take(&t, (size_t)t.copy * dtype_size(t.t));
    t.c = take(&t, (size_t)(edge * edge) * dtype_size(t.t));
    t.lse = take(&t, (size_t)(HEADS * edge) * sizeof(real));
    fill(&t, t.a, t.copy);
    fill(&t, t.b, t.copy);
    t.gemm = (Gemm){.type = t.t,
                    .type_c = t.t,
                    .m = edge,
                    .n = edge,
                    .k = edge,
                    .batch = 1,
                    .b_transposed = true,
                    .lda = edge,
                    .ldb = edge,
                    .ldc = edge,
                    .alpha = 1};
    return t;
}

static void trial_close(Trial *t) {
    t->k->release(t->workspace);
    t->k->release(t->a);
    t->k->release(t->b);
    t->k->release(t->c);
    t->k->release(t->lse);
    t->k->stream_close(t->stream);
}

static double product_rate(Trial *t) {
    double edge = (double)t->gemm.m;
    return 2 * edge * edge * edge / fastest(t, run_product);
}

static double copy_rate(Trial *t) {
    double seconds = fastest(t, run_axpy);
    if (t->k != &BACKEND_CPU) seconds = MIN(seconds, fastest(t, run_copy));
    return 2.0 * (double)t->copy * (double)dtype_size(t->t) / seconds;
}

Limits profile_limits(Device d) {
    Trial t = trial_open(d);
    give_workspace(&t, t.k->gemm_workspace(t.stream, &t.gemm));
    Limits limits = {product_rate(&t), copy_rate(&t)};
    trial_close(&t);
    return limits;
}

Profile profile_measure(void) {
    int64_t cu_rows[2] = {0, HOST_EDGE}, free_bytes = host_free_bytes(); /* before it takes any */
    Trial t = trial_open((Device){&BACKEND_CPU, DT_REAL});
    t.attention = (Attention){.t = t.t,
                              .rows = HOST_EDGE,
                              .heads = HEADS,
                              .head_size = HEAD,
                              .scale = (real)0.125,
                              .segments = 1,
                              .cu_rows = cu_rows,
                              .q = t.a,
                              .k = t.a,
                              .v = t.a};
    give_workspace(&t, MAX(t.k->attention_workspace(t.stream, &t.attention, true),
                           t.k->gemm_workspace(t.stream, &t.gemm)));
    double pairs = (double)HOST_EDGE * HOST_EDGE * HEADS * HEAD;
    Profile p = {.name = "this machine",
                 .memory_bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE),
                 .context_bytes = CPU_CONTEXT_BYTES,
                 .matmul_flops = product_rate(&t),
                 .attention_forward_flops = 4 * pairs / fastest(&t, run_forward),
                 .attention_backward_flops = 10 * pairs / fastest(&t, run_backward),
                 .memory_rate = copy_rate(&t)};
    p.host_bytes = free_bytes;
    p.host_ranks = comm_world_size() > 1 ? comm_local_size() : 0;
    p.host_rate = p.memory_rate / 2; /* each byte is read and written */
    p.host_memory_rate = p.memory_rate;
    p.link_rate = p.memory_rate / 4; /* ranks on one machine: through shared memory, in and out */
    trial_close(&t);
    return p;
}
