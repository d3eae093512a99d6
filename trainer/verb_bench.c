/* `cogsmith bench`: a training step of a model and its autoencoder, timed whole and step of the
 * plan by step of the plan; and what comes from files.
 *
 * Ops are timed where they work, inside a real step: rows of the same op, phase and size are added
 * up. share is the part of the measured limit that a row reaches: of the rate of a large square
 * product where arithmetic bounds it, of copies of as many bytes, timed in turn with it, where
 * memory does; both on the device. Rows named product are the step's matrix products, by size:
 * share is of the speed of the library's own call for the whole product, timed in turn with it.
 * peak_bytes and host_bytes of a step are the plan's: on the device with its context, and in host
 * memory beside it. A whole step runs as in training; steps of the plan are awaited one by one, and
 * what waiting for a GPU takes is taken off. */
#include "kernels/random.h"
#include "trainer/bench.h"
#include "trainer/cli.h"
#include "trainer/device.h"
#include "trainer/learner.h"
#include "trainer/native.h"

#include <stdlib.h>

typedef struct {
    Bench *bench;
    const Config *config;
    Model *model;
    Learner *learner;
} StepBench;

static float *draw(int64_t n, uint32_t ordinal) {
    float *values = xcalloc((size_t)n, sizeof *values);
    random_normal((Draw){.ordinal = ordinal, .purpose = PURPOSE_NOISE}, 0, n, values);
    return values;
}

/* One optimizer step with one micro-step. Returns its seconds. */
static double train_once(StepBench *b, const Micro *micro, int64_t step) {
    Model *m = b->model;
    const TrainConfig *train = &b->config->train;
    double start = now_seconds();
    learner_micro(b->learner, micro);
    double norm = optim_grad_norm(&b->learner->optim, m->params, &m->memory, m->stream);
    optim_step(&b->learner->optim, m->params, train, train->learning_rate, norm, step, &m->memory,
               m->stream);
    m->memory.k->stream_sync(m->stream);
    return now_seconds() - start;
}

typedef struct {
    Learner *learner;
    const Micro *micro;
} MicroStep;

static void micro_step(void *of) {
    MicroStep *m = of;
    learner_micro(m->learner, m->micro);
}

static const char *training_name(const Model *m) {
    return m->training == TRAIN_FULL ? "step full" : "step lora";
}

static void run_bench(StepBench *b, const NativePack *native) {
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
    Bench *bench = b->bench;
    bool ops = b->config->bench.what != BENCH_STEP, whole = b->config->bench.what != BENCH_OPS;
    train_once(b, &micro, 1);
    if (run->repeats) train_once(b, &micro, 1); /* it is captured */
    if (whole) {
        BenchRow *row = bench_row(bench, training_name(b->model));
        row->cost = plan_cost(run->plan, -1);
        row->rows = io->tables.whole.cu[samples];
        row->peak_bytes = learner_bytes(b->learner).total + device_context_bytes(b->config);
        row->host_bytes = learner_bytes(b->learner).host;
        for (int i = 0; i < bench->repeat; i++) row->seconds[i] = train_once(b, &micro, i + 2);
    }
    run->seconds = seconds;
    for (int i = 0; ops && i < bench->repeat; i++) {
        learner_micro(b->learner, &micro);
        bench_add_steps(bench, run->plan, seconds, i);
    }
    run->seconds = NULL;
    MicroStep step = {b->learner, &micro};
    if (ops) bench_products(bench, &b->model->memory, micro_step, &step);
    free(latents);
    free(target);
    free(text);
    free(timesteps);
    free(seconds);
}

static void bench_step(Bench *bench, Config *c) {
    c->train.accumulate = 1;
    StepBench b = {.bench = bench, .config = c};
    int64_t available = device_available(c); /* the weights will be among what is planned */
    b.model = model_open(c, model_training(c), MODEL_RANDOM, false);
    NativePack native = native_pack(c, &b.model->dit->config);
    b.learner = learner_plan(b.model, c, &native.pack, 1, true, available);
    learner_bind(b.learner, false);
    run_bench(&b, &native);
    learner_close(b.learner);
    model_close(b.model);
    native_pack_free(&native);
}

int verb_bench(const Call *call) {
    Config *c = call->config;
    config_require(c, "model.path", "bench");
    BenchChoice what = c->bench.what;
    if (what == BENCH_IO) config_require(c, "data.path", "bench.what=io");
    Bench b = bench_open(c);
    if (what != BENCH_VAE && what != BENCH_IO) bench_step(&b, c);
    if (what == BENCH_VAE || what == BENCH_ALL) bench_vae(&b);
    if (what == BENCH_IO || what == BENCH_ALL) bench_io(&b);
    bench_print(&b, call->json);
    bench_close(&b);
    return 0;
}
