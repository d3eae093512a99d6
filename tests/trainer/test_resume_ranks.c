/* One run that goes over worlds of 1, 2, 3, 4 and 6 ranks and all ZeRO stages, a step in each: what
 * a world loads is what another saved, bit for bit, and the samples go on in their order. With
 * COGSMITH_FULL at each of the stages 1 to 3 every world takes over from every world: 75 times.
 *
 * The program is its own worker: `mpirun -n W test_resume_ranks CONFIG CHECKPOINT OUT setting ...`
 * loads a checkpoint and saves it again. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/trainer/ranks.h"
#include "tests/trainer/train_model.h"

enum { GLOBAL = 12, N_WORLDS = 5, MOST_CASES = 3 * N_WORLDS * N_WORLDS + 1 };

typedef struct {
    int world, zero;
} Case;

static const Case SHORT[] = {{1, 0}, {2, 1}, {6, 2}, {3, 0}, {1, 3}, {4, 3}, {2, 0},
                             {4, 1}, {3, 3}, {6, 1}, {1, 2}, {6, 3}, {4, 2}};

static Case chain[MOST_CASES];
static int n_cases;

/* Worlds in an order in which every ordered pair, equal ones too, are neighbours once: a de Bruijn
 * cycle, from its first world back to it. */
static void make_chain(void) {
    static const int WORLDS[N_WORLDS] = {1, 2, 3, 4, 6};
    if (!getenv("COGSMITH_FULL")) {
        n_cases = COUNT(SHORT);
        memcpy(chain, SHORT, sizeof SHORT);
        return;
    }
    for (int zero = 1; zero <= 3; zero++)
        for (int a = 0; a < N_WORLDS; a++) {
            chain[n_cases++] = (Case){WORLDS[a], zero};
            for (int b = a + 1; b < N_WORLDS; b++) {
                chain[n_cases++] = (Case){WORLDS[a], zero};
                chain[n_cases++] = (Case){WORLDS[b], zero};
            }
        }
    chain[n_cases++] = (Case){1, 1};
}

static char *self;

/* ---- the worker -------------------------------------------------------------------------------
 */

static int save_again(char **args) {
    Config *c = config_new();
    Position at;
    Error e;
    bool ok = config_read_file(c, args[0], &e);
    for (char **setting = args + 3; ok && *setting; setting++) ok = config_assign(c, *setting, &e);
    if (!ok) die_error(&e);
    Model *m = model_open(c, model_training(c), MODEL_WEIGHTS, false);
    if (!checkpoint_position(args[1], &at, &e) || !checkpoint_load(args[1], m, &e)) die_error(&e);
    Saver *s = saver_open(c, m, args[2]);
    if (!saver_copy(s, &at, &e)) die_error(&e);
    saver_write(s);
    if (!saver_wait(s, &e)) die_error(&e);
    saver_close(s);
    model_close(m);
    config_free(c);
    return 0;
}

/* ---- states -----------------------------------------------------------------------------------
 */

/* A run of one part of one bucket, "m/block.3.trained@4096" without its offset. */
typedef struct {
    char name[100];
    float *values;
    int64_t count, found;
} Vector;

typedef struct {
    Vector vector[64];
    int n;
} State;

static Vector *vector_of(State *s, const char *name, size_t n) {
    for (int i = 0; i < s->n; i++)
        if (strlen(s->vector[i].name) == n && !strncmp(s->vector[i].name, name, n))
            return &s->vector[i];
    assert_true(s->n < (int)COUNT(s->vector) && n < sizeof s->vector[0].name);
    Vector *v = &s->vector[s->n++];
    memcpy(v->name, name, n);
    return v;
}

