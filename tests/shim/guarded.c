/* Owns the guarded device: its allocations, when they are open, and the table. */
#define _GNU_SOURCE
#include "tests/shim/guarded.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, ALIGN = 256, MAX_QUEUES = 16 };

/* What streams have been given, by number from 1, and what is known to be done. */
typedef struct {
    Stream *stream;
    bool used;
    void *workspace;
    int64_t given;
    int64_t before[MAX_QUEUES]; /* of the others, what is done before what it is given next */
} Queue;

/* [p, p + bytes) are the last bytes of `pages` pages from `map` on; another, closed for ever, is
 * behind them. */
typedef struct {
    char *map, *p;
    size_t pages, bytes;
    bool host;
    int users;  /* entries that run on it */
    int access; /* PROT_* as it is now */
    /* The last copies from it and to it on each queue. */
    int64_t read[MAX_QUEUES], written[MAX_QUEUES];
} Allocation;

static const Backend *inner;
static Allocation *allocations;
static int n_allocations, depth;
static int64_t calls;
static Queue queues[MAX_QUEUES] = {{.used = true}}; /* queue 0 is that of stream NULL */
static int64_t done[MAX_QUEUES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

int64_t guarded_calls(void) { return calls; }

/* ---- what was touched -------------------------------------------------------------------------
 */

static struct sigaction before;

/* Only its own pages and the one behind; NULL: the address is of none. */
static const Allocation *allocation_near(const char *p) {
    for (int i = 0; i < n_allocations; i++) {
        const Allocation *a = &allocations[i];
        if (p >= a->map && p < a->map + (a->pages + 1) * PAGE) return a;
    }
    return NULL;
}

static void on_fault(int number, siginfo_t *info, void *context) {
    const char *at = info->si_addr;
    const Allocation *a = allocation_near(at);
    char text[256];
    int n = 0;
    if (a)
        n = snprintf(text, sizeof text, "guarded: %s touched %s: byte %td of %zu\n",
                     depth ? "an entry" : "the host",
                     !a->host               ? "device memory"
                     : at < a->p + a->bytes ? "host memory that a copy is under way from or to"
                                            : "what is behind host memory",
                     at - a->p, a->bytes);
    if (n > 0 && write(STDERR_FILENO, text, (size_t)n) < 0) _exit(1);
    (void)context;
    if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN && !depth)
        before.sa_handler(number); /* cmocka's, which fails the test */
    signal(number, SIG_DFL);
}

/* Tests set handlers of their own between. */
static void watch_faults(void) {
    struct sigaction now, mine = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, NULL, &now);
    if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_fault) return;
    before = now;
    sigaction(SIGSEGV, &mine, NULL);
}

/* ---- allocations ------------------------------------------------------------------------------
 */

static Allocation *allocation_of(const void *p) {
    for (int i = 0; i < n_allocations; i++) {
        Allocation *a = &allocations[i];
        if ((const char *)p >= a->p && (const char *)p <= a->p + a->bytes) return a;
    }
    return NULL;
}

static bool pending(const int64_t *last) {
    for (int q = 0; q < MAX_QUEUES; q++)
        if (last[q] > done[q]) return true;
    return false;
}

static void set_access(Allocation *a) {
    int access = PROT_READ | PROT_WRITE;
    if (a->host ? !depth && pending(a->written) : !a->users)
        access = PROT_NONE;
    else if (a->host && !depth && pending(a->read))
        access = PROT_READ;
    if (access != a->access) CHECK(!mprotect(a->map, a->pages * PAGE, access), "mprotect");
    a->access = access;
}

static void set_all(void) {
    for (int i = 0; i < n_allocations; i++) set_access(&allocations[i]);
}

