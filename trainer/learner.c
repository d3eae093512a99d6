/* Owns the life of a model's plans: recorded, placed, bound, run. */
#include "trainer/learner.h"

#include "trainer/positions.h"
#include "trainer/same.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double OFS_VALUE = 2.0; /* the only value that the 1.5 I2V pipeline ever passes */

/* ---- planning ---------------------------------------------------------------------------------
 */

static Shaped shape_open(const Learner *l, const Config *c, const Pack *pack) {
    const Model *m = l->model;
    Shaped s = {.graph = graph_open(m->compute, m->params)};
    s.graph->sequence = m->sequence;
    s.io = dit_record(m->dit, s.graph, pack, l->trains);
    s.plan = plan_open(s.graph);
    if (l->trains && m->training != TRAIN_NOTHING) plan_backward(s.plan, s.io.loss);
    int layers = (int)m->dit->config.layers;
    plan_recompute(s.plan, l->policy, layers);
    plan_fuse(s.plan);
    plan_homes(s.plan, (int)c->train.accumulate);
    if (c->memory.activations.home == PLACE_HOST) plan_stash(s.plan);
    if (c->memory.prefetch == PREFETCH_ON) plan_prefetch(s.plan);
    Ctx here = {.k = m->memory.k, .stream = m->stream}, there = {.k = cuda_table()};
    plan_place(s.plan, m->foreign ? &there : &here);
    return s;
}

static void shape_close(Shaped *s) {
    run_close(s->run);
    plan_close(s->plan);
    graph_close(s->graph);
}

static void drop_shapes(Learner *l) {
    for (int i = 0; i < l->n_shaped; i++) shape_close(&l->shaped[i]);
    l->n_shaped = 0;
}

/* Every rank of a group needs rows of each sample's text and of its video. */
static void check_rows(const Learner *l, const Config *c, const Pack *packs, int n) {
    int ranks = l->model->sequence->size;
    for (int i = 0; i < n; i++)
        for (int b = 0; b < packs[i].samples; b++) {
            const int64_t *s = packs[i].fhw[b];
            int64_t video = dit_video_rows(&l->model->dit->config, s[0], s[1], s[2]);
            int64_t rows = MIN(video, packs[i].text_rows[b]);
            if (rows < ranks)
                config_die(c, "ranks.sequence",
                           "%d ranks cannot share a sample of %lld text rows and %lld video rows; "
                           "expected at most %lld",
                           ranks, (long long)packs[i].text_rows[b], (long long)video,
                           (long long)rows);
        }
}

/* Plans every pack with blocks 1 .. hard recomputed as `choice` says, the others as the choice
 * before it. */
static void plan_all(Learner *l, const Config *c, const Pack *packs, int n, RecomputeChoice choice,
                     int64_t hard) {
    static const Recompute POLICY[] = {[MEMORY_RECOMPUTE_NONE] = RECOMPUTE_NONE,
                                       [MEMORY_RECOMPUTE_SELECTIVE] = RECOMPUTE_SELECTIVE,
                                       [MEMORY_RECOMPUTE_BLOCK] = RECOMPUTE_BLOCK};
    int64_t layers = l->model->dit->config.layers;
    drop_shapes(l);
    l->recompute = choice;
    l->hard_blocks = hard;
    for (int64_t i = 0; i <= layers; i++) l->policy[i] = POLICY[i <= hard ? choice : choice - 1];
    for (; l->n_shaped < n; l->n_shaped++)
        l->shaped[l->n_shaped] = shape_open(l, c, &packs[l->n_shaped]);
    l->arena_bytes = 0;
    for (int i = 0; i < n; i++) {
        const Plan *p = l->shaped[i].plan;
        l->arena_bytes = MAX(l->arena_bytes, (size_t)(p->arena_bytes + p->workspace_bytes));
    }
}

/* Steps run in the host's memory. */
static bool one_memory(const Model *m) { return !m->foreign && m->memory.k == &BACKEND_CPU; }

/* By how much the plans are over what there is, on the device or the host: the worse of them. */
static int64_t over(const Learner *l, int64_t available) {
    return MAX(learner_bytes(l).total - available, learner_on_host(l) - l->model->host_limit);
}

/* The least recomputation that fits: memory falls about evenly with the number of blocks that are
 * recomputed harder. */
