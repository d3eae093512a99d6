/* Owns the training run: what it opens, the loop over its steps, and how it ends. */
#include "trainer/train.h"
#include "trainer/cli.h"
#include "trainer/host_needs.h"
#include "trainer/planner.h"
#include "trainer/same.h"
#include "trainer/stop.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- opening ----------------------------------------------------------------------------------
 */

static void check_settings(const Config *c) {
    config_require(c, "model.path", "train");
    config_require(c, "data.path", "train");
    if (c->train.validate_every && !c->data.holdout)
        config_die(c, "train.validate_every", "there are no held-out clips; set data.holdout");
}

/* Every rank takes rank 0's word. */
static double agree(const Model *m, double mine) {
    double *all = xcalloc((size_t)m->comm->size, sizeof *all);
    m->comm->all_gather(m->comm, m->stream, DT_F64, 1, &mine, all);
    double first = all[0];
    free(all);
    return first;
}

/* Takes the folder and finds where to go on; the checkpoint's path, of the caller's own, or NULL.
 */
static char *find_start(Train *t, const char *folder) {
    const Model *m = t->model;
    char *from = NULL;
    if (m->comm->rank == 0) {
        t->run = run_folder_open(folder);
        from = run_folder_resume(&t->run, t->config, m->comm->size, &t->at);
    } else {
        t->run = (RunFolder){.path = xstrdup(folder), .lock = -1, .metrics = -1};
    }
    double step = agree(m, from ? (double)t->at.step : -1);
    if (m->comm->rank && step >= 0) {
        bool given = strcmp(t->config->train.resume, "auto") != 0;
        char *below = xprintf("%s/checkpoints", folder);
        Error e;
        from = given ? xstrdup(t->config->train.resume) : checkpoint_path(below, (int64_t)step);
        if (!checkpoint_position(from, &t->at, &e)) die_error(&e);
        free(below);
    }
    return from;
}

/* Ranks of other weights would train another model. Weights may lie on each host's own disk and be
 * tens of gigabytes: samples of them are compared, in less time than a rank may keep others
 * waiting.
 */
static void compare_weights(const Model *m) {
    char digest[CACHE_KEY_CHARS];
    Error e;
    if (m->comm->size == 1) return;
    if (!cache_files_sample_folder(m->folder, digest, &e)) die_error(&e);
    ranks_agree(m->comm, "transformer (model.path)", digest);
}

static void open_data(Train *t, bool resumed) {
    const Config *c = t->config;
    int ranks = t->model->data_ranks;
    t->samples = samples_open(c);
    ranks_agree(t->model->comm, "set of samples (data.path, data.cache)", t->samples->digest);
    compare_weights(t->model);
    if (resumed && strcmp(t->samples->digest, t->at.dataset))
        config_die(c, "data.path",
                   "the samples are not those that the run began with: clips, captions or settings "
                   "of the data have changed. Give them again as they were, or begin a new run "
                   "with another train.out");
    snprintf(t->at.dataset, sizeof t->at.dataset, "%s", t->samples->digest);
    t->at.global_batch = c->train.batch * c->train.accumulate * ranks;
    if (t->at.global_batch > t->samples->n_train)
        config_die(c, "data.path",
                   "%d samples are fewer than the %lld that one step takes: train.batch %lld x "
                   "train.accumulate %lld x %d ranks%s. Give more clips, or more data.windows of "
                   "each, or lower train.batch, train.accumulate or the number of ranks",
                   t->samples->n_train, (long long)t->at.global_batch, (long long)c->train.batch,
                   (long long)c->train.accumulate, t->model->comm->size,
                   c->ranks.sequence > 1 ? " / ranks.sequence" : "");
}

static void open_work(Train *t) {
    const Config *c = t->config;
    Pack pack = samples_pack(t->samples, (int)c->train.batch);
    int64_t available = model_available(t->model, c);
    host_needs_reserve(c, t->model, &pack);
    t->holdout = holdout_open(t, available);
    if (t->holdout.learner) {
        LearnerBytes b = learner_bytes(t->holdout.learner);
        available -= b.total - b.resident;
    }
    available -= previews_bytes(t->model, c);
    t->learner = learner_plan(t->model, c, &pack, 1, true, available);
    learner_bind(t->learner, false);
    memory_seal(&t->model->memory, false);
    if (t->holdout.learner) learner_bind(t->holdout.learner, false);
    memory_seal(&t->model->memory, true);
    samples_pack_free(&pack);
    previews_check(t);
}

