/* Sequence parallelism: ranks that share the rows and heads of a sample compute what one rank does.
 * Every variant, with six heads, packs of two sizes, rows that do not divide evenly, dropout, and
 * together with ZeRO, over real ranks: this program starts itself under mpirun. */
#define _GNU_SOURCE
#include "data/safetensors.h"
#include "kernels/random.h"
#include "tests/trainer/micro.h"
#include "tests/trainer/models.h"
#include "tests/trainer/ranks.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>

#include <cmocka.h>

enum { HEADS = 6, SAMPLES = 2, PACKS = 2, STEPS = 2, CHANNELS = 16 };

typedef struct {
    const char *name;
    int64_t size[SAMPLES][3]; /* F, H, W */
    int64_t text[SAMPLES];
} Variant;

static const Variant VARIANTS[] = {
    {"2b", {{3, 4, 8}, {2, 6, 6}}, {10, 10}},         {"5b", {{3, 4, 8}, {2, 6, 6}}, {10, 7}},
    {"5b-i2v", {{3, 4, 8}, {2, 4, 8}}, {10, 10}},     {"1.5-5b", {{4, 6, 8}, {6, 4, 6}}, {10, 7}},
    {"1.5-5b-i2v", {{4, 6, 8}, {2, 4, 10}}, {10, 8}},
};

static char folder[] = "/tmp/cogsmith-sequence-XXXXXX";

/* ---- one rank ---------------------------------------------------------------------------------
 */

/* pack: its number. */
static float *draw(const void *pack, Drawn kind, int64_t n) {
    float *values = BACKEND_CPU.alloc((size_t)n * sizeof *values);
    random_normal((Draw){.seed = 5,
                         .ordinal = *(const uint32_t *)pack,
                         .step = (uint32_t)kind + 1,
                         .purpose = PURPOSE_NOISE},
                  0, n, values);
    return values;
}

static int64_t elements(const Variant *v) {
    int64_t n = 0;
    for (int i = 0; i < SAMPLES; i++) n += CHANNELS * v->size[i][0] * v->size[i][1] * v->size[i][2];
    return n;
}

/* Micro-step i of so many; pack i * data_ranks + data_rank of the step. */
static double run_pack(Learner *l, int step, int i, int micros) {
    const Model *m = l->model;
    uint32_t pack = (uint32_t)(step * PACKS + i * m->data_ranks + m->data_rank);
    DrawnMicro d;
    micro_draw(&d, l, 0, draw, &pack);
    for (uint32_t b = 0; b < SAMPLES; b++) {
        d.ordinals[b] = pack * SAMPLES + b;
        d.timesteps[b] = (d.ordinals[b] * 331 + 17) % TRAIN_TIMESTEPS;
    }
    d.micro.step = (uint32_t)step;
    d.micro.micro = i;
    d.micro.micros = micros;
    double loss = learner_micro(l, &d.micro);
    micro_release(&d);
    return loss;
}

/* What lies on the device, in its arena and in host memory is what the plan says, on every rank. */
static void expect_planned(const Learner *l) {
    const Model *m = l->model;
    LearnerBytes b = learner_bytes(l);
    const Run *run = l->shaped[0].run;
    bool ok = m->memory.peak_bytes == (size_t)b.total && m->memory.bytes == (size_t)b.total &&
              m->host.peak_bytes == (size_t)b.host && m->host.bytes == (size_t)b.host &&
              run->high_water_bytes == run->plan->arena_bytes;
    CHECK(ok, "rank %d: %zu bytes and %zu on the host, planned %lld and %lld", m->comm->rank,
          m->memory.peak_bytes, m->host.peak_bytes, (long long)b.total, (long long)b.host);
}

typedef struct {
    SafetensorsItem items[2000];
    int n;
} Results;

static void add(Results *r, char *name, int64_t n, const float *values) {
    float *own = xcalloc((size_t)n, sizeof *own);
    memcpy(own, values, (size_t)n * sizeof *own);
    r->items[r->n++] = (SafetensorsItem){name, DT_F32, 1, {n}, own};
}

static void add_params(Results *r, Model *m, const char *what, Part part) {
    const ParamSet *p = m->params;
    for (int b = 0; b < p->n_buckets; b++) {
        if (!p->bucket[b].trained) continue;
        float *whole = xcalloc((size_t)p->bucket[b].count, sizeof *whole);
        bucket_read(p, b, part, whole, &m->memory, m->stream);
        for (int i = 0; i < p->n_params; i++)
            if (p->param[i].bucket == b)
                add(r, xprintf("%s.%s", what, p->param[i].name), param_count(&p->param[i]),
                    whole + p->param[i].offset);
        free(whole);
    }
}

