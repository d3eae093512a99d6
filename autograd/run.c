/* Owns execution: memory of a placed plan, the loop over its steps, and what is captured of it. */
#include "autograd/run.h"

#include <stdlib.h>
#include <string.h>

static void bind(Run *r) {
    const Graph *g = r->plan->graph;
    int64_t at = 0;
    for (int i = 0; i < g->n_tensors; i++) {
        Tensor *t = g->tensors[i];
        if (t->role != ROLE_CONST || t->base) continue;
        t->data = r->constants + at;
        r->memory->k->upload(r->stream, t->data, t->host, tensor_bytes(t));
        at += align_up((int64_t)tensor_bytes(t), 256);
    }
    for (int b = 0; g->params && b < g->params->n_buckets; b++) {
        const Bucket *bucket = &g->params->bucket[b];
        Tensor *copy = g->bucket[b], *grad = g->bucket_grad[b];
        if (copy && copy->resident) copy->data = bucket->resident;
        if (grad && grad->resident) grad->data = bucket->grad;
    }
    for (int i = 0; i < r->plan->n_lives; i++) {
        const Life *life = &r->plan->lives[i];
        if (life->tensor->role == ROLE_INPUT) life->tensor->data = r->arena + life->offset;
    }
}

Run *run_open(Plan *p, Memory *m, Stream *s, void *arena) {
    Run *r = xcalloc(1, sizeof *r);
    *r = (Run){.plan = p, .memory = m, .stream = s, .arena = arena, .owns_arena = !arena};
    if (!arena) r->arena = memory_alloc(m, (size_t)(p->arena_bytes + p->workspace_bytes), "arena");
    r->constants = memory_alloc(m, (size_t)p->const_bytes, "constants");
    if (p->host_bytes)
        r->host = memory_alloc(memory_host(m), (size_t)p->host_bytes, "parked activations");
    for (int i = 0; i < p->n_steps && !r->coming; i++) {
        if (p->steps[i].phase != WAIT) continue;
        r->coming = m->k->stream_open();
        r->going = m->k->stream_open();
    }
    r->repeats = m->k->capture_begin && plan_repeats(p);
    bind(r);
    return r;
}

void run_close(Run *r) {
    if (!r) return;
    const Plan *p = r->plan;
    for (size_t i = 0; i < COUNT(r->repeated); i++)
        if (r->repeated[i].captured) r->memory->k->captured_close(r->repeated[i].captured);
    if (r->coming) {
        r->memory->k->stream_close(r->coming);
        r->memory->k->stream_close(r->going);
    }
    memory_release(r->memory, r->constants, (size_t)p->const_bytes);
    if (r->host) memory_release(memory_host(r->memory), r->host, (size_t)p->host_bytes);
    if (r->owns_arena)
        memory_release(r->memory, r->arena, (size_t)(p->arena_bytes + p->workspace_bytes));
    free(r);
}

void run_input(Run *r, Tensor *t, const void *host) {
    CHECK(t->role == ROLE_INPUT, "%s is not an input", t->name);
    if (t->data) r->memory->k->upload(r->stream, t->data, host, tensor_bytes(t));
}

void run_output(Run *r, const Tensor *t, void *host) {
    r->memory->k->download(r->stream, host, tensor_data(t), tensor_bytes(t));
    r->memory->k->stream_sync(r->stream);
}

void run_input_f32(Run *r, Tensor *t, const float *host) {
    if (t->dtype == DT_F32) {
        run_input(r, t, host);
        return;
    }
    void *typed = xcalloc(1, tensor_bytes(t));
    BACKEND_CPU.cast(NULL, DT_F32, t->dtype, tensor_count(t), host, typed);
    run_input(r, t, typed);
    free(typed);
}

void run_output_f32(Run *r, const Tensor *t, float *host) {
    if (t->dtype == DT_F32) {
        run_output(r, t, host);
        return;
    }
    void *typed = xcalloc(1, tensor_bytes(t));
    run_output(r, t, typed);
    BACKEND_CPU.cast(NULL, t->dtype, DT_F32, tensor_count(t), typed, host);
    free(typed);
}