static void *allocate(size_t bytes, bool host) {
    Allocation a = {.bytes = bytes, .host = host, .access = PROT_READ | PROT_WRITE};
    a.pages = MAX(1, (bytes + PAGE - 1) / PAGE);
    a.map = mmap(NULL, (a.pages + 1) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (a.map == MAP_FAILED) return NULL;
    a.p = a.map + a.pages * PAGE - align_up((int64_t)bytes, ALIGN);
    CHECK(!mprotect(a.map, a.pages * PAGE, a.access), "mprotect");
    memset(a.p, 0xff, bytes);
    pthread_mutex_lock(&lock);
    watch_faults();
    allocations = xrealloc(allocations, (size_t)(n_allocations + 1) * sizeof *allocations);
    allocations[n_allocations] = a;
    set_access(&allocations[n_allocations++]);
    pthread_mutex_unlock(&lock);
    return a.p;
}

static void release(void *p, bool host) {
    if (!p) return;
    pthread_mutex_lock(&lock);
    Allocation *a = allocation_of(p);
    CHECK(a && a->p == p && a->host == host, "%p is no %s memory", p, host ? "host" : "device");
    munmap(a->map, (a->pages + 1) * PAGE);
    *a = allocations[--n_allocations];
    pthread_mutex_unlock(&lock);
}

static void *guarded_alloc(size_t bytes) { return allocate(bytes, false); }
static void *guarded_alloc_host(size_t bytes) { return allocate(bytes, true); }
static void guarded_release(void *p) { release(p, false); }
static void guarded_release_host(void *p) { release(p, true); }

/* ---- streams ----------------------------------------------------------------------------------
 */

static int queue_of(const Stream *s) {
    for (int q = 0; q < MAX_QUEUES; q++)
        if (queues[q].used && queues[q].stream == s) return q;
    CHECK(false, "%p is no stream", (const void *)s);
}

static Stream *guarded_stream_open(void) {
    Stream *s = inner->stream_open();
    pthread_mutex_lock(&lock);
    int q = 0;
    while (q < MAX_QUEUES && queues[q].used) q++;
    CHECK(q < MAX_QUEUES, "more than %d streams", MAX_QUEUES);
    queues[q].stream = s;
    queues[q].used = true;
    pthread_mutex_unlock(&lock);
    return s;
}

static void guarded_stream_close(Stream *s) {
    pthread_mutex_lock(&lock);
    int q = queue_of(s);
    CHECK(q, "stream NULL is closed");
    done[q] = queues[q].given;
    queues[q].used = false;
    set_all();
    pthread_mutex_unlock(&lock);
    inner->stream_close(s);
}

static void guarded_stream_sync(Stream *s) {
    pthread_mutex_lock(&lock);
    int q = queue_of(s);
    for (int i = 0; i < MAX_QUEUES; i++) done[i] = MAX(done[i], queues[q].before[i]);
    done[q] = queues[q].given;
    set_all();
    pthread_mutex_unlock(&lock);
    inner->stream_sync(s);
}

static void guarded_stream_after(Stream *s, Stream *other) {
    pthread_mutex_lock(&lock);
    Queue *q = &queues[queue_of(s)];
    int o = queue_of(other);
    for (int i = 0; i < MAX_QUEUES; i++) q->before[i] = MAX(q->before[i], queues[o].before[i]);
    q->before[o] = queues[o].given;
    pthread_mutex_unlock(&lock);
    inner->stream_after(s, other);
}

static void guarded_stream_workspace(Stream *s, void *workspace, size_t bytes) {
    const Allocation *a = allocation_of(workspace);
    CHECK(!bytes || (a && !a->host), "the workspace is not device memory");
    queues[queue_of(s)].workspace = bytes ? workspace : NULL;
    inner->stream_workspace(s, workspace, bytes);
}

/* ---- entries ----------------------------------------------------------------------------------
 */

/* For the lists below: p is the host's, or NULL. */
static const void *host(const void *p) {
    const Allocation *a = allocation_of(p);
    CHECK(!a || a->host, "%p is device memory and was given as the host's", p);
    return NULL;
}

/* Opens what an entry was given, and the workspace, or lets go of it; of host memory all. */
static void use(const Stream *s, int n, const void *const *device, int change) {
    Allocation *workspace = allocation_of(queues[queue_of(s)].workspace);
    if (workspace) workspace->users += change;
    for (int i = 0; i < n; i++)
        if (device[i]) allocation_of(device[i])->users += change;
    set_all();
}

static void enter(const char *entry, const Stream *s, int n, const void *const *device) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < n; i++) {
        const Allocation *a = device[i] ? allocation_of(device[i]) : NULL;
        CHECK(!device[i] || (a && !a->host), "%s: pointer %d, %p, is not device memory", entry, i,
              device[i]);
    }
    queues[queue_of(s)].given++;
    calls++;
    depth++;
    use(s, n, device, 1);
    pthread_mutex_unlock(&lock);
}