/* ---- a step -----------------------------------------------------------------------------------
 */

static Micro micro_of(const Train *t, const Batch *b, int64_t i) {
    return (Micro){.noisy = b->noisy,
                   .target = b->target,
                   .image = b->image,
                   .text = b->text,
                   .timesteps = b->timesteps,
                   .ordinals = b->ordinals,
                   .seed = (uint64_t)t->config->train.seed,
                   .step = (uint32_t)t->at.step,
                   .micro = (int)i,
                   .micros = (int)t->config->train.accumulate};
}

static double ms_since(double start) { return 1e3 * (now_seconds() - start); }

/* Forward and backward of all micro-steps; the gradients' mean is then where optim_step finds it.
 */
static bool compute(Train *t, StepRecord *r, Error *e) {
    int64_t micros = t->config->train.accumulate;
    for (int64_t i = 0; i < micros; i++) {
        const Batch *b = loader_next(t->loader, e);
        if (!b) return false;
        r->wait_ms += b->waited_ms;
        double start = now_seconds();
        Micro micro = micro_of(t, b, i);
        double loss = learner_micro(t->learner, &micro);
        r->compute_ms += ms_since(start);
        r->loss += loss / (double)micros;
        if (isfinite(loss)) continue;
        t->diverged = true;
        trouble_loss(t, b, &micro, e);
        return false;
    }
    return true;
}

static bool update(Train *t, StepRecord *r, Error *e) {
    Model *m = t->model;
    double start = now_seconds();
    Optim *o = &t->learner->optim;
    r->grad_norm = optim_grad_norm(o, m->params, &m->memory, m->stream);
    r->skipped = optim_overflowed(o, r->grad_norm);
    t->at.scale = o->scale;
    if (r->skipped) return true;
    if (!isfinite(r->grad_norm)) {
        t->diverged = true;
        trouble_gradient(t, e);
        return false;
    }
    r->learning_rate = learning_rate_at(&t->config->train, t->at.step);
    optim_step(o, m->params, &t->config->train, r->learning_rate, r->grad_norm, r->step, &m->memory,
               m->stream);
    m->memory.k->stream_sync(m->stream);
    r->update_ms = ms_since(start);
    return true;
}

static bool due(int64_t every, int64_t step) { return every && step % every == 0; }

/* The state, to be written once the step is recorded. */
static bool copy(Train *t, Error *e) {
    if (!saver_copy(t->saver, &t->at, e)) return false;
    t->saved_step = t->at.step;
    return true;
}

/* What a step is followed by. */
static bool after_step(Train *t, StepRecord *r, bool stop, Error *e) {
    const TrainConfig *c = &t->config->train;
    bool last = t->at.step == c->steps, ok = true;
    bool saves = stop || last || due(c->checkpoint_every, t->at.step);
    double start = now_seconds();
    if (due(c->validate_every, t->at.step) || (last && c->validate_every))
        ok = holdout_loss(t, &r->holdout_loss, e);
    r->holdout_ms = ms_since(start);
    start = now_seconds();
    if (ok && saves) ok = copy(t, e);
    r->copy_ms = ms_since(start);
    r->step_ms = ms_since(t->accounted);
    t->accounted = now_seconds();
    ok = ok && report_step(t, r, e);
    if (ok && saves) saver_write(t->saver);
    if (ok && due(c->sample_every, t->at.step)) {
        ok = previews_make(t, e);
        t->accounted = now_seconds();
    }
    if (ok && saver_failed(t->saver)) ok = saver_wait(t->saver, e);
    return ok;
}

/* Any rank that was asked to stop stops all of them. */
static bool all_stop(const Train *t) {
    const Model *m = t->model;
    double mine = stop_asked(), *all = xcalloc((size_t)m->comm->size, sizeof *all);
    bool stop = false;
    m->comm->all_gather(m->comm, m->stream, DT_F64, 1, &mine, all);
    for (int i = 0; i < m->comm->size; i++) stop = stop || all[i] > 0;
    free(all);
    return stop;
}

static bool train_step(Train *t, bool *stop, Error *e) {
    StepRecord r = {.step = t->at.step + 1, .holdout_loss = NAN};
    comm_at_step(r.step);
    if (!compute(t, &r, e) || !update(t, &r, e)) return false;
    t->at.step++;
    t->at.samples += t->at.global_batch;
    *stop = all_stop(t);
    return after_step(t, &r, *stop, e);
}

/* ---- the end ----------------------------------------------------------------------------------
 */

