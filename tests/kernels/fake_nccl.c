/* A queue is a thread that does one task after the other, so that calls return before their work is
 * done, as on a GPU. Messages go through boxes, one for each pair of ranks, in a file that all
 * processes map. NCCL's rules are kept to: what it is asked while it is in progress is refused,
 * and so are two threads at the same time. */
#define _DEFAULT_SOURCE
#include "tests/kernels/fake_nccl.h"

#include "kernels/comm_watch.h"
#include "kernels/cuda_stream.h"

#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <nccl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RANKS = 4, BOX_BYTES = 1 << 16, RANGES = 64, SLOW_POLLS = 3 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of queues and events */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static atomic_bool broken, blocked;

void fake_break(void) { broken = true; }
void fake_block(void) { blocked = true; }

/* ---- queues and events ------------------------------------------------------------------------
 */

typedef struct {
    bool send;
    int peer;
    char *p;
    size_t left;
} Transfer;

typedef enum { TASK_COPY, TASK_ADD, TASK_RECORD, TASK_WAIT, TASK_TRANSFER } TaskKind;

typedef struct Task Task;
struct Task {
    Task *next;
    TaskKind kind;
    void *to;
    const void *from;
    size_t bytes;
    cudaEvent_t event;
    int64_t ticket;
    ncclComm_t comm;
    int n;
    Transfer transfer[2 * RANKS];
};

struct CUevent_st {
    int64_t recorded, passed;
};

struct CUstream_st {
    Task *first, *last;
    int64_t queued, done;
};

static void transfer(Task *t);

static void run_task(Task *t) {
    float *y = t->to;
    const float *x = t->from;
    switch (t->kind) {
    case TASK_COPY:
        memmove(t->to, t->from, t->bytes);
        break;
    case TASK_ADD:
        for (size_t i = 0; i < t->bytes / sizeof *y; i++) y[i] += x[i];
        break;
    case TASK_TRANSFER:
        transfer(t);
        break;
    case TASK_RECORD:
        pthread_mutex_lock(&lock);
        t->event->passed = t->ticket;
        pthread_mutex_unlock(&lock);
        break;
    case TASK_WAIT:
        pthread_mutex_lock(&lock);
        while (t->event->passed < t->ticket) pthread_cond_wait(&changed, &lock);
        pthread_mutex_unlock(&lock);
        break;
    }
}

static void *work(void *arg) {
    CudaStream q = arg;
    for (;;) {
        pthread_mutex_lock(&lock);
        while (!q->first) pthread_cond_wait(&changed, &lock);
        Task *t = q->first;
        pthread_mutex_unlock(&lock);
        run_task(t);
        pthread_mutex_lock(&lock);
        q->first = t->next;
        q->done++;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
        free(t);
    }
    return NULL;
}

static void enqueue(CudaStream q, Task task) {
    Task *t = xcalloc(1, sizeof *t);
    *t = task;
    pthread_mutex_lock(&lock);
    if (q->first)
        q->last->next = t;
    else
        q->first = t;
    q->last = t;
    q->queued++;
    if (t->kind == TASK_RECORD) t->ticket = ++t->event->recorded;
    if (t->kind == TASK_WAIT) t->ticket = t->event->recorded;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void sync_queue(CudaStream q) {
    pthread_mutex_lock(&lock);
    while (q->done < q->queued) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    (void)flags;
    *event = xcalloc(1, sizeof **event);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t q) {
    enqueue(q, (Task){.kind = TASK_RECORD, .event = event});
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t q, cudaEvent_t event, unsigned flags) {
    (void)flags;
    enqueue(q, (Task){.kind = TASK_WAIT, .event = event});
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    while (blocked) pause();
    pthread_mutex_lock(&lock);
    bool passed = event->passed == event->recorded;
    pthread_mutex_unlock(&lock);
    return passed ? cudaSuccess : cudaErrorNotReady;
}

/* ---- the device -------------------------------------------------------------------------------
 */

static struct {
    char *at;
    size_t bytes;
} ranges[RANGES];

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *about, const void *p) {
    about->type = cudaMemoryTypeUnregistered;
    for (int i = 0; i < RANGES; i++)
        if (ranges[i].at && (const char *)p >= ranges[i].at &&
            (const char *)p < ranges[i].at + ranges[i].bytes)
            about->type = cudaMemoryTypeDevice;
    return cudaSuccess;
}

