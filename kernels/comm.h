/* Ranks: a group of processes, and the collectives among them.
 *
 * Every rank of a group calls the same collectives in the same order with the same counts. Sums are
 * formed in rank order, x_0 + x_1 + ... + x_{n-1}, so the result does not depend on timing or on
 * the way the messages take. Pointers are memory of the backend in use, its device's or the
 * host's; counts are elements. On a device a collective is queued on the stream, and one of host
 * memory is over at return.
 *
 *   self       one rank; nothing moves
 *   mpi        Open MPI, for ranks on CPUs                       (comm_mpi.c)
 *   cuda       one rank, on device memory                        (comm_cuda.c)
 *   nccl       NCCL, for ranks on GPUs; started over mpi         (comm_nccl.c)
 *   recording  moves nothing and counts what it would send, for plans of any number of ranks
 *
 * What goes wrong between ranks ends the job: a rank that does not come to a collective within the
 * deadline is named, with the collective and its place in the order, and every rank exits (1). One
 * whose process ends is named at once (comm_roll.h). A group may be a part of another: ranks are
 * named by their number among all.
 */
#pragma once

#include "kernels/kernels.h"

typedef struct Comm Comm;
typedef struct Talk Talk; /* comm_watch.h */

/* [from, from + count) of a row of things. */
typedef struct {
    int64_t from, count;
} Range;

typedef enum { COMM_ALL_GATHER, COMM_REDUCE_SCATTER, COMM_ALL_TO_ALL, COMM_KINDS } CommKind;

struct Comm {
    int rank, size;
    const char *name;
    bool recording; /* the other ranks are not there: what they hold is not known */
    /* all[r * count + i] = rank r's mine[i]; mine may be this rank's own place in all. */
    void (*all_gather)(Comm *c, Stream *s, DType type, int64_t count, const void *mine, void *all);
    /* mine[i] = sum over r, in order, of rank r's all[rank * count + i]; mine may be its own place
     * in all, whose other contents are lost. */
    void (*reduce_scatter)(Comm *c, Stream *s, int64_t count, real *all, real *mine);
    /* Block r of `from` (count elements) goes to rank r, into block `rank` of its `to`. */
    void (*all_to_all)(Comm *c, Stream *s, DType type, int64_t count, const void *from, void *to);
    Comm *(*neighbours)(Comm *c, int size);
    void (*close)(Comm *c);
    int64_t sent_bytes[COMM_KINDS]; /* to other ranks, since the group was opened */
    int64_t calls;                  /* collectives so far: the place in the order */
    const Backend *k; /* whose device memory it moves; NULL: the host's memory alone */
    const Talk *talk; /* messages beside the collectives; NULL: there are none */
    void *own;        /* of the implementation */
};

/* What this program was started as, in 63 bytes ("cogsmith 1.2.3 train"), said before ranks meet:
 * ranks that were started as different things are refused then. */
void comm_program(const char *what);

/* Which optimizer step collectives belong to from now on, for what is said when one goes wrong; 0:
 * none, as at first. */
void comm_at_step(int64_t step);

Comm *comm_self(void);
/* The ranks that mpirun or srun started, or one. timeout_s: the deadline of a collective. */
Comm *comm_world(double timeout_s);
/* Meets the other ranks where this one has not, for they would wait for it: before its end. */
void comm_meet(double timeout_s);
/* How many ranks were started, known before they meet; 1: none. */
int comm_world_size(void);
/* Which of them this one is. */
int comm_world_rank(void);
/* The same of those on this machine, and which of them this one is. */
int comm_local_size(void);
int comm_local_rank(void);
/* Rank `rank` of `size` ranks that are not there. */
Comm *comm_recording(int rank, int size);
void comm_close(Comm *c);

/* The same ranks as a group that moves device memory of backend k, which is open: `ranks` itself
 * for the CPU, and for ranks that are not there. The new group owns `ranks`. Ends the program
 * (exit 1) where several ranks have no NCCL. */
Comm *comm_over(Comm *ranks, const Backend *k);

/* Whether NCCL is there and as new as this program needs, and its version as text; false: *e says
 * what is missing. */
bool nccl_library(char version[16], Error *e);

/* The group of `size` neighbours that this rank is in: ranks k * size .. k * size + size - 1 of c,
 * whose size it divides. */
Comm *comm_neighbours(Comm *c, int size);

/* Which of so many rows are rank `rank`'s, when the ranks share them evenly. */
Range comm_part(const Comm *c, int rank, int64_t rows);

/* x[i] = sum over ranks; count is a multiple of size. A reduce_scatter and an all_gather. */
void comm_sum(Comm *c, Stream *s, int64_t count, real *x);
