/* Owns the list of steps, what each touches, and differentiation. */
#include "autograd/plan.h"

#include <stdlib.h>
#include <string.h>

Plan *plan_open(Graph *g) {
    Plan *p = xcalloc(1, sizeof *p);
    p->graph = g;
    p->accumulate = 1;
    p->steps = xcalloc((size_t)g->n_nodes, sizeof *p->steps);
    for (int i = 0; i < g->n_nodes; i++)
        p->steps[p->n_steps++] = (Step){.phase = FORWARD, .node = g->nodes[i], .bucket = -1};
    return p;
}

void plan_close(Plan *p) {
    if (!p) return;
    free(p->steps);
    free(p->lives);
    free(p->ends);
    free(p);
}

void plan_insert(Plan *p, int i, Step s) {
    p->steps = xrealloc(p->steps, (size_t)(p->n_steps + 1) * sizeof *p->steps);
    memmove(&p->steps[i + 1], &p->steps[i], (size_t)(p->n_steps - i) * sizeof *p->steps);
    p->steps[i] = s;
    p->n_steps++;
}

static int insert_order(const void *x, const void *y) {
    const Insert *a = x, *b = y;
    return a->before != b->before ? (a->before > b->before) - (a->before < b->before)
                                  : (a->order > b->order) - (a->order < b->order);
}

