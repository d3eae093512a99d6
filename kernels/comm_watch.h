/* What the groups of ranks share: how ranks tell what they came for, the words in which one that
 * did not come is named, and the watch over collectives that run on a device. Only
 * kernels/comm*.c, nccl_library.c and their tests include it.
 */
#pragma once

#include "kernels/comm.h"

/* What a rank says when it comes to a collective; kind is a CommKind or one of these. */
enum { COMM_START = COMM_KINDS, COMM_END, COMM_NAMES };
typedef struct {
    int64_t number, kind, type, count;
} Header;

/* One line each on stderr. Ranks are given by their number among all; `me` is the one that says
 * it. */
void say_missing(int rank, const Header *h, double timeout_s, int me);
void say_apart(int me, const Header *mine, int other, const Header *theirs);
void say_unfinished(int me, const Header *h, double timeout_s);
/* gone, silent: which ranks' processes have ended, and which do not answer otherwise; "": none. */
void say_gone(const char *gone, const char *silent, int me);

/* This rank comes to a collective: the last one that say_gone tells of. */
void came_to(const Header *h);
/* See comm_program; "": it was not told. */
const char *own_program(void);

/* ---- messages beside the collectives ----------------------------------------------------------
 */

/* Small enough to be sent at once. */
enum { MESSAGE_HEADERS = 60 };
typedef struct {
    int64_t says, n;
    Header header[MESSAGE_HEADERS];
} Message;

/* open is a collective; then one thread, any, may send and receive. */
struct Talk {
    int first; /* the number among all ranks of the group's first */
    double timeout_s;
    bool (*open)(Comm *c); /* false: the implementation knows no threads */
    bool (*send)(const Comm *c, int to, const Message *m); /* false: too many are on their way */
    bool (*receive)(const Comm *c, int *from, Message *m); /* false: there is none */
    void (*give_up)(void); /* ends the job: this process and those of the other ranks */
};

/* ---- the watch --------------------------------------------------------------------------------
 *
 * Collectives on a device are queued, and wait there for the other ranks; the program goes on, and
 * then waits for the device in places of all kinds. So threads look at what is queued:
 *   - Ten times a second it tells the next rank which collectives this one came to, and compares
 *     those of the rank before: ranks that went apart are named, soon after, for NCCL itself may
 *     take what does not fit together.
 *   - A collective whose turn has come on the device and that does not end within the deadline:
 *     it asks every rank how far it is. Who does not answer is named; if all do, those whose device
 *     has not come there; if there are none, the link is too slow.
 *   - The library says that a link broke: the same, at once.
 * Whatever it finds ends the job.
 */
typedef struct Watch Watch;

/* Of a queued call: its turn has not come, it runs, it is over. */
typedef enum { CALL_AHEAD, CALL_RUNS, CALL_OVER } CallState;

enum { WATCH_SLOTS = 64 };

/* What is watched; each is called by a thread of the watch. */
typedef struct {
    void *context;
    void (*enter)(void *context); /* first of all */
    CallState (*state)(void *context, int slot);
    bool (*works)(void *context, Error *e); /* false: broken, and *e says how */
    void (*abandon)(void *context);         /* before the job ends */
} Watched;

/* Collective where ranks->talk is not NULL. NULL: its MPI knows no threads. */
Watch *watch_open(Comm *ranks, const Watched *what);
/* This rank comes to a collective, of the next number: returns where it is kept, below WATCH_SLOTS.
 * Waits while the WATCH_SLOTS before it are not over. */
int watch_begin(Watch *w, Header h);
/* All of its work is queued. */
void watch_queued(Watch *w, int slot);
/* It is over, and nothing was queued. */
void watch_over(Watch *w, int slot);
/* Returns when every call is over. */
void watch_drain(Watch *w);
/* The program cannot go on: says so, and ends the job. */
NORETURN void watch_fail(Watch *w, const Error *e);
/* Collective; no call is under way. */
void watch_close(Watch *w);

/* ---- implementations --------------------------------------------------------------------------
 */

/* See comm_over: of one rank; of any number. */
Comm *comm_cuda(Comm *ranks, const Backend *k);
Comm *comm_nccl(Comm *ranks, const Backend *k);
/* Whether p is memory of a GPU. */
bool cuda_holds(const void *p);
