/* Owns the roll of the ranks, and the threads that call it: one looks at processes and speaks, the
 * other talks to the other ranks, in a library that can keep it when a connection has ended. */
#define _GNU_SOURCE
#include "kernels/comm_roll.h"
#include "kernels/comm_help.h"
#include "kernels/comm_process.h"
#include "kernels/comm_watch.h"

#include <mpi.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TICK_MS = 100, TALK_MS = 50, NAMES_MOST = 8 };
enum { TAG_HERE, TAG_LEAVES };

/* mpirun leaves a rank one second between SIGTERM and SIGKILL. */
static const double CALL_SECONDS = 0.75;
/* A rank that ends by itself may be gone before its message is read. */
static const double SETTLE_SECONDS = 0.1;
/* For Open MPI to read that a connection has ended, before something is to be sent over it. */
static const double NOTICE_SECONDS = 0.15;
static const double DEAF_SECONDS = 0.3;
static const double LEAVE_SECONDS = 1;  /* for the thread that talks to wake */
static const double MPIRUN_SECONDS = 3; /* it ends the job long before, where there is one */

/* 256 bytes, in which programs of other versions can tell each other apart. */
typedef struct {
    char program[64], host[64];
    Process process;
} Entry;

static struct {
    MPI_Comm ranks;
    int rank, size;
    Entry *entry;      /* [size] */
    struct pollfd *fd; /* [size + 1] of the processes of this host; the bell */
    bool *gone;        /* [size] the process has ended */
    _Atomic int *here; /* [size] answers that came, less those that calls used up: one each */
    int bell[2];       /* a pipe: this process was told to end */
    struct sigaction before;
    void (*give_up)(void);
    pthread_t looks, talks;
    _Atomic bool open;
    _Atomic bool calls, told; /* the roll is being called; the others were told */
    _Atomic bool leaves;      /* this rank is at its end */
    _Atomic bool left;        /* it or another is, and no more is said */
    _Atomic bool over;        /* of the thread that talks */
    _Atomic int turns;        /* of that thread, which may be kept in MPI */
} roll;

/* ---- who is who -------------------------------------------------------------------------------
 */

static Entry own_entry(void) {
    Entry e = {.process = own_process()};
    snprintf(e.program, sizeof e.program, "%s", own_program());
    gethostname(e.host, sizeof e.host - 1);
    return e;
}

/* Where a rank was started to do something else: the first that was. */
static void compare_programs(void) {
    const Entry *first = &roll.entry[0];
    int other = 1;
    while (other < roll.size && !strcmp(roll.entry[other].program, first->program)) other++;
    if (other == roll.size) return;
    if (!roll.rank)
        fprintf(stderr,
                "cogsmith: rank %d on %.63s was started as `%.63s`, and rank 0 on %.63s as "
                "`%.63s`: all ranks need the same program and verb. The job ends\n",
                other, roll.entry[other].host, roll.entry[other].program, first->host,
                first->program);
    MPI_Barrier(roll.ranks); /* no rank is gone before it is said */
    exit(EXIT_USER);
}

static void watch_processes(void) {
    const Entry *mine = &roll.entry[roll.rank];
    for (int i = 0; i < roll.size; i++) {
        const Entry *e = &roll.entry[i];
        bool near = i != roll.rank && !strcmp(e->host, mine->host);
        int fd = near ? process_open(&e->process) : -1;
        roll.fd[i] = (struct pollfd){.fd = fd, .events = POLLIN}; /* -1: is not looked at */
    }
}

/* ---- talking to the others --------------------------------------------------------------------
 */

static void tell_all(int tag) {
    for (int i = 0; i < roll.size; i++) {
        MPI_Request request;
        if (i == roll.rank) continue;
        MPI_Isend(NULL, 0, MPI_BYTE, i, tag, roll.ranks, &request);
        MPI_Request_free(&request);
    }
}

/* false: another rank leaves, and has said why if there was something to say. */
static bool hear(void) {
    MPI_Status s;
    for (int there = 1; there;) {
        MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, roll.ranks, &there, &s);
        if (!there) break;
        MPI_Recv(NULL, 0, MPI_BYTE, s.MPI_SOURCE, s.MPI_TAG, roll.ranks, MPI_STATUS_IGNORE);
        if (s.MPI_TAG == TAG_LEAVES) return false;
        if (++roll.here[s.MPI_SOURCE] > 0) roll.calls = true; /* else it comes late */
    }
    return true;
}

