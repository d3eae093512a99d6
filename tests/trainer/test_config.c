/* The configuration: defaults, every type, the order of sources, every complaint, the dump.
 * Complaints are read from the built program ($COGSMITH), as a user would see them.
 */
#define _POSIX_C_SOURCE 200809L
#include "trainer/config_table.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct {
    int code;
    char out[1 << 16], err[1 << 13];
} Result;

static Config *from_yaml(const char *text) {
    Config *c = config_new();
    Error e = {0};
    if (!config_read_text(c, text, strlen(text), "run.yaml", &e)) fail_msg("%s", e.text);
    return c;
}

static void assign(Config *c, const char *assignment) {
    Error e = {0};
    if (!config_assign(c, assignment, &e)) fail_msg("%s", e.text);
}

/* Folder of the running test, also its working directory. */
static int enter_folder(void **state) {
    char *folder = xstrdup("/tmp/cogsmith-config-XXXXXX");
    *state = folder;
    return mkdtemp(folder) && !chdir(folder) ? 0 : -1;
}

static int leave_folder(void **state) {
    char *command = xprintf("rm -r '%s'", (char *)*state);
    int code = chdir("/") || system(command);
    free(command);
    free(*state);
    return code;
}

static void write_file(const char *path, const char *text, size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

static void read_back(const char *path, char *text, size_t bytes) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    text[fread(text, 1, bytes - 1, file)] = 0;
    fclose(file);
}

/* Runs the program with up to three arguments (NULL ends them). */
static Result *run(const char *a, const char *b, const char *c) {
    static Result r;
    const char *program = getenv("COGSMITH");
    if (!program) fail_msg("the environment variable COGSMITH names the program to test");
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        int out = open("out", O_CREAT | O_TRUNC | O_WRONLY, 0600);
        int err = open("err", O_CREAT | O_TRUNC | O_WRONLY, 0600);
        dup2(out, STDOUT_FILENO);
        dup2(err, STDERR_FILENO);
        execl(program, "cogsmith", a, a ? b : NULL, b ? c : NULL, (char *)NULL);
        _exit(127);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    r.code = WEXITSTATUS(status);
    read_back("out", r.out, sizeof r.out);
    read_back("err", r.err, sizeof r.err);
    return &r;
}

/* The complaint is one line that begins with `start`, holds `part`, and nothing went to stdout. */
static void assert_complaint(const Result *r, const char *start, const char *part) {
    char *begin = xprintf("cogsmith: %s", start);
    if (r->code != EXIT_USER || strncmp(r->err, begin, strlen(begin)) || !strstr(r->err, part))
        fail_msg("wanted 2 and '%s...%s', got %d and %s", begin, part, r->code, r->err);
    assert_ptr_equal(strchr(r->err, '\n'), r->err + strlen(r->err) - 1);
    assert_string_equal(r->out, "");
    free(begin);
}

static void test_table(void **state) {
    (void)state;
    for (int i = 0; i < CONFIG_KEYS; i++) {
        const Key *key = &CONFIG_TABLE[i];
        assert_true(strlen(key->path) < CONFIG_KEY_BYTES);
        assert_int_equal(key_index(key->path), i); /* no path twice */
        assert_non_null(key->doc);
        assert_true(!key->text != !key->unset); /* either a default, or what its lack means */
        if (key->type == KEY_INT || key->type == KEY_FLOAT) assert_true(key->min < key->max);
        if (!key->text && key->type != KEY_STRING && key->type != KEY_PATH)
            assert_true(key->min > 0); /* 0 means unset */
        for (int k = 0; k < i; k++) assert_int_not_equal(CONFIG_TABLE[k].offset, key->offset);
    }
}

static void test_defaults(void **state) {
    (void)state;
    Config *c = from_yaml("");
    assert_null(c->model.path);
    assert_int_equal(c->method, METHOD_LORA);
    assert_int_equal(c->lora.rank, 128);
    assert_true(c->lora.alpha == 64 && c->lora.dropout == 0);
    assert_int_equal(c->lora.target_modules.count, 4);
    assert_string_equal(c->lora.target_modules.items[3], "to_out.0");
    assert_string_equal(c->data.trigger, "");
    assert_true(c->data.frames == 0 && c->data.fps == 0 && c->memory.budget == 0);
    assert_true(c->train.learning_rate == 2e-5 && c->train.eps == 1e-8);
    assert_true(c->train.betas.count == 2 && c->train.betas.items[1] == 0.95);
    assert_int_equal(c->train.timesteps, TIMESTEPS_EXPLICIT);
    assert_string_equal(c->train.resume, "auto");
    assert_true(c->vae.overlap_height == 1.0 / 6 && c->vae.overlap_width == 1.0 / 5);
    assert_true(c->device.kind == DEVICE_AUTO && c->device.index == -1);
    assert_true(c->sample.guidance == 6 && !c->sample.dynamic_guidance);
    assert_int_equal(c->bench.repeat, 5);
    for (int i = 0; i < CONFIG_KEYS; i++) assert_false(config_is_set(c, CONFIG_TABLE[i].path));
    assert_string_equal(config_place(c, "lora.rank"), "default");
    config_free(c);
}

