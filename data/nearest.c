/* Owns the edit distance (optimal string alignment) and the search for the nearest name. */
#include "data/nearest.h"

#include <limits.h>
#include <string.h>

int edit_distance(const char *a, const char *b) {
    size_t n_a = strlen(a), n_b = strlen(b);
    if (n_a > NEAREST_MAX_CHARS || n_b > NEAREST_MAX_CHARS) return INT_MAX;
    int rows[3][NEAREST_MAX_CHARS + 1]; /* of the distance table: before last, last, this */
    int *before = rows[0], *last = rows[1], *row = rows[2];
    for (size_t j = 0; j <= n_b; j++) last[j] = (int)j;
    for (size_t i = 1; i <= n_a; i++) {
        row[0] = (int)i;
        for (size_t j = 1; j <= n_b; j++) {
            row[j] = MIN(MIN(last[j], row[j - 1]) + 1, last[j - 1] + (a[i - 1] != b[j - 1]));
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped) row[j] = MIN(row[j], before[j - 2] + 1);
        }
        int *spare = before;
        before = last, last = row, row = spare;
    }
    return last[n_b];
}

Nearest nearest_to(const char *wanted) {
    return (Nearest){.wanted = wanted, .distance = (int)MIN(strlen(wanted) / 3, 100) + 2};
}

void nearest_offer(Nearest *n, const char *candidate) {
    int distance = edit_distance(n->wanted, candidate);
    if (distance >= n->distance) return;
    n->distance = distance;
    n->best = candidate;
}

const char *nearest_name(const char *wanted, const char *const *names, size_t count) {
    Nearest n = nearest_to(wanted);
    for (size_t i = 0; i < count; i++) nearest_offer(&n, names[i]);
    return n.best;
}