static void leave(const Stream *s, int n, const void *const *device) {
    pthread_mutex_lock(&lock);
    depth--;
    use(s, n, device, -1);
    pthread_mutex_unlock(&lock);
}

/* A copy from (or to) host memory has been queued. */
static void queued(const Stream *s, const void *p, bool reads) {
    pthread_mutex_lock(&lock);
    Allocation *a = allocation_of(p);
    int q = queue_of(s);
    if (a) (reads ? a->read : a->written)[q] = queues[q].given;
    pthread_mutex_unlock(&lock);
}

static void guarded_upload(Stream *s, void *device, const void *from, size_t bytes) {
    const void *const list[] = {device, host(from)};
    enter("upload", s, COUNT(list), list);
    inner->upload(s, device, from, bytes);
    queued(s, from, true);
    leave(s, COUNT(list), list);
}

static void guarded_download(Stream *s, void *to, const void *device, size_t bytes) {
    const void *const list[] = {device, host(to)};
    enter("download", s, COUNT(list), list);
    inner->download(s, to, device, bytes);
    queued(s, to, false);
    leave(s, COUNT(list), list);
}

static void guarded_upload_cast(Stream *s, DType from, DType to, int64_t n, const void *src,
                                void *dst) {
    const void *const list[] = {dst, host(src)};
    enter("upload_cast", s, COUNT(list), list);
    inner->upload_cast(s, from, to, n, src, dst);
    queued(s, src, true);
    leave(s, COUNT(list), list);
}

static void guarded_host_call(Stream *s, HostCall *call, const void *args, size_t bytes) {
    enter("host_call", s, 0, NULL);
    inner->host_call(s, call, args, bytes);
    leave(s, 0, NULL);
}

/* ENTRY(name, parameters, arguments, pointers that are the device's ...) */
#define ENTRY(name, parameters, arguments, ...)                                                    \
    static void guarded_##name parameters {                                                        \
        const void *const device[] = {__VA_ARGS__};                                                \
        enter(#name, s, COUNT(device), device);                                                    \
        inner->name arguments;                                                                     \
        leave(s, COUNT(device), device);                                                           \
    }                                                                                              \
    static void guarded_##name parameters

ENTRY(copy, (Stream * s, void *to, const void *from, size_t bytes), (s, to, from, bytes), to, from);
ENTRY(copy_rows,
      (Stream * s, int64_t rows, size_t bytes, const void *from, size_t from_pitch, void *to,
       size_t to_pitch),
      (s, rows, bytes, from, from_pitch, to, to_pitch), from, to);
ENTRY(zero, (Stream * s, void *p, size_t bytes), (s, p, bytes), p);
ENTRY(cast, (Stream * s, DType from, DType to, int64_t n, const void *src, void *dst),
      (s, from, to, n, src, dst), src, dst);
ENTRY(gemm, (Stream * s, const Gemm *g, const void *a, const void *b, const void *bias, void *c),
      (s, g, a, b, bias, c), a, b, bias, c, g->aux, g->sums);
ENTRY(column_sum,
      (Stream * s, DType t, int64_t rows, int64_t cols, int64_t ld, const void *x, real keep,
       real *y),
      (s, t, rows, cols, ld, x, keep, y), x, y);
ENTRY(gelu, (Stream * s, DType t, int64_t n, const void *x, void *y), (s, t, n, x, y), x, y);
ENTRY(gelu_grad,
      (Stream * s, DType t, int64_t n, const void *x, const void *dy, real keep, void *dx),
      (s, t, n, x, dy, keep, dx), x, dy, dx);
