/* The golden cases of the published pipelines, and tensors of files. Include after cmocka.h. */
#pragma once

#include "tests/data/scratch.h"

#include "data/safetensors.h"

#include <math.h>

static const double STEP_BOUND = 2e-4, FRAME_BOUND = 1e-4;
static const char PIPELINE[] = "../shared/golden/pipeline", TINY[] = "../shared/tiny/model";

static inline bool is_here(const char *path) {
    if (!access(path, F_OK)) return true;
    print_message("SKIPPED: %s is not here\n", path);
    return false;
}

/* ---- tensors ----------------------------------------------------------------------------------
 */

static inline Safetensors open_tensors(const char *path) {
    Safetensors s;
    Error e;
    if (!safetensors_open(&s, path, &e)) fail_msg("%s", e.text);
    return s;
}

/* F32 tensors of these files are aligned. */
static inline const float *floats(const Safetensors *s, const char *name) {
    const SafetensorsTensor *t = safetensors_find(s, name);
    return t ? t->data : NULL;
}

static inline double distance(const float *a, const float *b, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= most)) most = d;
    }
    return most;
}

/* ---- the golden cases -------------------------------------------------------------------------
 */

typedef struct {
    const char *name, *model, *embeddings; /* embeddings: the file that has them */
    bool dpm, dynamic;
    int64_t frames;
} Case;

static const Case CASES[] = {
    {"t2v_ddim", "t2v", "t2v_ddim", false, false, 9},
    {"t2v_ddim_dynamic", "t2v", "t2v_ddim", false, true, 9},
    {"t2v_dpm_dynamic", "t2v", "t2v_ddim", true, true, 9},
    {"i2v_dpm", "i2v", "i2v_dpm", true, false, 9},
    {"i2v_dpm_dynamic", "i2v", "i2v_dpm", true, true, 13},
    {"i2v_ddim", "i2v", "i2v_dpm", false, false, 9},
};
enum { HEIGHT = 32, WIDTH = 48, STEPS = 4 };

static inline Safetensors open_case(const char *name) {
    char *path = xprintf("%s/%s.safetensors", PIPELINE, name);
    Safetensors s = open_tensors(path);
    free(path);
    return s;
}