static void poison(Run *r, const Life *life) {
    static const uint32_t PATTERN = 0xffffffffu; /* a NaN in f64, f32, bf16 and f16 */
    size_t bytes = tensor_bytes(life->tensor);
    char *host = xcalloc(bytes, 1);
    memset(host, (int)(PATTERN & 0xff), bytes);
    r->memory->k->upload(r->stream, r->arena + life->offset, host, bytes);
    r->memory->k->stream_sync(r->stream);
    free(host);
}

/* Lives begin and end around step i: addresses appear and go. */
static void begin_lives(Run *r, int i, int *next) {
    for (; *next < r->plan->n_lives && r->plan->lives[*next].from == i; ++*next) {
        const Life *life = &r->plan->lives[*next];
        life->tensor->data = r->arena + life->offset;
        int64_t end = life->offset + (int64_t)align_up((int64_t)tensor_bytes(life->tensor), 256);
        r->high_water_bytes = MAX(r->high_water_bytes, end);
        if (r->poison && life->taken_from < 0 && life->tensor->role != ROLE_INPUT) poison(r, life);
    }
}

static void end_lives(Run *r, int i, int *next) {
    const Plan *p = r->plan;
    for (; *next < p->n_lives && p->lives[p->ends[*next]].to == i; ++*next) {
        const Life *life = &p->lives[p->ends[*next]];
        if (r->poison && !life->given) poison(r, life);
        if (life->tensor->role != ROLE_INPUT) life->tensor->data = NULL;
    }
}

static void park(Run *r, Phase phase, const Step *s, Stream *stream) {
    const Backend *k = r->memory->k;
    size_t bytes = tensor_bytes(s->parked);
    if (phase == STASH)
        k->download(stream, r->host + s->host_offset, tensor_data(s->parked), bytes);
    else
        k->upload(stream, tensor_data(s->parked), r->host + s->host_offset, bytes);
    memory_host(r->memory)->copied_bytes += (int64_t)bytes;
}

static void gather(Run *r, const Step *s, Stream *stream) {
    const Plan *p = r->plan;
    Tensor *copy = p->graph->bucket[s->bucket];
    char *workspace = r->arena + p->arena_bytes + (s->waited ? p->moves_offset : 0);
    bucket_gather(p->graph->params, s->bucket, copy->dtype, copy->data, workspace, r->memory,
                  stream);
}

/* What a GATHER, REDUCE, STASH or FETCH does. */
static void move(Run *r, Phase phase, const Step *s, int micro, Stream *stream) {
    const Graph *g = r->plan->graph;
    if (phase == GATHER)
        gather(r, s, stream);
    else if (phase == REDUCE)
        bucket_reduce(g->params, s->bucket, g->bucket_grad[s->bucket]->data, micro, r->memory,
                      stream);
    else
        park(r, phase, s, stream);
}

/* A move sets out: it sees all that the steps before it have done. */
static void set_out(Run *r, const Step *s, int micro) {
    Stream *beside = s->phase == GATHER || s->phase == FETCH ? r->coming : r->going;
    if (!s->waited) {
        move(r, s->phase, s, micro, r->stream);
    } else if (!r->late) {
        r->memory->k->stream_after(beside, r->stream);
        move(r, s->phase, s, micro, beside);
    }
}

static void wait(Run *r, const Step *s, int micro) {
    if (r->late)
        move(r, s->of, s, micro, r->stream);
    else
        r->memory->k->stream_after(r->stream,
                                   s->of == GATHER || s->of == FETCH ? r->coming : r->going);
}

static bool finite(const Run *r, const Tensor *t) {
    if (!t || (t->dtype != DT_F32 && t->dtype != DT_BF16 && t->dtype != DT_F16)) return true;
    if (!(t->base ? t->base : t)->data) return true; /* not alive: the step had no use for it */
    int64_t n = tensor_count(t);
    void *typed = xcalloc(1, tensor_bytes(t));
    float *values = xcalloc((size_t)n, sizeof *values);
    r->memory->k->download(r->stream, typed, tensor_data(t), tensor_bytes(t));
    r->memory->k->stream_sync(r->stream);
    BACKEND_CPU.cast(NULL, t->dtype, DT_F32, n, typed, values);
    bool ok = true;
    for (int64_t i = 0; ok && i < n; i++) ok = values[i] - values[i] == 0;
    free(typed);
    free(values);
    return ok;
}

