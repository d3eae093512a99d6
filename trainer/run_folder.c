/* Owns the run folder: who may write it, where it goes on, and its records. */
#define _XOPEN_SOURCE 700
#include "trainer/run_folder.h"

#include "data/lock.h"
#include "data/whole.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What may differ between a run's start and its resumption (train.steps: see below). */
static const char FREE_KEYS[] =
    "train.steps train.checkpoint_every train.keep train.sample_every train.validate_every "
    "train.out train.resume train.batch train.accumulate";
static const char COMPARED[] = "model method lora data train";

static bool exists(const char *folder, const char *name) {
    char *path = xprintf("%s/%s", folder, name);
    struct stat info;
    bool there = !lstat(path, &info);
    free(path);
    return there;
}

/* ---- opening ----------------------------------------------------------------------------------
 */

char *run_folder_path(const Config *c) {
    if (c->train.out) return xstrdup(c->train.out);
    char *copy = xstrdup(c->model.path);
    char *path = xprintf("runs/%s-%s", basename(copy), c->method == METHOD_FULL ? "full" : "lora");
    free(copy);
    return path;
}

/* Empty but for a lock, or with what a run begins with. */
static bool is_run(const char *path, Error *e) {
    DIR *d = opendir(path);
    if (!d) return error_set(e, EXIT_WORLD, "%.300s: %s", path, strerror(errno));
    bool empty = true;
    for (struct dirent *entry; (entry = readdir(d));)
        empty = empty && (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") ||
                          !strcmp(entry->d_name, "lock"));
    closedir(d);
    return empty || exists(path, "checkpoints") || exists(path, "metrics.jsonl") ||
           error_set(e, EXIT_USER,
                     "train.out: %.300s: expected an empty folder or a run's, and it holds "
                     "something else. Choose another folder.",
                     path);
}

RunFolder run_folder_open(const char *path) {
    RunFolder r = {.path = xstrdup(path), .lock = -1, .metrics = -1};
    Error e;
    if (!folders_make(path, &e) || !is_run(path, &e)) die_error(&e);
    r.lock = folder_lock(path, "trains in this folder", &e);
    if (r.lock < 0) die_error(&e);
    char *samples = xprintf("%s/samples", path);
    if (!whole_sweep(path, NULL, &e) || !whole_sweep(samples, NULL, &e)) die_error(&e);
    free(samples);
    return r;
}

void run_folder_close(RunFolder *r) {
    if (r->metrics >= 0) close(r->metrics);
    folder_unlock(r->lock);
    free(r->path);
    *r = (RunFolder){.lock = -1, .metrics = -1};
}

/* ---- going on ---------------------------------------------------------------------------------
 */

/* The result of another batch or accumulation is the same run only with as many samples a step. */
static char *differences(const Config *before, const Config *c, const Position *at, int world) {
    char *text = config_differences(before, c, COMPARED, FREE_KEYS);
    int64_t global = c->train.batch * c->train.accumulate * world;
    bool regrouped =
        before->train.batch != c->train.batch || before->train.accumulate != c->train.accumulate;
    char *batch = regrouped && global != at->global_batch
                      ? xprintf("%s  train.batch x train.accumulate x ranks: was %lld, is %lld\n",
                                text, (long long)at->global_batch, (long long)global)
                      : xstrdup(text);
    char *all =
        before->train.steps != c->train.steps && c->train.schedule != SCHEDULE_CONSTANT
            ? xprintf("%s  train.steps: was %lld, is %lld, on which the %s learning rate depends\n",
                      batch, (long long)before->train.steps, (long long)c->train.steps,
                      c->train.schedule == SCHEDULE_LINEAR ? "linear" : "cosine")
            : xstrdup(batch);
    free(text);
    free(batch);
    return all;
}

