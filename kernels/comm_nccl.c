/* Ranks over NCCL, for ranks on GPUs; one process has one GPU.
 *
 * NCCL is started over the group of MPI beneath, which also takes what lies in host memory, and
 * over which the watch (comm_watch.h) finds out who is missing. Its communicator does not block:
 * each of its functions is polled until it has done its part.
 *
 * Sums are formed here, in rank order, which NCCL's own do not promise: the parts come piece by
 * piece into PARTS_BYTES of device memory, and are added one rank after the other.
 *
 * Collectives of all groups of the process run one after the other, in the order of their calls,
 * which is the same on every rank: two that run at once could each hold what the other waits for.
 *
 * With several GPUs none of this has been run yet: the tests run it over an NCCL of plain loops.
 */
#define _DEFAULT_SOURCE
#include "kernels/comm_watch.h"
#include "kernels/cuda_stream.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PARTS_BYTES = 32 << 20, PIECE_ALIGN = 64, POLL_US = 20 };

typedef struct {
    Comm *ranks; /* the group beneath */
    ncclComm_t nccl;
    atomic_bool opened;   /* nccl is there, for the watch */
    pthread_mutex_t lock; /* of nccl: asking it how it is also completes what it does */
    cudaEvent_t turn[WATCH_SLOTS], over[WATCH_SLOTS]; /* of the calls under way */
    real *parts;   /* [size][piece] on the device; NULL: not yet wanted */
    int64_t piece; /* elements of a rank's part that are summed at a time */
    Watch *watch;
} Nccl;

/* What the last collective of the process ends with; NULL: there is none to wait for. */
static cudaEvent_t last_over;

/* ---- what the watch sees; its own thread ------------------------------------------------------
 */

static void watched_enter(void *context) {
    (void)context;
    cuda_enter();
}

static bool passed(cudaEvent_t event) {
    cudaError_t status = cudaEventQuery(event);
    return status != cudaErrorNotReady;
}

static CallState watched_state(void *context, int slot) {
    const Nccl *n = context;
    return passed(n->over[slot]) ? CALL_OVER : passed(n->turn[slot]) ? CALL_RUNS : CALL_AHEAD;
}

static bool nccl_error(Error *e, const Nccl *n, ncclResult_t status) {
    return error_set(
        e, EXIT_WORLD,
        "NCCL failed (%s: %s). The job ends; NCCL_DEBUG=WARN says more, and `nvidia-smi "
        "topo -m` how the GPUs are linked. Each rank needs a GPU of its own",
        ncclGetErrorString(status), ncclGetLastError(n->nccl));
}

/* Where the program is in a call of NCCL, it asks by itself. */
static bool watched_works(void *context, Error *e) {
    Nccl *n = context;
    ncclResult_t status = ncclSuccess;
    if (!n->opened || pthread_mutex_trylock(&n->lock)) return true;
    ncclResult_t asked = ncclCommGetAsyncError(n->nccl, &status);
    pthread_mutex_unlock(&n->lock);
    if (asked != ncclSuccess) status = asked;
    return status == ncclSuccess || status == ncclInProgress || nccl_error(e, n, status);
}

static void watched_abandon(void *context) {
    const Nccl *n = context;
    if (n->opened) ncclCommAbort(n->nccl);
}

/* ---- calls ------------------------------------------------------------------------------------
 */

/* Waits until NCCL has done its part of what it was asked for; the watch has the deadline. */
static void settle(Nccl *n, ncclResult_t status) {
    while (status == ncclInProgress) {
        usleep(POLL_US);
        ncclResult_t asked = ncclCommGetAsyncError(n->nccl, &status);
        if (asked != ncclSuccess) status = asked;
    }
    Error e;
    if (status == ncclSuccess) return;
    nccl_error(&e, n, status);
    watch_fail(n->watch, &e);
}

/* This rank comes to the next collective. */
static int come(Comm *c, int64_t kind, DType type, int64_t count) {
    const Nccl *n = c->own;
    if (kind < COMM_KINDS) c->sent_bytes[kind] += (c->size - 1) * count * (int64_t)dtype_size(type);
    return watch_begin(n->watch, (Header){++c->calls, kind, type, count});
}

/* The same, and its turn comes on the stream when every earlier one is over. NCCL is this thread's
 * until the end. */
