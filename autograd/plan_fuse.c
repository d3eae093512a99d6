/* The pass that makes one step of two nodes' work, where the op of the first can do the second's.
 *
 * Forward, the second node reads the first's output and stands right behind it, wherever either of
 * them is computed; so that recomputation gives the same bits, a step for the first alone becomes
 * one of both, too. Backward, the first node assigns the gradient that the second alone reads; its
 * step waits until that of the second, before which what that reads is there.
 */
#include "autograd/plan.h"

#include <stdlib.h>
#include <string.h>

static bool computes(const Step *s) { return s->phase == FORWARD || s->phase == RECOMPUTE; }

/* ---- forward ----------------------------------------------------------------------------------
 */

/* The node before which `then` could be done; NULL: there is none. */
static Node *first_of(const Node *then) {
    const Tensor *x = then->in[0];
    Node *n = x && !x->base ? x->from : NULL;
    bool may = n && n->op->fuses && n->segment == then->segment && n->op->fuses(n, then, FORWARD);
    return may ? n : NULL;
}

/* By id of the first node: the second, where all its steps stand right behind one of the first. */
static Node **find_pairs(const Plan *p) {
    const Graph *g = p->graph;
    Node **second = xcalloc((size_t)g->n_nodes + 1, sizeof *second);
    for (int i = 0; i < g->n_nodes; i++) {
        const Node *n = first_of(g->nodes[i]);
        if (n && !second[n->id]) second[n->id] = g->nodes[i];
    }
    for (int i = 0; i < p->n_steps; i++) {
        const Step *s = &p->steps[i], *before = i ? s - 1 : s;
        const Node *n = s->node && computes(s) ? first_of(s->node) : NULL;
        if (n && second[n->id] == s->node && (before->node != n || before->phase != s->phase))
            second[n->id] = NULL;
    }
    return second;
}

static void fuse_forward(Plan *p) {
    Node **second = find_pairs(p);
    int n = 0;
    for (int i = 0; i < p->n_steps; i++) {
        Step s = p->steps[i];
        if (s.node && computes(&s)) s.then = second[s.node->id];
        bool both = s.then && i + 1 < p->n_steps && p->steps[i + 1].node == s.then &&
                    p->steps[i + 1].phase == s.phase;
        p->steps[n++] = s;
        i += both;
    }
    p->n_steps = n;
    free(second);
}

/* ---- backward ---------------------------------------------------------------------------------
 */

/* The step before step j, a BACKWARD one, which assigns the gradient that it reads, and can do its
 * work; -1: there is none. No other step is between them, so that it is the whole gradient; and it
 * may be done after what is recomputed between them, which is nothing that a backward step reads
 * already. */
static int giver(const Plan *p, int j) {
    const Step *s = &p->steps[j], *from;
    int i = j - 1;
    while (i >= 0 && p->steps[i].phase == RECOMPUTE) i--;
    if (i < 0 || s->node->out[0]->base) return -1;
    from = &p->steps[i];
    if (from->phase != BACKWARD || from->then || !(from->first & s->first & IN(0))) return -1;
    const Node *n = from->node;
    bool may = n->segment == s->node->segment && n->op->fuses && n->op->fuses(n, s->node, BACKWARD);
    return may ? i : -1;
}

static void fuse_backward(Plan *p) {
    for (int j = 0; j < p->n_steps; j++) {
        if (p->steps[j].phase != BACKWARD) continue;
        int i = giver(p, j);
        if (i < 0) continue;
        Step both = p->steps[i];
        both.then = p->steps[j].node;
        p->steps[j] = both;
        memmove(&p->steps[i], &p->steps[i + 1], (size_t)(--p->n_steps - i) * sizeof both);
        j--;
    }
}

/* ---- what is wanted ---------------------------------------------------------------------------
 */

static void note_read(Tensor *t, bool define, void *arg) {
    bool *read = arg;
    read[tensor_root(t)->id] |= !define;
}

static void note_define(Tensor *t, bool define, void *arg) {
    bool *read = arg;
    if (define && t->role == ROLE_VALUE && !t->base) read[t->id] = false;
}

/* From the last step on: which values the steps behind read before they are computed again. */
static void find_wanted(Plan *p) {
    const Graph *g = p->graph;
    bool *read = xcalloc((size_t)g->n_tensors, sizeof *read);
    for (int i = 0; i < g->n_tensors; i++) read[i] = g->tensors[i]->output;
    for (int i = p->n_steps - 1; i >= 0; i--) {
        Step *s = &p->steps[i];
        if (s->then && computes(s))
            s->wanted = (read[s->node->out[0]->id] ? WANTED_NODE : 0) |
                        (read[s->then->out[0]->id] ? WANTED_THEN : 0);
        step_touch(p, s, note_define, read);
        step_touch(p, s, note_read, read);
    }
    free(read);
}

void plan_fuse(Plan *p) {
    fuse_forward(p);
    fuse_backward(p);
    find_wanted(p);
}
