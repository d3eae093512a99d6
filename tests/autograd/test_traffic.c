/* What ranks send to each other: the bytes of a micro-step and of an update equal the formulas of
 * ZeRO (Rajbhandari et al. 2020), as the plan counts them and as the collectives do, and all ranks
 * ask for the same collectives in the same order. Every rank of a world runs here, one after the
 * other, over a group that moves nothing. */
#define _POSIX_C_SOURCE 200809L
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/trainer/models.h"

static const int WORLDS[] = {1, 2, 3, 4, 7, 8, 16, 64};

/* What is sharded: how it is trained, and whether a frozen base rests on ranks too. */
typedef struct {
    const char *variant, *method;
    bool base_on_ranks;
} Case;

static const Case CASES[] = {
    {"5b", "full", false}, {"2b", "full", false}, {"5b", "lora", false}, {"5b", "lora", true}};

/* ---- a group that writes down what it is asked for --------------------------------------------
 */

typedef struct {
    CommKind kind;
    DType type;
    int64_t count;
} Call;

typedef struct {
    Call call[256];
    int n, micro; /* the first `micro` calls are the micro-step's */
} Calls;

static Calls *calls_here; /* of the rank that runs */
static Comm plain;        /* the recording group's own functions */

static void note(CommKind kind, DType type, int64_t count) {
    assert_true(calls_here->n < (int)COUNT(calls_here->call));
    calls_here->call[calls_here->n++] = (Call){kind, type, count};
}

static void note_all_gather(Comm *c, Stream *s, DType type, int64_t count, const void *mine,
                            void *all) {
    note(COMM_ALL_GATHER, type, count);
    plain.all_gather(c, s, type, count, mine, all);
}

static void note_reduce_scatter(Comm *c, Stream *s, int64_t count, real *all, real *mine) {
    note(COMM_REDUCE_SCATTER, DT_REAL, count);
    plain.reduce_scatter(c, s, count, all, mine);
}

static void note_all_to_all(Comm *c, Stream *s, DType type, int64_t count, const void *from,
                            void *to) {
    note(COMM_ALL_TO_ALL, type, count);
    plain.all_to_all(c, s, type, count, from, to);
}

static Comm *noting_comm(int rank, int size) {
    Comm *c = comm_recording(rank, size);
    plain = *c;
    c->all_gather = note_all_gather;
    c->reduce_scatter = note_reduce_scatter;
    c->all_to_all = note_all_to_all;
    return c;
}

/* Bytes to other ranks by the calls [from, to) of one kind. */
static double noted_bytes(const Calls *s, int from, int to, CommKind kind, int world) {
    int64_t bytes = 0;
    for (int i = from; i < to; i++)
        if (s->call[i].kind == kind)
            bytes += (world - 1) * s->call[i].count * (int64_t)dtype_size(s->call[i].type);
    return (double)bytes;
}

/* ---- one rank ---------------------------------------------------------------------------------
 */

static Config *config_for(const Case *k, int world, int zero) {
    Config *c = tiny_config(k->variant);
    char *size = xprintf("%d", world), *stage = xprintf("%d", zero);
    set(c, "plan.world", size);
    set(c, "ranks.zero", stage);
    set(c, "method", k->method);
    if (k->base_on_ranks) set(c, "memory.base.home", "ranks");
    free(size);
    free(stage);
    return c;
}

/* The model as rank `rank` has it, with no weights in its buckets. */
static Model *model_of(const Config *c, int rank, int world) {
    Model *m = model_open(c, model_training(c), MODEL_SHAPES, false);
    comm_close(m->comm);
    m->comm = noting_comm(rank, world);
    params_shard(m->params, m->comm, (int)c->ranks.zero);
    return m;
}

/* One micro-step of zeros and one update. */
static void run_step(Learner *l, const Config *c, const NativePack *native) {
    const DitConfig *d = &l->model->dit->config;
    const int64_t *fhw = native->pack.fhw[0];
    size_t n = (size_t)(fhw[0] * fhw[1] * fhw[2] * d->in_channels);
    float *latents = xcalloc(n, sizeof *latents);
    float *text = xcalloc((size_t)(native->pack.text_rows[0] * d->text_dim), sizeof *text);
    int64_t timestep = 500;
    Micro micro = {
        .noisy = latents, .text = text, .target = latents, .timesteps = &timestep, .micros = 1};
    Model *m = l->model;
    learner_micro(l, &micro);
    calls_here->micro = calls_here->n;
    double norm = optim_grad_norm(&l->optim, m->params, &m->memory, m->stream);
    optim_step(&l->optim, m->params, &c->train, 1e-3, norm, 1, &m->memory, m->stream);
    free(latents);
    free(text);
}

