/* Owns attaching adapters by pattern and their first values. */
#include "trainer/lora.h"

#include "kernels/random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* PEFT's rule: the whole name, or the end of it behind a dot. */
static bool matches(const char *module, const char *pattern) {
    size_t n = strlen(module), m = strlen(pattern);
    if (m > n || strcmp(module + n - m, pattern)) return false;
    return m == n || module[n - m - 1] == '.';
}

/* The different last parts of module names, for the error of a pattern that matches nothing. */
static void list_targets(const Dit *d, char *text, size_t size) {
    size_t at = 0;
    text[0] = 0;
    for (int i = 0; i < d->n_linears && at < size; i++) {
        const char *module = d->linears[i]->module;
        int block = -1, skip = 0;
        if (sscanf(module, "transformer_blocks.%d.%n", &block, &skip) == 1 && block > 0) continue;
        at += (size_t)snprintf(text + at, size - at, "%s%s", at ? ", " : "", module + skip);
    }
}

void lora_give(Linear *l, int64_t rank, double alpha, double dropout) {
    l->rank = rank;
    l->alpha = alpha;
    l->scale = (real)(alpha / (double)rank);
    l->dropout = (real)dropout;
}

void lora_freeze(Dit *d, double scale) {
    for (int i = 0; i < d->n_linears; i++) {
        d->linears[i]->frozen = true;
        d->linears[i]->scale *= (real)scale;
    }
}

bool lora_attach(Dit *d, const LoraConfig *config, Error *e) {
    if (!config->target_modules.count)
        return error_set(e, EXIT_USER, "expected at least one pattern");
    for (int t = 0; t < config->target_modules.count; t++) {
        const char *pattern = config->target_modules.items[t];
        int hits = 0;
        for (int i = 0; i < d->n_linears; i++) {
            if (!matches(d->linears[i]->module, pattern)) continue;
            lora_give(d->linears[i], config->rank, config->alpha, config->dropout);
            hits++;
        }
        if (hits) continue;
        char targets[800];
        list_targets(d, targets, sizeof targets);
        return error_set(e, EXIT_USER,
                         "'%s' matches no linear layer of this transformer; "
                         "there are: %s",
                         pattern, targets);
    }
    return true;
}

void lora_init(const Dit *d, LoraInitChoice init, uint64_t seed, Memory *m, Stream *s) {
    for (int i = 0; i < d->n_linears; i++) {
        const Linear *l = d->linears[i];
        if (!l->rank) continue;
        int64_t n = l->rank * linear_in(l);
        float *values = xcalloc((size_t)n, sizeof *values);
        real *a = xcalloc((size_t)n, sizeof *a);
        Draw draw = {.seed = seed, .ordinal = (uint32_t)i, .purpose = PURPOSE_INIT};
        double bound = 1 / sqrt((double)linear_in(l));
        if (init == LORA_INIT_GAUSSIAN)
            random_normal(draw, 0, n, values);
        else
            random_uniform(draw, 0, n, values);
        for (int64_t j = 0; j < n; j++)
            a[j] = init == LORA_INIT_GAUSSIAN ? (real)(values[j] / (double)l->rank)
                                              : (real)(bound * (2.0 * values[j] - 1));
        param_write(d->params, l->lora_a, a, m, s); /* B is zero as it was allocated */
        free(a);
        free(values);
    }
}