static void expect_same_run(const Config *c, const char *checkpoint, const Position *at,
                            int world) {
    Config *before = config_new();
    char *path = xprintf("%s/config.yaml", checkpoint);
    Error e;
    if (!config_read_file(before, path, &e)) die_error(&e);
    char *text = differences(before, c, at, world);
    if (*text) {
        text[strlen(text) - 1] = 0;
        die("%.300s: the run began with another config:\n%s\nGive it again as it was, or begin a "
            "new run with another train.out",
            checkpoint, text);
    }
    free(text);
    free(path);
    config_free(before);
}

/* A checkpoint that is not gone on from keeps its files under another name. */
static void put_aside(const char *folder, int64_t step, const char *what, const char *why) {
    char *path = checkpoint_path(folder, step), *aside = NULL;
    struct stat info;
    Error e;
    for (int i = 1; !aside || !lstat(aside, &info); i++) {
        free(aside);
        aside = xprintf("%s/%s-%06lld.%d", folder, what, (long long)step, i);
    }
    fprintf(stderr, "cogsmith: %s Put aside as %s\n", why, aside);
    if (!folder_rename(path, aside, &e)) die_error(&e);
    free(path);
    free(aside);
}

/* `latest` is the checkpoint that a run goes on from; 0: there is none. */
static void point_latest(const RunFolder *r, int64_t step) {
    char *latest = xprintf("%s/latest", r->path);
    char *target = xprintf("checkpoints/step-%06lld", (long long)step);
    Error e;
    if (!(step ? whole_link(latest, target, &e) : tree_remove(latest, &e))) die_error(&e);
    free(latest);
    free(target);
}

static char *newest_whole(const RunFolder *r, Position *at) {
    char *folder = xprintf("%s/checkpoints", r->path), *found = NULL;
    int n, damaged = 0;
    int64_t *steps = checkpoint_list(folder, &n);
    for (int i = 0; !found && i < n; i++) {
        char *path = checkpoint_path(folder, steps[i]);
        Error e;
        if (checkpoint_verify(path, at, &e))
            found = xstrdup(path);
        else
            put_aside(folder, steps[i], "damaged", e.text), damaged++;
        free(path);
    }
    if (damaged) point_latest(r, found ? at->step : 0);
    free(steps);
    free(folder);
    return found;
}

/* Later steps of a run that goes back to an earlier one would be taken for its own. */
static void go_back(const RunFolder *r, int64_t step) {
    char *folder = xprintf("%s/checkpoints", r->path);
    int n, i = 0;
    int64_t *steps = checkpoint_list(folder, &n);
    for (; i < n && steps[i] > step; i++) {
        char *why = xprintf("the run goes back to step %lld, before its checkpoint of step %lld.",
                            (long long)step, (long long)steps[i]);
        put_aside(folder, steps[i], "later", why);
        free(why);
    }
    if (i) point_latest(r, i < n ? steps[i] : 0);
    free(steps);
    free(folder);
}

char *run_folder_resume(const RunFolder *r, const Config *c, int world, Position *at) {
    const char *resume = c->train.resume;
    char *found = NULL;
    Error e;
    if (!strcmp(resume, "auto")) {
        found = newest_whole(r, at);
    } else if (!strcmp(resume, "never")) {
        if (exists(r->path, "checkpoints"))
            config_die(c, "train.resume",
                       "%.300s holds a run already; choose another train.out, or leave "
                       "train.resume out to go on with it",
                       r->path);
    } else {
        found = xstrdup(resume);
        if (!exists(found, "manifest.json"))
            config_die(c, "train.resume",
                       "%.300s: expected a checkpoint's folder, such as %.300s/checkpoints/"
                       "step-000500",
                       found, r->path);
        if (!checkpoint_verify(found, at, &e)) config_die(c, "train.resume", "%s", e.text);
    }
    if (found) expect_same_run(c, found, at, world);
    if (found && strcmp(resume, "auto")) go_back(r, at->step);
    return found;
}

/* ---- records ----------------------------------------------------------------------------------
 */

