/* Owns how a linear map with an adapter is recorded. */
#include "trainer/linear.h"

#include "kernels/random.h"

#include <stdlib.h>

int64_t linear_out(const Linear *l) { return l->shape.dim[0]; }

int64_t linear_in(const Linear *l) { return shape_count(l->shape) / l->shape.dim[0]; }

void linear_adapter_shapes(const Linear *l, int64_t rank, Shape *a, Shape *b) {
    *a = l->shape;
    a->dim[0] = rank;
    *b = SHAPE(l->shape.dim[0], rank);
    for (int i = 2; i < a->rank; i++) b->dim[b->rank++] = 1;
}

void linear_add_adapter(ParamSet *p, Linear *l) {
    if (!l->rank) return;
    Shape a, b;
    linear_adapter_shapes(l, l->rank, &a, &b);
    char *name_a = xprintf("%s.lora_A.weight", l->module);
    char *name_b = xprintf("%s.lora_B.weight", l->module);
    l->lora_a = params_add(p, name_a, a, l->block, !l->frozen);
    l->lora_b = params_add(p, name_b, b, l->block, !l->frozen);
    free(name_a);
    free(name_b);
}

static Tensor *of_rows(Segments rows, Tensor *y) {
    return rows.single ? op_linear_of_samples(y) : y;
}

/* y, plus the adapter's part on slice `slice`. */
static Tensor *add_adapter(Graph *g, const Linear *l, Tensor *x, Tensor *y, int slice,
                           Segments rows, Tensor *ordinals) {
    if (!l->rank) return y;
    Tensor *a = graph_param(g, l->lora_a, 1, SHAPE(l->rank, linear_in(l)));
    Tensor *b = graph_param(g, l->lora_b, 1, SHAPE(linear_out(l), l->rank));
    if (l->dropout > 0 && ordinals)
        x = op_dropout(g, x, ordinals, rows, l->dropout, PURPOSE_DROPOUT + l->ordinal);
    x = of_rows(rows, op_linear(g, x, a, NULL));
    return of_rows(rows, op_linear_add(g, x, b, y, l->scale, slice));
}

Tensor *linear_forward(Graph *g, const Linear *l, Tensor *x, Segments rows, Tensor *ordinals) {
    Tensor *w = graph_param(g, l->w, 1, SHAPE(linear_out(l), linear_in(l)));
    Tensor *b = l->has_bias ? graph_param(g, l->b, 1, SHAPE(linear_out(l))) : NULL;
    return add_adapter(g, l, x, of_rows(rows, op_linear(g, x, w, b)), 0, rows, ordinals);
}

Tensor *linear_forward_fused(Graph *g, const Linear *l, int n, Tensor *x, Segments rows,
                             Tensor *ordinals) {
    int64_t out = linear_out(l), in = linear_in(l);
    Tensor *w = graph_param(g, l->w, n, SHAPE(n, out, in));
    Tensor *b = l->has_bias ? graph_param(g, l->b, n, SHAPE(n, out)) : NULL;
    Tensor *y = of_rows(rows, op_linear(g, x, w, b));
    for (int i = 0; i < n; i++) y = add_adapter(g, &l[i], x, y, i, rows, ordinals);
    return y;
}
