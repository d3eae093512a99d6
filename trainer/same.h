/* Ranks compare what they were started with. Ranks of different programs, configurations or data
 * would compute numbers that belong to no run; they are refused before the first step. */
#pragma once

#include "kernels/comm.h"
#include "trainer/config.h"

/* Every rank has the same text as rank 0; else rank 0 says which rank is the first that has not,
 * of `what` ("configuration"), with the first line that differs, and all ranks end (exit 2). Every
 * rank must call it. */
void ranks_agree(Comm *c, const char *what, const char *text);

/* The same program, to the byte, and the same configuration, what the planner chose included: the
 * first thing that ranks do together. */
void ranks_agree_to_start(Comm *c, const Config *config);
