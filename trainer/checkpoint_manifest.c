/* Owns manifest.json: where a run stands, and the digests that tell a whole checkpoint. */
#define _XOPEN_SOURCE 700
#include "trainer/checkpoint_manifest.h"

#include "data/digests.h"

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const DigestsKind MANIFEST = {
    .name = "manifest.json",
    .kind = "checkpoint",
    .advice = "The checkpoint is damaged: use another one.",
};
enum { DIGITS = CHECKPOINT_DIGEST_CHARS - 1 };

bool manifest_write(const char *folder, const Position *at, Error *e) {
    json_t *j = json_pack("{s:i, s:I, s:I, s:I, s:s, s:f, s:I, s:i, s:i}", "cogsmith_checkpoint", 1,
                          "step", (json_int_t)at->step, "samples", (json_int_t)at->samples,
                          "global_batch", (json_int_t)at->global_batch, "dataset", at->dataset,
                          "loss_scale", at->scale.value, "loss_scale_steps",
                          (json_int_t)at->scale.good_steps, "world", at->world, "zero", at->zero);
    CHECK(j, "checkpoint: JSON");
    return digests_write(folder, &MANIFEST, j, e);
}

/* ---- reading ----------------------------------------------------------------------------------
 */

static bool read_position(json_t *j, const char *folder, Position *at, Error *e) {
    json_int_t step, samples, global, good = 0;
    double scale = 1;
    const char *dataset;
    int version, world, zero;
    if (json_unpack(j, "{s:i, s:I, s:I, s:I, s:s, s?F, s?I, s:i, s:i}", "cogsmith_checkpoint",
                    &version, "step", &step, "samples", &samples, "global_batch", &global,
                    "dataset", &dataset, "loss_scale", &scale, "loss_scale_steps", &good, "world",
                    &world, "zero", &zero) ||
        strlen(dataset) != DIGITS)
        return error_set(e, EXIT_USER, "%.300s: manifest.json: a field is missing. %s", folder,
                         MANIFEST.advice);
    if (version != 1)
        return error_set(e, EXIT_USER,
                         "%.300s: is of version %d, and this program reads version 1. Use the "
                         "program that wrote it, or a newer one.",
                         folder, version);
    *at = (Position){.step = step,
                     .samples = samples,
                     .global_batch = global,
                     .scale = {scale, good},
                     .world = world,
                     .zero = zero};
    snprintf(at->dataset, sizeof at->dataset, "%s", dataset);
    return true;
}

bool checkpoint_position(const char *path, Position *position, Error *e) {
    json_t *j = digests_read(path, &MANIFEST, e);
    bool ok = j && read_position(j, path, position, e);
    json_decref(j);
    return ok;
}

bool checkpoint_verify(const char *path, Position *position, Error *e) {
    json_t *j = digests_read(path, &MANIFEST, e);
    bool ok = j && read_position(j, path, position, e) && digests_verify(path, &MANIFEST, j, e);
    json_decref(j);
    return ok;
}

/* ---- a folder of them -------------------------------------------------------------------------
 */

char *checkpoint_path(const char *folder, int64_t step) {
    return xprintf("%s/step-%06lld", folder, (long long)step);
}

static int newest_first(const void *x, const void *y) {
    int64_t a = *(const int64_t *)x, b = *(const int64_t *)y;
    return (a < b) - (a > b);
}

int64_t *checkpoint_list(const char *folder, int *n) {
    int64_t *steps = NULL;
    DIR *d = opendir(folder);
    *n = 0;
    for (struct dirent *entry; d && (entry = readdir(d));) {
        const char *digits = entry->d_name + strlen("step-");
        if (strncmp(entry->d_name, "step-", strlen("step-")) || !*digits ||
            digits[strspn(digits, "0123456789")] || strlen(digits) > 15)
            continue;
        steps = xrealloc(steps, (size_t)(*n + 1) * sizeof *steps);
        int64_t step = atoll(digits);
        char *name = checkpoint_path("", step);
        if (!strcmp(name + 1, entry->d_name)) steps[(*n)++] = step;
        free(name);
    }
    if (d) closedir(d);
    if (*n) qsort(steps, (size_t)*n, sizeof *steps, newest_first);
    return steps;
}
