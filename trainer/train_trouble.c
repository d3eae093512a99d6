/* Owns finding where numbers went wrong. */
#include "trainer/train.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const char HINT[] =
    "Begin a new run with a lower train.learning_rate or train.clip_norm, or look at the samples";
enum { MAX_NAMES = 8 };

/* Appends a name to a list of them. */
static char *with_name(char *list, const char *name) {
    char *longer = xprintf("%s%s%s", list, *list ? ", " : "", name);
    free(list);
    return longer;
}

/* The names of the batch's samples whose loss is not finite, NULL where there is none. */
static char *bad_samples(const Train *t, const Batch *b) {
    int n = (int)t->config->train.batch;
    float *losses = xcalloc((size_t)n, sizeof *losses);
    learner_losses(t->learner, 0, losses);
    char *list = NULL;
    for (int i = 0; i < n; i++) {
        if (isfinite(losses[i])) continue;
        char *sample = sample_name(t->samples, samples_at(t->samples, b->ordinals[i]));
        char *name = xprintf("%s at timestep %lld", sample, (long long)b->timesteps[i]);
        list = with_name(list ? list : xstrdup(""), name);
        free(sample);
        free(name);
    }
    free(losses);
    return list;
}

static bool all_finite(const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

/* The first tensor of the micro-step that holds what is not finite: inputs, then what the steps
 * make of them. Every rank runs it again, for its weights may rest on the others. */
static char *first_bad(Train *t, const Batch *b, const Micro *micro) {
    int64_t n = t->config->train.batch;
    Run *run = t->learner->shaped[0].run;
    run->watch = true;
    learner_micro(t->learner, micro);
    run->watch = false;
    if (!all_finite(b->noisy, n * samples_latent_count(t->samples))) return xstrdup("the latents");
    if (!all_finite(b->text, n * samples_text_count(t->samples))) return xstrdup("the embeddings");
    return run->bad ? xprintf("the tensor \"%s\"", run->bad->name) : xstrdup("no single tensor");
}

/* A rank's word to the others: a whole number of f64s. */
typedef union {
    struct {
        double found;
        char text[1192];
    };
    double raw[150];
} Word;

/* The word of the first rank that has found something. */
static Word first_word(const Model *m, const Word *mine) {
    Word *all = xcalloc((size_t)m->comm->size, sizeof *all);
    m->comm->all_gather(m->comm, m->stream, DT_F64, COUNT(mine->raw), mine->raw, all->raw);
    int rank = 0;
    while (rank < m->comm->size - 1 && !all[rank].found) rank++;
    Word word = all[rank];
    free(all);
    return word;
}

void trouble_loss(Train *t, const Batch *batch, const Micro *micro, Error *e) {
    char *samples = bad_samples(t, batch), *tensor = first_bad(t, batch, micro);
    Word mine = {.found = samples != NULL};
    snprintf(mine.text, sizeof mine.text, "it begins with %s, for %s", tensor,
             samples ? samples : "no single sample");
    Word word = first_word(t->model, &mine);
    error_set(e, EXIT_WORLD,
              "step %lld: the loss is not finite; %.900s. The weights are those before this step. "
              "%s.",
              (long long)t->at.step + 1, word.text, HINT);
    free(samples);
    free(tensor);
}

/* The first trained parameter whose gradient is not finite; NULL: none. */
static const char *bad_parameter(Model *m) {
    const ParamSet *p = m->params;
    const char *name = NULL;
    for (int b = 0; b < p->n_buckets; b++) {
        if (!p->bucket[b].trained) continue;
        real *grad = xcalloc((size_t)p->bucket[b].count, sizeof *grad);
        bucket_read(p, b, PART_GRAD, grad, &m->memory, m->stream);
        for (int i = 0; i < p->n_params; i++) {
            const Param *q = &p->param[i];
            if (q->bucket == b && !name && !all_finite(grad + q->offset, param_count(q)))
                name = q->name;
        }
        free(grad);
    }
    return name;
}

/* The samples of the step, a few of them by name. */
static char *step_samples(const Train *t) {
    char *list = xstrdup("");
    for (int64_t i = 0; i < MIN(t->at.global_batch, MAX_NAMES); i++) {
        char *name = sample_name(t->samples, samples_at(t->samples, t->at.samples + i));
        list = with_name(list, name);
        free(name);
    }
    if (t->at.global_batch > MAX_NAMES) {
        char *rest = xprintf("and %lld more", (long long)t->at.global_batch - MAX_NAMES);
        list = with_name(list, rest);
        free(rest);
    }
    return list;
}

void trouble_gradient(Train *t, Error *e) {
    const char *name = bad_parameter(t->model);
    char *samples = step_samples(t);
    error_set(e, EXIT_WORLD,
              "step %lld: the gradient of \"%s\" is not finite, for %.700s. The weights are those "
              "before this step. %s.",
              (long long)t->at.step + 1, name ? name : "(no single parameter)", samples, HINT);
    free(samples);
}