/* ---- the formulas -----------------------------------------------------------------------------
 */

/* How often a bucket that rests on ranks is fetched in a micro-step: for the forward half, and
 * again for the backward half. `final` ends the one and begins the other, with nothing in between;
 * LoRA goes back no further than the first block. */
static int fetches(const Model *m, const Bucket *b) {
    bool final = b->block == (int)m->dit->config.layers + 1;
    bool embed_without_gradient = b->block == 0 && m->training == TRAIN_LORA;
    return final || embed_without_gradient ? 1 : 2;
}

typedef struct {
    double gathered, reduced, shared; /* by GATHER, REDUCE, and masters after the update */
    double norms;                     /* partial sums of the gradient norm */
} Traffic;

/* What a rank of `world` sends in a step of one micro-step, from the sizes of the buckets. */
static Traffic expected(const Model *m, int world, int zero) {
    Traffic t = {0};
    for (int i = 0; i < m->params->n_buckets; i++) {
        const Bucket *b = &m->params->bucket[i];
        assert_true(b->count % world == 0 && b->count - b->used < (int64_t)BUCKET_ALIGN * world);
        bool travels = b->trained ? zero == 3 : b->home == HOME_RANKS;
        if (travels) t.gathered += fetches(m, b) * (double)b->count * (double)dtype_size(b->form);
        if (!b->trained) continue;
        double psi = (double)b->count * sizeof(real);
        t.reduced += zero ? psi : 2 * psi;
        t.shared += zero == 1 || zero == 2 ? psi : 0;
        t.norms += zero ? (double)b->count / 1024 * sizeof(double) : 0;
    }
    double others = (double)(world - 1) / world;
    double *part[] = {&t.gathered, &t.reduced, &t.shared, &t.norms};
    for (size_t i = 0; i < COUNT(part); i++) *part[i] *= world > 1 ? others : 0;
    return t;
}

/* ---- tests ------------------------------------------------------------------------------------
 */

static void expect_bytes(const Case *k, int world, int zero, const char *what, double found,
                         double want) {
    if (found != want)
        fail_msg("%s %s%s, %d ranks, ZeRO %d, %s: sent %.0f bytes, expected %.0f", k->variant,
                 k->method, k->base_on_ranks ? " on ranks" : "", world, zero, what, found, want);
}

static double sent(const Comm *c) {
    double bytes = 0;
    for (int i = 0; i < COMM_KINDS; i++) bytes += (double)c->sent_bytes[i];
    return bytes;
}

/* Runs one rank and compares what it sends; *s is then what it asked for. */
static void check_rank(const Case *k, int rank, int world, int zero, Calls *s) {
    *s = (Calls){0};
    calls_here = s;
    Config *c = config_for(k, world, zero);
    Model *m = model_of(c, rank, world);
    NativePack native = native_pack(c, &m->dit->config);
    Learner *l = learner_plan(m, c, &native.pack, 1, true, INT64_MAX);
    params_allocate(m->params, &m->memory);
    learner_bind(l, false);
    Traffic t = expected(m, world, m->params->zero);
    const Plan *p = l->shaped[0].plan;
    run_step(l, c, &native);
    double loss = (double)(world - 1) * sizeof(real); /* ranks' losses, for their mean */
    expect_bytes(k, world, zero, "GATHER in the plan", plan_cost(p, GATHER).sent, t.gathered);
    expect_bytes(k, world, zero, "REDUCE in the plan", plan_cost(p, REDUCE).sent, t.reduced);
    expect_bytes(k, world, zero, "all of the plan", plan_cost(p, -1).sent, t.gathered + t.reduced);
    expect_bytes(k, world, zero, "update in the plan", optim_cost(m->params).sent, t.shared);
    double gathers = noted_bytes(s, 0, s->micro, COMM_ALL_GATHER, world);
    double reduces = noted_bytes(s, 0, s->micro, COMM_REDUCE_SCATTER, world);
    expect_bytes(k, world, zero, "micro-step", gathers + reduces, t.gathered + t.reduced + loss);
    expect_bytes(k, world, zero, "reduce_scatter", reduces,
                 m->params->zero || world == 1 ? t.reduced : t.reduced / 2);
    expect_bytes(k, world, zero, "update", noted_bytes(s, s->micro, s->n, COMM_ALL_GATHER, world),
                 t.shared + t.norms);
    expect_bytes(k, world, zero, "counted by the group", sent(m->comm),
                 t.gathered + t.reduced + t.shared + t.norms + loss);
    learner_close(l);
    model_close(m);
    native_pack_free(&native);
    config_free(c);
}

