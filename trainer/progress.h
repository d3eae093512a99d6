/* Long work shown on stderr: a live bar on a terminal, plain lines at intervals otherwise, with the
 * rate and the time that is left.
 *
 *     Progress *p = progress_open("sampling", "steps", 0, 50);
 *     for (int i = 0; i < 50; i++) {
 *         ...
 *         progress_set(p, i + 1, NULL);
 *     }
 *     progress_close(p);
 *
 * The bar is there at once; lines come after ten seconds, then once a minute. progress_close leaves
 * one line that says what was done in which time. Of several ranks only the first one shows it; the
 * others have NULL, which is right for every function here.
 */
#pragma once

#include "kernels/base.h"

typedef struct Progress Progress;

/* what: "encoding"; unit: "clips", of which `done` are done before the work begins (an earlier run
 * did them; they do not count for the rate) and `total` are to be done; total 0: not known. */
Progress *progress_open(const char *what, const char *unit, double done, double total);
/* note: what else to show, "loss 0.137"; NULL: nothing. */
void progress_set(Progress *p, double done, const char *note);
/* Prints a line of its own without tearing the bar. */
void progress_say(Progress *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Ends the bar and frees it. */
void progress_close(Progress *p);
