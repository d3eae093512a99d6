/* Processes, told from each other wherever ranks run: on other hosts, in containers with numbers of
 * their own, and under a number that another process had before.
 *
 * Only comm_roll.c and its test include it.
 */
#pragma once

#include "kernels/base.h"

/* As ranks send it to each other; 256 bytes with the two texts of comm_roll.c before it. */
typedef struct {
    char place[112]; /* what its number holds for: the kernel and its namespace; "": not known */
    int64_t number, began; /* began: in the kernel's ticks; 0: not known */
} Process;

Process own_process(void);
/* A descriptor that poll finds readable once p has ended. -1: p is not known to be a process that
 * this one can look at, or the kernel has no such descriptors. */
int process_open(const Process *p);
