/* Owns reading JSON files through Jansson: size, duplicates, places and types in errors. */
#define _POSIX_C_SOURCE 200809L
#include "data/json.h"

#include "data/whole.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool json_parse(Json *j, const char *text, size_t n, const char *path, Error *e) {
    *j = (Json){0};
    json_error_t at;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &at);
    if (!root)
        return error_set(e, EXIT_USER, "%.300s:%d:%d: not valid JSON: %s. Mend or fetch the file.",
                         path, at.line, at.column, at.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return error_set(e, EXIT_USER, "%.300s:1:1: expected an object {...}, got a list.", path);
    }
    *j = (Json){.path = xstrdup(path), .root = root};
    return true;
}

bool json_open_fd(Json *j, int fd, const char *path, Error *e) {
    *j = (Json){0};
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        return error_set(e, EXIT_USER, "%.300s: expected a JSON file. Check the path.", path);
    if (st.st_size > JSON_MAX_BYTES)
        return error_set(e, EXIT_USER, "%.300s: expected at most %d bytes of JSON, got %lld.", path,
                         JSON_MAX_BYTES, (long long)st.st_size);
    char *text = xcalloc((size_t)st.st_size, 1);
    ssize_t n = file_read(fd, text, (size_t)st.st_size);
    bool ok = n < 0 ? error_set(e, EXIT_WORLD, "%.300s: cannot be read: %s.", path, strerror(errno))
                    : json_parse(j, text, (size_t)n, path, e);
    free(text);
    return ok;
}

bool json_open(Json *j, const char *path, Error *e) {
    *j = (Json){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not make us wait */
    if (fd < 0)
        return error_set(e, EXIT_USER, "%.300s: expected a JSON file: %s. Check the path.", path,
                         strerror(errno));
    bool ok = json_open_fd(j, fd, path, e);
    close(fd);
    return ok;
}

void json_close(Json *j) {
    json_decref(j->root);
    free(j->path);
    *j = (Json){0};
}

/* The value of a key; NULL: absent or null. */
static json_t *find(const Json *j, const char *key) {
    json_t *value = json_object_get(j->root, key);
    return json_is_null(value) ? NULL : value;
}

bool json_has(const Json *j, const char *key) { return find(j, key) != NULL; }

bool json_require(const Json *j, const char *key, Error *e) {
    if (find(j, key)) return true;
    return error_set(e, EXIT_USER, "%.300s: expected the key \"%s\", and it is not there.", j->path,
                     key);
}

/* Fails unless the value, if there is one, is what was expected; the text shows what it is. */
static bool expect(const Json *j, const char *key, const json_t *value, bool good, const char *what,
                   Error *e) {
    if (!value || good) return true;
    char *got = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII);
    error_set(e, EXIT_USER, "%.300s: \"%s\": expected %s, got %.80s.", j->path, key, what,
              got ? got : "something else");
    free(got);
    return false;
}

static bool take_int(const Json *j, const char *key, const json_t *v, int64_t *out, Error *e) {
    if (!expect(j, key, v, json_is_integer(v), "a whole number", e)) return false;
    if (v) *out = json_integer_value(v);
    return true;
}

static bool take_double(const Json *j, const char *key, const json_t *v, double *out, Error *e) {
    if (!expect(j, key, v, json_is_number(v), "a number", e)) return false;
    if (v) *out = json_number_value(v);
    return true;
}

static bool take_string(const Json *j, const char *key, const json_t *v, const char **out,
                        Error *e) {
    if (!expect(j, key, v, json_is_string(v), "a text", e)) return false;
    if (v) *out = json_string_value(v);
    return true;
}

bool json_get_int(const Json *j, const char *key, int64_t *out, Error *e) {
    return take_int(j, key, find(j, key), out, e);
}

bool json_get_double(const Json *j, const char *key, double *out, Error *e) {
    return take_double(j, key, find(j, key), out, e);
}

bool json_get_string(const Json *j, const char *key, const char **out, Error *e) {
    return take_string(j, key, find(j, key), out, e);
}

bool json_get_bool(const Json *j, const char *key, bool *out, Error *e) {
    const json_t *v = find(j, key);
    if (!expect(j, key, v, json_is_boolean(v), "true or false", e)) return false;
    if (v) *out = json_is_true(v);
    return true;
}

/* The list at a key, NULL when absent, and *n. */
static bool list(const Json *j, const char *key, size_t max, const json_t **out, size_t *n,
                 Error *e) {
    const json_t *v = *out = find(j, key);
    if (!expect(j, key, v, json_is_array(v), "a list", e)) return false;
    if (!v) return true;
    if (json_array_size(v) > max)
        return error_set(e, EXIT_USER, "%.300s: \"%s\": expected at most %zu values, got %zu.",
                         j->path, key, max, json_array_size(v));
    *n = json_array_size(v);
    return true;
}

bool json_get_ints(const Json *j, const char *key, int64_t *out, size_t max, size_t *n, Error *e) {
    const json_t *v;
    bool ok = list(j, key, max, &v, n, e);
    for (size_t i = 0; ok && i < json_array_size(v); i++)
        ok = take_int(j, key, json_array_get(v, i), &out[i], e);
    return ok;
}

bool json_get_strings(const Json *j, const char *key, const char **out, size_t max, size_t *n,
                      Error *e) {
    const json_t *v;
    bool ok = list(j, key, max, &v, n, e);
    for (size_t i = 0; ok && i < json_array_size(v); i++)
        ok = take_string(j, key, json_array_get(v, i), &out[i], e);
    return ok;
}

bool json_get_object(const Json *j, const char *key, Json *out, Error *e) {
    json_t *v = find(j, key);
    *out = (Json){.path = j->path, .root = v};
    return expect(j, key, v, json_is_object(v), "an object {...}", e);
}

bool json_each_string(const Json *j, JsonEach *each, void *context, Error *e) {
    const char *key;
    json_t *v;
    json_object_foreach(j->root, key, v) {
        const char *value;
        if (!expect(j, key, v, json_is_string(v), "a text", e)) return false;
        value = json_string_value(v);
        if (!each(context, key, value, e)) return false;
    }
    return true;
}

bool json_each_key(const Json *j, JsonEachKey *each, void *context, Error *e) {
    const char *key;
    json_t *v;
    json_object_foreach(j->root, key, v) {
        if (!each(context, j, key, e)) return false;
    }
    return true;
}
