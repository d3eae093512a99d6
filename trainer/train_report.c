/* Owns what a run says: its summary, its live line, its records. */
#include "trainer/device.h"
#include "trainer/planner.h"
#include "trainer/train.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double AVERAGE_KEEP = 0.95; /* of the loss on the live line, per step */

/* ---- the summary ------------------------------------------------------------------------------
 */

static char *what_is_trained(const Train *t) {
    const Model *m = t->model;
    int maps = 0;
    int64_t rank = 0;
    for (int i = 0; i < m->dit->n_linears; i++) {
        maps += m->dit->linears[i]->rank > 0;
        rank = MAX(rank, m->dit->linears[i]->rank);
    }
    long long parameters = (long long)params_total(m->params, true);
    const char *variant = dit_variant(&m->dit->config);
    return m->training == TRAIN_FULL
               ? xprintf("all weights of %s, %lld parameters", variant, parameters)
               : xprintf("a LoRA of rank %lld on %d layers of %s, %lld parameters", (long long)rank,
                         maps, variant, parameters);
}

/* "45 s", "12 min", "3.4 h" */
static char *duration(double seconds) {
    return seconds < 90     ? xprintf("%.0f s", seconds)
           : seconds < 5400 ? xprintf("%.0f min", seconds / 60)
                            : xprintf("%.1f h", seconds / 3600);
}

static int64_t planned_bytes(const Train *t) {
    int64_t bytes = learner_bytes(t->learner).total;
    if (t->holdout.learner)
        bytes +=
            learner_bytes(t->holdout.learner).total - learner_bytes(t->holdout.learner).resident;
    return bytes;
}

void report_start(const Train *t, bool resumed) {
    static const char *const RECOMPUTE[] = {"", "recomputes nothing", "recomputes selectively",
                                            "recomputes blocks"};
    const Config *c = t->config;
    const Samples *s = t->samples;
    const Wanted *w = s->wanted;
    int64_t left = c->train.steps - t->at.step;
    Profile profile = device_profile(c);
    double step = predicted_seconds(c, &profile, t->learner);
    char *what = what_is_trained(t), *time = duration(step * (double)left);
    fprintf(stderr, "training  %s\n", what);
    fprintf(stderr, "samples   %d of %lld frames of %lld x %lld; %d held out (%s)\n", s->n_train,
            (long long)w->want.frames, (long long)w->want.height, (long long)w->want.width,
            s->n_holdout, w->dataset.layout);
    fprintf(stderr,
            "steps     %lld of %lld samples (batch %lld, accumulate %lld, %d rank%s): %.4g "
            "epochs\n",
            (long long)c->train.steps, (long long)t->at.global_batch, (long long)c->train.batch,
            (long long)c->train.accumulate, t->model->comm->size,
            t->model->comm->size == 1 ? "" : "s",
            (double)c->train.steps * (double)t->at.global_batch / s->n_train);
    fprintf(stderr,
            "memory    %.3f GiB on the device at the peak (%s), %.3f GiB on the host, %.3f "
            "GiB for checkpoints\n",
            (double)planned_bytes(t) / (1 << 30), RECOMPUTE[t->learner->recompute],
            (double)learner_bytes(t->learner).host / (1 << 30),
            (double)saver_needs(t->model, true) / (1 << 30));
    fprintf(stderr, "time      about %s: %.3g s a step, predicted\n", time, step);
    fprintf(stderr, "out       %s", t->run.path);
    if (resumed) fprintf(stderr, ", going on after step %lld", (long long)t->at.step);
    fputc('\n', stderr);
    free(what);
    free(time);
}

/* ---- steps ------------------------------------------------------------------------------------
 */

static json_t *number(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static char *metric_line(const Train *t, const StepRecord *r) {
    json_t *j = json_object();
    json_object_set_new(j, "step", json_integer(r->step));
    json_object_set_new(j, "loss", number(r->loss));
    json_object_set_new(j, "grad_norm", r->skipped ? json_null() : number(r->grad_norm));
    if (r->skipped) json_object_set_new(j, "skipped", json_true());
    json_object_set_new(j, "learning_rate", number(r->learning_rate));
    json_object_set_new(j, "samples", json_integer(t->at.samples));
    if (!isnan(r->holdout_loss)) json_object_set_new(j, "holdout_loss", number(r->holdout_loss));
    json_object_set_new(j, "step_ms", number(r->step_ms));
    json_object_set_new(j, "wait_ms", number(r->wait_ms));
    json_object_set_new(j, "compute_ms", number(r->compute_ms));
    json_object_set_new(j, "update_ms", number(r->update_ms));
    json_object_set_new(j, "holdout_ms", number(r->holdout_ms));
    json_object_set_new(j, "copy_ms", number(r->copy_ms));
    json_object_set_new(j, "peak_bytes", json_integer((json_int_t)t->model->memory.peak_bytes));
    char *text = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(17));
    CHECK(text, "metrics: JSON");
    char *line = xprintf("%s\n", text);
    free(text);
    json_decref(j);
    return line;
}

bool report_step(Train *t, const StepRecord *r, Error *e) {
    t->loss_average = t->loss_average > 0
                          ? AVERAGE_KEEP * t->loss_average + (1 - AVERAGE_KEEP) * r->loss
                          : r->loss;
    if (t->model->comm->rank) return true;
    if (!isnan(r->holdout_loss)) t->holdout_loss = r->holdout_loss;
    char *held = t->holdout_loss > 0 ? xprintf(", held out %.3g", t->holdout_loss) : xstrdup("");
    char *note =
        xprintf("loss %.3g%s, grad %.2g, lr %.3g, %.2f GiB", t->loss_average, held, r->grad_norm,
                r->learning_rate, (double)t->model->memory.peak_bytes / (1 << 30));
    char *line = metric_line(t, r);
    progress_set(t->progress, (double)r->step, note);
    bool ok = run_folder_metric(&t->run, line, e);
    free(held);
    free(note);
    free(line);
    return ok;
}