static void add_file(State *s, const char *path) {
    Safetensors f;
    Error e;
    if (!safetensors_open(&f, path, &e)) fail_msg("%s", e.text);
    for (size_t i = 0; i < f.n_tensors; i++) {
        const SafetensorsTensor *t = &f.tensors[i];
        const char *mark = strrchr(t->name, '@');
        assert_non_null(mark);
        Vector *v = vector_of(s, t->name, (size_t)(mark - t->name));
        int64_t from = atoll(mark + 1), end = from + t->shape[0];
        if (end > v->count) {
            v->values = xrealloc(v->values, (size_t)end * sizeof *v->values);
            v->count = end;
        }
        memcpy(v->values + from, t->data, t->bytes);
        v->found += t->shape[0];
    }
    safetensors_close(&f);
}

/* All of a checkpoint's state, whoever wrote it. */
static State read_state(const char *checkpoint, int world) {
    State s = {0};
    for (int rank = 1; rank <= world; rank++) {
        char *path = xprintf("%s/state-%05d-of-%05d.safetensors", checkpoint, rank, world);
        add_file(&s, path);
        free(path);
    }
    for (int i = 0; i < s.n; i++)
        if (s.vector[i].found != s.vector[i].count)
            fail_msg("%s: %s has holes or overlaps", checkpoint, s.vector[i].name);
    return s;
}

static void free_state(State *s) {
    for (int i = 0; i < s->n; i++) free(s->vector[i].values);
}

static void expect_same_state(const char *a, int world_a, const char *b, int world_b) {
    State x = read_state(a, world_a), y = read_state(b, world_b);
    assert_int_equal(x.n, y.n);
    assert_true(x.n >= 9);
    for (int i = 0; i < x.n; i++) {
        const Vector *u = &x.vector[i], *v = vector_of(&y, u->name, strlen(u->name));
        if (u->count != v->count || memcmp(u->values, v->values, (size_t)u->count * sizeof(float)))
            fail_msg("%s is not what was saved by %d ranks, on %d", u->name, world_a, world_b);
    }
    free_state(&x);
    free_state(&y);
}

/* ---- the chain --------------------------------------------------------------------------------
 */

/* mpirun -n world WHAT MORE; its exit code. */
static int run_world(int world, const char *what, const char *more) {
    char *to = xprintf("%s >/dev/null 2>%s/stderr", more, train_folder);
    int code = run_ranks(world, what, to);
    free(to);
    return code;
}

/* What the ranks said. */
static char *said(void) { return text_of(in_train("stderr")); }

/* A command on the world of case i. */
static void run_case(int i, const char *what, const char *more) {
    char *settings = xprintf("method=full ranks.zero=%d train.batch=1 train.accumulate=%d %s",
                             chain[i].zero, GLOBAL / chain[i].world, more);
    if (run_world(chain[i].world, what, settings)) fail_msg("case %d: %s", i, said());
    free(settings);
}

static void train_one(int i) {
    char *what = xprintf("'%s' train %s/t.yaml train.out=%s/chain", getenv("COGSMITH"),
                         train_folder, train_folder);
    char *more = xprintf("train.steps=%d train.keep=100", i + 1);
    run_case(i, what, more);
    free(what);
    free(more);
}

/* Case i loads what case i-1 saved. */
static void load_one(int i) {
    char *saved = xprintf("%s/chain/checkpoints/step-%06d", train_folder, i);
    char *out = xprintf("%s/again-%d", train_folder, i);
    char *again = xprintf("%s/checkpoints/step-%06d", out, i);
    char *what = xprintf("'%s' %s/t.yaml %s %s", self, train_folder, saved, out);
    mkdir(out, 0755);
    run_case(i, what, "");
    expect_same_state(saved, chain[i - 1].world, again, chain[i].world);
    free(saved);
    free(out);
    free(again);
    free(what);
}

