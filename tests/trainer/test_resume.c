/* `train` interrupted and resumed comes to the same bits as one that is not: stopped after every
 * step, asked to stop by signals in the middle of an accumulation, killed at random moments.
 *
 *     COGSMITH_KILLS=50 test_resume     8 kills unless said */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/trainer/train_model.h"

enum { STEPS = 32 };

/* Dropout of every kind, so that every draw must be found again. */
#define SETTINGS                                                                                   \
    "lora.dropout=0.1", "data.caption_dropout=0.5", "train.sample_every=0", "train.validate_every=0"

/* ---- after every step -------------------------------------------------------------------------
 */

/* A copy of the whole run as it was when step `step` was done. */
static void cut_back(const char *whole, int step) {
    clips_run(train_folder, "rm -rf cut && cp -r '%s' cut && rm -r cut/adapter", whole);
    for (int k = step + 1; k <= STEPS; k++)
        clips_run(train_folder, "rm -r cut/checkpoints/step-%06d", k);
}

static void stopped_after_every_step(void **state) {
    (void)state;
    train_expect(
        TRAIN("whole", SETTINGS, "train.steps=32", "train.checkpoint_every=1", "train.keep=32"), 0);
    for (int k = 1; k < STEPS; k++) {
        cut_back("whole", k);
        const Run *r = TRAIN("cut", SETTINGS, "train.steps=32");
        train_expect(r, 0);
        char *said = xprintf("going on after step %d\n", k);
        assert_parts(r->err, (const char *const[]){said, NULL});
        expect_same_run("whole", "cut", STEPS);
        free(said);
    }
}

/* One run of three micro-steps a step that ends and begins again many times. */
static void stopped_all_the_time(void **state) {
    (void)state;
    train_expect(TRAIN("thrice", SETTINGS, "train.accumulate=3", "train.steps=32"), 0);
    static const int ENDS[] = {1, 2, 3, 5, 8, 13, 21, 31, STEPS};
    for (size_t i = 0; i < COUNT(ENDS); i++) {
        char *steps = xprintf("train.steps=%d", ENDS[i]);
        train_expect(TRAIN("chain", SETTINGS, "train.accumulate=3", steps), 0);
        free(steps);
    }
    expect_same_run("thrice", "chain", STEPS);
}

/* ---- by signals -------------------------------------------------------------------------------
 */

/* Sends a signal to a child that stands still for it; returns the step that is recorded then. */
static int ask_standing(pid_t child, const char *out, int signal) {
    int status;
    kill(child, SIGSTOP);
    assert_int_equal(waitpid(child, &status, WUNTRACED), child);
    assert_true(WIFSTOPPED(status));
    int step = steps_so_far(out);
    kill(child, signal);
    kill(child, SIGCONT);
    return step;
}

/* Asked soon after step k is recorded, which is while a later one accumulates: that one, or the one
 * after it where it was just about to end, is the last. */
static void asked_to_stop(void **state) {
    (void)state;
    static const int SIGNALS[] = {SIGINT, SIGTERM, SIGUSR1};
    static const int AFTER[] = {1, 11, 23};
    train_expect(TRAIN("slow", SETTINGS, "train.accumulate=9", "train.steps=32"), 0);
    for (int i = 0; i < (int)COUNT(SIGNALS); i++) {
        char *out = xprintf("asked-%d", i);
        pid_t child = START(out, SETTINGS, "train.accumulate=9", "train.steps=32");
        wait_for_step(child, out, AFTER[i]);
        int before = ask_standing(child, out, SIGNALS[i]);
        assert_int_equal(exit_code(child), EXIT_STOPPED);
        int done = steps_so_far(out);
        if (done < before || done > before + 2)
            fail_msg("asked after step %d, stopped after step %d", before, done);
        CHECKPOINTS(out, 0, done);
        train_expect(TRAIN(out, SETTINGS, "train.accumulate=9", "train.steps=32"), 0);
        expect_same_run("slow", out, STEPS);
        free(out);
    }
}

/* The second request does not wait for what follows the step, previews of many prompts, to end. */
static void asked_twice(void **state) {
    (void)state;
    enum { PROMPTS = 64 };
    char prompts[2 * PROMPTS + 1] = "";
    for (int i = 0; i < PROMPTS; i++) strcat(prompts, "a\n");
    write_text(in_train("prompts.txt"), prompts);
    char *setting = xprintf("sample.prompts=%s", in_train("prompts.txt"));
    const char *endless[] = {SETTINGS, "train.sample_every=1", "sample.steps=1000",
                             setting,  "train.steps=2",        NULL};
    pid_t child = train_start("twice", endless);
    wait_for_step(child, "twice", 1);
    pause_seconds(0.2);
    kill(child, SIGINT);
    pause_seconds(0.2);
    assert_int_equal(waitpid(child, NULL, WNOHANG), 0);
    double start = now_seconds();
    kill(child, SIGINT);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
    assert_true(now_seconds() - start < 1);
    assert_int_equal(steps_so_far("twice"), 1);
    free(setting);
}

/* ---- killed -----------------------------------------------------------------------------------
 */

#define KILLED SETTINGS, "train.steps=32", "train.checkpoint_every=1", "train.keep=1"

/* Of a child that nobody has waited for: its number is its own until then. */
static bool is_running(pid_t child) {
    siginfo_t ended = {0};
    assert_int_equal(waitid(P_PID, (id_t)child, &ended, WEXITED | WNOHANG | WNOWAIT), 0);
    return !ended.si_pid;
}

/* Three times killed, `seconds` after step 1 is recorded or (from the start) after it was begun. */
static void kill_often(int i, double seconds, bool from_start) {
    for (int k = 0; k < 3; k++) {
        pid_t child = START("killed", KILLED);
        int before = steps_so_far("killed"), status;
        if (!from_start)
            while (steps_so_far("killed") <= MAX(before, 0) && is_running(child))
                pause_seconds(0.0005);
        pause_seconds(seconds);
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        print_message("kill %d.%d after %.3f s: step %d\n", i, k, seconds, steps_so_far("killed"));
    }
}

static void killed_at_random(void **state) {
    (void)state;
    const char *count = getenv("COGSMITH_KILLS");
    int kills = count ? atoi(count) : 8;
    uint64_t seed = (uint64_t)getpid();
    print_message("seed %d\n", (int)seed);
    for (int i = 0; i < kills; i += 3) {
        float u;
        random_uniform((Draw){.seed = seed, .ordinal = (uint32_t)i}, 0, 1, &u);
        clips_run(train_folder, "rm -rf killed");
        kill_often(i, (i % 9 ? 0.1 : 0.5) * (double)u, i % 9 == 0);
        const Run *r = TRAIN("killed", KILLED);
        train_expect(r, 0);
        if (strstr(r->err, "damaged")) fail_msg("%s", r->err);
        CHECKPOINTS("killed", 0, STEPS);
        clips_run(train_folder, "test -z \"$(find killed | grep -F .tmp.)\"");
        expect_same_run("whole", "killed", STEPS);
    }
}

/* Fifteen samples: a step may take nine. */
static int setup(void **state) {
    train_windows = 3;
    return train_setup(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stopped_after_every_step),
        cmocka_unit_test(stopped_all_the_time),
        cmocka_unit_test(asked_to_stop),
        cmocka_unit_test(asked_twice),
        cmocka_unit_test(killed_at_random),
    };
    return cmocka_run_group_tests(tests, setup, train_teardown);
}
