/* The pass that parks activations: what the backward half reads from the forward half goes to host
 * memory in between. Where the device and the host are one memory this saves nothing; it is the
 * same list of steps everywhere. */
#include "autograd/plan.h"

#include <stdlib.h>

enum { ALIGN = 256 };

/* A value's last use in the forward half and its first in the backward half; -1: none. */
typedef struct {
    int last, first;
    bool defined; /* the first use in the backward half writes it: it is recomputed */
} Crossing;

typedef struct {
    Crossing *crossing; /* by tensor id */
    int step;
    bool backward;
} Scan;

static void note(Tensor *t, bool define, void *arg) {
    Scan *s = arg;
    const Tensor *root = tensor_root(t);
    Crossing *c = &s->crossing[root->id];
    if (!s->backward) {
        c->last = s->step;
    } else if (c->first < 0) {
        c->first = s->step;
        c->defined = define;
    }
}

static int last_segment(const Graph *g) {
    int last = 0;
    for (int i = 0; i < g->n_nodes; i++) last = MAX(last, g->nodes[i]->segment);
    return last;
}

static bool parks(const Tensor *t, const Crossing *c, int last) {
    bool crosses = c->last >= 0 && c->first >= 0 && !c->defined;
    return crosses && t->role == ROLE_VALUE && !t->base && !t->output && !t->resident &&
           t->from->segment < last;
}

void plan_stash(Plan *p) {
    const Graph *g = p->graph;
    Scan s = {.crossing = xcalloc((size_t)g->n_tensors, sizeof *s.crossing)};
    for (int i = 0; i < g->n_tensors; i++) s.crossing[i] = (Crossing){-1, -1, false};
    for (s.step = 0; s.step < p->n_steps; s.step++) {
        Phase phase = p->steps[s.step].phase;
        s.backward |= phase == BACKWARD || phase == RECOMPUTE;
        step_touch(p, &p->steps[s.step], note, &s);
    }
    Insert *in = xcalloc((size_t)g->n_tensors * 2, sizeof *in);
    int n = 0, last = last_segment(g);
    for (int i = 0; i < g->n_tensors; i++) {
        Tensor *t = g->tensors[i];
        const Crossing *c = &s.crossing[i];
        if (!parks(t, c, last)) continue;
        Step step = {.phase = STASH, .bucket = -1, .parked = t, .host_offset = p->host_bytes};
        in[n++] = (Insert){c->last + 1, i, step};
        step.phase = FETCH;
        in[n++] = (Insert){c->first, i, step};
        p->host_bytes += align_up((int64_t)tensor_bytes(t), ALIGN);
    }
    plan_merge(p, in, n);
    free(in);
    free(s.crossing);
}
