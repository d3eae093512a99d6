/* What no golden number tells of training through `cogsmith probe`: which parameters decay, and
 * that what a backward step alone asks for is computed again. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/trainer/program.h"

static const char NARROW[] = "tests/golden/dit/narrow";

/* What probe makes of the narrow model's inputs; with `step`, as one optimizer step. */
static Safetensors probe(const char *folder, bool step, const char *const more[3]) {
    char *in = xprintf("%s/inputs.safetensors", NARROW), *out = xprintf("%s/out", folder);
    Safetensors s;
    Error e;
    if (step) {
        SafetensorsItem items[8];
        if (!safetensors_open(&s, in, &e)) die_error(&e);
        for (size_t i = 0; i < s.n_tensors; i++) {
            const SafetensorsTensor *t = &s.tensors[i];
            items[i] = (SafetensorsItem){t->name, t->dtype, t->n_dims + 1, {1}, t->data};
            memcpy(items[i].shape + 1, t->shape, (size_t)t->n_dims * sizeof *t->shape);
        }
        free(in);
        in = xprintf("%s/in", folder);
        SafetensorsFile file = {.items = items, .n_items = s.n_tensors};
        if (!safetensors_write(in, &file, &e)) die_error(&e);
        safetensors_close(&s);
    }
    char *model = xprintf("model.path=%s", NARROW), *inputs = xprintf("probe.inputs=%s", in);
    char *to = xprintf("probe.out=%s", out);
    const Run *r = RUN("probe", model, inputs, to, more[0], more[1], more[2]);
    if (r->code) fail_msg("%s", r->err);
    if (!safetensors_open(&s, out, &e)) die_error(&e);
    free(model);
    free(inputs);
    free(to);
    free(in);
    free(out);
    return s;
}

static bool same(const Safetensors *a, const Safetensors *b, const char *name) {
    const SafetensorsTensor *x = safetensors_find(a, name), *y = safetensors_find(b, name);
    assert_true(x && y && x->bytes == y->bytes);
    return !memcmp(x->data, y->data, x->bytes);
}

/* One step: what does not decay is as without decay, what does is as where all do. */
static void matrices_alone_decay(void **state) {
    (void)state;
    char *folder = scratch_make();
    static const char *const HOW[3][3] = {
        {"method=full", "train.weight_decay=0.5", "train.decay=matrices"},
        {"method=full", "train.weight_decay=0.5", "train.decay=all"},
        {"method=full", "train.weight_decay=0", "train.decay=all"}};
    Safetensors s[3];
    for (int i = 0; i < 3; i++) s[i] = probe(folder, true, HOW[i]);
    int vectors = 0, matrices = 0;
    for (size_t i = 0; i < s[0].n_tensors; i++) {
        const SafetensorsTensor *t = &s[0].tensors[i];
        if (strncmp(t->name, "param.", 6)) continue;
        bool matrix = t->n_dims > 1;
        assert_true(same(&s[0], &s[1], t->name) == matrix);
        assert_true(same(&s[0], &s[2], t->name) != matrix);
        matrices += matrix;
        vectors += !matrix;
    }
    assert_true(matrices > 16 && vectors > 16);
    for (int i = 0; i < 3; i++) safetensors_close(&s[i]);
    scratch_remove(folder);
}

/* Nothing behind the attention trains, so that its backward alone asks for its output. */
static void attention_is_recomputed(void **state) {
    (void)state;
    char *folder = scratch_make();
    Safetensors s[3];
    static const char *const HOW[3][3] = {
        {"method=lora", "lora.target_modules=[to_k]", "memory.recompute=none"},
        {"method=lora", "lora.target_modules=[to_k]", "memory.recompute=selective"},
        {"method=lora", "lora.target_modules=[to_k]", "memory.recompute=block"}};
    for (int i = 0; i < 3; i++) s[i] = probe(folder, false, HOW[i]);
    for (size_t i = 0; i < s[0].n_tensors; i++)
        for (int j = 1; j < 3; j++) assert_true(same(&s[0], &s[j], s[0].tensors[i].name));
    for (int i = 0; i < 3; i++) safetensors_close(&s[i]);
    scratch_remove(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matrices_alone_decay),
        cmocka_unit_test(attention_is_recomputed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