static void expect_same_schedule(const Calls *a, const Calls *b, int rank) {
    assert_int_equal(a->n, b->n);
    for (int i = 0; i < a->n; i++) {
        const Call *x = &a->call[i], *y = &b->call[i];
        if (x->kind != y->kind || x->type != y->type || x->count != y->count)
            fail_msg("collective %d: rank 0 asks for kind %d of %lld, rank %d for kind %d of %lld",
                     i, x->kind, (long long)x->count, rank, y->kind, (long long)y->count);
    }
}

static void ranks_send_what_the_formulas_say(void **state) {
    (void)state;
    Calls first, other;
    int ranks = 0;
    for (size_t k = 0; k < COUNT(CASES); k++)
        for (size_t w = 0; w < COUNT(WORLDS); w++)
            for (int zero = 0; zero <= 3; zero++) {
                check_rank(&CASES[k], 0, WORLDS[w], zero, &first);
                for (int rank = 1; rank < WORLDS[w]; rank++, ranks++) {
                    check_rank(&CASES[k], rank, WORLDS[w], zero, &other);
                    expect_same_schedule(&first, &other, rank);
                }
            }
    print_message("%d ranks compared with rank 0\n", ranks);
}

/* The published size: with one micro-step a step, 2 psi (n-1)/n at stages 0 to 2 and, less one
 * fetch of the last bucket, 3 psi at 3; psi counts f32 gradients and masters, and copies in bf16.
 */
static void published_model_on_many_ranks(void **state) {
    (void)state;
    static const int SIZES[] = {8, 64, 512};
    Case k = {"5b", "full", false};
    for (size_t w = 0; w < COUNT(SIZES); w++)
        for (int zero = 0; zero <= 3; zero++) {
            Config *c = published_config(k.variant);
            char *text = xprintf("%d", SIZES[w]), stage[2] = {(char)('0' + zero), 0};
            set(c, "method", k.method);
            set(c, "plan.world", text);
            set(c, "ranks.zero", stage);
            Model *m = model_open(c, TRAIN_FULL, MODEL_SHAPES, true);
            NativePack native = native_pack(c, &m->dit->config);
            Learner *l = learner_plan(m, c, &native.pack, 1, true, INT64_MAX);
            const ParamSet *p = m->params;
            double psi = 0, last = (double)p->bucket[p->n_buckets - 1].count;
            for (int i = 0; i < p->n_buckets; i++) psi += (double)p->bucket[i].count;
            double others = (double)(SIZES[w] - 1) / SIZES[w];
            double want[] = {8 * psi, 8 * psi, 8 * psi, 4 * psi + 2 * (2 * psi - last)};
            double found = plan_cost(l->shaped[0].plan, -1).sent + optim_cost(p).sent;
            expect_bytes(&k, SIZES[w], zero, "a step", found, want[zero] * others);
            print_message("5b full, %3d ranks, ZeRO %d: %.3f GB a step\n", SIZES[w], zero,
                          found / 1e9);
            learner_close(l);
            model_close(m);
            native_pack_free(&native);
            config_free(c);
            free(text);
        }
}

/* ---- sequence parallelism ---------------------------------------------------------------------
 */

/* Rows that a message has room for: the longest rank's parts of the runs of `rows`. */
static double longest(const int64_t rows[2], int n) {
    return (double)((rows[0] + n - 1) / n + (rows[1] + n - 1) / n);
}