ENTRY(silu, (Stream * s, DType t, int64_t n, const void *x, void *y), (s, t, n, x, y), x, y);
ENTRY(silu_grad,
      (Stream * s, DType t, int64_t n, const void *x, const void *dy, real keep, void *dx),
      (s, t, n, x, dy, keep, dx), x, dy, dx);
ENTRY(geglu, (Stream * s, DType t, int64_t n, const void *gate, const void *x, void *y),
      (s, t, n, gate, x, y), gate, x, y);
ENTRY(axpy, (Stream * s, DType t, int64_t n, real alpha, const void *x, real keep, void *y),
      (s, t, n, alpha, x, keep, y), x, y);
ENTRY(dropout, (Stream * s, const Dropout *d, const void *x, real keep, void *y),
      (s, d, x, keep, y), x, y, d->state, d->ordinals, host(d->cu_rows), host(d->first),
      host(d->sample));
ENTRY(norm, (Stream * s, const Norm *n, void *y), (s, n, y), n->x, n->gamma, n->beta, n->mod,
      n->mod_row, n->stats, y);
ENTRY(norm_grad, (Stream * s, const Norm *n, const NormGrad *g), (s, n, g), n->x, n->gamma, n->beta,
      n->mod, n->mod_row, n->stats, g->dy, g->dx, g->dgamma, g->dbeta, g->dmod);
ENTRY(rms_norm, (Stream * s, const RmsNorm *n, void *y), (s, n, y), n->x, n->gamma, y);
ENTRY(gate, (Stream * s, const Gate *g, const void *x, void *y), (s, g, x, y), g->a, g->mod,
      g->mod_row, x, y);
ENTRY(gate_grad,
      (Stream * s, const Gate *g, const void *dy, real keep_da, void *da, real keep_dmod,
       void *dmod),
      (s, g, dy, keep_da, da, keep_dmod, dmod), g->a, g->mod, g->mod_row, dy, da, dmod);
ENTRY(qk_norm, (Stream * s, const QkNorm *q, void *y), (s, q, y), q->x, q->gamma[0], q->gamma[1],
      q->beta[0], q->beta[1], q->rope, y);
ENTRY(qk_norm_grad, (Stream * s, const QkNorm *q, const QkNormGrad *g), (s, q, g), q->x,
      q->gamma[0], q->gamma[1], q->beta[0], q->beta[1], q->rope, g->dy, g->dx, g->dgamma[0],
      g->dgamma[1], g->dbeta[0], g->dbeta[1]);
ENTRY(attention, (Stream * s, const Attention *a, void *out, real *lse), (s, a, out, lse), a->q,
      a->k, a->v, a->bias, out, lse, host(a->cu_rows));
ENTRY(attention_grad,
      (Stream * s, const Attention *a, const void *out, const real *lse, const void *dout, void *dq,
       void *dk, void *dv),
      (s, a, out, lse, dout, dq, dk, dv), a->q, a->k, a->v, a->bias, out, lse, dout, dq, dk, dv,
      host(a->cu_rows));
ENTRY(join,
      (Stream * s, DType t, int64_t rows, int64_t width, const int32_t *source, const void *text,
       const void *video, void *y),
      (s, t, rows, width, source, text, video, y), source, text, video, y);
ENTRY(split,
      (Stream * s, DType t, int64_t rows, int64_t width, const int32_t *source, const void *dy,
       real keep_text, void *dtext, real keep_video, void *dvideo),
      (s, t, rows, width, source, dy, keep_text, dtext, keep_video, dvideo), source, dy, dtext,
      dvideo);
ENTRY(gather_rows,
      (Stream * s, DType t, int64_t n, int64_t width, const int32_t *index, const void *x, void *y),
      (s, t, n, width, index, x, y), index, x, y);
