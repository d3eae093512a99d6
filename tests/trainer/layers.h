/* Layers of adapters without a model, for tests. Include after cmocka.h. */
#pragma once

#include "trainer/adapter_write.h"

#include <stdlib.h>

/* One layer whose values count upwards. */
static inline AdapterLayer make_layer(const char *module, int64_t rank, double alpha) {
    SafetensorsTensor *t = xcalloc(2, sizeof *t);
    int64_t n = rank * 8;
    float *values = xcalloc((size_t)n, sizeof *values);
    for (int64_t i = 0; i < n; i++) values[i] = (float)(i + 1) / 64;
    t[0] = (SafetensorsTensor){.name = "a", .dtype = DT_F32, .n_dims = 2, .shape = {rank, 8}};
    t[1] = (SafetensorsTensor){.name = "b", .dtype = DT_F32, .n_dims = 2, .shape = {8, rank}};
    t[0].data = t[1].data = values;
    t[0].bytes = t[1].bytes = (size_t)n * sizeof *values;
    return (AdapterLayer){module, rank, alpha, &t[0], &t[1]};
}

static inline void drop_layer(const AdapterLayer *l) {
    free((void *)l->a->data);
    free((void *)l->a);
}