static void choose_recompute(Learner *l, const Config *c, const Pack *packs, int n,
                             int64_t available) {
    int64_t layers = l->model->dit->config.layers, before = 0, now;
    RecomputeChoice choice = MEMORY_RECOMPUTE_NONE;
    plan_all(l, c, packs, n, choice, layers);
    while ((now = over(l, available)) > 0 && choice < MEMORY_RECOMPUTE_BLOCK) {
        before = now;
        plan_all(l, c, packs, n, ++choice, layers);
    }
    if (choice == MEMORY_RECOMPUTE_NONE || now > 0 || now >= before) return;
    double share = (double)before / (double)(before - now);
    int64_t step = MAX(1, layers / 16);
    for (int64_t hard = MAX(1, (int64_t)ceil(share * (double)layers)); hard < layers;
         hard += step) {
        plan_all(l, c, packs, n, choice, hard);
        if (over(l, available) <= 0) return;
    }
    plan_all(l, c, packs, n, choice, layers);
}

Learner *learner_try(Model *m, const Config *c, const Pack *packs, int n_packs, bool trains,
                     int64_t available) {
    Learner *l = xcalloc(1, sizeof *l);
    l->model = m;
    l->trains = trains;
    check_rows(l, c, packs, n_packs);
    available = ranks_least(m->comm, m->stream, available); /* all of them must choose alike */
    m->host_limit = ranks_least(m->comm, m->stream, m->host_limit);
    l->policy = xcalloc((size_t)m->dit->config.layers + 1, sizeof *l->policy);
    l->shaped = xcalloc((size_t)n_packs, sizeof *l->shaped);
    if (c->memory.recompute == MEMORY_RECOMPUTE_AUTO)
        choose_recompute(l, c, packs, n_packs, available);
    else
        plan_all(l, c, packs, n_packs, c->memory.recompute, m->dit->config.layers);
    return l;
}

/* Ends the program where a plan needs more than there is: of the host's memory, which is a CPU's
 * too, of a GPU's, or of what memory.budget says. */
static void check_fits(const Learner *l, const Config *c, int64_t available) {
    const double gib = 1 << 30;
    const Model *m = l->model;
    LearnerBytes b = learner_bytes(l);
    if (learner_on_host(l) > MAX(m->host_limit, 0))
        die("%.3f GiB of host memory are needed%s for what rests or waits there%s, and %.3f GiB "
            "are "
            "free for that. memory.optimizer.home, memory.activations.home and memory.base.home "
            "say what that is; fewer frames or a smaller size need less",
            (double)learner_on_host(l) / gib, comm_local_size() > 1 ? " by each rank" : "",
            one_memory(m) ? " and for the steps, which this CPU takes in the same memory" : "",
            (double)MAX(m->host_limit, 0) / gib);
    if (b.total <= available) return;
    if (c->memory.budget)
        config_die(
            c, "memory.budget",
            "%.2f GiB is too little by %.2f GiB. Fewer frames, a smaller size, batch or rank "
            "need less%s",
            (double)c->memory.budget / gib, (double)(b.total - available) / gib,
            l->recompute < MEMORY_RECOMPUTE_BLOCK ? "; so does memory.recompute=auto" : "");
    if (m->memory.k != &BACKEND_CPU)
        die("%.2f GiB of the GPU's memory are needed, and %.2f GiB are free. With "
            "memory.base.home=host, memory.optimizer.home=host and memory.activations.home=host "
            "more rests in host memory; fewer frames or a smaller size need less. `cogsmith plan` "
            "says what takes how much",
            (double)b.total / gib, (double)available / gib);
}

Learner *learner_plan(Model *m, const Config *c, const Pack *packs, int n_packs, bool trains,
                      int64_t available) {
    available = ranks_least(m->comm, m->stream, available); /* what does not fit ends all of them */
    Learner *l = learner_try(m, c, packs, n_packs, trains, available);
    check_fits(l, c, available);
    return l;
}

static size_t losses_bytes(const Learner *l) { return (size_t)l->model->comm->size * sizeof(real); }

static bool updates(const Learner *l) { return l->trains && l->model->training != TRAIN_NOTHING; }

LearnerBytes learner_bytes(const Learner *l) {
    const Model *m = l->model;
    bool captures = m->foreign || m->memory.k->capture_begin;
    LearnerBytes b = {.resident = params_device_bytes(m->params),
                      .host = params_host_bytes(m->params),
                      .sums = (int64_t)losses_bytes(l) + (updates(l) ? optim_bytes(m->params) : 0)};
    for (int i = 0; i < l->n_shaped; i++) {
        const Plan *p = l->shaped[i].plan;
        b.arena = MAX(b.arena, p->arena_bytes);
        b.workspace = MAX(b.workspace, p->workspace_bytes);
        b.constants += p->const_bytes;
        b.host += p->host_bytes;
        if (captures) b.captured += plan_captured_bytes(p);
    }
    b.total = (int64_t)l->arena_bytes + b.constants + b.resident + b.sums + b.captured;
    return b;
}