static void one_run_over_many_worlds(void **state) {
    (void)state;
    make_chain();
    for (int i = 0; i < n_cases; i++) {
        if (i) load_one(i);
        train_one(i);
    }
    char *steps = xprintf("train.steps=%d", n_cases), all[32];
    snprintf(all, sizeof all, "train.accumulate=%d", GLOBAL);
    train_expect(TRAIN("one", "method=full", all, steps), 0);
    json_t *x = train_metrics("one"), *y = train_metrics("chain");
    double worst = 0;
    assert_int_equal(json_array_size(y), n_cases);
    for (int i = 0; i < n_cases; i++) {
        double u = train_metric(x, i, "loss"), v = train_metric(y, i, "loss");
        worst = MAX(worst, fabs(u - v) / u);
        assert_true(train_metric(y, i, "samples") == GLOBAL * (i + 1));
    }
    print_message("the losses of one rank and of the chain differ by %.2g at most\n", worst);
    assert_true(worst < 1e-6);
    json_decref(x);
    json_decref(y);
    free(steps);
}

/* ---- what every rank must know ----------------------------------------------------------------
 */

/* Numbers that go wrong on any rank end all of them, with one line and the good state kept. */
static void one_rank_speaks_for_all(void **state) {
    (void)state;
    char *start = train_start_from("loss.safetensors", 1e-25f, 1e25f, 64);
    char *what = xprintf("'%s' train %s/t.yaml train.out=%s/loss %s", getenv("COGSMITH"),
                         train_folder, train_folder, start);
    assert_int_equal(run_world(2, what, "train.learning_rate=1 ranks.zero=3 train.steps=9"),
                     EXIT_WORLD);
    char *text = said(), *line = strstr(text, "step 2: the loss is not finite");
    if (!line || strstr(line + 20, "the loss is not finite")) fail_msg("said: %s", text);
    assert_parts(text, (const char *const[]){"the tensor \"", ".mp4 (window ", " at timestep",
                                             "the state after step 1 is kept", NULL});
    CHECKPOINTS("loss", 0, 1);
    free(text);
    free(what);
    free(start);
}

/* A request that reaches one rank alone. */
static void one_rank_stops_all(void **state) {
    (void)state;
    char *what = xprintf("bash -c 'if [ $OMPI_COMM_WORLD_RANK = 1 ]; then \"%s\" signal USR1 $$ "
                         "\"test -s %s/stop/metrics.jsonl\" & fi; "
                         "exec \"$COGSMITH\" train %s/t.yaml train.out=%s/stop train.steps=20000'",
                         self, train_folder, train_folder, train_folder);
    int status = run_world(2, what, "");
    char *text = said();
    if (status != EXIT_STOPPED) fail_msg("exit code %d: %s", status, text);
    assert_parts(text, (const char *const[]){"stopped after step", NULL});
    int done = steps_so_far("stop");
    CHECKPOINTS("stop", 0, done);
    free(text);
    free(what);
}

/* SIGTERM for every rank, as a scheduler sends it, is a request to stop, and nobody is missed: not
 * even rank 1, which does not come to run for a while, as on a busy machine. */
static void all_ranks_are_told_to_end(void **state) {
    (void)state;
    char *what = xprintf("bash -c 'if [ $OMPI_COMM_WORLD_RANK = 1 ]; then "
                         "slow=\"&& kill -STOP $$ && { (sleep 1.2; kill -CONT $$) & }\"; fi; "
                         "\"%s\" signal TERM $$ \"test -s %s/told/metrics.jsonl $slow\" & "
                         "exec \"$COGSMITH\" train %s/t.yaml train.out=%s/told train.steps=20000'",
                         self, train_folder, train_folder, train_folder);
    int status = run_world(3, what, "");
    char *text = said();
    if (status != EXIT_STOPPED) fail_msg("exit code %d: %s", status, text);
    assert_parts(text, (const char *const[]){"stopped after step", NULL});
    if (strstr(text, "does not answer") || strstr(text, "is gone")) fail_msg("said: %s", text);
    CHECKPOINTS("told", 0, steps_so_far("told"));
    free(text);
    free(what);
}

