/* `cogsmith plan`: what a run will need, from config.json alone. */
#include "trainer/cli.h"
#include "trainer/device.h"
#include "trainer/host_memory.h"
#include "trainer/plan_report.h"

/* ---- the rows ---------------------------------------------------------------------------------
 */

static void add(PlanTable *t, const char *key, const char *label, double value, const char *note) {
    CHECK(t->n < PLAN_ROWS, "plan: more than %d rows", PLAN_ROWS);
    t->rows[t->n++] = (PlanRow){key, label, note, value};
}

static double sum_of(const PlanTable *t) {
    double sum = 0;
    for (int i = 0; i < t->n; i++) sum += t->rows[i].value;
    return sum;
}

/* What rests, and where. */
typedef struct {
    double masters, moments, base;
} Resting;

static Resting count_resting(const ParamSet *p, bool host) {
    Resting r = {0};
    for (int i = 0; i < p->n_buckets; i++) {
        const Bucket *b = &p->bucket[i];
        if (b->host != host) continue;
        *(b->trained ? &r.masters : &r.base) +=
            (double)b->rests.count * (double)dtype_size(b->form);
        r.moments += (double)(b->grads.count + 2 * b->moments.count) * sizeof(real);
    }
    return r;
}

static void add_resting(PlanTable *t, const Resting *r, const char *form) {
    add(t, "masters", "masters", r->masters, "trained parameters, f32");
    add(t, "optimizer", "gradients, moments", r->moments, "f32");
    add(t, "base", "base weights", r->base, form);
}

static void fill_device(PlanReport *r) {
    PlanTable *t = &r->device;
    LearnerBytes b = learner_bytes(r->learner);
    Resting rests = count_resting(r->model->params, false);
    *t = (PlanTable){.key = "device_memory_bytes", .title = "device memory, of each rank"};
    add(t, "arena", "activations, gradients", (double)b.arena, "the arena");
    add(t, "workspace", "workspace", (double)b.workspace, "of libraries and kernels");
    add(t, "tables", "tables", (double)b.constants, "positions and indices");
    add_resting(t, &rests, dtype_name(r->model->stored));
    add(t, "sums", "sums", (double)b.sums, "of losses, for the gradient's norm");
    add(t, "holdout", "other plans", (double)r->chosen->holdout_bytes,
        "for held-out losses and previews");
    add(t, "captured", "captured steps", (double)b.captured, "CUDA graphs, estimated");
    add(t, "context", "context", (double)r->profile.context_bytes, "program and libraries, stated");
    r->device_peak = (int64_t)sum_of(t);
}

static void fill_host(PlanReport *r) {
    PlanTable *t = &r->host;
    const HostNeeds *n = &r->chosen->host;
    Resting rests = count_resting(r->model->params, true);
    double parked = (double)r->learner->shaped[0].plan->host_bytes;
    double passing =
        (double)params_host_bytes(r->model->params) - rests.masters - rests.moments - rests.base;
    *t = (PlanTable){.key = "host_memory_bytes",
                     .title = r->model->comm->size > 1
                                  ? "host memory, of rank 0, which needs the most"
                                  : "host memory"};
    add_resting(t, &rests, dtype_name(r->model->stored));
    add(t, "passing", "gradients on their way", passing, "to where they are added");
    add(t, "parked", "activations", parked, "parked for the backward half");
    add(t, "checkpoints", "checkpoints", (double)n->copies, "copies of the state to be written");
    add(t, "batches", "batches", (double)n->batches, "read ahead");
    add(t, "previews", "previews", (double)n->previews, "texts, latents and decoded frames");
    add(t, "program", "program and libraries", (double)n->program, "stated");
    r->host_peak = (int64_t)sum_of(t);
}