static void test_types(void **state) {
    (void)state;
    Config *c = from_yaml("---\n"
                          "model: {path: a b/c, dtype: bf16}\n"
                          "method: full\n"
                          "device: cuda:3\n"
                          "lora:\n"
                          "  target_modules:\n"
                          "    - to_q\n"
                          "    - 'ff.net.0.proj'\n"
                          "train:\n"
                          "  seed: 9223372036854775807\n"
                          "  learning_rate: 1.5E-4 # a comment\n"
                          "  betas: [0.5, 0.25]\n"
                          "  deterministic: true\n"
                          "memory:\n"
                          "  budget: 12GiB\n"
                          "  base: {home: file}\n"
                          "vae:\n"
                          "sample:\n"
                          "  prompt: \"caf\\u00e9: \\\"x\\\"\\n# y\"\n"
                          "  negative_prompt: |\n"
                          "    two\n"
                          "    lines\n");
    assert_string_equal(c->model.path, "a b/c");
    assert_int_equal(c->model.dtype, NUMBERS_BF16);
    assert_int_equal(c->method, METHOD_FULL);
    assert_true(c->device.kind == DEVICE_CUDA && c->device.index == 3);
    assert_int_equal(c->lora.target_modules.count, 2);
    assert_string_equal(c->lora.target_modules.items[1], "ff.net.0.proj");
    assert_true(c->train.seed == INT64_MAX && c->train.learning_rate == 1.5e-4);
    assert_true(c->train.betas.items[0] == 0.5 && c->train.betas.items[1] == 0.25);
    assert_true(c->train.deterministic);
    assert_true(c->memory.budget == INT64_C(12) << 30);
    assert_int_equal(c->memory.base.home, PLACE_FILE);
    assert_string_equal(c->sample.prompt, "café: \"x\"\n# y");
    assert_string_equal(c->sample.negative_prompt, "two\nlines\n");
    config_free(c);
}

static void test_order(void **state) {
    (void)state;
    Config *c = from_yaml("train:\n  steps: 5\n  batch: 2\ndata: {frames: 9}\n");
    assert_string_equal(config_place(c, "train.steps"), "run.yaml:2:10");
    assert_true(config_is_set(c, "train.batch") && !config_is_set(c, "train.keep"));
    assign(c, "train.steps=7");
    assign(c, "train.steps=8");
    assign(c, "lora.target_modules=[a, 'b, c']");
    assign(c, "sample.prompt=x=y: [z] # not a comment");
    assert_true(c->train.steps == 8 && c->train.batch == 2);
    assert_string_equal(config_place(c, "train.steps"), "command line: 'train.steps=8'");
    assert_int_equal(c->lora.target_modules.count, 2);
    assert_string_equal(c->lora.target_modules.items[1], "b, c");
    assert_string_equal(c->sample.prompt, "x=y: [z] # not a comment");
    assign(c, "data.frames=auto");
    assert_true(c->data.frames == 0 && !config_is_set(c, "data.frames"));
    assign(c, "sample.prompt=");
    assert_null(c->sample.prompt);
    assign(c, "data.trigger=");
    assert_string_equal(c->data.trigger, "");
    config_free(c);
}

static void test_sizes(void **state) {
    (void)state;
    Config *c = from_yaml("memory: {budget: 1536MiB}");
    assert_true(c->memory.budget == 1536 * 1048576LL);
    assign(c, "memory.budget=1000");
    assert_true(c->memory.budget == 1000);
    assign(c, "memory.budget=2TiB");
    assert_true(c->memory.budget == INT64_C(2) << 40);
    assign(c, "memory.budget=3KiB");
    assert_true(c->memory.budget == 3072);
    config_free(c);
}

/* Dump, read back, dump: the same text; and every value that was set is in it. */
static void assert_round_trip(const Config *c) {
    char *dump = config_dump(c);
    Config *again = from_yaml(dump);
    char *second = config_dump(again);
    assert_string_equal(dump, second);
    free(second);
    free(dump);
    config_free(again);
}

