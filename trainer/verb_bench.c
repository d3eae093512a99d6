/* `cogsmith bench`: a training step of a model, timed whole and step of the plan by step of the
 * plan.
 *
 * Ops are timed where they work, inside a real step: rows of the same op, phase and size are added
 * up. share is the part of the measured limit that a row reaches: of the rate of a large square
 * product where arithmetic bounds it, of the rate of a copy where memory does. */
#include "kernels/random.h"
#include "trainer/cli.h"
#include "trainer/learner.h"
#include "trainer/native.h"
#include "trainer/profile.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char name[96];
    double *seconds; /* [repeat] */
    Cost cost;
    bool whole; /* a training step: has rows and peak_bytes too */
} Row;

typedef struct {
    const Config *config;
    Model *model;
    Learner *learner;
    Profile limit;
    int repeat;
    Row *rows;
    int n_rows;
} Bench;

static Row *row_of(Bench *b, const char *name) {
    for (int i = 0; i < b->n_rows; i++)
        if (!strcmp(b->rows[i].name, name)) return &b->rows[i];
    b->rows = xrealloc(b->rows, (size_t)(b->n_rows + 1) * sizeof *b->rows);
    Row *row = &b->rows[b->n_rows++];
    *row = (Row){.seconds = xcalloc((size_t)b->repeat, sizeof *row->seconds)};
    snprintf(row->name, sizeof row->name, "%s", name);
    return row;
}

/* "linear backward [2026,1920]x[7680,1920]": op, phase, and the shapes that set the work. */
static void step_name(const Plan *p, const Step *s, char name[96]) {
    char a[64], w[64];
    if (!s->node) {
        snprintf(name, 96, "%s %lld", s->phase == GATHER ? "gather" : "reduce",
                 (long long)p->graph->params->bucket[s->bucket].count);
        return;
    }
    const Node *n = s->node;
    const char *phase = s->phase == BACKWARD ? "backward" : "forward";
    bool linear = n->in[1] && n->in[1]->role == ROLE_PARAM && n->in[1]->shape.rank > 1;
    snprintf(name, 96, "%s %s %s%s%s", n->op->name, phase, shape_text(n->in[0]->shape, a),
             linear ? "x" : "", linear ? shape_text(n->in[1]->shape, w) : "");
}

/* Adds the timers of one run to the rows of its steps. */
static void add_steps(Bench *b, const Plan *p, const double *seconds, int turn) {
    for (int i = 0; i < p->n_steps; i++) {
        char name[96];
        step_name(p, &p->steps[i], name);
        Row *row = row_of(b, name);
        row->seconds[turn] += seconds[i];
        Cost c = step_cost(p, &p->steps[i]);
        if (turn) continue;
        row->cost.flops += c.flops;
        row->cost.bytes += c.bytes;
    }
}

static float *draw(int64_t n, uint32_t ordinal) {
    float *values = xcalloc((size_t)n, sizeof *values);
    random_normal((Draw){.ordinal = ordinal, .purpose = PURPOSE_NOISE}, 0, n, values);
    return values;
}

/* One optimizer step with one micro-step. Returns its seconds. */
static double train_once(Bench *b, const Micro *micro, int64_t step) {
    Model *m = b->model;
    const TrainConfig *train = &b->config->train;
    double start = now_seconds();
    learner_micro(b->learner, micro);
    double norm = optim_grad_norm(&b->learner->optim, m->params, &m->memory, m->stream);
    optim_step(m->params, train, train->learning_rate, norm, step, &m->memory, m->stream);
    m->memory.k->stream_sync(m->stream);
    return now_seconds() - start;
}

static void run_bench(Bench *b, const NativePack *native) {
    const DitGraph *io = &b->learner->shaped[0].io;
    Run *run = b->learner->shaped[0].run;
    int64_t n = tensor_count(io->latents), samples = native->pack.samples;
    float *latents = draw(n, 0), *target = draw(n, 1), *text = draw(tensor_count(io->text), 2);
    int64_t *timesteps = xcalloc((size_t)samples, sizeof *timesteps);
    double *seconds = xcalloc((size_t)run->plan->n_steps, sizeof *seconds);
    Micro micro = {.noisy = latents,
                   .image = latents,
                   .text = text,
                   .target = target,
                   .timesteps = timesteps,
                   .micros = 1};
    bool ops = b->config->bench.what != BENCH_STEP, whole = b->config->bench.what != BENCH_OPS;
    if (whole)
        row_of(b, b->model->training == TRAIN_FULL ? "step full" : "step lora")->whole = true;
    train_once(b, &micro, 1);
    for (int i = 0; whole && i < b->repeat; i++)
        b->rows[0].seconds[i] = train_once(b, &micro, i + 2);
    if (whole) b->rows[0].cost = plan_cost(run->plan, -1);
    run->seconds = seconds;
    for (int i = 0; ops && i < b->repeat; i++) {
        learner_micro(b->learner, &micro);
        add_steps(b, run->plan, seconds, i);
    }
    run->seconds = NULL;
    free(latents);
    free(target);
    free(text);
    free(timesteps);
    free(seconds);
}

