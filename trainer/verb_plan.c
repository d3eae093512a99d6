/* `cogsmith plan`: what a run will need, from config.json alone. */
#include "trainer/checkpoint.h"
#include "trainer/cli.h"
#include "trainer/device.h"
#include "trainer/learner.h"
#include "trainer/native.h"
#include "trainer/planner.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
    const Config *config;
    const Model *model;
    const Learner *learner;
    NativePack native;
    Profile profile;
    LearnerBytes bytes;
    int64_t masters, moments, base; /* parts of bytes.resident */
    int64_t holdout;                /* of the plan for held-out losses */
    int64_t mapped;                 /* bytes of the base model that rest in its files */
    int64_t available;              /* on the device, less the context */
    int64_t peak_bytes;             /* on the device, context included */
    double micro_sent;              /* bytes that a rank sends in a micro-step */
    Cost step;                      /* one optimizer step */
    double step_seconds;
    StepTime time;
    Planning planning;
} Report;

static const char *recompute_name(RecomputeChoice choice) {
    return choice == MEMORY_RECOMPUTE_NONE        ? "none"
           : choice == MEMORY_RECOMPUTE_SELECTIVE ? "selective"
                                                  : "block";
}

static bool prefetches(const Report *r) {
    const Plan *p = r->learner->shaped[0].plan;
    for (int i = 0; i < p->n_steps; i++)
        if (p->steps[i].phase == WAIT) return true;
    return false;
}

/* "block in 12 of 42 blocks, selective in the others" */
static char *recompute_text(RecomputeChoice choice, int64_t hard, int64_t layers) {
    return hard == layers || choice == MEMORY_RECOMPUTE_NONE
               ? xstrdup(recompute_name(choice))
               : xprintf("%s in %lld of %lld blocks, %s in the others", recompute_name(choice),
                         (long long)hard, (long long)layers, recompute_name(choice - 1));
}

static void count_resident(Report *r) {
    const ParamSet *p = r->model->params;
    for (int i = 0; i < p->n_buckets; i++) {
        const Bucket *b = &p->bucket[i];
        int64_t size = (int64_t)dtype_size(b->form);
        if (b->host) continue;
        *(b->trained ? &r->masters : &r->base) += b->rests.count * size;
        r->moments += (b->grads.count + 2 * b->moments.count) * (int64_t)sizeof(real);
        if (b->home == HOME_FILE) r->mapped += b->count * size;
    }
}

static Profile pick_profile(const Config *c) {
    if (!c->plan.device) return device_profile(c);
    const Profile *p = profile_find(c->plan.device);
    char names[200];
    profile_list(names, sizeof names);
    if (!p) config_die(c, "plan.device", "no such profile; there are: %s", names);
    return *p;
}

static void predict(Report *r) {
    const Plan *plan = r->learner->shaped[0].plan;
    double micros = (double)r->config->train.accumulate;
    Cost c = plan_cost(plan, -1), update = optim_cost(r->model->params);
    r->micro_sent = c.sent;
    r->step = (Cost){micros * c.flops, micros * c.bytes + update.bytes,
                     micros * c.sent + update.sent, micros * c.copied + update.copied};
    r->step_seconds = predicted_seconds(r->config, &r->profile, r->learner);
    r->time = step_time(r->config, &r->profile, r->learner);
}

/* The parts of the step's time that take any. */
static void print_parts(const StepTime *t) {
    const struct {
        const char *name;
        double seconds;
    } parts[] = {{"products", t->products},         {"attention", t->attention},
                 {"memory-bound steps", t->memory}, {"exchange of rows", t->exchange},
                 {"waiting for moves", t->moves},   {"update", t->update}};
    bool first = true;
    printf("          of it");
    for (size_t i = 0; i < COUNT(parts); i++) {
        if (!(parts[i].seconds > 0)) continue;
        printf("%s %s %.3g s", first ? "" : ",", parts[i].name, parts[i].seconds);
        first = false;
    }
    printf("\n");
}

static void print_bytes(const char *name, int64_t bytes, const char *note) {
    printf("  %-24s %10.3f GiB  %s\n", name, (double)bytes / (1 << 30), note);
}

static bool fits(const Report *r) { return r->planning.tried[r->planning.chosen].fits; }