static void test_dump(void **state) {
    (void)state;
    Config *c = config_new();
    assert_round_trip(c);
    assign(c, "model.path=it's \"quoted\" \\ # : - [x]");
    assign(c,
           "sample.prompt=\t\x01 line\nbreak \xc2\x85 \xe2\x80\xa8 \xef\xbb\xbf \xf0\x9f\x8e\xac");
    assign(c, "data.trigger= ");
    assign(c, "lora.target_modules=['null', 'true', '~', '[', \"a\\\"b\"]");
    assign(c, "train.betas=[0.1, 0.30000000000000004]");
    assign(c, "train.seed=9007199254740993");
    assign(c, "memory.budget=8GiB");
    assign(c, "device=cuda:1");
    assert_round_trip(c);
    char *dump = config_dump(c);
    Config *again = from_yaml(dump);
    assert_string_equal(again->model.path, c->model.path);
    assert_string_equal(again->sample.prompt, c->sample.prompt);
    assert_string_equal(again->lora.target_modules.items[4], "a\"b");
    assert_true(again->train.betas.items[1] == 0.30000000000000004);
    assert_true(again->train.seed == 9007199254740993);
    assert_non_null(strstr(dump, "\n  budget: 8GiB "));
    assert_non_null(strstr(dump, "\n  # frames: (the model's own) "));
    free(dump);
    config_free(again);
    config_free(c);
}

