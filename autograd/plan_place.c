/* The placing pass: lives from step_touch, one interval of the arena for each, peak memory.
 *
 * A tensor may live several times (a recomputed value, a bucket gathered twice); each life is
 * placed on its own. Where a step allows it, an output goes on in the memory of an input that dies
 * there. Placement is first fit in order of size: any order would be right, this one wastes little.
 */
#include "autograd/plan.h"

#include <stdlib.h>
#include <string.h>

enum { LIFE_ALIGN = 256 };

typedef struct {
    Plan *plan;
    int *current; /* by tensor id: its latest life, or -1 */
    int step;
} Walk;

static bool is_placed(const Tensor *root) { return !root->resident && root->role != ROLE_CONST; }

static int life_open(Walk *w, Tensor *root) {
    Plan *p = w->plan;
    p->lives = xrealloc(p->lives, (size_t)(p->n_lives + 1) * sizeof *p->lives);
    p->lives[p->n_lives] = (Life){.tensor = root,
                                  .from = w->step,
                                  .to = w->step,
                                  .before = w->current[root->id],
                                  .taken_from = -1};
    return w->current[root->id] = p->n_lives++;
}

static void live(Tensor *t, bool define, void *arg) {
    Walk *w = arg;
    Tensor *root = tensor_root(t);
    if (!is_placed(root)) return;
    int life = w->current[root->id];
    /* Gradients are assigned part by part: the first part opens the only life. */
    if (life < 0 || (define && root->role != ROLE_GRAD)) {
        CHECK(define, "%s is read before anything wrote it", t->name);
        life = life_open(w, root);
    }
    w->plan->lives[life].to = w->step;
}

/* The life of `t` that touches step `at` at its end (as `from` or as `to`), if t is a whole root
 * whose memory may change owners; else -1. */
static int whole_life(const Walk *w, const Tensor *t, int at, bool ends) {
    if (!t) return -1;
    const Tensor *root = t->base ? t->base : t;
    bool movable = root->role == ROLE_VALUE || root->role == ROLE_GRAD || root->role == ROLE_INPUT;
    if (!movable || root->output || tensor_count(t) != tensor_count(root)) return -1;
    const Life *lives = w->plan->lives;
    for (int i = w->current[root->id]; i >= 0; i = lives[i].before)
        if ((ends ? lives[i].to : lives[i].from) == at) return i;
    return -1;
}

/* True where the step touches root `t` through one input only. */
static bool sole(const Node *n, const Tensor *t) {
    int uses = 0;
    for (int i = 0; i < MAX_IN; i++)
        uses += n->in[i] && tensor_root(n->in[i]) == tensor_root((Tensor *)t);
    return uses == 1;
}

static bool try_take(Plan *p, int giver, int taker) {
    if (giver < 0 || taker < 0) return false;
    Life *a = &p->lives[giver], *b = &p->lives[taker];
    if (tensor_bytes(a->tensor) != tensor_bytes(b->tensor)) return false;
    b->taken_from = giver;
    a->given = true;
    return true;
}

/* Lets the outputs of step i go on in the memory of inputs that die there. */
static void take_over(const Walk *w, int i) {
    Plan *p = w->plan;
    const Step *s = &p->steps[i];
    const Node *n = s->node;
    if (!n) return;
    for (int j = 0; j < MAX_IN; j++) {
        const Tensor *in = n->in[j];
        if (!in || !sole(n, in)) continue;
        if (s->phase != BACKWARD && n->op->consumes & IN(j)) {
            if (try_take(p, whole_life(w, in, i, true), whole_life(w, n->out[0], i, false))) return;
        }
        if (s->phase == BACKWARD && n->op->passes & s->first & IN(j) && in->grad) {
            const Tensor *dy = n->out[0]->grad;
            if (try_take(p, whole_life(w, dy, i, true), whole_life(w, in->grad, i, false))) return;
        }
    }
}

/* A run of lives that share one interval of memory. */
typedef struct {
    int from, to, first_life;
    int64_t bytes, offset;
} Block;

static int by_size(const void *x, const void *y) {
    const Block *a = x, *b = y;
    if (a->bytes != b->bytes) return a->bytes < b->bytes ? 1 : -1;
    return a->first_life - b->first_life;
}

static int by_offset(const void *x, const void *y) {
    const Block *a = *(Block *const *)x, *b = *(Block *const *)y;
    return (a->offset > b->offset) - (a->offset < b->offset);
}

/* First fit: the lowest gap between placed blocks whose time overlaps. */
static void fit(Block *block, Block *placed, int n, Block **near) {
    int n_near = 0;
    for (int i = 0; i < n; i++)
        if (placed[i].from <= block->to && block->from <= placed[i].to) near[n_near++] = &placed[i];
    qsort(near, (size_t)n_near, sizeof *near, by_offset);
    for (int i = 0; i < n_near; i++) {
        if (near[i]->offset >= block->offset + block->bytes) break;
        block->offset = MAX(block->offset, near[i]->offset + near[i]->bytes);
    }
}