/* Whole lines of steps up to `step`. */
static char *kept_metrics(const char *path, int64_t step) {
    FILE *in = fopen(path, "r");
    char *kept = xstrdup(""), *line = NULL;
    size_t size = 0, n = 0;
    while (in && getline(&line, &size, in) > 0) {
        json_t *j = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
        size_t length = strlen(line);
        bool keep =
            j && json_integer_value(json_object_get(j, "step")) <= step && line[length - 1] == '\n';
        json_decref(j);
        if (!keep) continue;
        kept = xrealloc(kept, n + length + 1);
        memcpy(kept + n, line, length + 1);
        n += length;
    }
    free(line);
    if (in) fclose(in);
    return kept;
}

bool run_folder_begin(RunFolder *r, const Config *c, int64_t step, Error *e) {
    char *config = xprintf("%s/config.yaml", r->path), *text = config_dump(c);
    char *metrics = xprintf("%s/metrics.jsonl", r->path), *kept = kept_metrics(metrics, step);
    bool ok = whole_text(config, text, e) && whole_text(metrics, kept, e);
    if (ok) r->metrics = open(metrics, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (ok && r->metrics < 0) ok = error_set(e, EXIT_WORLD, "%.300s: %s", metrics, strerror(errno));
    free(config);
    free(text);
    free(metrics);
    free(kept);
    return ok;
}

bool run_folder_metric(RunFolder *r, const char *line, Error *e) {
    ssize_t n = (ssize_t)strlen(line);
    return write(r->metrics, line, (size_t)n) == n ||
           error_set(e, EXIT_WORLD,
                     "%.300s/metrics.jsonl: cannot write: %s. Make room and start "
                     "again.",
                     r->path, strerror(errno));
}

/* ---- the result -------------------------------------------------------------------------------
 */

static bool copy_file(const char *from, const char *to, Error *e) {
    enum { PIECE = 1 << 20 };
    WholeFile out;
    FILE *in = fopen(from, "rb");
    if (!in) return error_set(e, EXIT_WORLD, "%.300s: %s", from, strerror(errno));
    if (!whole_open(&out, to, e)) return fclose(in), false;
    char *buffer = xcalloc(PIECE, 1);
    bool ok = true;
    for (size_t n; ok && (n = fread(buffer, 1, PIECE, in)) > 0;)
        ok = whole_write(&out, buffer, n, e);
    if (ok && ferror(in)) ok = error_set(e, EXIT_WORLD, "%.300s: %s", from, strerror(errno));
    fclose(in);
    free(buffer);
    return ok ? whole_commit(&out, e) : whole_discard(&out);
}

static bool copy_files(const char *from, const char *to, Error *e) {
    DIR *d = opendir(from);
    bool ok = d || error_set(e, EXIT_WORLD, "%.300s: %s", from, strerror(errno));
    for (struct dirent *entry; ok && (entry = readdir(d));) {
        if (entry->d_name[0] == '.') continue;
        char *a = xprintf("%s/%s", from, entry->d_name), *b = xprintf("%s/%s", to, entry->d_name);
        ok = copy_file(a, b, e);
        free(a);
        free(b);
    }
    if (d) closedir(d);
    return ok;
}

bool run_folder_result(const RunFolder *r, const char *checkpoint, bool full, char **result,
                       Error *e) {
    const char *name = full ? "transformer" : "adapter";
    char *from = xprintf("%s/%s", checkpoint, name);
    char *old = xprintf("%s/.%s.old", r->path, name);
    *result = xprintf("%s/%s", r->path, name);
    WholeFolder out = {0};
    bool ok = tree_remove(old, e);
    if (ok && exists(r->path, name)) ok = folder_rename(*result, old, e);
    ok = ok && whole_folder_open(&out, *result, e);
    if (ok)
        ok = copy_files(from, out.temporary, e) ? whole_folder_commit(&out, e)
                                                : whole_folder_discard(&out);
    ok = ok && tree_remove(old, e);
    free(from);
    free(old);
    return ok;
}
