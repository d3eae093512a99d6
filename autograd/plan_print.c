/* A plan as text: stable, so that it can be compared with a file. */
#include "autograd/plan.h"

static const char *const PHASES[] = {
    [FORWARD] = "forward", [RECOMPUTE] = "recompute", [BACKWARD] = "backward", [GATHER] = "gather",
    [REDUCE] = "reduce",   [STASH] = "stash",         [FETCH] = "fetch",       [WAIT] = "wait"};

static void print_life(const Life *life, FILE *out) {
    char text[64];
    const Tensor *t = life->tensor;
    fprintf(out, "        %s%s %s%s @%lld +%zu .. %d%s\n", t->role == ROLE_GRAD ? "d " : "",
            t->name, dtype_name(t->dtype), shape_text(t->shape, text), (long long)life->offset,
            tensor_bytes(t), life->to, life->taken_from >= 0 ? " (taken over)" : "");
}

void plan_print(const Plan *p, FILE *out) {
    fprintf(out,
            "steps %d  lives %d  arena %lld B  alive %lld B  workspace %lld B  constants %lld B\n",
            p->n_steps, p->n_lives, (long long)p->arena_bytes, (long long)p->live_bytes,
            (long long)p->workspace_bytes, (long long)p->const_bytes);
    for (int i = 0, l = 0; i < p->n_steps; i++) {
        const Step *s = &p->steps[i];
        const Graph *g = p->graph;
        fprintf(out, "%5d %-9s ", i, PHASES[s->phase]);
        if (s->phase == WAIT) fprintf(out, "%s ", PHASES[s->of]);
        if (s->node)
            fprintf(out, "%s%s%s %s\n", s->node->op->name, s->then ? "+" : "",
                    s->then ? s->then->op->name : "", s->node->out[0]->name);
        else if (s->parked)
            fprintf(out, "%s @%lld\n", s->parked->name, (long long)s->host_offset);
        else
            fprintf(out, "%s\n", g->params->bucket[s->bucket].name);
        for (; l < p->n_lives && p->lives[l].from == i; l++) print_life(&p->lives[l], out);
    }
}
