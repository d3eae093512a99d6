/* Running the built program ($COGSMITH) as a user would, and JSON and tensor files for it to read.
 * Include after cmocka.h. */
#pragma once

#include "data/safetensors.h"
#include "tests/data/scratch.h"

#include <fcntl.h>
#include <jansson.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* ---- the program ------------------------------------------------------------------------------
 */

typedef struct {
    int code;
    char *out, *err; /* both whole */
    double seconds;
    long peak_kib; /* of the process's resident memory */
} Run;

enum { RUN_MAX_ARGS = 32 };

/* How the program is run, until changed back: bytes that one file may have (0: any number), and
 * whether as a user without rights (where the test itself has them). */
static struct {
    rlim_t file_bytes;
    bool unprivileged;
} run_as;

static inline char *run_output(FILE *file) {
    long n = ftell(file);
    fseek(file, 0, SEEK_END);
    n = ftell(file);
    rewind(file);
    char *text = xcalloc((size_t)n + 1, 1);
    assert_int_equal(fread(text, 1, (size_t)n, file), n);
    fclose(file);
    return text;
}

static inline void run_child(FILE *out, FILE *err, char **args) {
    dup2(fileno(out), STDOUT_FILENO);
    dup2(fileno(err), STDERR_FILENO);
    struct rlimit limit = {run_as.file_bytes, run_as.file_bytes};
    if (run_as.file_bytes && setrlimit(RLIMIT_FSIZE, &limit)) _exit(126);
    if (run_as.unprivileged && !geteuid() && (setgid(65534) || setuid(65534))) _exit(126);
    setenv("OMP_NUM_THREADS", "1", 0); /* the models are tiny: threads would only wait */
    execv(getenv("COGSMITH"), args);
    _exit(126);
}

/* Adds the words of $COGSMITH_ARGS to n arguments. */
static inline void run_more(char **argv, int n) {
    static char words[256];
    snprintf(words, sizeof words, "%s", getenv("COGSMITH_ARGS") ? getenv("COGSMITH_ARGS") : "");
    for (char *rest = words, *word; (word = strtok_r(rest, " ", &rest)); n++) {
        assert_true(n + 1 < RUN_MAX_ARGS);
        argv[n] = word;
    }
}

/* The result of running the arguments, of which NULL is the last; valid until the next call. */
static inline const Run *run_args(const char *const *args) {
    static Run r;
    if (!getenv("COGSMITH"))
        fail_msg("the environment variable COGSMITH names the program to test");
    char *argv[RUN_MAX_ARGS] = {"cogsmith"};
    int n = 1;
    for (; args[n - 1]; n++) {
        assert_true(n + 1 < RUN_MAX_ARGS);
        argv[n] = (char *)args[n - 1];
    }
    run_more(argv, n);
    FILE *out = tmpfile(), *err = tmpfile();
    assert_true(out && err);
    double begin = now_seconds();
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) run_child(out, err, argv);
    int status;
    struct rusage usage;
    assert_int_equal(wait4(child, &status, 0, &usage), child);
    free(r.out);
    free(r.err);
    r = (Run){.seconds = now_seconds() - begin, .peak_kib = usage.ru_maxrss};
    r.out = run_output(out);
    r.err = run_output(err);
    if (!WIFEXITED(status)) fail_msg("%s: signal %d: %s", args[0], WTERMSIG(status), r.err);
    r.code = WEXITSTATUS(status);
    return &r;
}

#define RUN(...) run_args((const char *const[]){__VA_ARGS__, NULL})

/* All of the parts, of which NULL is the last, are in the text. */
static inline void assert_parts(const char *text, const char *const *parts) {
    for (int i = 0; parts[i]; i++)
        if (!strstr(text, parts[i])) fail_msg("expected '%s' in: %s", parts[i], text);
}

/* What was said, but for how far the look at the clips is, which a slow machine shows. */
static inline const char *complaint_of(const Run *r) {
    const char *at = r->err;
    while (!strncmp(at, "looking at: ", strlen("looking at: "))) at = strchr(at, '\n') + 1;
    return at;
}

/* The run ended with `code`, one line of complaint that holds all parts, and nothing on stdout. */
static inline void assert_refused(const Run *r, int code, const char *const *parts) {
    const char *said = complaint_of(r);
    if (r->code != code) fail_msg("expected exit code %d, got %d: %s", code, r->code, r->err);
    assert_parts(said, parts);
    if (strncmp(said, "cogsmith: ", 10) || strchr(said, '\n') != said + strlen(said) - 1)
        fail_msg("expected one line of cogsmith's: %s", r->err);
    assert_string_equal(r->out, "");
}

#define REFUSED(run, code, ...) assert_refused(run, code, (const char *const[]){__VA_ARGS__, NULL})

/* ---- files ------------------------------------------------------------------------------------
 */

static inline void write_text(const char *path, const char *text) {
    scratch_write(path, text, strlen(text));
}

static inline json_t *read_json(const char *path) {
    json_error_t at;
    json_t *json = json_load_file(path, JSON_REJECT_DUPLICATES, &at);
    if (!json) fail_msg("%s:%d: %s", path, at.line, at.text);
    return json;
}

static inline void write_json(const char *path, const json_t *json) {
    assert_int_equal(json_dump_file(json, path, JSON_INDENT(2)), 0);
}

/* cp -r; what comes of it may be written. */
static inline void copy_files(const char *from, const char *to) {
    char *command = xprintf("cp -r '%s' '%s' && chmod -R u+w '%s'", from, to, to);
    if (system(command)) fail_msg("%s", command);
    free(command);
}