/* Two optimizer steps; what came of them goes to the file `out`, by rank 0. */
static int child(const char *variant, const char *out, int n_settings, char **settings) {
    const Variant *v = VARIANTS;
    while (strcmp(v->name, variant)) v++;
    Config *c = config_new();
    Error e;
    for (int i = 0; i < n_settings; i++)
        if (!config_assign(c, settings[i], &e)) die_error(&e);
    Model *m = model_open(c, model_training(c), MODEL_RANDOM, false);
    Pack pack = {SAMPLES, v->size, v->text};
    int micros = PACKS / m->data_ranks;
    c->train.accumulate = micros;
    Learner *l = learner_plan(m, c, &pack, 1, true, INT64_MAX);
    learner_bind(l, true);
    Results *r = xcalloc(1, sizeof *r);
    float *prediction = xcalloc((size_t)elements(v), sizeof *prediction);
    for (int step = 0; step < STEPS; step++) {
        float loss = 0;
        for (int i = 0; i < micros; i++) {
            loss += (float)(run_pack(l, step, i, micros) / micros);
            if (!i) learner_prediction(l, 0, prediction);
        }
        add(r, xprintf("loss.%d", step), 1, &loss);
        add(r, xprintf("prediction.%d", step), elements(v), prediction);
        if (!step) add_params(r, m, "grad", PART_GRAD);
        double norm = optim_grad_norm(&l->optim, m->params, &m->memory, m->stream);
        optim_step(&l->optim, m->params, &c->train, 1e-2, norm, step + 1, &m->memory, m->stream);
    }
    expect_planned(l);
    add_params(r, m, "param", PART_MASTER);
    SafetensorsFile file = {.items = r->items, .n_items = (size_t)r->n};
    if (m->comm->rank == 0 && !safetensors_write(out, &file, &e)) die_error(&e);
    learner_close(l);
    model_close(m);
    return 0;
}

/* ---- comparison -------------------------------------------------------------------------------
 */

/* The golden model's config with six heads, in a folder of its own. */
static void write_config(const Variant *v) {
    char *golden = golden_path(v->name), *from = xprintf("%s/transformer/config.json", golden);
    char *text = text_of(from), *key = strstr(text, "\"num_attention_heads\":");
    assert_non_null(key);
    char *line = xprintf("mkdir -p %s/%s/transformer", folder, v->name);
    assert_int_equal(shell(line), 0);
    char *path = xprintf("%s/%s/transformer/config.json", folder, v->name);
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    fprintf(out, "%.*s\"num_attention_heads\": %d%s", (int)(key - text), text, HEADS,
            strpbrk(key, ",}"));
    fclose(out);
    free(golden), free(from), free(text), free(line), free(path);
}

static int make_folder(void **state) {
    (void)state;
    assert_non_null(mkdtemp(folder));
    for (size_t i = 0; i < COUNT(VARIANTS); i++) write_config(&VARIANTS[i]);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    char *line = xprintf("rm -rf %s", folder);
    shell(line);
    free(line);
    return 0;
}

static int run(int world, const char *variant, const char *out, const char *settings) {
    char *what = xprintf("/proc/%d/exe child %s %s/%s model.path=%s/%s lora.rank=4 %s", getpid(),
                         variant, folder, out, folder, variant, settings);
    char *to = xprintf("2>%s/stderr", folder);
    int code = run_ranks(world, what, to);
    free(what);
    free(to);
    return code;
}

/* |a - b| / |a| of one tensor; of gradients that vanish for lack of any influence, against 1e-6. */
static double distance(const SafetensorsTensor *a, const SafetensorsTensor *b) {
    const float *x = a->data, *y = b->data;
    double difference = 0, size = 0;
    for (int64_t i = 0; i < a->shape[0]; i++) {
        difference += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        size += (double)x[i] * (double)x[i];
    }
    return sqrt(difference) / MAX(sqrt(size), 1e-6);
}

/* Predictions and losses within 1e-5, gradients within 2e-5; weights after two steps of AdamW,
 * whose first step is the sign of the gradient, within 2e-3. */
static void expect_near_files(const char *variant, const char *a, const char *b) {
    Safetensors x, y;
    Error e;
    char *pa = xprintf("%s/%s", folder, a), *pb = xprintf("%s/%s", folder, b);
    assert_true(safetensors_open(&x, pa, &e) && safetensors_open(&y, pb, &e));
    assert_true(x.n_tensors == y.n_tensors && x.n_tensors > 2 * STEPS);
    for (size_t i = 0; i < x.n_tensors; i++) {
        const SafetensorsTensor *t = &x.tensors[i], *u = safetensors_find(&y, t->name);
        bool first = strstr(t->name, ".0") != NULL;
        double limit = !strncmp(t->name, "grad", 4)    ? 2e-5
                       : !strncmp(t->name, "param", 5) ? 2e-3
                       : first                         ? 1e-5
                                                       : 1e-4;
        double d = distance(t, u);
        if (!(d <= limit))
            fail_msg("%s: %s of %s differs from %s by %g", variant, t->name, b, a, d);
    }
    safetensors_close(&x);
    safetensors_close(&y);
    free(pa), free(pb);
}

