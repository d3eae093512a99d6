/* The recomputation pass: before a backward step, the forward steps whose values it reads and which
 * the segment's policy did not keep. Executing a node again redefines its outputs, so the first
 * life of each ends at its last forward use by itself; nothing is ever dropped by hand.
 *
 * Steps come as late as possible: the feed-forward half of a block is computed again and
 * differentiated before the attention half is computed again. A cheap value on the way to another
 * one is not held until its own reader comes, but computed once more then. */
#include "autograd/plan.h"

#include <stdlib.h>

enum { NEVER = -1, FOR_GOOD = -2 };

typedef struct {
    Plan *out;
    const Recompute *policy;
    int *computed; /* by node id: NEVER, FOR_GOOD, or for one backward step alone: its index */
    int step;      /* the backward step that is served now */
} Pass;

static bool kept(const Pass *a, const Node *n, int segment) {
    if (n->segment != segment || a->policy[segment] == RECOMPUTE_NONE) return true;
    return a->policy[segment] == RECOMPUTE_SELECTIVE && n->op->expensive;
}

static void append(Plan *p, Step s) { plan_insert(p, p->n_steps, s); }

/* direct: the backward step itself reads t, not just another recomputation. */
static void ensure(Pass *a, const Tensor *t, int segment, bool direct) {
    Node *n = tensor_root((Tensor *)t)->from;
    if (!n || kept(a, n, segment)) return;
    int *computed = &a->computed[n->id];
    if (*computed != FOR_GOOD && *computed != a->step) {
        for (int i = 0; i < MAX_IN; i++)
            if (n->in[i]) ensure(a, n->in[i], segment, false);
        append(a->out, (Step){.phase = RECOMPUTE, .node = n, .bucket = -1});
        *computed = n->op->cheap ? a->step : FOR_GOOD;
    }
    if (direct) *computed = FOR_GOOD;
}

static void ensure_needs(Pass *a, const Node *n) {
    unsigned needs = n->op->needs(n);
    for (int i = 0; i < MAX_IN; i++)
        if (n->in[i] && needs & IN(i)) ensure(a, n->in[i], n->segment, true);
    /* Side outputs (statistics of rows) are small: they stay from the forward half. */
    if (needs & OUT(0)) ensure(a, n->out[0], n->segment, true);
}

void plan_recompute(Plan *p, const Recompute *policy, int n_segments) {
    Plan old = *p;
    Pass a = {p, policy, xcalloc((size_t)p->graph->n_nodes, sizeof(int)), 0};
    for (int i = 0; i < p->graph->n_nodes; i++) a.computed[i] = NEVER;
    p->steps = NULL;
    p->n_steps = 0;
    for (int i = 0; i < old.n_steps; i++) {
        const Step *s = &old.steps[i];
        if (s->phase == BACKWARD && s->node->segment) {
            CHECK(s->node->segment <= n_segments, "segment %d has no policy", s->node->segment);
            a.step = i;
            ensure_needs(&a, s->node);
        }
        append(p, *s);
    }
    free(a.computed);
    free(old.steps);
}
