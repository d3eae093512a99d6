/* Where the golden data of the codec lie, and their JSON. */
#pragma once

#include "data/json.h"
#include "data/safetensors.h"
#include "tests/data/scratch.h"

/* The path of tests/golden/NAME: beside the project when it is there, else in the project. */
static inline char *golden_find(const char *name) {
    char *path = xprintf("../shared/golden/%s", name);
    if (!access(path, F_OK)) return path;
    free(path);
    return xprintf("tests/golden/%s", name);
}

/* A file of tensors there, opened. */
static inline Safetensors golden_file(const char *name) {
    char *path = golden_find(name);
    Safetensors s;
    Error e;
    CHECK(safetensors_open(&s, path, &e), "%s", e.text);
    free(path);
    return s;
}

/* Calls `each` for every line of a file of JSON objects; returns how many there were. */
static inline int golden_lines(const char *name, void (*each)(void *context, const Json *line),
                               void *context) {
    char *path = golden_find(name), *text = NULL;
    size_t n;
    char *bytes = (char *)scratch_read(path, &n);
    int lines = 0;
    for (char *at = bytes, *end = bytes + n; at < end; at = text + 1) {
        Json j;
        Error e;
        text = memchr(at, '\n', (size_t)(end - at));
        CHECK(text, "%s: the last line has no end", path);
        CHECK(json_parse(&j, at, (size_t)(text - at), path, &e), "%s", e.text);
        each(context, &j);
        json_close(&j);
        lines++;
    }
    free(bytes);
    free(path);
    return lines;
}
