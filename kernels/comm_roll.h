/* The roll of the ranks: which processes they are, what they were started to do, and who of them
 * is gone.
 *
 * Two threads sleep beside the program. They wake where a process of this host ends, or where this
 * one is told to end (SIGTERM, which mpirun sends to all that are left when one has died): then
 * they call the roll among the threads of all ranks. Of those that answer the first says, in one
 * line for the job, who is gone, and at which collective and step itself is. Where all answer, or
 * are seen to be there, nothing is said, and a request to stop is what it always was.
 *
 * Only comm_mpi.c includes it.
 */
#pragma once

#include "kernels/base.h"

/* Of all ranks; collective. Ranks that were started to do something else than rank 0 (comm_program)
 * end the program here (exit 2), named. give_up ends the job. */
void roll_open(void (*give_up)(void));
/* From now on this rank may be gone: it is at its end, or has said why it ends. The other threads
 * then say nothing more. */
void roll_leave(void);
/* Before MPI ends. */
void roll_close(void);