static int begin(Comm *c, Stream *s, CommKind kind, DType type, int64_t count) {
    Nccl *n = c->own;
    int slot = come(c, kind, type, count);
    pthread_mutex_lock(&n->lock);
    if (last_over) cuda_check(cudaStreamWaitEvent(cuda_queue(s), last_over, 0), "a collective");
    cuda_check(cudaEventRecord(n->turn[slot], cuda_queue(s)), "a collective");
    return slot;
}

static void end(Nccl *n, Stream *s, int slot) {
    pthread_mutex_unlock(&n->lock);
    cuda_check(cudaEventRecord(n->over[slot], cuda_queue(s)), "a collective");
    last_over = n->over[slot];
    watch_queued(n->watch, slot);
}

/* What lies in host memory goes over MPI, after what the stream has to do. False: it does not. */
static bool over_host(Comm *c, Stream *s, CommKind kind, DType type, int64_t count, void *from,
                      void *to) {
    const Nccl *n = c->own;
    Comm *ranks = n->ranks;
    if (count && cuda_holds(to)) return false;
    if (s && count) c->k->stream_sync(s);
    int slot = come(c, kind, type, count);
    if (kind == COMM_ALL_GATHER) ranks->all_gather(ranks, s, type, count, from, to);
    if (kind == COMM_REDUCE_SCATTER) ranks->reduce_scatter(ranks, s, count, from, to);
    if (kind == COMM_ALL_TO_ALL) ranks->all_to_all(ranks, s, type, count, from, to);
    watch_over(n->watch, slot);
    return true;
}

static void nccl_all_gather(Comm *c, Stream *s, DType type, int64_t count, const void *mine,
                            void *all) {
    Nccl *n = c->own;
    if (over_host(c, s, COMM_ALL_GATHER, type, count, (void *)mine, all)) return;
    int slot = begin(c, s, COMM_ALL_GATHER, type, count);
    settle(n, ncclAllGather(mine, all, (size_t)count * dtype_size(type), ncclUint8, n->nccl,
                            cuda_queue(s)));
    end(n, s, slot);
}

/* `bytes` of each rank's block of `from` to it, and its own into its block of `to`. The blocks of
 * this rank stay as they are. */
static void swap_blocks(Comm *c, Stream *s, size_t bytes, const char *from, size_t from_pitch,
                        char *to, size_t to_pitch) {
    Nccl *n = c->own;
    CudaStream queue = cuda_queue(s);
    settle(n, ncclGroupStart());
    for (int i = 1; i < c->size; i++) {
        int next = (c->rank + i) % c->size, before = (c->rank - i + c->size) % c->size;
        settle(n,
               ncclSend(from + (size_t)next * from_pitch, bytes, ncclUint8, next, n->nccl, queue));
        settle(n,
               ncclRecv(to + (size_t)before * to_pitch, bytes, ncclUint8, before, n->nccl, queue));
    }
    settle(n, ncclGroupEnd());
}

static void take_parts(Comm *c) {
    Nccl *n = c->own;
    if (n->parts) return;
    n->piece = PARTS_BYTES / (int64_t)sizeof(real) / c->size / PIECE_ALIGN * PIECE_ALIGN;
    n->parts = c->k->alloc((size_t)(n->piece * c->size) * sizeof(real));
    if (!n->parts) cuda_check(cudaErrorMemoryAllocation, "taking memory for sums over ranks");
}

static void nccl_reduce_scatter(Comm *c, Stream *s, int64_t count, real *all, real *mine) {
    Nccl *n = c->own;
    if (over_host(c, s, COMM_REDUCE_SCATTER, DT_REAL, count, all, mine)) return;
    take_parts(c);
    int slot = begin(c, s, COMM_REDUCE_SCATTER, DT_REAL, count);
    for (int64_t at = 0; at < count; at += n->piece) {
        int64_t m = MIN(n->piece, count - at);
        size_t bytes = (size_t)m * sizeof(real);
        swap_blocks(c, s, bytes, (char *)(all + at), (size_t)count * sizeof(real), (char *)n->parts,
                    bytes);
        c->k->copy(s, n->parts + c->rank * m, all + c->rank * count + at, bytes);
        for (int i = 1; i < c->size; i++)
            c->k->axpy(s, DT_REAL, m, 1, n->parts + i * m, 1, n->parts);
        c->k->copy(s, mine + at, n->parts, bytes);
    }
    end(n, s, slot);
}