static const struct {
    const char *yaml, *start, *part;
} FILE_ERRORS[] = {
    {"lora:\n  rnk: 3\n", "run.yaml:2:3: lora.rnk: ", "did you mean 'lora.rank'?"},
    {"laro:\n  rank: 3\n", "run.yaml:1:1: laro: ", "did you mean 'lora'?"},
    {"learning_rate: 3\n", "run.yaml:1:1: learning_rate: ", "did you mean 'train.learning_rate'?"},
    {"xyzzy: 3\n", "run.yaml:1:1: xyzzy: ", "--help` lists the keys"},
    {"lora.rank: 3\n", "run.yaml:1:1: lora.rank: ", "keys are nested in a file; write `lora:`"},
    {"lora:\n  rank: 3\n  rank: 4\n", "run.yaml:3:3: lora.rank: ", "the first is on line 2"},
    {"lora:\n  rank: 3\nlora:\n", "run.yaml:3:1: lora: ", "the first is on line 1"},
    {"lora:\n  rank: &a 3\n", "run.yaml:2:9: lora.rank: ", "anchors"},
    {"lora:\n  rank: *a\n", "run.yaml:2:9: lora.rank: ", "aliases"},
    {"lora: &a\n  rank: 3\n", "run.yaml:1:7: lora: ", "anchors"},
    {"lora:\n  rank: !!int 3\n", "run.yaml:2:9: lora.rank: ", "tags"},
    {"lora: !x {rank: 3}\n", "run.yaml:1:7: lora: ", "tags"},
    {"lora: {target_modules: ! [a]}\n", "run.yaml:1:24: lora.target_modules: ", "tags"},
    {"method: lora\n---\nmethod: full\n", "run.yaml:2:1: ", "second document"},
    {"lora:\n  rank: [3]\n", "run.yaml:2:9: lora.rank: ", "expected a whole number from 1 to 8192"},
    {"lora:\n  rank: {a: {b: [c]}}\n", "run.yaml:2:9: lora.rank: ", "not '{...}'"},
    {"lora:\n  rank: 0\n", "run.yaml:2:9: lora.rank: ", "from 1 to 8192, not '0'"},
    {"lora:\n  rank: 9000\n", "run.yaml:2:9: lora.rank: ", "from 1 to 8192, not '9000'"},
    {"lora:\n  rank: 3x\n", "run.yaml:2:9: lora.rank: ", "not '3x'; without the key: 128"},
    {"lora:\n  rank: 3.0\n", "run.yaml:2:9: lora.rank: ", "not '3.0'"},
    {"lora:\n  rank: 0x10\n", "run.yaml:2:9: lora.rank: ", "not '0x10'"},
    {"lora:\n  rank: ' 3'\n", "run.yaml:2:9: lora.rank: ", "not ' 3'"},
    {"lora:\n  rank:\n", "run.yaml:2:8: lora.rank: ", "not ''"},
    {"lora:\n  rank: ~\n", "run.yaml:2:9: lora.rank: ", "not '~'"},
    {"train:\n  seed: 9223372036854775808\n", "run.yaml:2:9: train.seed: ", "0 or more"},
    {"train:\n  eps: nan\n",
     "run.yaml:2:8: train.eps: ", "expected a number from 0 to 1, not 'nan'"},
    {"train:\n  eps: .inf\n", "run.yaml:2:8: train.eps: ", "not '.inf'"},
    {"train:\n  eps: 1e-999\n", "run.yaml:2:8: train.eps: ", "not '1e-999'"},
    {"train:\n  clip_norm: 1e999\n", "run.yaml:2:14: train.clip_norm: ", "not '1e999'"},
    {"train:\n  eps: 1e-8f\n", "run.yaml:2:8: train.eps: ", "not '1e-8f'"},
    {"train:\n  eps: 0x1p-3\n", "run.yaml:2:8: train.eps: ", "not '0x1p-3'"},
    {"train:\n  deterministic: yes\n", "run.yaml:2:18: train.deterministic: ", "true or false"},
    {"train:\n  schedule: cosin\n", "run.yaml:2:13: train.schedule: ", "did you mean 'cosine'?"},
    {"train:\n  betas: 0.9\n", "run.yaml:2:10: train.betas: ", "a list of 2 numbers in brackets"},
    {"train:\n  betas: [0.9]\n", "run.yaml:2:10: train.betas: ", "not '[0.9]'"},
    {"train:\n  betas: [0.9, 1]\n", "run.yaml:2:10: train.betas: ", "not '[0.9, ...]'"},
    {"train:\n  betas: [0.9, [1]]\n", "run.yaml:2:16: train.betas: ", "lists do not nest"},
    {"memory:\n  budget: 8GB\n", "run.yaml:2:11: memory.budget: ", "KiB, MiB, GiB or TiB"},
    {"memory:\n  budget: 99999999TiB\n",
     "run.yaml:2:11: memory.budget: ", "expected a whole number of bytes"},
    {"memory:\n  budget: -1\n",
     "run.yaml:2:11: memory.budget: ", "expected a whole number of bytes"},
    {"memory:\n  base: device\n", "run.yaml:2:9: memory.base: ", "on the lines below"},
    {"device: gpu\n", "run.yaml:1:9: device: ", "expected auto, cpu, cuda or cuda:N, not 'gpu'"},
    {"device: cuda:-1\n", "run.yaml:1:9: device: ", "not 'cuda:-1'"},
    {"train:\n  resume: ''\n", "run.yaml:2:11: train.resume: ", "expected a path"},
    {"- a\n", "run.yaml:1:1: ", "expected its keys"},
    {"just text\n", "run.yaml:1:1: ", "expected its keys"},
    {"? [a]\n: b\n", "run.yaml:1:3: ", "expected a key and its value"},
    {"lora: {rank: 3\n", "run.yaml:2:1: ", "not YAML"},
    {"lora:\n\trank: 3\n", "run.yaml:2:1: ", "not YAML: a tab; indent with blanks"},
    {"lora:\n  rank: 3\n \talpha: 3\n", "run.yaml:3:", "a tab; indent with blanks"},
    {"\xef\xbb\xbflora:\n  rnk: 3\n", "run.yaml:2:3: lora.rnk: ", "did you mean 'lora.rank'?"},
    {"\xef\xbb\xbf"
     "rank: 3\n",
     "run.yaml:1:1: rank: ", "did you mean 'lora.rank'?"},
    {"sample:\n  prompt: \"a\\0b\"\n", "run.yaml:2:11: sample.prompt: ", "NUL"},
    {"# \xc3\xa9 \xff\n", "run.yaml:1:5: ", "not UTF-8"},
    {"a\n\xed\xa0\x80\n", "run.yaml:2:1: ", "not UTF-8"},
    {"a\n\xc0\xaf\n", "run.yaml:2:1: ", "not UTF-8"},
    {"a\n\xe2\x82", "run.yaml:2:1: ", "not UTF-8"},
    {"method: \x01\n", "run.yaml:1:9: ", "control characters"},
    {"\"a\\eb\": 1\n", "run.yaml:1:1: a?b: ", "no such key"},
};

static void test_file_errors(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(FILE_ERRORS); i++) {
        write_file("run.yaml", FILE_ERRORS[i].yaml, strlen(FILE_ERRORS[i].yaml));
        Result *r = run("plan", "run.yaml", NULL);
        assert_complaint(r, FILE_ERRORS[i].start, FILE_ERRORS[i].part);
    }
}

