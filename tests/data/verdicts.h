/* The good and hostile safetensors files of the golden data, each with its verdict. Include after
 * cmocka.h. */
#pragma once

#include "tests/data/golden.h"

#include <jansson.h>

static inline size_t from_base64(const char *text, uint8_t *bytes) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t n = 0;
    unsigned value = 0;
    for (int bits = 0; *text && *text != '='; text++) {
        value = value << 6 | (unsigned)(strchr(digits, *text) - digits);
        bits += 6;
        if (bits < 8) continue;
        bits -= 8;
        bytes[n++] = (uint8_t)(value >> bits);
    }
    return n;
}

/* Whether the verdict on a file's bytes is another than to accept it or not. */
typedef bool Differs(const char *name, const uint8_t *bytes, size_t n, bool accept);

static inline bool case_differs(const char *line, Differs *differs) {
    json_t *json = json_loads(line, 0, NULL);
    const char *name, *file, *ours;
    assert_int_equal(
        json_unpack(json, "{s:s, s:s, s:s}", "name", &name, "file", &file, "ours", &ours), 0);
    uint8_t *bytes = xcalloc(strlen(file) + 1, 1);
    size_t n = from_base64(file, bytes);
    bool other = differs(name, bytes, n, !strcmp(ours, "accept"));
    free(bytes);
    json_decref(json);
    return other;
}

/* Asks for all of them, of which none may differ. */
static inline void expect_verdicts(Differs *differs) {
    char *path = golden_find("safetensors/cases.jsonl"), *line = NULL;
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    size_t room = 0;
    int cases = 0, wrong = 0;
    for (; getline(&line, &room, f) > 0; cases++) wrong += case_differs(line, differs);
    free(line);
    fclose(f);
    free(path);
    assert_true(cases == 900 || cases == 367); /* the project ships a third of the mutants */
    assert_int_equal(wrong, 0);
}