static void check(const char *variant, int world, int sequence, const char *settings) {
    char *shared = xprintf("%s ranks.sequence=%d", settings, sequence);
    assert_int_equal(run(1, variant, "alone", settings), 0);
    assert_int_equal(run(world, variant, "shared", shared), 0);
    expect_near_files(variant, "alone", "shared");
    free(shared);
}

static const char EVERYWHERE[] =
    "lora.dropout=0.3 'lora.target_modules=[to_q, to_v, to_out.0, norm1.linear, norm2.linear, "
    "net.0.proj, net.2, patch_embed.proj, text_proj, linear_1, proj_out]'";

static void full_training_on_two(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(VARIANTS); i++) check(VARIANTS[i].name, 2, 2, "method=full");
}

static void adapters_everywhere_on_three(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(VARIANTS); i++) check(VARIANTS[i].name, 3, 3, EVERYWHERE);
}

static void recomputed_on_six(void **state) {
    (void)state;
    check("5b", 6, 6, "method=full memory.recompute=selective");
    check("1.5-5b", 6, 6, "memory.recompute=block memory.activations.home=host");
}

static void expect_same_bits(const char *a, const char *b) {
    char *line = xprintf("cmp -s %s/%s %s/%s", folder, a, folder, b);
    if (shell(line)) fail_msg("%s and %s differ", a, b);
    free(line);
}

/* Two groups of two ranks: near one rank, and the same bits at every ZeRO stage. */
static void two_groups_with_zero(void **state) {
    (void)state;
    check("5b", 4, 2, "method=full");
    for (int zero = 1; zero <= 3; zero++) {
        char *settings = xprintf("method=full ranks.sequence=2 ranks.zero=%d", zero);
        assert_int_equal(run(4, "5b", "sharded", settings), 0);
        expect_same_bits("shared", "sharded");
        free(settings);
    }
}

static void check_on_the_host(const char *method, int sequence) {
    char *plain = xprintf("method=%s ranks.sequence=%d", method, sequence);
    assert_int_equal(run(2 * sequence, "5b", "shared", plain), 0);
    for (int zero = 0; zero <= 3; zero++) {
        char *settings = xprintf("%s ranks.zero=%d memory.optimizer.home=host "
                                 "memory.activations.home=host memory.base.home=%s "
                                 "memory.prefetch=on memory.recompute=none",
                                 plain, zero, zero % 2 ? "ranks" : "host");
        assert_int_equal(run(2 * sequence, "5b", "sharded", settings), 0);
        expect_same_bits("shared", "sharded");
        free(settings);
    }
    free(plain);
}

/* With everything in host memory, and moves beside the steps: the same bits at every ZeRO stage,
 * where ranks share samples and where they do not. */
static void shared_and_sharded_on_the_host(void **state) {
    (void)state;
    for (int sequence = 1; sequence <= 2; sequence++) {
        check_on_the_host("full", sequence);
        check_on_the_host("lora", sequence);
    }
}

static void expect_refused(int world, const char *settings, const char *text) {
    assert_int_not_equal(run(world, "5b", "refused", settings), 0);
    char *path = xprintf("%s/stderr", folder), *said = text_of(path);
    if (!strstr(said, text)) fail_msg("no '%s' in:\n%s", text, said);
    free(path), free(said);
}

static void what_does_not_divide(void **state) {
    (void)state;
    expect_refused(4, "ranks.sequence=4", "cannot share the model's 6 heads evenly");
    expect_refused(4, "ranks.sequence=3", "4 ranks are not groups of 3");
    expect_refused(1, "ranks.sequence=2", "1 ranks are not groups of 2");
}

int main(int argc, char **argv) {
    if (argc > 3 && !strcmp(argv[1], "child")) return child(argv[2], argv[3], argc - 4, argv + 4);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(full_training_on_two),
        cmocka_unit_test(adapters_everywhere_on_three),
        cmocka_unit_test(recomputed_on_six),
        cmocka_unit_test(two_groups_with_zero),
        cmocka_unit_test(shared_and_sharded_on_the_host),
        cmocka_unit_test(what_does_not_divide),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