/* What a rank of n that share a sample sends in the micro-step of a model of L blocks, whose width
 * is D: to heads q, k, v, back from them what attention gives, the same for their gradients, and
 * its own rows of the prediction, P wide. */
static double sequence_bytes(const Model *m, const NativePack *native, int n) {
    const DitConfig *c = &m->dit->config;
    const int64_t *s = native->pack.fhw[0];
    int64_t video = dit_video_rows(c, s[0], s[1], s[2]);
    int64_t rows[2] = {native->pack.text_rows[0], video}, none[2] = {0, video};
    double slim = (double)(c->width / n), patch = (double)linear_out(&m->dit->proj_out);
    double exchanged = 2 * 4 * (double)c->layers * longest(rows, n) * slim;
    return (n - 1) * (exchanged + longest(none, n) * patch) * (double)dtype_size(m->compute);
}

/* The published model: volume of all groups' sizes, and the same messages on every rank. */
static void groups_that_share_rows(void **state) {
    (void)state;
    static const int SIZES[] = {1, 2, 3, 4, 6, 8, 16, 24, 48};
    for (size_t i = 0; i < COUNT(SIZES); i++) {
        Config *c = published_config("5b");
        char *n = xprintf("%d", SIZES[i]);
        set(c, "method", "full");
        set(c, "plan.world", n);
        set(c, "ranks.sequence", n);
        set(c, "memory.recompute", "none");
        double first = 0;
        for (int rank = 0; rank < SIZES[i]; rank += MAX(1, SIZES[i] / 3)) {
            Model *m = model_open(c, TRAIN_FULL, MODEL_SHAPES, true);
            m->sequence->rank = rank;
            NativePack native = native_pack(c, &m->dit->config);
            Learner *l = learner_plan(m, c, &native.pack, 1, true, INT64_MAX);
            const Plan *p = l->shaped[0].plan;
            double sent = plan_cost(p, -1).sent - plan_cost(p, REDUCE).sent;
            double want = sequence_bytes(m, &native, SIZES[i]);
            if (sent != want)
                fail_msg("rank %d of %d: sends %.0f, expected %.0f", rank, SIZES[i], sent, want);
            assert_true(rank == 0 || sent == first);
            first = sent;
            learner_close(l);
            model_close(m);
            native_pack_free(&native);
        }
        config_free(c);
        free(n);
    }
}

/* Two ranks to a sample in worlds of up to 64: what the groups count is what the plan says, and all
 * ranks ask both groups for the same in the same order. */
static void groups_run_what_is_planned(void **state) {
    (void)state;
    static const int SIZES[] = {2, 6, 64};
    Case k = {"5b", "full", false};
    for (size_t i = 0; i < COUNT(SIZES); i++) {
        Calls first, other;
        for (int rank = 0; rank < SIZES[i]; rank++) {
            Calls *s = rank ? &other : &first;
            *s = (Calls){0};
            calls_here = s;
            Config *c = config_for(&k, SIZES[i], 3);
            set(c, "ranks.sequence", "2");
            Model *m = model_of(c, rank, SIZES[i]);
            comm_close(m->sequence);
            m->sequence = noting_comm(rank % 2, 2);
            NativePack native = native_pack(c, &m->dit->config);
            Learner *l = learner_plan(m, c, &native.pack, 1, true, INT64_MAX);
            params_allocate(m->params, &m->memory);
            learner_bind(l, false);
            run_step(l, c, &native);
            double planned = sequence_bytes(m, &native, 2);
            expect_bytes(&k, SIZES[i], 3, "among ranks that share rows", sent(m->sequence),
                         planned);
            expect_bytes(&k, SIZES[i], 3, "the same in the plan",
                         plan_cost(l->shaped[0].plan, -1).sent -
                             plan_cost(l->shaped[0].plan, GATHER).sent -
                             plan_cost(l->shaped[0].plan, REDUCE).sent,
                         planned);
            if (rank) expect_same_schedule(&first, &other, rank);
            learner_close(l);
            model_close(m);
            native_pack_free(&native);
            config_free(c);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_send_what_the_formulas_say),
        cmocka_unit_test(published_model_on_many_ranks),
        cmocka_unit_test(groups_that_share_rows),
        cmocka_unit_test(groups_run_what_is_planned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
