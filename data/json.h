/* JSON files of models: config.json, model_index.json, shard indices.
 *
 * A file must hold one object; duplicate keys are errors. The getters leave *out as it is when the
 * key is absent or null, so that a default is what *out held before; a value of another type is an
 * error that says what was expected. They return true unless *e was set:
 *
 *     Json j;
 *     int64_t heads = 30;
 *     bool ok = json_open(&j, "transformer/config.json", &e) &&
 *               json_get_int(&j, "num_attention_heads", &heads, &e);
 *     json_close(&j);
 */
#pragma once

#include "kernels/base.h"

enum { JSON_MAX_BYTES = 16000000 };

typedef struct {
    char *path; /* for error texts */
    struct json_t *root;
} Json;

/* A failure (EXIT_USER) tells path:line:column where there is one, and leaves *j zeroed. */
bool json_open(Json *j, const char *path, Error *e);
/* The same for an open descriptor, which stays the caller's. */
bool json_open_fd(Json *j, int fd, const char *path, Error *e);
/* The same for `n` bytes in memory, which are not kept. */
bool json_parse(Json *j, const char *text, size_t n, const char *path, Error *e);
/* Also right for a zeroed *j. */
void json_close(Json *j);

/* Whether the key is there and not null. */
bool json_has(const Json *j, const char *key);
/* false, with *e set, unless json_has. */
bool json_require(const Json *j, const char *key, Error *e);

bool json_get_int(const Json *j, const char *key, int64_t *out, Error *e);
/* Also takes whole numbers. */
bool json_get_double(const Json *j, const char *key, double *out, Error *e);
bool json_get_bool(const Json *j, const char *key, bool *out, Error *e);
/* *out lives as long as *j. */
bool json_get_string(const Json *j, const char *key, const char **out, Error *e);

/* Lists of at most `max` values; *n (unchanged when absent) is how many there are. */
bool json_get_ints(const Json *j, const char *key, int64_t *out, size_t max, size_t *n, Error *e);
bool json_get_strings(const Json *j, const char *key, const char **out, size_t max, size_t *n,
                      Error *e);

/* A nested object, to be read with the same getters. It borrows from *j: do not close it. Absent:
 * an object without keys. */
bool json_get_object(const Json *j, const char *key, Json *out, Error *e);

/* Iteration over an object whose keys are not known before: calls `each` for every key in the
 * file's order; stops, and returns false, when it returns false. Values that are not texts are
 * errors. */
typedef bool JsonEach(void *context, const char *key, const char *value, Error *e);
bool json_each_string(const Json *j, JsonEach *each, void *context, Error *e);

/* The same over any object: the callback takes the value with the getters. */
typedef bool JsonEachKey(void *context, const Json *j, const char *key, Error *e);
bool json_each_key(const Json *j, JsonEachKey *each, void *context, Error *e);