static void test_unreadable_files(void **state) {
    (void)state;
    assert_complaint(run("plan", "none.yaml", NULL), "none.yaml: ", "cannot be opened: No such");
    assert_complaint(run("plan", "/", NULL), "/: ", "cannot be read: Is a directory");
    enum { BYTES = (1 << 20) + 1 };
    char *text = xcalloc(BYTES, 1);
    memset(text, ' ', BYTES);
    write_file("run.yaml", text, BYTES);
    assert_complaint(run("plan", "run.yaml", NULL), "run.yaml: ", "larger than 1 MiB");
    memset(text, '[', BYTES);
    write_file("run.yaml", text, BYTES - 1);
    assert_complaint(run("plan", "run.yaml", NULL), "run.yaml:1:1: ", "expected its keys");
    memcpy(text, "lora: {target_modules: ", 23);
    write_file("run.yaml", text, BYTES - 1);
    assert_complaint(run("plan", "run.yaml", NULL), "run.yaml:1:25: ", "lists do not nest");
    free(text);
}

static const struct {
    const char *argument, *part;
} ARGUMENT_ERRORS[] = {
    {"lora.rnk=3", "lora.rnk: no such key; did you mean 'lora.rank'?"},
    {"rank=3", "did you mean 'lora.rank'?"},
    {"train.lr=3", "did you mean 'train.learning_rate'?"},
    {"wd=3", "did you mean 'train.weight_decay'?"},
    {"lora=3", "expected one of its keys, as lora.NAME=value"},
    {"lora.rank=3x", "lora.rank: expected a whole number from 1 to 8192, not '3x'"},
    {"lora.rank=auto", "not 'auto'"},
    {"lora.rank=", "not ''"},
    {"lora.target_modules=to_q", "expected a list of names in brackets, such as [to_q, to_k]"},
    {"memory.budget=8GB", "or with a unit KiB, MiB, GiB or TiB (8GiB), not '8GB'"},
    {"memory.budget=8GB", "did you mean '8GiB'?"},
    {"memory.budget=8 gigs", "did you mean '8GiB'?"},
    {"memory.budget=1.5g", "did you mean '1536MiB'?"},
    {"memory.budget=12gib", "did you mean '12GiB'?"},
    {"memory.budget=512b", "did you mean '512'?"},
    {"memory.budget=8 pounds", "not '8 pounds'; without the key: what the device has"},
    {"memory.budget=GiB", "not 'GiB'; without the key: "},
    {"memory.budget=99999999999TB", "not '99999999999TB'; without the key: "},
    {"lora.target_modules=[]", "expected a list"},
    {"lora.target_modules=[a] b", "expected a list"},
    {"lora.target_modules=[a, !x b]", "expected a list"},
    {"lora.target_modules=[a", "expected a list"},
    {"train.betas=[0.9, nan]", "expected a list of 2 numbers"},
    {"data.trigger=\xff", "not UTF-8"},
    {"--jsn", "did you mean '--json'?"},
    {"--verify", "not an option of plan"},
    {"--lora.rank=3", "keys are given without dashes"},
};

static void test_argument_errors(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(ARGUMENT_ERRORS); i++) {
        const char *argument = ARGUMENT_ERRORS[i].argument;
        char *start = xprintf("command line: '%s'", argument);
        assert_complaint(run("plan", argument, NULL), start, ARGUMENT_ERRORS[i].part);
        free(start);
    }
    write_file("a.yaml", "", 0);
    write_file("b.yaml", "", 0);
    assert_complaint(run("plan", "a.yaml", "b.yaml"), "command line: 'b.yaml'", "one config file");
}

static void test_program(void **state) {
    (void)state;
    Result *r = run(NULL, NULL, NULL);
    assert_int_equal(r->code, EXIT_USER);
    assert_non_null(strstr(r->err, "usage: cogsmith VERB"));
    assert_complaint(run("plna", NULL, NULL), "command line: 'plna'", "did you mean 'plan'?");
    assert_complaint(run("inspect", NULL, NULL), "command line: ", "at least one FILE");
    r = run("--help", NULL, NULL);
    assert_true(r->code == 0 && strstr(r->out, "\n  plan ") && strstr(r->out, "exit codes"));
    r = run("--version", NULL, NULL);
    assert_true(r->code == 0 && !strncmp(r->out, "cogsmith ", 9));
    r = run("plan", "--help", NULL);
    assert_true(r->code == 0 && strstr(r->out, "\n  lora.rank [128]\n"));
    assert_non_null(strstr(r->out, "\n  data.frames (the model's own)\n"));
    assert_null(strstr(r->out, "sample.prompt"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_dump),
        cmocka_unit_test_setup_teardown(test_file_errors, enter_folder, leave_folder),
        cmocka_unit_test_setup_teardown(test_unreadable_files, enter_folder, leave_folder),
        cmocka_unit_test_setup_teardown(test_argument_errors, enter_folder, leave_folder),
        cmocka_unit_test_setup_teardown(test_program, enter_folder, leave_folder),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