static void print_fits(const Report *r) {
    double gib = 1 << 30;
    if (fits(r)) return;
    printf("fits      no: there are %.3f GiB of device memory and %.3f GiB of host memory\n",
           (double)(r->available + r->profile.context_bytes) / gib,
           (double)r->model->host_limit / gib);
}

/* What the planner would have taken next. */
static void print_next(const Report *r) {
    if (r->planning.next < 0) return;
    const MemoryChoice *m = &r->planning.tried[r->planning.next];
    char *recompute = recompute_text(m->recompute, m->hard_blocks, r->model->dit->config.layers);
    printf("next      %.4g s and %.3f GiB: recompute %s; base weights: %s, optimizer: %s, "
           "activations: %s%s\n",
           m->seconds, (double)(m->bytes.total + r->profile.context_bytes) / (1 << 30), recompute,
           m->base_home, m->optimizer_home, m->activations_home,
           m->prefetch == PREFETCH_ON ? ", ahead" : "");
    if (m->seconds <= r->step_seconds)
        printf("          as fast, with %.3f GiB more of host memory\n",
               (double)(m->bytes.host - r->planning.tried[r->planning.chosen].bytes.host) /
                   (1 << 30));
    free(recompute);
}

static void print_table(const Report *r) {
    const DitConfig *c = &r->model->dit->config;
    const PackTables *t = &r->learner->shaped[0].io.tables;
    const Plan *plan = r->learner->shaped[0].plan;
    int n = r->native.pack.samples;
    printf(
        "model     %s, %lld parameters, %s\n", dit_variant(c),
        (long long)(params_total(r->model->params, false) -
                    (r->model->training == TRAIN_LORA ? params_total(r->model->params, true) : 0)),
        dtype_name(r->model->stored));
    printf("trains    %lld parameters (%s)\n", (long long)params_total(r->model->params, true),
           r->model->training == TRAIN_FULL ? "full" : "lora");
    printf("pack      %d x %lld frames of %lld x %lld pixels: %lld rows (%lld text, %lld video)\n",
           n, (long long)r->native.frames, (long long)r->native.height, (long long)r->native.width,
           (long long)t->whole.cu[n], (long long)(t->whole.cu[n] - t->video_runs.cu[n]),
           (long long)t->video_runs.cu[n]);
    printf("device    %s: %.3g TFLOP/s products, %.3g attention, %.3g GB/s\n", r->profile.name,
           r->profile.matmul_flops / 1e12, r->profile.attention_forward_flops / 1e12,
           r->profile.memory_rate / 1e9);
    int64_t layers = c->layers;
    char *recompute = recompute_text(r->learner->recompute, r->learner->hard_blocks, layers);
    printf("chosen    recompute %s\n", recompute);
    printf("          base weights at %s, optimizer at %s, activations at %s; computes in %s%s\n",
           planned_home(r->model, false), planned_home(r->model, true),
           planned_activations(r->learner), dtype_name(r->model->compute),
           prefetches(r) ? "; moves set out a block ahead" : "");
    free(recompute);
    printf("device memory\n");
    print_bytes("activations, gradients", r->bytes.arena, "the arena");
    print_bytes("workspace", r->bytes.workspace, "of libraries and kernels");
    print_bytes("tables", r->bytes.constants, "positions and indices");
    if (r->holdout) print_bytes("held-out losses", r->holdout, "a plan of their own");
    print_bytes("masters", r->masters, "trained parameters, f32");
    print_bytes("gradients, moments", r->moments, "f32");
    print_bytes("base weights", r->base, dtype_name(r->model->stored));
    print_bytes("context", r->profile.context_bytes, "program and libraries, stated");
    print_bytes("peak", r->peak_bytes, "");
    printf("host memory\n");
    print_bytes("peak", r->bytes.host, "pinned: what rests or is parked there");
    print_bytes("checkpoints", saver_needs(r->model), "more: copies, while one is written");
    printf("files, mapped\n");
    print_bytes("base weights", r->mapped, "read block by block");
    printf("step      %.4g TFLOP, %.4g GB moved, %d steps in the plan, %d micro-steps\n",
           r->step.flops / 1e12, r->step.bytes / 1e9, plan->n_steps,
           (int)r->config->train.accumulate);
    if (r->model->comm->size > 1)
        printf("ranks     %d, ZeRO %d; each sends %.4g GB a micro-step, %.4g GB a step\n",
               r->model->comm->size, r->model->params->zero, r->micro_sent / 1e9,
               r->step.sent / 1e9);
    if (r->step.copied > 0)
        printf("copies    %.4g GB between host and device a step\n", r->step.copied / 1e9);
    printf("time      %.4g s an optimizer step, predicted", r->step_seconds);
    if (r->step_seconds > 1.001 * r->planning.unlimited_seconds)
        printf("; %.4g s without a limit of memory", r->planning.unlimited_seconds);
    printf("\n");
    print_parts(&r->time);
    print_fits(r);
    print_next(r);
}

