/* Ranks over Open MPI, for ranks on CPUs.
 *
 * Before each collective every rank tells every other what it is about to do: so a rank that does
 * not come, or comes for something else, is known by name. All waiting is polling against a
 * deadline, for Open MPI does not notice a dead link by itself. Sums are formed here, in rank
 * order: the parts come by MPI_Ialltoall, piece by piece, and are added one rank after the other.
 */
#define _DEFAULT_SOURCE
#include "kernels/comm_roll.h"
#include "kernels/comm_watch.h"

#include <mpi.h>

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    PIECE = 1 << 16,   /* elements of a rank's part that are summed at a time */
    ABORT_SECONDS = 5, /* for MPI_Abort to reach the others, which a dead link can prevent */
    LAST_CALL_SECONDS = 1,
    START_SECONDS = 10, /* beside the deadline of a collective, for the processes to start */
    TAG_MEET = 0,
    TAG_LAST_CALL = 1,
    MESSAGES = 4, /* on their way to one rank, beside the collectives */
};

typedef struct {
    MPI_Comm group, beside; /* beside: of messages beside the collectives */
    MPI_Request *sent;      /* [size * MESSAGES] beside the collectives */
    Message *messages;      /* what they send */
    Talk talk;
    Header mine, *theirs;  /* [size] */
    MPI_Request *requests; /* [2 * size] */
    real *from, *to;       /* [size * PIECE] what goes to and comes from each rank */
    bool started;          /* MPI was started here, and ends with the group */
} Ranks;

/* Ends the job: mpirun ends the other ranks. */
NORETURN static void give_up(void) {
    fflush(stderr);
    alarm(ABORT_SECONDS);
    roll_leave();
    MPI_Abort(MPI_COMM_WORLD, EXIT_WORLD);
    _exit(EXIT_WORLD);
}

/* Polls until all n requests are done; false: the deadline came first. */
static bool finished(MPI_Request *requests, int n, double deadline) {
    for (int done = 0, turns = 0;; turns++) {
        MPI_Testall(n, requests, &done, MPI_STATUSES_IGNORE);
        if (done) return true;
        if (now_seconds() > deadline) return false;
        if (turns < 100)
            sched_yield();
        else
            usleep(20);
    }
}

/* Sends this rank's header to every other and takes theirs; false: the deadline came first. */
static bool exchange(const Comm *c, Ranks *r, int tag, double deadline) {
    int n = 0;
    for (int i = 0; i < c->size; i++) {
        if (i == c->rank) continue;
        r->theirs[i].number = 0;
        MPI_Irecv(&r->theirs[i], sizeof(Header), MPI_BYTE, i, tag, r->group, &r->requests[n++]);
        MPI_Isend(&r->mine, sizeof(Header), MPI_BYTE, i, tag, r->group, &r->requests[n++]);
    }
    return finished(r->requests, n, deadline);
}

/* Names the ranks whose header is not there. */
NORETURN static void name_missing(const Comm *c, const Ranks *r) {
    for (int i = 0; i < c->size; i++) {
        if (i == c->rank || r->theirs[i].number == r->mine.number) continue;
        say_missing(r->talk.first + i, &r->mine, r->talk.timeout_s, r->talk.first + c->rank);
    }
    give_up();
}

static void compare_headers(const Comm *c, const Ranks *r) {
    for (int i = 0; i < c->size; i++) {
        const Header *h = &r->theirs[i], *m = &r->mine;
        if (i == c->rank || !memcmp(h, m, sizeof *h)) continue;
        say_apart(r->talk.first + c->rank, m, r->talk.first + i, h);
        give_up();
    }
}

/* Every rank is here, for the same thing. Returns the deadline for the rest. */
static double meet(Comm *c, CommKind kind, DType type, int64_t count) {
    Ranks *r = c->own;
    r->mine = (Header){++c->calls, kind, type, count};
    came_to(&r->mine);
    if (!exchange(c, r, TAG_MEET, now_seconds() + r->talk.timeout_s)) name_missing(c, r);
    compare_headers(c, r);
    c->sent_bytes[kind] += (c->size - 1) * count * (int64_t)dtype_size(type);
    return now_seconds() + r->talk.timeout_s;
}

/* All ranks began this collective. If it does not end, the ranks that still live all notice at the
 * same time, and call each other once more: who is silent then is the culprit. */
static void complete(const Comm *c, MPI_Request request, double deadline) {
    Ranks *r = c->own;
    if (finished(&request, 1, deadline)) return;
    if (!exchange(c, r, TAG_LAST_CALL, now_seconds() + LAST_CALL_SECONDS)) name_missing(c, r);
    say_unfinished(r->talk.first + c->rank, &r->mine, r->talk.timeout_s);
    give_up();
}