CudaStream cuda_queue(Stream *s) { return s->queue; }

void cuda_enter(void) {}

void cuda_check(int status, const char *doing) {
    if (status != cudaSuccess) die("%s: %d", doing, status);
}

static Stream *stream_open(void) {
    Stream *s = xcalloc(1, sizeof *s);
    pthread_t thread;
    s->queue = xcalloc(1, sizeof *s->queue);
    CHECK(!pthread_create(&thread, NULL, work, s->queue), "no thread");
    pthread_detach(thread);
    return s;
}

/* The queue stays: its thread waits for more. */
static void stream_close(Stream *s) {
    sync_queue(s->queue);
    free(s);
}

static void stream_sync(Stream *s) { sync_queue(s->queue); }

static void *device_alloc(size_t bytes) {
    int i = 0;
    while (i < RANGES && ranges[i].at) i++;
    CHECK(i < RANGES, "memory is in too many parts");
    ranges[i].at = xcalloc(1, MAX(bytes, 1));
    ranges[i].bytes = bytes;
    return ranges[i].at;
}

static void device_release(void *p) {
    for (int i = 0; i < RANGES; i++)
        if (ranges[i].at == p) ranges[i].at = NULL;
    free(p);
}

static void check_device(const void *p) { CHECK(cuda_holds(p), "not the device's memory"); }

static void device_copy(Stream *s, void *to, const void *from, size_t bytes) {
    if (!bytes || to == from) return;
    check_device(to);
    check_device(from);
    enqueue(s->queue, (Task){.kind = TASK_COPY, .to = to, .from = from, .bytes = bytes});
}

static void device_axpy(Stream *s, DType t, int64_t n, real alpha, const void *x, real keep,
                        void *y) {
    CHECK(t == DT_F32 && alpha == 1 && keep == 1, "no sum");
    check_device(x);
    check_device(y);
    enqueue(s->queue,
            (Task){.kind = TASK_ADD, .to = y, .from = x, .bytes = (size_t)n * sizeof(float)});
}

static void device_upload(Stream *s, void *device, const void *host, size_t bytes) {
    sync_queue(s->queue);
    memcpy(device, host, bytes);
}

static void device_download(Stream *s, void *host, const void *device, size_t bytes) {
    sync_queue(s->queue);
    memcpy(host, device, bytes);
}

static const Backend GPU = {.name = "fake",
                            .stream_open = stream_open,
                            .stream_close = stream_close,
                            .stream_sync = stream_sync,
                            .alloc = device_alloc,
                            .release = device_release,
                            .copy = device_copy,
                            .axpy = device_axpy,
                            .upload = device_upload,
                            .download = device_download};

const Backend *fake_gpu(void) { return &GPU; }

/* ---- NCCL -------------------------------------------------------------------------------------
 */

typedef struct {
    atomic_int full;
    size_t bytes;
    char data[BOX_BYTES];
} Box;

typedef struct {
    atomic_int here, leaving;
    Box box[RANKS][RANKS]; /* [from][to] */
} Shared;

struct ncclComm {
    int rank, size;
    Shared *shared;
    atomic_int polls;      /* until what is in progress is done */
    atomic_bool finalized; /* or is to be, when all are */
    atomic_bool aborted;
    atomic_int asked; /* by so many threads at the moment */
    Task group;
    CudaStream queue;
};

static _Thread_local bool in_group;
static _Thread_local ncclComm_t group_of;

/* True: this transfer came on. */
static bool advance(const ncclComm_t c, Transfer *t) {
    if (!t->left) return false;
    Box *box = t->send ? &c->shared->box[c->rank][t->peer] : &c->shared->box[t->peer][c->rank];
    if (box->full == t->send) return false;
    if (t->send) box->bytes = MIN(t->left, (size_t)BOX_BYTES);
    size_t bytes = MIN(box->bytes, t->left);
    memcpy(t->send ? box->data : t->p, t->send ? t->p : box->data, bytes);
    box->full = t->send;
    t->p += bytes;
    t->left -= bytes;
    return true;
}