/* Each rank has a model of its own under one path; rank 1's differs in one number. */
static void ranks_of_other_weights(void **state) {
    (void)state;
    char *line = xprintf("cd %s && for r in 0 1; do mkdir rank$r && cp -r model rank$r/; done && "
                         "chmod -R u+w rank1 && cd rank1/model/transformer && "
                         "truncate -s -4 diffusion_pytorch_model.safetensors && "
                         "printf '\\0\\0\\0\\100' >>diffusion_pytorch_model.safetensors",
                         train_folder);
    assert_int_equal(shell(line), 0);
    char *what = xprintf("bash -c 'cd %s/rank$OMPI_COMM_WORLD_RANK && exec \"%s\" train %s/t.yaml "
                         "model.path=model train.out=%s/apart train.steps=1'",
                         train_folder, getenv("COGSMITH"), train_folder, train_folder);
    assert_int_equal(run_world(2, what, ""), EXIT_USER);
    char *text = said(), *told = strstr(text, "rank 1 was started with another transformer");
    if (!told || strstr(told + 1, "cogsmith: ")) fail_msg("said: %s", text);
    free(text);
    free(what);
    free(line);
}

/* Several ranks train while another process may write the cache: its lock is not theirs. */
static void ranks_leave_the_lock_alone(void **state) {
    (void)state;
    char *lock = xprintf("%s/data/.cogsmith-cache/lock", train_folder), *before = text_of(lock);
    char *what = xprintf("'%s' train %s/t.yaml train.out=%s/beside train.steps=1",
                         getenv("COGSMITH"), train_folder, train_folder);
    if (run_world(2, what, "")) fail_msg("%s", said());
    char *after = text_of(lock);
    assert_string_equal(before, after);
    free(lock);
    free(before);
    free(after);
    free(what);
}

/* One line of cogsmith's, with this in it; the ranks end with 2. */
static void expect_told_once(int world, const char *what, const char *more, const char *part) {
    int code = run_world(world, what, more);
    char *text = said(), *told = strstr(text, "cogsmith: ");
    if (code != EXIT_USER) fail_msg("exit code %d: %s", code, text);
    if (!told || strstr(told + 1, "cogsmith: ") || !strstr(told, part)) fail_msg("said: %s", text);
    free(text);
}

/* What all ranks see is told by the first one; what one of them sees by that one. */
static void mistakes_are_told_once(void **state) {
    (void)state;
    char *what = xprintf("'%s' train %s/t.yaml train.out=%s/mistake", getenv("COGSMITH"),
                         train_folder, train_folder);
    char *one =
        xprintf("bash -c 'exec \"%s\" train %s/t.yaml lora.rank=${OMPI_COMM_WORLD_RANK/1/x}4'",
                getenv("COGSMITH"), train_folder);
    expect_told_once(3, what, "lora.rankk=4", "cogsmith: command line: 'lora.rankk=4'");
    expect_told_once(3, what, "memory.budget=39MiB", "the least possible is ");
    expect_told_once(7, what, "train.batch=2 train.accumulate=2",
                     "data.path: 24 samples are fewer than the 28 that one step takes: train.batch "
                     "2 x train.accumulate 2 x 7 ranks. Give more clips");
    expect_told_once(3, one, "", "cogsmith: rank 1: command line: 'lora.rank=x4'");
    free(what);
    free(one);
}

/* 24 samples: two steps of one epoch. */
static int setup(void **state) {
    train_windows = 4;
    train_setup(state);
    clip_make(in_train("data"), "f", "yuvtestsrc", 1);
    pause_seconds(1.1);
    train_expect(RUN("prepare", in_train("t.yaml")), 0);
    return 0;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_run_over_many_worlds), cmocka_unit_test(one_rank_speaks_for_all),
        cmocka_unit_test(one_rank_stops_all),       cmocka_unit_test(all_ranks_are_told_to_end),
        cmocka_unit_test(ranks_of_other_weights),   cmocka_unit_test(ranks_leave_the_lock_alone),
        cmocka_unit_test(mistakes_are_told_once)};
    if (is_signal(argc, argv)) return signal_rank(argv + 2);
    if (argc > 3) return save_again(argv + 1);
    self = realpath("/proc/self/exe", NULL);
    int failed = cmocka_run_group_tests(tests, setup, train_teardown);
    free(self);
    return failed;
}
