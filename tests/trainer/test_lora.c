/* What no golden number tells of adapters: first values, patterns, masks, and the alphas that
 * settings leave unsaid. */
#define _GNU_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/random.h"
#include "tests/data/scratch.h"
#include "tests/trainer/models.h"
#include "trainer/lora.h"

static const char NARROW[] = "tests/golden/dit/narrow";

static Config *narrow_config(void) {
    Config *c = config_new();
    set(c, "model.path", NARROW);
    return c;
}

/* ---- first values -----------------------------------------------------------------------------
 */

/* The masters of A of every layer, one after another, times what makes their deviation 1. */
typedef struct {
    double *x;
    int64_t n;
} Values;

static Values first_values(const char *init, const char *seed) {
    Config *c = narrow_config();
    set(c, "lora.target_modules", "[to_q, to_k, ff.net.0.proj, ff.net.2, patch_embed.proj]");
    set(c, "lora.rank", "32");
    set(c, "lora.init", init);
    set(c, "train.seed", seed);
    Model *m = model_open(c, TRAIN_LORA, MODEL_WEIGHTS, false);
    Values v = {0};
    for (int i = 0; i < m->dit->n_linears; i++) {
        const Linear *l = m->dit->linears[i];
        if (!l->rank) continue;
        int64_t n = 32 * linear_in(l);
        double scale = *init == 'g' ? 32 : sqrt(3 * (double)linear_in(l));
        const real *a = param_master(m->params, l->lora_a);
        const real *b = param_master(m->params, l->lora_b);
        v.x = xrealloc(v.x, (size_t)(v.n + n) * sizeof *v.x);
        for (int64_t j = 0; j < n; j++) v.x[v.n++] = scale * (double)a[j];
        for (int64_t j = 0; j < 32 * linear_out(l); j++) assert_true(b[j] == 0);
    }
    model_close(m);
    config_free(c);
    return v;
}

/* Mean 0, deviation 1, and no value twice: each layer has draws of its own. */
static void check_values(Values v, double largest) {
    double sum = 0, squares = 0, most = 0;
    for (int64_t i = 0; i < v.n; i++) {
        sum += v.x[i];
        squares += v.x[i] * v.x[i];
        most = fmax(most, fabs(v.x[i]));
    }
    double error = 1 / sqrt((double)v.n);
    assert_true(v.n > 4096);
    assert_true(fabs(sum * error) < 4);
    assert_true(fabs(squares / (double)v.n - 1) < 6 * error);
    assert_true(most <= largest && most > 0.99 * sqrt(3));
    int same = 0;
    for (int64_t i = 0; i + 512 < v.n; i++) same += v.x[i] == v.x[i + 512];
    assert_true(same < 8);
}

static void first_values_are_pefts(void **state) {
    (void)state;
    static const char *const INITS[] = {"kaiming", "gaussian"};
    for (int i = 0; i < 2; i++) {
        Values v = first_values(INITS[i], "42"), again = first_values(INITS[i], "42");
        Values other = first_values(INITS[i], "43");
        check_values(v, i ? 6 : sqrt(3) * (1 + 1e-6));
        assert_memory_equal(v.x, again.x, (size_t)v.n * sizeof *v.x);
        assert_memory_not_equal(v.x, other.x, (size_t)v.n * sizeof *v.x);
        free(v.x);
        free(again.x);
        free(other.x);
    }
}

/* ---- patterns and masks -----------------------------------------------------------------------
 */

/* How many maps of the two blocks' model a pattern gives an adapter; 0: it was refused. */
static int hits(const char *pattern) {
    Config *c = narrow_config();
    char *list = xprintf("[%s]", pattern);
    set(c, "lora.target_modules", list);
    DitConfig d;
    Error e;
    char *path = xprintf("%s/transformer/config.json", NARROW);
    if (!dit_config_read(&d, path, &e)) die_error(&e);
    Dit *dit = dit_open(&d);
    int n = 0;
    if (lora_attach(dit, &c->lora, &e))
        for (int i = 0; i < dit->n_linears; i++) n += dit->linears[i]->rank > 0;
    dit_close(dit);
    config_free(c);
    free(path);
    free(list);
    return n;
}