static void transfer(Task *t) {
    if (t->bytes) memmove(t->to, t->from, t->bytes);
    for (bool more = true; more && !t->comm->aborted;) {
        bool moved = false;
        more = false;
        for (int i = 0; i < t->n; i++) moved |= advance(t->comm, &t->transfer[i]);
        for (int i = 0; i < t->n; i++) more |= t->transfer[i].left > 0;
        if (!moved && more) usleep(50);
    }
}

static ncclResult_t progress(ncclComm_t c) {
    if (broken) return ncclRemoteError;
    if (c->shared->here < c->size) return ncclInProgress;
    if (c->finalized && c->shared->leaving < c->size) return ncclInProgress;
    if (c->polls > 0 && c->polls--) return ncclInProgress;
    return ncclSuccess;
}

static void add(ncclComm_t c, bool send, int peer, const void *p, size_t bytes) {
    c->group.transfer[c->group.n++] = (Transfer){send, peer, (char *)p, bytes};
}

static ncclResult_t submit(ncclComm_t c) {
    c->group.kind = TASK_TRANSFER;
    c->group.comm = c;
    enqueue(c->queue, c->group);
    c->group = (Task){0};
    c->polls = SLOW_POLLS;
    return ncclInProgress;
}

bool nccl_library(char version[16], Error *e) {
    (void)e;
    snprintf(version, 16, "%d.%d.%d", NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH);
    return true;
}

const char *ncclGetErrorString(ncclResult_t result) {
    return result == ncclRemoteError ? "remote process exited" : "an error";
}

const char *ncclGetLastError(ncclComm_t comm) {
    (void)comm;
    return "the fake's";
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    static int made;
    snprintf(id->internal, sizeof id->internal, "%s/%d-%d", getenv("FAKE_NCCL"), (int)getpid(),
             made++);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config) {
    int file = open(id.internal, O_RDWR | O_CREAT, 0600);
    if (file < 0 || size > RANKS || config->blocking || ftruncate(file, sizeof(Shared)))
        return ncclSystemError;
    ncclComm_t c = xcalloc(1, sizeof *c);
    c->rank = rank;
    c->size = size;
    c->polls = SLOW_POLLS;
    c->shared = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CHECK(c->shared != MAP_FAILED, "no memory for messages");
    close(file);
    c->shared->here++;
    *comm = c;
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *result) {
    CHECK(!comm->asked++, "two threads ask at the same time");
    usleep(10);
    *result = progress(comm);
    comm->asked--;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    if (comm->polls) return ncclInvalidUsage;
    comm->finalized = true;
    comm->shared->leaving++;
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    if (!comm->finalized) return ncclInvalidUsage;
    munmap(comm->shared, sizeof(Shared));
    free(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
    comm->aborted = true;
    return ncclSuccess;
}

ncclResult_t ncclGroupStart(void) {
    in_group = true;
    group_of = NULL;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    in_group = false;
    return group_of ? submit(group_of) : ncclSuccess;
}

static ncclResult_t one_way(ncclComm_t comm, bool send, int rank, const void *p, size_t bytes,
                            cudaStream_t queue) {
    if (comm->polls || !in_group || rank == comm->rank) return ncclInvalidUsage;
    check_device(p);
    group_of = comm;
    comm->queue = queue;
    add(comm, send, rank, p, bytes);
    return ncclSuccess;
}

ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int rank,
                      ncclComm_t comm, cudaStream_t queue) {
    return type == ncclUint8 ? one_way(comm, true, rank, from, count, queue) : ncclInvalidArgument;
}

ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int rank, ncclComm_t comm,
                      cudaStream_t queue) {
    return type == ncclUint8 ? one_way(comm, false, rank, to, count, queue) : ncclInvalidArgument;
}

ncclResult_t ncclAllGather(const void *mine, void *all, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t queue) {
    if (comm->polls || in_group || type != ncclUint8) return ncclInvalidUsage;
    check_device(mine);
    check_device(all);
    comm->queue = queue;
    comm->group.to = (char *)all + (size_t)comm->rank * count;
    comm->group.from = mine;
    comm->group.bytes = count;
    for (int i = 0; i < comm->size; i++) {
        if (i == comm->rank) continue;
        add(comm, true, i, mine, count);
        add(comm, false, i, (char *)all + (size_t)i * count, count);
    }
    return submit(comm);
}
