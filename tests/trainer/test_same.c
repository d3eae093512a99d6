/* Ranks of different programs, configurations or data are refused at the start, by name.
 *
 * The program is its own worker: `test_same SAMPLES [setting ...]` is a rank that has these samples
 * and this configuration; mpirun starts ranks with different ones. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/trainer/program.h"
#include "tests/trainer/ranks.h"
#include "trainer/same.h"

static char *folder, *self;

static int worker(char **args) {
    Config *config = config_new();
    Error e;
    for (char **setting = args + 1; *setting; setting++)
        if (!config_assign(config, *setting, &e)) die_error(&e);
    ranks_program(getenv("AS") ? getenv("AS") : "test");
    Comm *c = comm_world(20);
    ranks_agree_to_start(c, config);
    ranks_agree(c, "set of samples", args[0]);
    printf("rank %d goes on\n", c->rank);
    comm_close(c);
    config_free(config);
    return 0;
}

/* What the ranks of `line` (mpirun's program parts) say, of the caller's own; *code: how they end.
 */
static char *said_by(const char *line, int *code) {
    char *path = xprintf("%s/said", folder);
    char *command = xprintf("%s %s >%s 2>&1", MPIRUN, line, path);
    *code = shell(command);
    char *text = text_of(path);
    free(path);
    free(command);
    return text;
}

/* The ranks end with 2, and one line of theirs has all parts. */
static void expect_refused(const char *line, const char *const *parts) {
    int code;
    char *text = said_by(line, &code);
    if (code != EXIT_USER) fail_msg("expected exit code 2, got %d: %s", code, text);
    assert_parts(text, parts);
    assert_null(strstr(text, "goes on"));
    const char *said = strstr(text, "cogsmith: ");
    assert_true(said && !strstr(said + 1, "cogsmith: "));
    free(text);
}

#define REFUSES(line, ...) expect_refused(line, (const char *const[]){__VA_ARGS__, NULL})

static void the_same_goes_on(void **state) {
    (void)state;
    int code;
    char *line = xprintf("-n 3 %s clips train.batch=2", self);
    char *text = said_by(line, &code);
    if (code) fail_msg("%s", text);
    for (int i = 0; i < 3; i++) {
        char said[] = "rank 0 goes on";
        said[5] = (char)('0' + i);
        assert_non_null(strstr(text, said));
    }
    free(text);
    free(line);
}

static void another_configuration(void **state) {
    (void)state;
    char *line = xprintf("-n 2 %s clips ranks.zero=1 train.batch=2 : -n 1 %s clips ranks.zero=2 "
                         "train.batch=3",
                         self, self);
    REFUSES(line, "rank 2 was started with another configuration than rank 0",
            "\"train.batch: 3\" where rank 0 has \"train.batch: 2\"");
    free(line);
}

static void a_setting_that_is_missing(void **state) {
    (void)state;
    char *line = xprintf("-n 1 %s clips : -n 1 %s clips data.path=/clips", self, self);
    REFUSES(line, "rank 1 was started with another configuration",
            "\"data.path: \"/clips\"\" where rank 0 has \"data.path: (not set)\"");
    free(line);
}

static void another_program(void **state) {
    (void)state;
    char *other = xprintf("%s/other", folder);
    char *command = xprintf("cp %s %s && printf x >>%s", self, other, other);
    assert_int_equal(system(command), 0);
    char *line = xprintf("-n 1 %s clips : -n 2 %s clips", self, other);
    REFUSES(line, "rank 1 on ", " was started as `cogsmith " COGSMITH_VERSION " (digest ",
            ") test`, and rank 0 on ", "all ranks need the same program and verb");
    free(line);
    free(command);
    free(other);
}

static void another_verb(void **state) {
    (void)state;
    char *line = xprintf("-n 2 %s clips : -n 1 env AS=prepare %s clips", self, self);
    REFUSES(line, "rank 2 on ", ") prepare`, and rank 0 on ", ") test`: all ranks need the same");
    free(line);
}

/* One of the program's verbs that meets nobody meets the others before it ends. */
static void a_verb_that_needs_no_ranks(void **state) {
    (void)state;
    char *line = xprintf("-n 1 %s clips : -n 1 $COGSMITH inspect configs/tiny/model", self);
    REFUSES(line, "rank 1 on ", ") inspect`, and rank 0 on ");
    free(line);
}

/* Without an mpirun: what srun tells its processes. */
static void ranks_of_srun(void **state) {
    (void)state;
    static const char *const SET[][2] = {{"SLURM_PROCID", "3"},
                                         {"SLURM_LOCALID", "1"},
                                         {"SLURM_NODEID", "2"},
                                         {"SLURM_STEP_NUM_TASKS", "5"},
                                         {"SLURM_STEP_TASKS_PER_NODE", "1(x2),3"}};
    assert_true(comm_world_rank() == 0 && comm_world_size() == 1);
    assert_true(comm_local_rank() == 0 && comm_local_size() == 1);
    for (size_t i = 0; i < COUNT(SET); i++) setenv(SET[i][0], SET[i][1], 1);
    assert_true(comm_world_rank() == 3 && comm_world_size() == 5);
    assert_true(comm_local_rank() == 1 && comm_local_size() == 3);
    setenv("SLURM_NODEID", "1", 1);
    assert_int_equal(comm_local_size(), 1);
    setenv("PMI_RANK", "2", 1);
    assert_int_equal(comm_world_rank(), 2);
    setenv("PMIX_RANK", "4", 1);
    assert_int_equal(comm_world_rank(), 4);
    unsetenv("PMIX_RANK");
    unsetenv("PMI_RANK");
    const Run *r = RUN("train", "model.path=/none", "data.path=/none");
    REFUSED(r, EXIT_USER, "rank 3: 5 ranks were started, but MPI does not join them",
            "srun --mpi=pmix");
    for (size_t i = 0; i < COUNT(SET); i++) unsetenv(SET[i][0]);
}

static void other_data(void **state) {
    (void)state;
    char *line =
        xprintf("-n 2 %s clips : -n 1 %s clips-of-yesterday : -n 1 %s clips", self, self, self);
    REFUSES(line, "rank 2 was started with another set of samples than rank 0",
            "\"clips-of-yesterday\"");
    free(line);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_goes_on),
        cmocka_unit_test(another_configuration),
        cmocka_unit_test(a_setting_that_is_missing),
        cmocka_unit_test(another_program),
        cmocka_unit_test(other_data),
        cmocka_unit_test(another_verb),
        cmocka_unit_test(a_verb_that_needs_no_ranks),
        cmocka_unit_test(ranks_of_srun),
    };
    if (argc > 1) return worker(argv + 1);
    folder = scratch_make();
    self = realpath("/proc/self/exe", NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_remove(folder);
    free(self);
    return failed;
}