static MPI_Datatype mpi_type(DType t) {
    switch (dtype_size(t)) {
    case 8:
        return MPI_UINT64_T;
    case 4:
        return MPI_UINT32_T;
    case 2:
        return MPI_UINT16_T;
    default:
        return MPI_UINT8_T;
    }
}

static void mpi_all_gather(Comm *c, Stream *s, DType type, int64_t count, const void *mine,
                           void *all) {
    (void)s;
    CHECK(count * c->size <= INT32_MAX, "all_gather of %lld", (long long)count);
    double deadline = meet(c, COMM_ALL_GATHER, type, count);
    char *own = (char *)all + c->rank * count * (int64_t)dtype_size(type);
    if (mine != own && count) memmove(own, mine, (size_t)count * dtype_size(type));
    MPI_Request request;
    MPI_Iallgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, all, (int)count, mpi_type(type),
                   ((Ranks *)c->own)->group, &request);
    complete(c, request, deadline);
}

static void mpi_reduce_scatter(Comm *c, Stream *s, int64_t count, real *all, real *mine) {
    (void)s;
    Ranks *r = c->own;
    double deadline = meet(c, COMM_REDUCE_SCATTER, DT_REAL, count);
    for (int64_t at = 0; at < count; at += PIECE) {
        int64_t n = MIN(PIECE, count - at);
        for (int i = 0; i < c->size; i++)
            memcpy(r->from + i * n, all + i * count + at, (size_t)n * sizeof(real));
        MPI_Request request;
        MPI_Ialltoall(r->from, (int)n, mpi_type(DT_REAL), r->to, (int)n, mpi_type(DT_REAL),
                      r->group, &request);
        complete(c, request, deadline);
        for (int64_t j = 0; j < n; j++) {
            real sum = r->to[j];
            for (int i = 1; i < c->size; i++) sum += r->to[i * n + j];
            mine[at + j] = sum;
        }
    }
}

static void mpi_all_to_all(Comm *c, Stream *s, DType type, int64_t count, const void *from,
                           void *to) {
    (void)s;
    CHECK(count * c->size <= INT32_MAX, "all_to_all of %lld", (long long)count);
    double deadline = meet(c, COMM_ALL_TO_ALL, type, count);
    MPI_Request request;
    MPI_Ialltoall(from, (int)count, mpi_type(type), to, (int)count, mpi_type(type),
                  ((Ranks *)c->own)->group, &request);
    complete(c, request, deadline);
}

static void start_failed(int signal) {
    static const char TEXT[] =
        "cogsmith: MPI did not start: a rank did not come in time. The job ends; look at the hosts "
        "that it should have started on, and whether all ranks are cogsmith of one version\n";
    (void)signal;
    if (write(STDERR_FILENO, TEXT, sizeof TEXT - 1) < 0) _exit(EXIT_WORLD);
    _exit(EXIT_WORLD);
}

/* MPI waits for all ranks to come, and for ever: here an alarm ends it. */
static void guard(double timeout_s) {
    signal(SIGALRM, start_failed);
    alarm(START_SECONDS + (unsigned)timeout_s);
}

static void unguard(void) {
    alarm(0);
    signal(SIGALRM, SIG_DFL);
}

/* ---- beside the collectives -------------------------------------------------------------------
 */

static bool talk_open(Comm *c) {
    Ranks *r = c->own;
    int level;
    MPI_Query_thread(&level);
    if (level != MPI_THREAD_MULTIPLE) return false;
    guard(r->talk.timeout_s);
    MPI_Comm_dup(r->group, &r->beside);
    unguard();
    r->sent = xcalloc((size_t)c->size * MESSAGES, sizeof(MPI_Request));
    r->messages = xcalloc((size_t)c->size * MESSAGES, sizeof(Message));
    for (int i = 0; i < c->size * MESSAGES; i++) r->sent[i] = MPI_REQUEST_NULL;
    return true;
}

static bool talk_send(const Comm *c, int to, const Message *m) {
    Ranks *r = c->own;
    for (int i = to * MESSAGES; i < (to + 1) * MESSAGES; i++) {
        int done;
        MPI_Test(&r->sent[i], &done, MPI_STATUS_IGNORE);
        if (!done) continue;
        r->messages[i] = *m;
        MPI_Isend(&r->messages[i], sizeof *m, MPI_BYTE, to, TAG_MEET, r->beside, &r->sent[i]);
        return true;
    }
    return false;
}

static bool talk_receive(const Comm *c, int *from, Message *m) {
    Ranks *r = c->own;
    int there;
    MPI_Status status;
    MPI_Iprobe(MPI_ANY_SOURCE, TAG_MEET, r->beside, &there, &status);
    if (!there) return false;
    *from = status.MPI_SOURCE;
    MPI_Recv(m, sizeof *m, MPI_BYTE, *from, TAG_MEET, r->beside, MPI_STATUS_IGNORE);
    return true;
}