/* The end of a name behind a dot, or all of it. */
static void patterns_match_as_pefts(void **state) {
    (void)state;
    assert_int_equal(hits("to_q"), 2);
    assert_int_equal(hits("attn1.to_q"), 2);
    assert_int_equal(hits("0.attn1.to_q"), 1);
    assert_int_equal(hits("transformer_blocks.1.attn1.to_q"), 1);
    assert_int_equal(hits("linear"), 5);
    assert_int_equal(hits("proj"), 3);
    assert_int_equal(hits("0"), 2);
    assert_int_equal(hits("o_q"), 0);
    assert_int_equal(hits("q"), 0);
    assert_int_equal(hits(".to_q"), 0);
    assert_int_equal(hits("attn1"), 0);
    assert_int_equal(hits("xtransformer_blocks.1.attn1.to_q"), 0);
}

/* Every adapter that drops out has a mask of its own. */
static void masks_differ(void **state) {
    (void)state;
    Config *c = narrow_config();
    set(c, "lora.dropout", "0.25");
    Model *m = model_open(c, TRAIN_LORA, MODEL_SHAPES, true);
    Pack pack = {1, (const int64_t[][3]){{2, 4, 4}}, (const int64_t[]){5}};
    Learner *l = learner_plan(m, c, &pack, 1, true, INT64_MAX);
    const Graph *g = l->shaped[0].graph;
    uint32_t seen[16];
    int n = 0;
    for (int i = 0; i < g->n_nodes; i++) {
        if (strcmp(g->nodes[i]->op->name, "dropout")) continue;
        uint32_t purpose = g->nodes[i]->attr.dropout.purpose;
        assert_true(purpose >= PURPOSE_DROPOUT && n < (int)COUNT(seen));
        for (int j = 0; j < n; j++) assert_int_not_equal(purpose, seen[j]);
        seen[n++] = purpose;
    }
    assert_int_equal(n, 8);
    learner_close(l);
    model_close(m);
    config_free(c);
}

/* ---- alphas -----------------------------------------------------------------------------------
 */

/* Alpha of an adapter of rank 4 with these settings, which its file's header has. */
static double alpha_with(const char *settings) {
    char *folder = scratch_make(), *path = xprintf("%s/adapter.safetensors", folder);
    float values[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    SafetensorsItem items[] = {
        {"transformer.proj_out.lora_A.weight", DT_F32, 2, {4, 2}, values},
        {"transformer.proj_out.lora_B.weight", DT_F32, 2, {2, 4}, values},
    };
    SafetensorsMetadata metadata = {"lora_adapter_metadata", settings};
    SafetensorsFile file = {
        .items = items, .n_items = 2, .metadata = &metadata, .n_metadata = settings != NULL};
    Error e;
    if (!safetensors_write(path, &file, &e)) die_error(&e);
    Adapter *a = adapter_open(path, &e);
    if (!a) die_error(&e);
    double alpha = adapter_layer(a, 0).alpha;
    adapter_close(a);
    scratch_remove(folder);
    free(path);
    return alpha;
}

static void alphas_follow_the_settings(void **state) {
    (void)state;
    assert_true(alpha_with(NULL) == 4);
    assert_true(alpha_with("{}") == 8);
    assert_true(alpha_with("{\"transformer.r\": 4, \"transformer.lora_alpha\": 3}") == 3);
    assert_true(alpha_with("{\"transformer.lora_alpha\": 3, \"transformer.use_rslora\": true}") ==
                6);
    assert_true(alpha_with("{\"transformer.lora_alpha\": 3, \"transformer.alpha_pattern\": "
                           "{\"proj_out\": 5}}") == 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_values_are_pefts),
        cmocka_unit_test(patterns_match_as_pefts),
        cmocka_unit_test(masks_differ),
        cmocka_unit_test(alphas_follow_the_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