static void *talk(void *unused) {
    (void)unused;
    double idle = now_seconds(); /* when it was last seen that nobody calls */
    while (!roll.leaves && hear()) {
        roll.turns++;
        if (!roll.calls) idle = now_seconds();
        if (roll.calls && !roll.told && now_seconds() > idle + NOTICE_SECONDS) {
            tell_all(TAG_HERE);
            roll.told = true;
        }
        usleep(roll.calls && !roll.left ? 200 : 1000 * TALK_MS);
    }
    roll.left = true;
    if (roll.leaves) tell_all(TAG_LEAVES);
    roll.over = true;
    return NULL;
}

/* ---- the call ---------------------------------------------------------------------------------
 */

static int look(int milliseconds) {
    int gone = 0;
    poll(roll.fd, (nfds_t)roll.size + 1, milliseconds);
    for (int i = 0; i < roll.size; i++) {
        if (roll.fd[i].revents) roll.gone[i] = true;
        gone += roll.gone[i];
    }
    return gone;
}

static bool answers(int rank) {
    return rank == roll.rank || (roll.here[rank] > 0 && !roll.gone[rank]);
}

/* A silence says nothing of a process that is seen to be there, for its machine may be busy; nor
 * where this rank could not listen, but among two. */
static bool is_silent(int rank, bool deaf) {
    bool seen = roll.fd[rank].fd >= 0, heard = !deaf || roll.size == 2;
    return !answers(rank) && (roll.gone[rank] || (!seen && heard));
}

/* Calls the roll. Returns how many do not answer; -1: a rank leaves. */
static int call(bool *deaf) {
    double start = now_seconds(), heard = start;
    int silent = 0, turns = -1;
    roll.calls = true;
    for (int unknown = 1;; usleep(5000)) {
        double now = now_seconds();
        if (roll.left || roll.leaves) return -1;
        if (turns != roll.turns) heard = now;
        turns = roll.turns;
        *deaf = now - heard > DEAF_SECONDS;
        look(0);
        silent = unknown = 0;
        for (int i = 0; i < roll.size; i++) {
            silent += is_silent(i, *deaf);
            unknown += !answers(i) && !roll.gone[i];
        }
        bool all = !unknown && (silent ? now - start > SETTLE_SECONDS : roll.told);
        if (all || now - start > CALL_SECONDS) return silent;
    }
}

/* Where all were there: the next call begins anew. */
static void end_call(void) {
    bool again = false; /* one that was quicker calls already */
    roll.calls = false;
    roll.told = false;
    for (int i = 0; i < roll.size; i++)
        if (i != roll.rank && --roll.here[i] > 0) again = true;
    if (again) roll.calls = true;
}

/* "rank 1 (process 12 on b), rank 2 ..." */
static void list_silent(char *text, size_t room, bool gone, bool deaf) {
    int n = 0;
    size_t at = 0;
    *text = 0;
    for (int i = 0; i < roll.size && at + 1 < room; i++) {
        if (!is_silent(i, deaf) || roll.gone[i] != gone) continue;
        if (n++ == NAMES_MOST) snprintf(text + at, room - at, " and more");
        if (n > NAMES_MOST) break;
        snprintf(text + at, room - at, "%srank %d (process %lld on %.63s)", n > 1 ? ", " : "", i,
                 (long long)roll.entry[i].process.number, roll.entry[i].host);
        at += strlen(text + at);
    }
}

/* The first of those that answer speaks. */
static void say_silent(bool deaf) {
    char gone[1000], silent[1000];
    for (int i = 0; i < roll.rank; i++)
        if (answers(i)) return;
    list_silent(gone, sizeof gone, true, deaf);
    list_silent(silent, sizeof silent, false, deaf);
    say_gone(gone, silent, roll.rank);
}

/* ---- the threads ------------------------------------------------------------------------------
 */

/* Only what a signal handler may do. */
static void told(int number) {
    int saved = errno;
    ssize_t written = write(roll.bell[1], "", 1);
    (void)written;
    errno = saved;
    if (roll.before.sa_handler != SIG_DFL) roll.before.sa_handler(number);
}

