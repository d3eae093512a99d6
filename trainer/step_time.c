/* Owns the prediction of a step's time. */
#include "trainer/step_time.h"

#include <stdlib.h>

/* A micro-step under way: time on the steps' stream, and on those of the moves beside it. */
typedef struct {
    const Profile *profile;
    const Plan *plan;
    bool *updated; /* [n_buckets] its update is done */
    double now, coming, going;
    StepTime time;
} Clock;

static void compute(Clock *k, const Step *s, Cost c) {
    const Profile *p = k->profile;
    bool attention = s->node->op->expensive;
    double rate = !attention             ? p->matmul_flops
                  : s->phase == BACKWARD ? p->attention_backward_flops
                                         : p->attention_forward_flops;
    double arithmetic = c.flops / rate, memory = c.bytes / p->memory_rate;
    double sent = c.sent / p->link_rate, seconds = MAX(MAX(arithmetic, memory), sent);
    double *part = seconds > MAX(arithmetic, memory) ? &k->time.exchange
                   : attention                       ? &k->time.attention
                   : seconds > memory                ? &k->time.products
                                                     : &k->time.memory;
    *part += seconds;
    k->now += seconds;
}

static void wait_until(Clock *k, double then) {
    k->time.moves += MAX(0, then - k->now);
    k->now = MAX(k->now, then);
}

/* Of the update that a GATHER finds waiting. */
static double update_seconds(const Clock *k, const Step *s) {
    const ParamSet *set = k->plan->graph->params;
    if (s->phase != GATHER || k->updated[s->bucket]) return 0;
    const Bucket *b = &set->bucket[s->bucket];
    k->updated[s->bucket] = true;
    return b->trained && bucket_waits(b)
               ? bucket_update_cost(set, s->bucket).bytes / k->profile->host_memory_rate
               : 0;
}

/* A CPU copies itself; a GPU's copies take the slower of their links. */
static double move_seconds(const Profile *p, Cost c) {
    double here = MAX(c.bytes / p->memory_rate, c.sent / p->link_rate);
    double host = c.copied / p->host_rate;
    return p->cuda ? MAX(here, host) : here + host;
}

static void move(Clock *k, const Step *s, Cost c) {
    double seconds = update_seconds(k, s) + move_seconds(k->profile, c);
    double *lane = s->phase == GATHER || s->phase == FETCH ? &k->coming : &k->going;
    if (s->waited && k->profile->cuda)
        *lane = MAX(*lane, k->now) + seconds;
    else
        wait_until(k, k->now + seconds);
}

/* `updates`: it finds updates waiting. */
static StepTime micro_time(const Profile *p, const Plan *plan, bool updates) {
    int n = plan->graph->params->n_buckets;
    Clock k = {.profile = p, .plan = plan};
    k.updated = xcalloc((size_t)n + 1, sizeof *k.updated);
    for (int i = 0; i < n; i++) k.updated[i] = !updates;
    for (int i = 0; i < plan->n_steps; i++) {
        const Step *s = &plan->steps[i];
        Cost c = step_cost(plan, s);
        if (s->phase == WAIT)
            wait_until(&k, s->of == GATHER || s->of == FETCH ? k.coming : k.going);
        else if (s->node)
            compute(&k, s, c);
        else
            move(&k, s, c);
    }
    wait_until(&k, MAX(k.coming, k.going));
    free(k.updated);
    return k.time;
}

static void add_times(StepTime *t, const StepTime *more, double factor) {
    t->products += factor * more->products;
    t->attention += factor * more->attention;
    t->memory += factor * more->memory;
    t->exchange += factor * more->exchange;
    t->moves += factor * more->moves;
}

StepTime step_time(const Config *c, const Profile *p, const Learner *l) {
    const ParamSet *set = l->model->params;
    const Plan *plan = l->shaped[0].plan;
    StepTime t = micro_time(p, plan, true), others = micro_time(p, plan, false);
    add_times(&t, &others, (double)(c->train.accumulate - 1));
    for (int i = 0; i < set->n_buckets; i++) {
        const Bucket *b = &set->bucket[i];
        Cost c = bucket_update_cost(set, i);
        if (!bucket_waits(b))
            t.update +=
                c.bytes / (b->host ? p->host_memory_rate : p->memory_rate) + c.sent / p->link_rate;
    }
    return t;
}

double step_seconds(const StepTime *t) {
    return t->products + t->attention + t->memory + t->exchange + t->moves + t->update;
}

double predicted_seconds(const Config *c, const Profile *p, const Learner *l) {
    StepTime t = step_time(c, p, l);
    return step_seconds(&t);
}