static void nccl_all_to_all(Comm *c, Stream *s, DType type, int64_t count, const void *from,
                            void *to) {
    Nccl *n = c->own;
    if (over_host(c, s, COMM_ALL_TO_ALL, type, count, (void *)from, to)) return;
    size_t bytes = (size_t)count * dtype_size(type), own = (size_t)c->rank * bytes;
    int slot = begin(c, s, COMM_ALL_TO_ALL, type, count);
    swap_blocks(c, s, bytes, from, bytes, to, bytes);
    c->k->copy(s, (char *)to + own, (const char *)from + own, bytes);
    end(n, s, slot);
}

/* ---- opening and closing ----------------------------------------------------------------------
 */

/* What rank 0 gives the others, and what must be the same on all. */
typedef struct {
    ncclUniqueId id;
    char version[16];
} Start;

/* Rank 0's id, which is the same on every rank. */
static ncclUniqueId agree(Comm *ranks) {
    Start mine = {0}, *all = xcalloc((size_t)ranks->size, sizeof *all);
    Error e;
    if (!nccl_library(mine.version, &e)) die_error(&e);
    ncclResult_t status = ranks->rank ? ncclSuccess : ncclGetUniqueId(&mine.id);
    if (status != ncclSuccess) {
        nccl_error(&e, &(Nccl){0}, status);
        die_error(&e);
    }
    ranks->all_gather(ranks, NULL, DT_U8, sizeof mine, &mine, all);
    for (int i = 0; i < ranks->size; i++)
        if (strcmp(all[i].version, mine.version)) {
            error_set(&e, EXIT_WORLD,
                      "rank %d has NCCL %s, and rank %d NCCL %s: install the same on every host", i,
                      all[i].version, ranks->rank, mine.version);
            die_error(&e);
        }
    ncclUniqueId id = all[0].id;
    free(all);
    return id;
}

static void start(Comm *c) {
    Nccl *n = c->own;
    ncclUniqueId id = agree(n->ranks);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    n->watch = watch_open(
        n->ranks, &(Watched){n, watched_enter, watched_state, watched_works, watched_abandon});
    if (!n->watch)
        die("ranks on GPUs need an Open MPI whose functions may be called by several threads "
            "(MPI_THREAD_MULTIPLE); `ompi_info | grep -i thread` says what this one allows");
    int slot = come(c, COMM_START, DT_U8, 0);
    pthread_mutex_lock(&n->lock);
    ncclResult_t status = ncclCommInitRankConfig(&n->nccl, c->size, id, c->rank, &config);
    n->opened = n->nccl != NULL;
    settle(n, status);
    pthread_mutex_unlock(&n->lock);
    watch_over(n->watch, slot);
}

static void nccl_close(Comm *c) {
    Nccl *n = c->own;
    watch_drain(n->watch);
    int slot = come(c, COMM_END, DT_U8, 0);
    pthread_mutex_lock(&n->lock);
    settle(n, ncclCommFinalize(n->nccl));
    watch_over(n->watch, slot);
    watch_close(n->watch);
    ncclCommDestroy(n->nccl);
    pthread_mutex_unlock(&n->lock);
    pthread_mutex_destroy(&n->lock);
    for (int i = 0; i < WATCH_SLOTS; i++) {
        if (last_over == n->over[i]) last_over = NULL;
        cudaEventDestroy(n->turn[i]);
        cudaEventDestroy(n->over[i]);
    }
    if (n->parts) c->k->release(n->parts);
    comm_close(n->ranks);
    free(n);
    free(c);
}

static Comm *nccl_neighbours(Comm *c, int size) {
    const Nccl *n = c->own;
    return comm_over(comm_neighbours(n->ranks, size), c->k);
}

Comm *comm_nccl(Comm *ranks, const Backend *k) {
    Nccl *n = xcalloc(1, sizeof *n);
    Comm *c = xcalloc(1, sizeof *c);
    n->ranks = ranks;
    pthread_mutex_init(&n->lock, NULL);
    *c = (Comm){.rank = ranks->rank,
                .size = ranks->size,
                .name = "nccl",
                .all_gather = nccl_all_gather,
                .reduce_scatter = nccl_reduce_scatter,
                .all_to_all = nccl_all_to_all,
                .neighbours = nccl_neighbours,
                .close = nccl_close,
                .k = k,
                .own = n};
    for (int i = 0; i < WATCH_SLOTS; i++) {
        cuda_check(cudaEventCreateWithFlags(&n->turn[i], cudaEventDisableTiming), "an event");
        cuda_check(cudaEventCreateWithFlags(&n->over[i], cudaEventDisableTiming), "an event");
    }
    start(c);
    return c;
}