/* Where nobody else asked for the signal, the process ends by it, once the roll is called. */
static void catch_term(void) {
    sigaction(SIGTERM, NULL, &roll.before);
    if (roll.before.sa_handler == SIG_IGN || roll.before.sa_flags & SA_SIGINFO) return;
    struct sigaction action = roll.before;
    action.sa_handler = told;
    if (roll.before.sa_handler == SIG_DFL) action.sa_flags = (int)(SA_RESETHAND | SA_RESTART);
    sigaction(SIGTERM, &action, NULL);
}

/* Whether this process was told to end since it was last asked. */
static bool was_told(void) {
    char byte;
    return read(roll.bell[0], &byte, 1) == 1;
}

static void stand_down(bool was) {
    struct sigaction now;
    sigaction(SIGTERM, NULL, &now);
    if (now.sa_handler == told) sigaction(SIGTERM, &roll.before, NULL);
    if ((was || was_told()) && roll.before.sa_handler == SIG_DFL) kill(getpid(), SIGTERM);
}

/* A rank is gone for certain; this process ends here, by mpirun's hand or its own. */
static void end_job(bool was) {
    if (was && roll.before.sa_handler == SIG_DFL) return; /* by its SIGTERM */
    usleep((useconds_t)(1e6 * MPIRUN_SECONDS));
    roll.give_up();
}

static void *keep(void *unused) {
    (void)unused;
    bool was = false, deaf;
    for (bool good = true; good;) {
        bool gone = look(TICK_MS) > 0;
        good = !roll.left && !roll.leaves;
        was |= was_told();
        if (!good || !(gone || was || roll.calls)) continue;
        int silent = call(&deaf);
        if (silent > 0) say_silent(deaf);
        if (silent > 0 && look(0)) end_job(was);
        good = !silent && !(was && roll.before.sa_handler == SIG_DFL);
        if (!good) continue;
        was = false; /* the program stops by itself */
        end_call();
    }
    roll.left = true;
    stand_down(was);
    return NULL;
}

void roll_leave(void) {
    if (!roll.open || atomic_exchange(&roll.leaves, true)) return;
    for (double end = now_seconds() + LEAVE_SECONDS; !roll.over && now_seconds() < end;)
        usleep(1000);
}

/* Signals are the program's own thread's. */
static bool start_threads(void) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = !pthread_create(&roll.looks, NULL, keep, NULL) &&
                   !pthread_create(&roll.talks, NULL, talk, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

void roll_open(void (*give_up)(void)) {
    int level;
    MPI_Comm_dup(MPI_COMM_WORLD, &roll.ranks);
    MPI_Comm_rank(roll.ranks, &roll.rank);
    MPI_Comm_size(roll.ranks, &roll.size);
    Entry mine = own_entry();
    roll.entry = xcalloc((size_t)roll.size, sizeof *roll.entry);
    MPI_Allgather(&mine, sizeof mine, MPI_BYTE, roll.entry, sizeof mine, MPI_BYTE, roll.ranks);
    compare_programs();
    MPI_Query_thread(&level);
    if (roll.size == 1 || level != MPI_THREAD_MULTIPLE) return;
    help_at_once();
    roll.give_up = give_up;
    roll.fd = xcalloc((size_t)roll.size + 1, sizeof *roll.fd);
    roll.gone = xcalloc((size_t)roll.size, sizeof *roll.gone);
    roll.here = xcalloc((size_t)roll.size, sizeof *roll.here);
    CHECK(!pipe2(roll.bell, O_CLOEXEC | O_NONBLOCK), "no pipe: %s", strerror(errno));
    roll.fd[roll.size] = (struct pollfd){.fd = roll.bell[0], .events = POLLIN};
    watch_processes();
    catch_term();
    CHECK(start_threads(), "no threads for the roll of ranks");
    roll.open = true;
    atexit(roll_leave); /* no thread may be in a library that is taken down */
}

void roll_close(void) {
    if (!roll.open) return;
    roll_leave();
    pthread_join(roll.talks, NULL);
    pthread_join(roll.looks, NULL);
    roll.open = false;
    for (int i = 0; i < roll.size; i++)
        if (roll.fd[i].fd >= 0) close(roll.fd[i].fd);
    close(roll.bell[0]);
    close(roll.bell[1]);
    free(roll.entry);
    free(roll.fd);
    free(roll.gone);
    free(roll.here);
}
