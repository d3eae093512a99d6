/* The pass of homes: GATHER brings a bucket to the steps that read it, REDUCE takes its gradient to
 * where gradients accumulate. What already rests where and as steps want it is a pointer: no step.
 */
#include "autograd/plan.h"

#include <stdlib.h>

/* The steps that touch one root tensor, in the forward half and after it; -1: none. */
typedef struct {
    int forward_first, forward_last, backward_first, backward_last;
} Uses;

typedef struct {
    const Graph *graph;
    Uses *copy, *grad; /* by bucket */
    int step;
    bool backward;
} Scan;

static void note(Uses *u, int step, bool backward) {
    int *first = backward ? &u->backward_first : &u->forward_first;
    int *last = backward ? &u->backward_last : &u->forward_last;
    if (*first < 0) *first = step;
    *last = step;
}

static void scan_visit(Tensor *t, bool define, void *arg) {
    (void)define;
    Scan *scan = arg;
    const Tensor *root = tensor_root(t);
    const Graph *g = scan->graph;
    for (int b = 0; g->params && b < g->params->n_buckets; b++) {
        if (root == g->bucket[b]) note(&scan->copy[b], scan->step, scan->backward);
        if (root == g->bucket_grad[b]) note(&scan->grad[b], scan->step, scan->backward);
    }
}

static Scan scan_steps(const Plan *p, int n_buckets) {
    Scan scan = {.graph = p->graph,
                 .copy = xcalloc((size_t)n_buckets, sizeof(Uses)),
                 .grad = xcalloc((size_t)n_buckets, sizeof(Uses))};
    for (int b = 0; b < n_buckets; b++) scan.copy[b] = scan.grad[b] = (Uses){-1, -1, -1, -1};
    for (scan.step = 0; scan.step < p->n_steps; scan.step++) {
        scan.backward |= p->steps[scan.step].phase != FORWARD;
        step_touch(p, &p->steps[scan.step], scan_visit, &scan);
    }
    return scan;
}

static bool travels(const Graph *g, int b) { return g->bucket[b] && !g->bucket[b]->resident; }

/* True where some other travelling bucket is used between b's last forward and first backward use.
 */
static bool evicted(const Graph *g, const Uses *copy, int b) {
    for (int o = 0; o < g->params->n_buckets; o++) {
        if (o == b || !travels(g, o)) continue;
        const Uses *u = &copy[o];
        if (u->forward_last > copy[b].forward_last) return true;
        if (u->backward_first >= 0 && u->backward_first < copy[b].backward_first) return true;
    }
    return false;
}

/* What to insert before which old step. */
typedef struct {
    int before, order;
    Step step;
} Insert;

static int insert_order(const void *x, const void *y) {
    const Insert *a = x, *b = y;
    return a->before != b->before ? (a->before > b->before) - (a->before < b->before)
                                  : (a->order > b->order) - (a->order < b->order);
}

static void merge(Plan *p, Insert *in, int n) {
    qsort(in, (size_t)n, sizeof *in, insert_order);
    Step *steps = xcalloc((size_t)(p->n_steps + n), sizeof *steps);
    int at = 0;
    for (int i = 0, j = 0; i <= p->n_steps; i++) {
        while (j < n && in[j].before == i) steps[at++] = in[j++].step;
        if (i < p->n_steps) steps[at++] = p->steps[i];
    }
    free(p->steps);
    p->steps = steps;
    p->n_steps = at;
}

void plan_homes(Plan *p, int accumulate) {
    p->accumulate = accumulate;
    Graph *g = p->graph;
    if (!g->params) return;
    bool reduces = accumulate > 1 || params_world(g->params) > 1;
    int n_buckets = g->params->n_buckets, n = 0;
    Scan scan = scan_steps(p, n_buckets);
    Insert *in = xcalloc((size_t)n_buckets * 3, sizeof *in);
    for (int b = 0; b < n_buckets; b++) {
        Step gather = {.phase = GATHER, .bucket = b}, reduce = {.phase = REDUCE, .bucket = b};
        const Uses *u = &scan.copy[b];
        if (travels(g, b)) {
            bool forward = u->forward_first >= 0, backward = u->backward_first >= 0;
            if (forward) in[n++] = (Insert){u->forward_first, b, gather};
            if (backward && (!forward || evicted(g, scan.copy, b)))
                in[n++] = (Insert){u->backward_first, b, gather};
        }
        if (!g->bucket_grad[b]) continue;
        g->bucket_grad[b]->resident = !reduces;
        if (reduces) in[n++] = (Insert){scan.grad[b].backward_last + 1, n_buckets + b, reduce};
    }
    merge(p, in, n);
    free(in);
    free(scan.copy);
    free(scan.grad);
}