/* Bytes that GATHER steps read of mapped files. */
static double file_bytes(const Plan *p) {
    double bytes = 0;
    for (int i = 0; i < p->n_steps; i++) {
        const Step *s = &p->steps[i];
        const Bucket *b = s->phase == GATHER ? &p->graph->params->bucket[s->bucket] : NULL;
        if (b && b->home == HOME_FILE) bytes += (double)b->count * (double)dtype_size(b->form);
    }
    return bytes;
}

static void fill_traffic(PlanReport *r) {
    PlanTable *t = &r->traffic;
    const Plan *plan = r->learner->shaped[0].plan;
    double micros = (double)r->config->train.accumulate;
    Cost c = plan_cost(plan, -1), update = optim_cost(r->model->params);
    r->micro_sent = c.sent;
    r->step = (Cost){micros * c.flops, micros * c.bytes + update.bytes,
                     micros * c.sent + update.sent, micros * c.copied + update.copied};
    *t = (PlanTable){.key = "traffic_bytes", .title = "traffic, of each rank in an optimizer step"};
    add(t, "memory", "memory", r->step.bytes, "read and written by the steps");
    add(t, "host", "host and device", r->step.copied, "copied between them, both ways");
    add(t, "ranks", "other ranks", r->step.sent, "sent to them");
    add(t, "files", "files", micros * file_bytes(plan), "mapped, read block by block");
}

static void fill_time(PlanReport *r) {
    PlanTable *t = &r->time;
    StepTime s = step_time(r->config, &r->profile, r->learner);
    *t = (PlanTable){.key = "step_parts_seconds", .title = "time, predicted"};
    add(t, "products", "products", s.products, "");
    add(t, "attention", "attention", s.attention, "");
    add(t, "memory", "other steps", s.memory, "bound by the memory's rate");
    add(t, "exchange", "exchange of rows", s.exchange, "between ranks that share a sample");
    add(t, "moves", "waiting for moves", s.moves, "what the steps do not hide");
    add(t, "update", "update", s.update, "the optimizer, after the last micro-step");
    r->seconds = step_seconds(&s);
}

/* ---- the plan ---------------------------------------------------------------------------------
 */

static Profile pick_profile(const Config *c) {
    if (!c->plan.device) return device_profile(c);
    const Profile *p = profile_find(c->plan.device);
    char names[200];
    profile_list(names, sizeof names);
    if (!p) config_die(c, "plan.device", "no such profile; there are: %s", names);
    return *p;
}

/* Of the device, less the context; ranks on CPUs share what a host has. */
static int64_t find_available(const Config *c, const Profile *p) {
    int ranks = profile_host_ranks(p, (int)c->plan.world);
    if (!c->memory.budget && !p->cuda) return host_free_bytes() / ranks - p->context_bytes;
    return c->plan.device ? available_bytes(c->memory.budget, p) : device_available(c);
}

int verb_plan(const Call *call) {
    Config *c = call->config;
    config_require(c, "model.path", "plan");
    PlanReport r = {.config = c, .profile = pick_profile(c)};
    int64_t available = find_available(c, &r.profile);
    r.device_limit = available + r.profile.context_bytes;
    r.planning = planner_try(c, model_training(c), &r.profile, r.profile.cuda, available);
    planner_apply(c, &r.planning, available);
    r.chosen = &r.planning.tried[r.planning.chosen];
    if (r.planning.next >= 0) r.next = &r.planning.tried[r.planning.next];
    Model *model = model_open(c, model_training(c), MODEL_SHAPES, r.profile.cuda);
    model->host_limit = r.chosen->host_left;
    r.native = native_pack(c, &model->dit->config);
    Learner *learner =
        learner_try(model, c, &r.native.pack, 1, true, available - r.chosen->holdout_bytes);
    r.model = model;
    r.learner = learner;
    fill_device(&r);
    fill_host(&r);
    fill_traffic(&r);
    fill_time(&r);
    (call->json ? plan_json : plan_text)(&r);
    planner_close(&r.planning);
    learner_close(learner);
    model_close(model);
    native_pack_free(&r.native);
    return 0;
}