ENTRY(scatter_rows,
      (Stream * s, DType t, int64_t n, int64_t rows, int64_t width, const int32_t *index,
       const void *dy, real keep, void *dx),
      (s, t, n, rows, width, index, dy, keep, dx), index, dy, dx);
ENTRY(patchify, (Stream * s, const Patch *p, const void *x, real keep, void *rows),
      (s, p, x, keep, rows), x, rows);
ENTRY(unpatchify, (Stream * s, const Patch *p, const void *rows, real keep, void *x),
      (s, p, rows, keep, x), rows, x);
ENTRY(add_axes,
      (Stream * s, DType t, const int64_t size[3], const int64_t widths[3], const void *tf,
       const void *tw, const void *th, int64_t first, int64_t rows, const void *x, void *y),
      (s, t, size, widths, tf, tw, th, first, rows, x, y), tf, tw, th, x, y, host(size),
      host(widths));
ENTRY(conv_pack, (Stream * s, const Conv *c, const void *w, void *packed), (s, c, w, packed), w,
      packed);
ENTRY(conv,
      (Stream * s, const Conv *c, const void *x, const void *packed, const void *bias, void *y),
      (s, c, x, packed, bias, y), x, packed, bias, y);
ENTRY(group_norm, (Stream * s, const GroupNorm *n, void *y), (s, n, y), n->x, n->gamma, n->beta,
      n->scale, n->shift, n->past, n->next, y);
ENTRY(take_frames, (Stream * s, const TakeFrames *f, const void *planes, void *rows),
      (s, f, planes, rows), planes, rows);
ENTRY(pool_frames, (Stream * s, DType t, int64_t frames, int64_t frame, const void *x, void *y),
      (s, t, frames, frame, x, y), x, y);
ENTRY(mse,
      (Stream * s, DType t, int samples, const int64_t *cu, const void *x, const real *target,
       real *loss, real *per_sample),
      (s, t, samples, cu, x, target, loss, per_sample), x, target, loss, per_sample, host(cu));
ENTRY(mse_grad,
      (Stream * s, DType t, int samples, const int64_t *cu, const void *x, const real *target,
       const real *dloss, real keep, void *dx),
      (s, t, samples, cu, x, target, dloss, keep, dx), x, target, dloss, dx, host(cu));
ENTRY(adamw,
      (Stream * s, const AdamW *a, int64_t n, const real *grad, real *master, real *m, real *v),
      (s, a, n, grad, master, m, v), grad, master, m, v);
ENTRY(sum_squares, (Stream * s, int64_t n, const real *x, double *partial), (s, n, x, partial), x,
      partial);

/* Entries that are not named here know sizes alone: their memory stays closed. */
const Backend *guarded(const Backend *around) {
    static Backend table;
    CHECK(inner == around || !n_allocations, "another device while there is memory");
    inner = around;
    table = *around;
    table.name = "guarded";
#define PUT(name) table.name = guarded_##name
    PUT(stream_open), PUT(stream_close), PUT(stream_workspace), PUT(stream_sync);
    PUT(stream_after), PUT(host_call), PUT(alloc), PUT(release), PUT(alloc_host), PUT(release_host);
    PUT(upload), PUT(download), PUT(copy), PUT(copy_rows), PUT(zero), PUT(cast), PUT(upload_cast);
    PUT(gemm), PUT(column_sum), PUT(gelu), PUT(gelu_grad), PUT(silu), PUT(silu_grad), PUT(geglu);
    PUT(axpy), PUT(dropout), PUT(norm), PUT(norm_grad), PUT(rms_norm), PUT(gate), PUT(gate_grad);
    PUT(qk_norm), PUT(qk_norm_grad), PUT(attention), PUT(attention_grad), PUT(join), PUT(split);
    PUT(gather_rows), PUT(scatter_rows), PUT(patchify), PUT(unpatchify), PUT(add_axes);
    PUT(conv_pack), PUT(conv), PUT(group_norm), PUT(take_frames), PUT(pool_frames), PUT(mse);
    PUT(mse_grad), PUT(adamw), PUT(sum_squares);
    return &table;
}