static void print_json(const Report *r) {
    const Plan *plan = r->learner->shaped[0].plan;
    json_t *choices =
        json_pack("{s:s, s:I, s:s, s:s, s:s, s:b, s:b, s:s, s:s}", "recompute",
                  recompute_name(r->learner->recompute), "recomputed_blocks",
                  (json_int_t)r->learner->hard_blocks, "base_home", planned_home(r->model, false),
                  "optimizer_home", planned_home(r->model, true), "activations_home",
                  planned_activations(r->learner), "prefetch", prefetches(r), "fits", fits(r),
                  "compute", dtype_name(r->model->compute), "device", r->profile.name);
    json_t *j = json_pack(
        "{s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, "
        "s:I, s:I, s:i, s:o}",
        "peak_device_bytes", (json_int_t)r->peak_bytes, "peak_host_bytes",
        (json_int_t)r->bytes.host, "step_seconds", r->step_seconds, "flops", r->step.flops, "bytes",
        r->step.bytes, "sent_bytes", r->step.sent, "copied_bytes", r->step.copied,
        "unlimited_seconds", r->planning.unlimited_seconds, "world", r->model->comm->size,
        "arena_bytes", (json_int_t)r->bytes.arena, "workspace_bytes",
        (json_int_t)r->bytes.workspace, "constant_bytes", (json_int_t)r->bytes.constants,
        "master_bytes", (json_int_t)r->masters, "optimizer_bytes", (json_int_t)r->moments,
        "base_bytes", (json_int_t)r->base, "holdout_bytes", (json_int_t)r->holdout, "mapped_bytes",
        (json_int_t)r->mapped, "context_bytes", (json_int_t)r->profile.context_bytes, "rows",
        (json_int_t)r->learner->shaped[0].io.tables.whole.cu[r->native.pack.samples], "steps",
        plan->n_steps, "choices", choices);
    const StepTime *t = &r->time;
    json_t *parts = json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "products", t->products,
                              "attention", t->attention, "memory", t->memory, "exchange",
                              t->exchange, "moves", t->moves, "update", t->update);
    CHECK(j && parts, "plan: JSON");
    json_object_set_new(j, "step_parts_seconds", parts);
    json_dumpf(j, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(j);
}

int verb_plan(const Call *call) {
    Config *c = call->config;
    config_require(c, "model.path", "plan");
    Report r = {.config = c, .profile = pick_profile(c)};
    int64_t available =
        c->plan.device ? available_bytes(c->memory.budget, &r.profile) : device_available(c);
    r.available = available;
    r.planning = planner_try(c, model_training(c), &r.profile, r.profile.cuda, available);
    planner_apply(c, &r.planning, available);
    Model *model = model_open(c, model_training(c), MODEL_SHAPES, r.profile.cuda);
    model->host_limit = r.planning.host_limit;
    r.native = native_pack(c, &model->dit->config);
    r.holdout = r.planning.tried[r.planning.chosen].holdout_bytes;
    Learner *learner = learner_try(model, c, &r.native.pack, 1, true, available - r.holdout);
    r.model = model;
    r.learner = learner;
    r.bytes = learner_bytes(learner);
    r.peak_bytes = r.bytes.total + r.holdout + r.profile.context_bytes;
    count_resident(&r);
    predict(&r);
    if (call->json)
        print_json(&r);
    else
        print_table(&r);
    planner_close(&r.planning);
    learner_close(learner);
    model_close(model);
    native_pack_free(&r.native);
    return 0;
}