/* block_of[life] for every life; returns the number of blocks. */
static int group(const Plan *p, Block *blocks, int *block_of) {
    int n = 0;
    for (int i = 0; i < p->n_lives; i++) {
        const Life *life = &p->lives[i];
        if (life->taken_from < 0) {
            int64_t bytes = align_up((int64_t)tensor_bytes(life->tensor), LIFE_ALIGN);
            blocks[n] = (Block){life->from, life->to, i, bytes, 0};
            block_of[i] = n++;
        } else { /* the giver opened earlier, so it comes first in the list */
            block_of[i] = block_of[life->taken_from];
            blocks[block_of[i]].to = MAX(blocks[block_of[i]].to, life->to);
        }
    }
    return n;
}

static int64_t most_alive(const Plan *p, const Block *blocks, int n) {
    int64_t *change = xcalloc((size_t)p->n_steps + 2, sizeof *change), alive = 0, most = 0;
    for (int i = 0; i < n; i++) {
        change[blocks[i].from] += blocks[i].bytes;
        change[blocks[i].to + 1] -= blocks[i].bytes;
    }
    for (int i = 0; i <= p->n_steps; i++) {
        alive += change[i];
        most = MAX(most, alive);
    }
    free(change);
    return most;
}

static void place_lives(Plan *p) {
    Block *blocks = xcalloc((size_t)p->n_lives, sizeof *blocks);
    Block **near = xcalloc((size_t)p->n_lives, sizeof *near);
    int *block_of = xcalloc((size_t)p->n_lives, sizeof *block_of);
    int64_t *offset = xcalloc((size_t)p->n_lives, sizeof *offset);
    int n = group(p, blocks, block_of);
    p->live_bytes = most_alive(p, blocks, n);
    qsort(blocks, (size_t)n, sizeof *blocks, by_size);
    for (int i = 0; i < n; i++) {
        fit(&blocks[i], blocks, i, near);
        offset[blocks[i].first_life] = blocks[i].offset;
        p->arena_bytes = MAX(p->arena_bytes, blocks[i].offset + blocks[i].bytes);
    }
    for (int i = 0; i < p->n_lives; i++) {
        int taken = p->lives[i].taken_from;
        p->lives[i].offset = taken < 0 ? offset[i] : p->lives[taken].offset;
    }
    free(blocks);
    free(near);
    free(block_of);
    free(offset);
}

/* Counting sort of the lives by `to`. */
static void order_ends(Plan *p) {
    int *at = xcalloc((size_t)p->n_steps + 2, sizeof *at);
    for (int i = 0; i < p->n_lives; i++) at[p->lives[i].to + 1]++;
    for (int i = 0; i <= p->n_steps; i++) at[i + 1] += at[i];
    p->ends = xcalloc((size_t)p->n_lives, sizeof *p->ends);
    for (int i = 0; i < p->n_lives; i++) p->ends[at[p->lives[i].to]++] = i;
    free(at);
}

static size_t step_workspace(const Plan *p, const Step *s, const Ctx *c) {
    if (s->phase == GATHER)
        return bucket_gather_workspace(p->graph->params, s->bucket, p->graph->dtype);
    return c->k && s->node && s->node->op->workspace ? s->node->op->workspace(s->node, s->phase, c)
                                                     : 0;
}

void plan_place(Plan *p, const Ctx *c) {
    const Graph *g = p->graph;
    Walk w = {.plan = p, .current = xcalloc((size_t)g->n_tensors, sizeof *w.current)};
    for (int i = 0; i < g->n_tensors; i++) {
        w.current[i] = -1;
        if (g->tensors[i]->role == ROLE_INPUT && !g->tensors[i]->base) life_open(&w, g->tensors[i]);
    }
    int64_t moves = 0;
    for (w.step = 0; w.step < p->n_steps; w.step++) {
        const Step *s = &p->steps[w.step];
        step_touch(p, s, live, &w);
        int64_t bytes = align_up((int64_t)step_workspace(p, s, c), LIFE_ALIGN);
        int64_t *most = s->waited ? &moves : &p->moves_offset;
        *most = MAX(*most, bytes);
    }
    p->workspace_bytes = p->moves_offset + moves;
    for (int i = 0; i < p->n_lives; i++)
        if (p->lives[i].tensor->output && w.current[p->lives[i].tensor->id] == i)
            p->lives[i].to = p->n_steps;
    for (int i = 0; i < p->n_steps; i++) take_over(&w, i);
    free(w.current);
    place_lives(p);
    order_ends(p);
    for (int i = 0; i < g->n_tensors; i++)
        if (g->tensors[i]->role == ROLE_CONST && !g->tensors[i]->base)
            p->const_bytes += align_up((int64_t)tensor_bytes(g->tensors[i]), LIFE_ALIGN);
}