static int by_value(const void *x, const void *y) {
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

/* The least time that the measured limits allow, over the time taken. */
static double share_of(const Bench *b, const Row *r) {
    double flops = r->cost.flops / b->limit.matmul_flops;
    double bytes = r->cost.bytes / b->limit.memory_rate;
    return MAX(flops, bytes) / r->seconds[0];
}

static void print_table(const Bench *b, int64_t rows, int64_t peak) {
    printf("limit: %.4g GFLOP/s (products), %.4g GB/s (copy); %lld rows, %.3f GiB at the peak, "
           "recompute %s\n",
           b->limit.matmul_flops / 1e9, b->limit.memory_rate / 1e9, (long long)rows,
           (double)peak / (1 << 30),
           b->learner->recompute == MEMORY_RECOMPUTE_NONE ? "none" : "on");
    printf("%-52s %10s %10s %10s %8s %6s\n", "name", "min ms", "median ms", "GFLOP/s", "GB/s",
           "share");
    for (int i = 0; i < b->n_rows; i++) {
        const Row *r = &b->rows[i];
        printf("%-52s %10.3f %10.3f %10.1f %8.1f %6.2f\n", r->name, 1e3 * r->seconds[0],
               1e3 * r->seconds[b->repeat / 2], r->cost.flops / r->seconds[0] / 1e9,
               r->cost.bytes / r->seconds[0] / 1e9, share_of(b, r));
    }
}

static void print_json(const Bench *b, int64_t rows, int64_t peak) {
    json_t *list = json_array();
    for (int i = 0; i < b->n_rows; i++) {
        const Row *r = &b->rows[i];
        json_t *j =
            json_pack("{s:s, s:f, s:f, s:f, s:f, s:f}", "name", r->name, "min_ms",
                      1e3 * r->seconds[0], "median_ms", 1e3 * r->seconds[b->repeat / 2], "flops",
                      r->cost.flops, "bytes", r->cost.bytes, "share", share_of(b, r));
        CHECK(j, "bench: JSON of %s", r->name);
        if (r->whole) json_object_set_new(j, "rows", json_integer(rows));
        if (r->whole) json_object_set_new(j, "peak_bytes", json_integer(peak));
        json_array_append_new(list, j);
    }
    json_dumpf(list, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(list);
}

int verb_bench(const Call *call) {
    Config *c = call->config;
    config_require(c, "model.path", "bench");
    check_supported(c);
    if (c->bench.what == BENCH_VAE || c->bench.what == BENCH_IO)
        config_die(c, "bench.what", "expected ops or step: vae and io are not built yet");
    c->train.accumulate = 1;
    Bench b = {.config = c, .limit = profile_measure(), .repeat = (int)c->bench.repeat};
    b.model = model_open(c, model_training(c), MODEL_RANDOM, false);
    NativePack native = native_pack(c, &b.model->dit->config);
    b.learner =
        learner_plan(b.model, c, &native.pack, 1, true, available_bytes(c->memory.budget, NULL));
    learner_bind(b.learner, false);
    run_bench(&b, &native);
    for (int i = 0; i < b.n_rows; i++)
        qsort(b.rows[i].seconds, (size_t)b.repeat, sizeof(double), by_value);
    int64_t rows = b.learner->shaped[0].io.tables.rows.cu[native.pack.samples];
    int64_t peak = learner_bytes(b.learner).total + CPU_CONTEXT_BYTES;
    if (call->json)
        print_json(&b, rows, peak);
    else
        print_table(&b, rows, peak);
    for (int i = 0; i < b.n_rows; i++) free(b.rows[i].seconds);
    free(b.rows);
    learner_close(b.learner);
    model_close(b.model);
    native_pack_free(&native);
    return 0;
}
