/* Suggestions for misspelt names: of configuration keys, tensors, files.
 *
 *     Nearest near = nearest_to("leraning_rate");
 *     for (...) nearest_offer(&near, candidate);
 *     if (near.best) ... "did you mean %s?"
 */
#pragma once

#include "kernels/base.h"

/* Names longer than this are never near anything. */
enum { NEAREST_MAX_CHARS = 255 };

/* Insertions, deletions, substitutions and swaps of neighbours that lead from a to b, in bytes;
 * INT_MAX when a name is too long. */
int edit_distance(const char *a, const char *b);

typedef struct {
    const char *wanted;
    const char *best; /* NULL: nothing near so far. The first offered of equals. */
    int distance;     /* of best; before that, what is too far: beyond a third of the name */
} Nearest;

Nearest nearest_to(const char *wanted);
void nearest_offer(Nearest *n, const char *candidate);

/* The nearest of `count` names, or NULL. */
const char *nearest_name(const char *wanted, const char *const *names, size_t count);
