/* The folder of a training run, train.out:
 *
 *     config.yaml      of the run, resolved        metrics.jsonl   one object a step
 *     checkpoints/     latest -> the newest        samples/        previews
 *     adapter/ or transformer/                     the result
 *
 * One process writes it at a time. */
#pragma once

#include "trainer/checkpoint.h"

typedef struct {
    char *path;
    int lock;
    int metrics; /* descriptor of metrics.jsonl, opened by run_folder_begin; -1 before */
} RunFolder;

/* runs/<model>-<method>, or train.out; of the caller's own. */
char *run_folder_path(const Config *c);

/* Makes the folder and takes its lock. Ends the program where it is neither empty nor a run, or
 * where another process holds it (exit 2). */
RunFolder run_folder_open(const char *path);
void run_folder_close(RunFolder *r);

/* The checkpoint to go on from, of the caller's own: train.resume, or the newest that is whole. One
 * that is damaged is said and put aside. NULL: begin anew. Ends the program where the config asks
 * for another run than the checkpoint's: differences are listed key by key. */
char *run_folder_resume(const RunFolder *r, const Config *c, int world, Position *at);

/* Writes config.yaml, cuts metrics.jsonl back to the steps up to `step` and opens it. */
bool run_folder_begin(RunFolder *r, const Config *c, int64_t step, Error *e);
/* Appends one line. */
bool run_folder_metric(RunFolder *r, const char *line, Error *e);

/* Copies the checkpoint's result, adapter/ or transformer/, into the run; *result is its path, of
 * the caller's own. */
bool run_folder_result(const RunFolder *r, const char *checkpoint, bool full, char **result,
                       Error *e);
