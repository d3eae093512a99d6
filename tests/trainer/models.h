/* Configs of the models that tests use: the tiny golden ones and the published sizes. */
#pragma once

#include "trainer/learner.h"
#include "trainer/native.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* config_assign; a mistake ends the test. */
static inline void set(Config *c, const char *key, const char *value) {
    char *text = xprintf("%s=%s", key, value);
    Error e;
    if (!config_assign(c, text, &e)) die_error(&e);
    free(text);
}

/* Where a golden model lies: beside the project when it is there, else in the project. */
static inline char *golden_path(const char *variant) {
    struct stat info;
    char *path = xprintf("../shared/golden/dit/%s", variant);
    if (!stat(path, &info)) return path;
    free(path);
    return xprintf("tests/golden/dit/%s", variant);
}

static inline Config *tiny_config(const char *variant) {
    Config *c = config_new();
    char *path = golden_path(variant);
    set(c, "model.path", path);
    set(c, "lora.rank", "4");
    free(path);
    return c;
}

/* A config whose model.path holds one published config.json alone, in tests/golden/published/. */
static inline Config *published_config(const char *variant) {
    Config *c = config_new();
    char *path = xprintf("tests/golden/published/%s", variant);
    set(c, "model.path", path);
    free(path);
    return c;
}