static void mpi_close(Comm *c) {
    Ranks *r = c->own;
    if (r->group != MPI_COMM_WORLD) MPI_Comm_free(&r->group);
    if (r->started) {
        roll_close();
        MPI_Finalize();
    }
    free(r->sent);
    free(r->messages);
    free(r->theirs);
    free(r->requests);
    free(r->from);
    free(r->to);
    free(r);
    free(c);
}

/* Under mpirun or srun; a program started by hand is a world of its own and needs no MPI. */
static bool launched(void) {
    return getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMIX_RANK") || getenv("PMI_RANK");
}

/* The number in the first of these variables that is set: mpirun's, or PMIx's, PMI's and Slurm's,
 * for srun starts programs without an mpirun. */
static int started(const char *const *names, int otherwise) {
    for (; *names; names++)
        if (getenv(*names)) return atoi(getenv(*names));
    return otherwise;
}

int comm_world_rank(void) {
    static const char *const NAMES[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK",
                                        "SLURM_PROCID", NULL};
    return MAX(0, started(NAMES, 0));
}

int comm_world_size(void) {
    static const char *const NAMES[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS",
                                        NULL};
    return MAX(1, started(NAMES, 1));
}

int comm_local_rank(void) {
    static const char *const NAMES[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", NULL};
    return MAX(0, started(NAMES, 0));
}

/* Slurm's ranks of each host, as "4(x2),3"; those of this one. */
static int slurm_local_size(const char *counts, int host) {
    for (const char *at = counts; *at;) {
        char *end;
        int ranks = (int)strtol(at, &end, 10), hosts = 1;
        if (sscanf(end, "(x%d)", &hosts) != 1) hosts = 1;
        host -= hosts;
        if (host < 0) return ranks;
        at = end + strcspn(end, ",");
        at += *at == ',';
    }
    return 1;
}

int comm_local_size(void) {
    const char *size = getenv("OMPI_COMM_WORLD_LOCAL_SIZE"), *host = getenv("SLURM_NODEID");
    const char *counts = getenv("SLURM_STEP_TASKS_PER_NODE");
    if (size) return MAX(1, atoi(size));
    return counts && host ? MAX(1, slurm_local_size(counts, atoi(host))) : 1;
}

/* Else each of several processes would take itself for the only one. */
static void check_joined(int size) {
    if (size > 1 || comm_world_size() == 1) return;
    die("%d ranks were started, but MPI does not join them: with Slurm, start them with `srun "
        "--mpi=pmix` (see launch/slurm.sbatch), else with Open MPI's own mpirun",
        comm_world_size());
}

static void start_mpi(double timeout_s) {
    int given, size;
    guard(timeout_s);
    MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &given); /* for `beside` and the roll */
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    check_joined(size);
    roll_open(give_up);
    unguard();
}

static Comm *mpi_neighbours(Comm *c, int size);

/* first: of the group, among all ranks. */
static Comm *open_group(MPI_Comm group, int first, double timeout_s, bool started) {
    int size;
    MPI_Comm_size(group, &size);
    Ranks *r = xcalloc(1, sizeof *r);
    *r = (Ranks){.group = group,
                 .talk = {first, timeout_s, talk_open, talk_send, talk_receive, give_up},
                 .theirs = xcalloc((size_t)size, sizeof(Header)),
                 .requests = xcalloc((size_t)size * 2, sizeof(MPI_Request)),
                 .from = xcalloc((size_t)size * PIECE, sizeof(real)),
                 .to = xcalloc((size_t)size * PIECE, sizeof(real)),
                 .started = started};
    Comm *c = xcalloc(1, sizeof *c);
    *c = (Comm){.size = size,
                .name = "mpi",
                .all_gather = mpi_all_gather,
                .reduce_scatter = mpi_reduce_scatter,
                .all_to_all = mpi_all_to_all,
                .neighbours = mpi_neighbours,
                .close = mpi_close,
                .talk = &r->talk,
                .own = r};
    MPI_Comm_rank(group, &c->rank);
    return c;
}

static Comm *mpi_neighbours(Comm *c, int size) {
    Ranks *r = c->own;
    MPI_Comm group;
    guard(r->talk.timeout_s);
    MPI_Comm_split(r->group, c->rank / size, c->rank, &group);
    unguard();
    return open_group(group, r->talk.first + c->rank / size * size, r->talk.timeout_s, false);
}

Comm *comm_world(double timeout_s) {
    if (!launched()) {
        check_joined(1);
        return comm_self();
    }
    int ready;
    MPI_Initialized(&ready);
    if (!ready) start_mpi(timeout_s);
    return open_group(MPI_COMM_WORLD, 0, timeout_s, !ready);
}

void comm_meet(double timeout_s) {
    int met;
    MPI_Initialized(&met);
    if (!met && comm_world_size() > 1) comm_close(comm_world(timeout_s));
}
