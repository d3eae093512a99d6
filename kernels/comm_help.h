/* Open MPI's own help texts, on their way to the user.
 *
 * Up to version 4 a process hands them to mpirun and waits, inside whatever call of MPI it is in,
 * until mpirun has taken them. mpirun does not listen while it ends a job: so a process that met
 * the end of a connection would hear nothing from the other ranks in the second that it has left.
 *
 * Only comm_roll.c includes it.
 */
#pragma once

/* From now on this process writes such texts to stderr itself and does not wait; that a connection
 * ended is not said by it, for the roll of the ranks says whose. Nothing changes where the library
 * is of another kind. */
void help_at_once(void);