/* What went wrong does not cost the steps before: they are kept in a checkpoint. */
static void keep_good_state(Train *t) {
    Error e;
    if (t->at.step == t->saved_step || !t->at.step) return;
    bool kept = copy(t, &e);
    if (kept) saver_write(t->saver);
    kept = kept && saver_wait(t->saver, &e);
    if (t->progress)
        progress_say(t->progress, "the state after step %lld %s%s", (long long)t->at.step,
                     kept ? "is kept in a checkpoint" : "could not be kept: ", kept ? "" : e.text);
}

/* from: the checkpoint that the run began with; NULL: none. */
static void print_result(const Train *t, const char *from, bool trained) {
    char *folder = xprintf("%s/checkpoints", t->run.path), *result;
    char *checkpoint = trained ? checkpoint_path(folder, t->at.step) : xstrdup(from);
    Error e;
    if (!run_folder_result(&t->run, checkpoint, t->model->training == TRAIN_FULL, &result, &e))
        die_error(&e);
    printf("%s\n", result);
    free(folder);
    free(checkpoint);
    free(result);
}

static void close_train(Train *t) {
    loader_close(t->loader);
    previews_close(t->previews);
    holdout_close(&t->holdout);
    saver_close(t->saver);
    learner_close(t->learner);
    samples_close(t->samples);
    run_folder_close(&t->run);
    model_close(t->model);
}

/* Ends the program with what every rank knows; one of them says it. */
NORETURN static void end_diverged(Train *t, const Error *e) {
    if (t->model->comm->rank == 0) fprintf(stderr, "cogsmith: %s\n", e->text);
    agree(t->model, 0); /* no rank is gone before it is said */
    exit(e->exit_code);
}

/* The steps that are left. Returns the exit code. */
static int run_steps(Train *t) {
    bool stop = false, ok = true;
    Error e = {0};
    t->accounted = now_seconds();
    while (ok && !stop && t->at.step < t->config->train.steps) ok = train_step(t, &stop, &e);
    bool damaged = e.exit_code == EXIT_DATA && t->model->comm->size == 1; /* a cached value */
    if (!ok && (t->diverged || damaged)) keep_good_state(t);
    progress_close(t->progress);
    if (!ok && t->diverged) end_diverged(t, &e);
    if (!ok) die_error(&e);
    if (!saver_wait(t->saver, &e)) die_error(&e);
    if (t->at.step == t->config->train.steps) return 0;
    if (t->model->comm->rank == 0)
        fprintf(stderr,
                "cogsmith: stopped after step %lld with a checkpoint; start again to go "
                "on\n",
                (long long)t->at.step);
    return EXIT_STOPPED;
}

static void begin(Train *t, const char *from) {
    const Config *c = t->config;
    Model *m = t->model;
    Error e;
    bool first = m->comm->rank == 0;
    open_data(t, from != NULL);
    t->previews = previews_open(c, t->samples);
    open_work(t);
    if (from && !checkpoint_load(from, m, &e)) die_error(&e);
    LossScale *scale = &t->learner->optim.scale;
    if (from && t->learner->optim.scales) *scale = t->at.scale;
    t->at.scale = *scale;
    t->saver = saver_open(c, m, t->run.path);
    if (first && !run_folder_begin(&t->run, c, t->at.step, &e)) die_error(&e);
    if (first) report_start(t, from != NULL);
    t->loader = loader_open(t->samples, c, &m->schedule, m->data_rank, m->data_ranks, t->at.samples,
                            t->at.step);
    if (first)
        t->progress =
            progress_open("training", "steps", (double)t->at.step, (double)c->train.steps);
}

int verb_train(const Call *call) {
    Config *c = call->config;
    check_settings(c);
    stop_catch();
    if (!c->train.out) c->train.out = run_folder_path(c);
    Train t = {.config = c, .saved_step = -1};
    Comm *ranks = comm_world(c->ranks.timeout); /* before any of them has done anything */
    ranks_agree_to_start(ranks, c);
    planner_decide(c, model_training(c), ranks);
    t.model = model_open(c, model_training(c), MODEL_WEIGHTS, false);
    char *from = find_start(&t, c->train.out);
    int code = 0;
    if (from) t.saved_step = t.at.step;
    bool left = t.at.step < c->train.steps;
    if (left) {
        begin(&t, from);
        code = run_steps(&t);
    }
    if (!code && t.model->comm->rank == 0) print_result(&t, from, left);
    close_train(&t);
    comm_close(ranks);
    free(from);
    return code;
}
