/* Ranks compare what they were started with. Ranks of different programs, configurations or data
 * would compute numbers that belong to no run; they are refused before the first step. */
#pragma once

#include "kernels/comm.h"
#include "trainer/config.h"

/* What this process was started as, for the ranks' first meeting: version and digest of the
 * program, and the verb. Ranks of another are refused there, named. */
void ranks_program(const char *verb);

/* Every rank has the same text as rank 0; else rank 0 says which rank is the first that has not,
 * of `what` ("configuration"), with the first line that differs, and all ranks end (exit 2). Every
 * rank must call it. */
void ranks_agree(Comm *c, const char *what, const char *text);

/* The least of what the ranks have; every rank must call it. */
int64_t ranks_least(Comm *c, Stream *s, int64_t mine);

/* The same configuration: the first thing that ranks of `train` do together. */
void ranks_agree_to_start(Comm *c, const Config *config);