int64_t learner_forward_bytes(Model *m, const Config *c, const int64_t fhw[3]) {
    int64_t text = m->dit->config.text_length;
    Pack one = {1, (const int64_t(*)[3])fhw, &text};
    Learner *l = learner_try(m, c, &one, 1, false, INT64_MAX);
    LearnerBytes b = learner_bytes(l);
    learner_close(l);
    return b.total - b.resident;
}

int64_t learner_on_host(const Learner *l) {
    LearnerBytes b = learner_bytes(l);
    return b.host + (one_memory(l->model) ? b.total : 0);
}

void learner_bind(Learner *l, bool poison) {
    Memory *m = &l->model->memory;
    l->arena = memory_alloc(m, l->arena_bytes, "arena");
    for (int i = 0; i < l->n_shaped; i++) {
        l->shaped[i].run = run_open(l->shaped[i].plan, m, l->model->stream, l->arena);
        l->shaped[i].run->poison = poison;
    }
    if (updates(l)) l->optim = optim_open(l->model->params, l->model->compute, m);
    l->losses = memory_alloc(m, losses_bytes(l), "losses");
    memory_seal(m, true);
}

void learner_close(Learner *l) {
    if (!l) return;
    Memory *m = &l->model->memory;
    memory_seal(m, false);
    drop_shapes(l);
    if (l->optim.partial) optim_close(&l->optim, m);
    memory_release(m, l->losses, losses_bytes(l));
    memory_release(m, l->arena, l->arena_bytes);
    free(l->shaped);
    free(l->policy);
    free(l);
}

/* ---- one micro-step ---------------------------------------------------------------------------
 */

static void give(Run *r, Tensor *t, const float *values) {
    if (!t) return;
    CHECK(values, "input %s is missing", t->name);
    run_input_f32(r, t, values);
}

static void give_sinusoids(Run *r, Tensor *t, const DitConfig *c, const int64_t *timesteps) {
    if (!t) return;
    int64_t n = t->shape.dim[0], dim = t->shape.dim[1];
    float *values = xcalloc((size_t)(n * dim), sizeof *values);
    for (int64_t i = 0; i < n; i++)
        timestep_sinusoid(timesteps ? (double)timesteps[i] : OFS_VALUE, dim, c->flip_sin_to_cos,
                          c->freq_shift, values + i * dim);
    give(r, t, values);
    free(values);
}

static void give_ordinals(Run *r, Tensor *t, const uint32_t *ordinals) {
    if (!t) return;
    int64_t n = tensor_count(t);
    uint32_t *values = xcalloc((size_t)n, sizeof *values);
    for (int64_t i = 0; i < n; i++) values[i] = ordinals ? ordinals[i] : (uint32_t)i;
    run_input(r, t, values);
    free(values);
}

/* The mean of the ranks' losses, in rank order. */
static double mean_loss(Learner *l, const Shaped *s) {
    Comm *comm = l->model->comm;
    const Backend *k = l->model->memory.k;
    Stream *stream = l->model->stream;
    real *mine = l->losses + comm->rank;
    k->copy(stream, mine, tensor_data(s->io.loss), sizeof *mine);
    comm->all_gather(comm, stream, DT_REAL, 1, mine, l->losses);
    real *host = xcalloc((size_t)comm->size, sizeof *host);
    k->download(stream, host, l->losses, (size_t)comm->size * sizeof *host);
    k->stream_sync(stream);
    double sum = 0;
    for (int i = 0; i < comm->size; i++) sum += host[i];
    free(host);
    return sum / comm->size;
}

static real loss_grad(const Learner *l, const Micro *micro) {
    double scale = l->optim.partial ? l->optim.scale.value : 1;
    return (real)(scale / (micro->micros * l->model->data_ranks));
}

double learner_micro(Learner *l, const Micro *micro) {
    Shaped *s = &l->shaped[micro->shape];
    const DitConfig *c = &l->model->dit->config;
    give(s->run, s->io.latents, micro->noisy);
    give(s->run, s->io.image, micro->image);
    give(s->run, s->io.text, micro->text);
    give(s->run, s->io.target, micro->target);
    give_sinusoids(s->run, s->io.time, c, micro->timesteps);
    give_sinusoids(s->run, s->io.ofs, c, NULL);
    give_ordinals(s->run, s->io.ordinals, micro->ordinals);
    run_plan(s->run, &(RunArgs){.seed = micro->seed,
                                .step = micro->step,
                                .micro = micro->micro,
                                .loss_grad = loss_grad(l, micro)});
    return s->io.loss ? mean_loss(l, s) : 0;
}

void learner_prediction(Learner *l, int shape, float *out) {
    run_output_f32(l->shaped[shape].run, l->shaped[shape].io.prediction, out);
}

void learner_losses(Learner *l, int shape, float *out) {
    run_output_f32(l->shaped[shape].run, l->shaped[shape].io.per_sample, out);
}
