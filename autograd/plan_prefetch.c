/* The pass that lets moves run beside the steps: what a segment needs sets out when the segment
 * before it begins, and what leaves has until the end of the segment after it. Where a step used to
 * find the move done, or where its segment begins, there now is a WAIT.
 *
 * A segment's steps, forward or backward, are a run of the list; moves count to the run of the
 * steps that they stand among. */
#include "autograd/plan.h"

#include <stdlib.h>

static bool comes(const Step *s) { return s->phase == GATHER || s->phase == FETCH; }
static bool goes(const Step *s) { return s->phase == REDUCE || s->phase == STASH; }

typedef struct {
    int *run;    /* [n_steps] which run of one segment's steps a step is of */
    int *begins; /* [n_runs + 1] its first step */
    int n_runs;
} Runs;

/* Moves that come count to the steps behind them, moves that go to those before. */
static Runs find_runs(const Plan *p) {
    int n = p->n_steps, run = -1, segment = -1;
    Runs r = {xcalloc((size_t)n + 1, sizeof *r.run), xcalloc((size_t)n + 2, sizeof *r.begins), 0};
    for (int i = 0; i < n; i++) {
        int first = i;
        while (i < n - 1 && !p->steps[i].node && comes(&p->steps[i])) i++;
        const Node *node = p->steps[i].node;
        if (run < 0 || (node && node->segment != segment)) {
            r.begins[++run] = first;
            if (node) segment = node->segment;
        }
        for (int j = first; j <= i; j++) r.run[j] = run;
    }
    r.n_runs = run + 1;
    r.begins[r.n_runs] = n;
    return r;
}

/* What a move brings or takes. */
static const Tensor *cargo(const Plan *p, const Step *s) {
    if (s->parked) return tensor_root(s->parked);
    return s->phase == GATHER ? p->graph->bucket[s->bucket] : p->graph->bucket_grad[s->bucket];
}

typedef struct {
    const Tensor *tensor;
    bool found;
} Search;

static void search(Tensor *t, bool define, void *arg) {
    (void)define;
    Search *s = arg;
    s->found |= tensor_root(t) == s->tensor;
}

/* Behind the last step before `at`, from `first` on, that has to do with the tensor; else first. */
static int behind_uses(const Plan *p, const Tensor *t, int first, int at) {
    for (int i = at - 1; i >= first; i--) {
        Search s = {t, false};
        step_touch(p, &p->steps[i], search, &s);
        if (s.found) return i + 1;
    }
    return first;
}

static Step wait_for(const Step *s) {
    Step w = *s;
    w.phase = WAIT;
    w.of = s->phase;
    return w;
}

/* place[i]: where step i stands once the moves that come are taken out. */
static int *places(const Plan *p) {
    int *place = xcalloc((size_t)p->n_steps + 1, sizeof *place);
    for (int i = 0; i < p->n_steps; i++) place[i + 1] = place[i] + !comes(&p->steps[i]);
    return place;
}

static void take_out(Plan *p, const int *place) {
    int n = p->n_steps;
    for (int i = 0; i < n; i++)
        if (!comes(&p->steps[i])) p->steps[place[i]] = p->steps[i];
    p->n_steps = place[n];
}

/* Where the FETCH of what step i parks sets out; n_steps: there is none. */
static int fetched_from(const Plan *p, const int *from, int i) {
    for (int j = i + 1; j < p->n_steps; j++)
        if (p->steps[j].phase == FETCH && p->steps[j].parked == p->steps[i].parked) return from[j];
    return p->n_steps;
}

/* from[i]: where move i sets out. */
static int *departures(const Plan *p, const Runs *r) {
    int *from = xcalloc((size_t)p->n_steps + 1, sizeof *from);
    for (int i = 0; i < p->n_steps; i++)
        if (comes(&p->steps[i]))
            from[i] = behind_uses(p, cargo(p, &p->steps[i]), r->begins[MAX(r->run[i] - 1, 0)], i);
    return from;
}

void plan_prefetch(Plan *p) {
    Runs r = find_runs(p);
    int n = 0, n_steps = p->n_steps, *from = departures(p, &r);
    int *place = places(p);
    Insert *in = xcalloc((size_t)n_steps * 2 + 1, sizeof *in);
    /* At one place those that wait come first, lest they wait for what sets out there. */
    int late = 2 * n_steps;
    for (int i = 0; i < n_steps; i++) {
        Step *s = &p->steps[i];
        if (comes(s)) {
            /* A WAIT is for all that has set out: it stands before what the segment sends out. */
            int begin = r.begins[r.run[i]], at = from[i] < begin ? begin : i;
            bool here = place[from[i]] == place[at];
            s->waited = true;
            in[n++] = (Insert){from[i], late + 2 * i, *s};
            in[n++] = (Insert){at, here ? late + 2 * i + 1 : i, wait_for(s)};
        } else if (goes(s)) {
            int end = r.begins[MIN(r.run[i] + 2, r.n_runs)];
            if (s->phase == STASH) end = MIN(end, fetched_from(p, from, i));
            s->waited = true;
            in[n++] = (Insert){end, n_steps + i, wait_for(s)};
        }
    }
    take_out(p, place);
    for (int i = 0; i < n; i++) in[i].before = place[in[i].before];
    plan_merge(p, in, n);
    free(place);
    free(in);
    free(from);
    free(r.run);
    free(r.begins);
}