/* What the step has written: outputs, or gradients of inputs. */
static void watch(Run *r, const Step *s) {
    bool forward = s->phase == FORWARD || s->phase == RECOMPUTE;
    if (r->bad || (!forward && s->phase != BACKWARD)) return;
    for (int i = 0; forward && i < MAX_OUT; i++)
        if (!r->bad && !finite(r, s->node->out[i])) r->bad = s->node->out[i];
    for (int i = 0; !forward && i < MAX_IN; i++)
        if (!r->bad && s->node->in[i] && s->node->in[i]->role != ROLE_PARAM &&
            !finite(r, s->node->in[i]->grad))
            r->bad = s->node->in[i]->grad;
    Tensor *also = !s->then ? NULL : forward ? s->then->out[0] : s->then->in[0]->grad;
    if (!r->bad && !finite(r, also)) r->bad = also;
}

static void run_step(Run *r, const Step *s, Ctx *c, int micro) {
    c->first = s->first;
    c->then = s->then;
    c->wanted = s->wanted;
    switch (s->phase) {
    case FORWARD:
    case RECOMPUTE:
        s->node->op->forward(s->node, c);
        break;
    case BACKWARD:
        s->node->op->backward(s->node, c);
        break;
    case GATHER:
    case REDUCE:
    case STASH:
    case FETCH:
        set_out(r, s, micro);
        break;
    case WAIT:
        wait(r, s, micro);
        break;
    }
}

static void run_steps(Run *r, int micro) {
    const Plan *p = r->plan;
    const Backend *k = r->memory->k;
    Ctx c = {.k = k, .stream = r->stream, .workspace = r->arena + p->arena_bytes};
    int begun = 0, ended = 0;
    for (int i = 0; i < p->n_steps; i++) {
        const Step *s = &p->steps[i];
        double start = r->seconds ? now_seconds() : 0;
        begin_lives(r, i, &begun);
        run_step(r, s, &c, micro);
        if (r->watch) watch(r, s);
        end_lives(r, i, &ended);
        if (!r->seconds) continue;
        k->stream_sync(r->stream);
        r->seconds[i] = now_seconds() - start;
    }
}

/* ---- runs that repeat -------------------------------------------------------------------------
 */

/* Not those in which the host looks at what steps do. */
static bool may_repeat(const Run *r) {
    return r->repeats && !r->eager && !r->seconds && !r->watch && !r->poison;
}

static void capture(Run *r, int micro, Repeated *again) {
    const Backend *k = r->memory->k;
    int64_t *copied = &memory_host(r->memory)->copied_bytes, before = *copied;
    if (!k->capture_begin(r->stream)) return;
    run_steps(r, micro);
    again->captured = k->capture_end(r->stream);
    again->copied_bytes = *copied - before;
    *copied = before;
}

/* In the first, libraries make what they keep by shape. */
static void run_again(Run *r, int micro) {
    Repeated *again = &r->repeated[micro > 0];
    if (again->runs++ == 1) capture(r, micro, again);
    if (!again->captured) {
        run_steps(r, micro);
        return;
    }
    r->memory->k->replay(r->stream, again->captured);
    memory_host(r->memory)->copied_bytes += again->copied_bytes;
}

/* Numbers that steps read in the device's memory, where those of the next run can take their place.
 */
static void give_numbers(Run *r, const RunArgs *args) {
    const Plan *p = r->plan;
    DropoutState draws = {.seed = args->seed, .step = args->step};
    if (p->loss) run_input(r, p->loss->grad, &args->loss_grad);
    if (p->graph->draws) run_input(r, p->graph->draws, &draws);
}

void run_plan(Run *r, const RunArgs *args) {
    const Plan *p = r->plan;
    r->memory->k->stream_workspace(r->stream, r->arena + p->arena_bytes, (size_t)p->moves_offset);
    give_numbers(r, args);
    r->bad = NULL;
    if (may_repeat(r))
        run_again(r, args->micro);
    else
        run_steps(r, args->micro);
}
