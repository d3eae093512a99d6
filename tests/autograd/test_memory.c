/* What a block of the transformer costs in the placed arena, for LoRA on q, k, v and out at the
 * published widths and sizes. Plans only: no memory is taken. In units of S * D values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "trainer/dit.h"
#include "trainer/lora.h"

#include "autograd/plan.h"

typedef struct {
    const char *name;
    int64_t heads;
    bool rotary;
    int64_t fhw[3], text_dim;
    int samples;
} Model;

static const Model MODELS[] = {
    {"2b, 49x480x720", 30, false, {13, 60, 90}, 4096, 1},
    {"5b, 49x480x720", 48, true, {13, 60, 90}, 4096, 1},
    {"2b, 4 of 9x480x720", 30, false, {3, 60, 90}, 4096, 4},
};

typedef struct {
    const char *name;
    Recompute policy;
    double per_block; /* at most */
} Kind;

static const Kind KINDS[] = {
    {"none", RECOMPUTE_NONE, 13.5},
    {"selective", RECOMPUTE_SELECTIVE, 2.2},
    {"block", RECOMPUTE_BLOCK, 1.1},
};

static DitConfig config_of(const Model *m, int layers) {
    return (DitConfig){.heads = m->heads,
                       .head_size = 64,
                       .width = m->heads * 64,
                       .layers = layers,
                       .in_channels = 16,
                       .out_channels = 16,
                       .patch = 2,
                       .patch_t = 1,
                       .time_dim = 512,
                       .text_dim = m->text_dim,
                       .text_length = 226,
                       .sample_frames = 49,
                       .sample_height = 60,
                       .sample_width = 90,
                       .temporal_ratio = 4,
                       .rotary = m->rotary,
                       .spatial_scale = 1.875,
                       .temporal_scale = 1,
                       .norm_eps = 1e-5,
                       .flip_sin_to_cos = true,
                       .attention_bias = true};
}

/* Arena of LoRA training of the model with so many blocks, in units of S * D values. */
static double arena(const Model *m, int layers, Recompute kind) {
    DitConfig config = config_of(m, layers);
    Dit *d = dit_open(&config);
    for (int i = 0; i < layers; i++) {
        for (int j = 0; j < 3; j++) lora_give(&d->blocks[i].qkv[j], 128, 64, 0);
        lora_give(&d->blocks[i].out, 128, 64, 0);
    }
    ParamSet *p = params_open();
    dit_params(d, p, false, 1);
    params_rest(p, HOME_DEVICE, DT_REAL);
    int64_t fhw[4][3], text[4], rows = 0;
    for (int i = 0; i < m->samples; i++) {
        for (int j = 0; j < 3; j++) fhw[i][j] = m->fhw[j];
        text[i] = 226;
        rows += 226 + dit_video_rows(&config, m->fhw[0], m->fhw[1], m->fhw[2]);
    }
    Pack pack = {m->samples, (const int64_t(*)[3])fhw, text};
    Graph *g = graph_open(DT_REAL, p);
    Plan *plan = NULL;
    Recompute policy[8] = {0};
    for (int i = 1; i <= layers; i++) policy[i] = kind;
    DitGraph io = dit_record(d, g, &pack, true);
    plan = plan_open(g);
    plan_backward(plan, io.loss);
    plan_recompute(plan, policy, layers);
    plan_homes(plan, 1);
    Stream *s = BACKEND_CPU.stream_open();
    plan_place(plan, &(Ctx){.k = &BACKEND_CPU, .stream = s});
    double values = (double)plan->arena_bytes / (double)sizeof(real);
    BACKEND_CPU.stream_close(s);
    plan_close(plan);
    graph_close(g);
    Memory none = {.k = &BACKEND_CPU};
    params_close(p, &none);
    assert_int_equal(none.allocations, 0);
    dit_close(d);
    return values / (double)rows / (double)config.width;
}

static void check_block(const Model *m, const Kind *k, double working_set) {
    double three = arena(m, 3, k->policy), four = arena(m, 4, k->policy);
    double block = four - three, rest = three - 3 * block;
    print_message("%-20s %-10s %6.3f S*D a block, working set %6.3f S*D\n", m->name, k->name, block,
                  rest);
    if (block > k->per_block)
        fail_msg("%s, %s: a block keeps %.3f S*D values", m->name, k->name, block);
    if (rest > working_set)
        fail_msg("%s, %s: a block works in %.3f S*D values", m->name, k->name, rest);
}

static void a_block_keeps_little(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(MODELS); i++)
        for (size_t j = 0; j < COUNT(KINDS); j++) check_block(&MODELS[i], &KINDS[j], 16);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_block_keeps_little)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
