/* Exports of the golden adapter, and layers of adapters, for tests. Include after cmocka.h. */
#pragma once

#include "tests/data/folder.h"
#include "tests/trainer/program.h"
#include "trainer/export.h"

static const char MODEL[] = "tests/golden/dit/2b";
static const char ADAPTER[] = "tests/golden/dit/2b/lora";

/* "key=value", in memory that the next eight calls leave alone. */
static inline const char *setting(const char *key, const char *value) {
    static char *ring[8];
    static int next;
    next = (next + 1) % 8;
    free(ring[next]);
    return ring[next] = xprintf("%s=%s", key, value);
}

/* Runs an export of ADAPTER that must succeed. */
static inline void export_as(const char *preset, const char *out, const char *more,
                             const char *model) {
    const Run *r =
        RUN("export", setting("export.adapter", ADAPTER), setting("export.preset", preset),
            setting("export.out", out), setting("model.path", model), more);
    if (r->code) fail_msg("%s: %d: %s", preset, r->code, r->err);
    assert_non_null(strstr(r->out, "README.md"));
}

static inline Weights open_weights(const char *path) {
    Weights w;
    Error e;
    if (!weights_open(&w, path, &e)) fail_msg("%s", e.text);
    return w;
}
