/* Owns the reports on checkpoints and run folders, and what digests.json says of a folder. */
#define _POSIX_C_SOURCE 200809L
#include "trainer/inspect.h"

#include "data/digests.h"
#include "trainer/checkpoint.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

bool inspect_is_checkpoint(const char *folder) { return inspect_has(folder, "manifest.json"); }

bool inspect_is_run(const char *folder) {
    return inspect_has(folder, "config.yaml") && inspect_has(folder, "checkpoints");
}

bool inspect_digests(const char *folder, int *files, Error *e) {
    *files = 0;
    if (!inspect_has(folder, FOLDER_DIGESTS.name)) return true;
    json_t *j = digests_read(folder, &FOLDER_DIGESTS, e);
    bool ok = j && digests_verify(folder, &FOLDER_DIGESTS, j, e);
    if (ok) *files = (int)json_object_size(json_object_get(j, "files")) + 1;
    json_decref(j);
    return ok;
}

/* Adds the report on adapter/ or transformer/, where there is one. */
static bool add_result(json_t *report, const char *folder, Error *e) {
    const char *name = inspect_has(folder, "adapter")       ? "adapter"
                       : inspect_has(folder, "transformer") ? "transformer"
                                                            : NULL;
    if (!name) return true;
    char *path = xprintf("%s/%s", folder, name);
    json_t *result = inspect_path(path, e);
    free(path);
    return result && !json_object_set_new(report, "result", result);
}

/* What is stated of a whole checkpoint. */
static json_t *report_position(const char *path, Error *e) {
    Position at;
    if (!checkpoint_verify(path, &at, e)) return NULL;
    return json_pack("{s:o, s:s, s:I, s:I, s:I, s:s, s:i, s:i}", "path", inspect_text(path), "kind",
                     "checkpoint", "step", (json_int_t)at.step, "samples", (json_int_t)at.samples,
                     "global_batch", (json_int_t)at.global_batch, "dataset", at.dataset, "world",
                     at.world, "zero", at.zero);
}

/* The report, or NULL and its end. */
static json_t *with_result(json_t *report, const char *folder, Error *e) {
    if (report && add_result(report, folder, e)) return report;
    json_decref(report);
    return NULL;
}

json_t *inspect_checkpoint(const char *folder, Error *e) {
    return with_result(report_position(folder, e), folder, e);
}

json_t *inspect_run(const char *folder, Error *e) {
    char *below = xprintf("%s/checkpoints", folder);
    json_t *list = json_array();
    int n;
    int64_t *steps = checkpoint_list(below, &n);
    bool ok = true;
    for (int i = 0; ok && i < n; i++) {
        char *path = checkpoint_path(below, steps[i]);
        json_t *one = report_position(path, e);
        ok = one && !json_array_append_new(list, one);
        free(path);
    }
    free(steps);
    free(below);
    json_t *report = json_pack("{s:o, s:s, s:o}", "path", inspect_text(folder), "kind", "run",
                               "checkpoints", list);
    if (ok) return with_result(report, folder, e);
    json_decref(report);
    return NULL;
}