void plan_merge(Plan *p, Insert *in, int n) {
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

static void touch_forward(const Step *s, Visit visit, void *arg) {
    const Node *n = s->node;
    for (int i = 0; i < MAX_IN; i++)
        if (n->in[i]) visit(n->in[i], false, arg);
    for (int i = 0; i < MAX_OUT; i++)
        if (n->out[i] && (!s->then || s->wanted & WANTED_NODE)) visit(n->out[i], true, arg);
    if (s->then && s->wanted & WANTED_THEN) visit(s->then->out[0], true, arg);
}

static void touch_backward(const Step *s, Visit visit, void *arg) {
    const Node *n = s->node;
    unsigned needs = n->op->needs(n);
    for (int i = 0; i < MAX_IN; i++)
        if (n->in[i] && needs & IN(i)) visit(n->in[i], false, arg);
    for (int i = 0; i < MAX_OUT; i++) {
        if (!n->out[i]) continue;
        if (needs & OUT(i)) visit(n->out[i], false, arg);
        if (n->out[i]->grad) visit(n->out[i]->grad, false, arg);
    }
    const Node *then = s->then;
    for (int i = 0; then && i < MAX_IN; i++)
        if (then->in[i] && then->op->needs(then) & IN(i)) visit(then->in[i], false, arg);
    for (int i = 0; i < MAX_IN; i++) {
        Tensor *in = n->in[i] && then && n->in[i] == then->out[0] ? then->in[0] : n->in[i];
        if (in && in->grad) visit(in->grad, s->first & IN(i), arg);
    }
}

void step_touch(const Plan *p, const Step *s, Visit visit, void *arg) {
    switch (s->phase) {
    case FORWARD:
    case RECOMPUTE:
        touch_forward(s, visit, arg);
        break;
    case BACKWARD:
        touch_backward(s, visit, arg);
        break;
    case GATHER:
        visit(p->graph->bucket[s->bucket], true, arg);
        break;
    case REDUCE:
        visit(p->graph->bucket_grad[s->bucket], false, arg);
        break;
    case STASH:
        visit(s->parked, false, arg);
        break;
    case FETCH:
        visit(s->parked, true, arg);
        break;
    case WAIT:
        visit(s->parked         ? s->parked
              : s->of == GATHER ? p->graph->bucket[s->bucket]
                                : p->graph->bucket_grad[s->bucket],
              false, arg);
        break;
    }
}

/* Which elements of a root's gradient have been written so far: disjoint ranges. */
typedef struct {
    struct {
        int64_t from, to;
    } * range;
    int n;
} Cover;

/* Elements of [from, to) that are covered. */
static int64_t covered(const Cover *c, int64_t from, int64_t to) {
    int64_t n = 0;
    for (int i = 0; i < c->n; i++)
        n += MAX(0, MIN(to, c->range[i].to) - MAX(from, c->range[i].from));
    return n;
}

static void cover_add(Cover *c, int64_t from, int64_t to) {
    c->range = xrealloc(c->range, (size_t)(c->n + 1) * sizeof *c->range);
    c->range[c->n].from = from;
    c->range[c->n++].to = to;
}

/* The gradient tensor of a root, made on its first use. */
static Tensor *root_grad(Graph *g, Tensor *root) {
    if (root->grad) return root->grad;
    DType type = root->role == ROLE_BUCKET ? DT_REAL : root->dtype;
    Tensor *grad = graph_tensor(g, root->name, root->shape, type, ROLE_GRAD);
    grad->output = root->role == ROLE_INPUT;
    if (root->role == ROLE_BUCKET)
        for (int b = 0; b < g->params->n_buckets; b++)
            if (g->bucket[b] == root) g->bucket_grad[b] = grad;
    return root->grad = grad;
}

static void make_grad(Graph *g, Tensor *t) {
    if (t->grad) return;
    Tensor *root = root_grad(g, tensor_root(t));
    if (t->base) t->grad = graph_view(g, root, t->offset, t->shape);
}

/* Says whether input i's gradient is assigned by this step, and notes it as written. */
static bool assigns(Cover *cover, const Node *n, int i) {
    const Tensor *t = n->in[i];
    int64_t from = t->offset, to = from + tensor_count(t);
    int64_t have = covered(cover, from, to);
    CHECK(have == 0 || have == to - from, "%s: the gradient of %s is partly written", n->op->name,
          t->name);
    if (have) return false;
    cover_add(cover, from, to);
    return true;
}

/* True where the whole gradient of the node's output has been written; false where nothing has. */
static bool reached(const Cover *cover, const Node *n) {
    const Tensor *y = n->out[0];
    int64_t have = covered(&cover[y->id], 0, tensor_count(y));
    CHECK(have == 0 || have == tensor_count(y), "%s: the gradient of %s has holes", n->op->name,
          y->name);
    return have != 0;
}

static void append(Plan *p, Step s) { plan_insert(p, p->n_steps, s); }

/* A trained parameter that no step gives a gradient would be updated by whatever lies there. */
static void check_trained(const Graph *g, const Cover *cover) {
    for (int i = 0; g->params && i < g->params->n_params; i++) {
        const Param *q = &g->params->param[i];
        const Tensor *bucket = g->bucket[q->bucket];
        if (!q->trained) continue;
        int64_t n = param_count(q);
        CHECK(bucket && covered(&cover[bucket->id], q->offset, q->offset + n) == n,
              "%s is trained but the loss does not depend on it", q->name);
    }
}

void plan_backward(Plan *p, Tensor *loss) {
    Graph *g = p->graph;
    CHECK(tensor_count(loss) == 1 && loss->needs_grad, "%s is not a loss that anything trains on",
          loss->name);
    p->loss = loss;
    loss->output = true;
    loss->grad = graph_tensor(g, "loss.grad", loss->shape, loss->dtype, ROLE_INPUT);
    int n_tensors = g->n_tensors;
    Cover *cover = xcalloc((size_t)n_tensors, sizeof *cover);
    cover_add(&cover[loss->id], 0, 1);
    for (int i = g->n_nodes - 1; i >= 0; i--) {
        Node *n = g->nodes[i];
        if (!n->out[0]->needs_grad || !reached(cover, n)) continue;
        CHECK(n->op->backward, "%s has no backward", n->op->name);
        Step s = {.phase = BACKWARD, .node = n, .bucket = -1};
        for (int j = 0; j < MAX_IN; j++) {
            if (!wants_grad(n->in[j])) continue;
            make_grad(g, n->in[j]);
            if (assigns(&cover[tensor_root(n->in[j])->id], n, j)) s.first |= IN(j);
        }
        append(p, s);
    }
    check_trained(g, cover);
    for (int i = 0; i < n_tensors; i++) free(cover[i].range);
    free(cover);
}

/* What lies between the two nodes is not read, nor written unless it is wanted. */
static Cost fused_cost(const Step *s) {
    const Node *n = s->node, *then = s->then;
    Cost a = n->op->cost(n, s->phase), b = then->op->cost(then, s->phase);
    if (s->phase != BACKWARD && !(s->wanted & WANTED_THEN)) return a;
    double between = (double)tensor_bytes(s->phase == BACKWARD ? then->out[0] : n->out[0]);
    double passes = s->phase != BACKWARD && s->wanted & WANTED_NODE ? 1 : 2;
    return cost_of(a.flops + b.flops, a.bytes + b.bytes - passes * between);
}

Cost step_cost(const Plan *p, const Step *s) {
    if (s->phase == WAIT) return (Cost){0};
    if (s->then) return fused_cost(s);
    if (s->node) return s->node->op->cost(s->node, s->phase);
    if (s->parked) {
        Cost parked = cost_of(0, (double)tensor_bytes(s->parked));
        parked.copied = parked.bytes;
        return parked;
    }
    const ParamSet *set = p->graph->params;
    const Bucket *b = &set->bucket[s->bucket];
    bool gather = s->phase == GATHER;
    double to = (double)dtype_size(gather ? p->graph->dtype : DT_REAL);
    Cost c = cost_of(0, (double)b->count * ((double)dtype_size(b->form) + to));
    double others = (double)b->count * (params_world(set) - 1) / params_world(set);
    if (gather && b->home == HOME_RANKS) c.sent = others * MIN((double)dtype_size(b->form), to);
    if (!gather) c.sent = others * sizeof(real) * (b->grads.count < b->count ? 1 : 2);
    if (b->host)
        c.copied = gather ? (double)b->rests.count * (double)dtype_size(b->form)
                          : (double)b->grads.count * sizeof(real);
    return c;
}

Cost plan_cost(const Plan *p, int phase) {
    Cost sum = {0};
    for (int i = 0; i < p->n_steps; i++) {
        const Step *s = &p->steps[i];
        if (phase >= 0 && (int)s->phase != phase) continue;
        Cost c = step_cost(p, s);
        sum.flops += c.flops;
        sum.bytes += c.bytes;
        sum.sent += c.sent;
        sum.copied += c.copied;
    }
    return sum;
}

/* ---- runs that repeat -------------------------------------------------------------------------
 */

/* What comes from files is read anew each time; and a call of NCCL is polled until it is queued,
 * and watched by events that a replay would not record. */
static bool step_repeats(const Graph *g, const Step *s) {
    if (s->phase == REDUCE) return params_world(g->params) == 1;
    if (s->phase != GATHER) return true;
    Home home = g->params->bucket[s->bucket].home;
    return home == HOME_DEVICE || home == HOME_HOST;
}

bool plan_repeats(const Plan *p) {
    const Graph *g = p->graph;
    bool repeats = !g->sequence || g->sequence->size == 1;
    for (int i = 0; repeats && i < p->n_steps; i++) repeats = step_repeats(g, &p->steps[i]);
    return repeats;
}

/* About two kernels or copies a step, and at most 16 KiB for each: NVIDIA counts 10 KB a kernel
 * node (CCCL, pull request 3768). */
enum { CAPTURED_STEP_BYTES = 2 * 16384 };

int64_t plan_captured_bytes(const Plan *p) {
    int kinds = p->loss && p->accumulate > 1 ? 2 : 1; /* micro-step 0, and those that follow */
    return plan_repeats(p) ? (int64_t)kinds * p->n_steps * CAPTURED_STEP_BYTES : 0;
}
