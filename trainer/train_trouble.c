/* Owns finding where numbers went wrong. */
#include "trainer/train.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* The names of the batch's samples whose loss is not finite; all of them where every loss is. */
static char *bad_samples(const Train *t, const Batch *b) {
    int n = (int)t->config->train.batch;
    float *losses = xcalloc((size_t)n, sizeof *losses);
    learner_losses(t->learner, 0, losses);
    bool any = false;
    for (int i = 0; i < n; i++) any = any || !isfinite(losses[i]);
    char *text = xstrdup("");
    for (int i = 0; i < n; i++) {
        if (any && isfinite(losses[i])) continue;
        char *name = sample_name(t->samples, samples_at(t->samples, b->ordinals[i]));
        char *longer = xprintf("%s%s%s at timestep %lld", text, *text ? ", " : "", name,
                               (long long)b->timesteps[i]);
        free(text);
        free(name);
        text = longer;
    }
    free(losses);
    return text;
}

static bool all_finite(const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

/* The first tensor of the micro-step that holds what is not finite: inputs, weights, then what the
 * steps make of them. */
static char *first_bad(Train *t, const Batch *b, const Micro *micro) {
    int64_t n = t->config->train.batch;
    if (!all_finite(b->noisy, n * samples_latent_count(t->samples))) return xstrdup("the latents");
    if (!all_finite(b->text, n * samples_text_count(t->samples))) return xstrdup("the embeddings");
    Run *run = t->learner->shaped[0].run;
    run->watch = true;
    learner_micro(t->learner, micro);
    run->watch = false;
    return run->bad ? xprintf("the tensor \"%s\"", run->bad->name) : xstrdup("no single tensor");
}

static const char HINT[] = "Try a lower train.learning_rate or train.clip_norm, or look at the "
                           "samples";

void trouble_loss(Train *t, const Batch *batch, const Micro *micro, Error *e) {
    char *samples = bad_samples(t, batch), *tensor = first_bad(t, batch, micro);
    error_set(e, EXIT_WORLD,
              "step %lld: the loss is not finite; it begins with %s, for %s. The weights are those "
              "before this step. %s.",
              (long long)t->at.step + 1, tensor, samples, HINT);
    free(samples);
    free(tensor);
}

void trouble_gradient(Train *t, Error *e) {
    Model *m = t->model;
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
    int64_t first = t->at.samples, last = first + t->at.global_batch - 1;
    char *sample = sample_name(t->samples, samples_at(t->samples, first));
    error_set(
        e, EXIT_WORLD,
        "step %lld: the gradient of \"%s\" is not finite, for samples %lld to %lld of the run "
        "(the first is %s). The weights are those before this step. %s.",
        (long long)t->at.step + 1, name ? name : "(no single parameter)", (long long)first,
        (long long)last, sample, HINT);
    free(sample);
}
