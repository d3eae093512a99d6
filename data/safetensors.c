/* Owns the reader of safetensors files: the mapping, every check of the header, the lookup. */
#define _GNU_SOURCE
#include "data/safetensors.h"

#include "data/nearest.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

/* Every type that the format knows (safetensors 0.8), and the bits of one element. */
static const struct {
    const char *name;
    int bits;
} STORED[] = {
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64},
};

/* Fills *e with what is wrong in the file, or in one tensor of it (NULL: none), and what to do. */
static bool refuse(const Safetensors *s, const char *tensor, Error *e, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static bool refuse(const Safetensors *s, const char *tensor, Error *e, const char *format, ...) {
    char what[600];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return error_set(e, EXIT_USER,
                     "%.300s: %s%.120s%s%s. The file is damaged or not a safetensors file: "
                     "download or export it again.",
                     s->path, tensor ? "tensor \"" : "", tensor ? tensor : "", tensor ? "\": " : "",
                     what);
}

static int by_offset(const void *a, const void *b) {
    const SafetensorsTensor *x = a, *y = b;
    if (x->data != y->data) return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const SafetensorsTensor *)a)->name, ((const SafetensorsTensor *)b)->name);
}

static int by_key(const void *a, const void *b) {
    return strcmp(((const SafetensorsMetadata *)a)->key, ((const SafetensorsMetadata *)b)->key);
}

/* Outside its strings a header has no negative, fractional or deep values: to refuse them by their
 * characters keeps "-0" and "2e0", which JSON libraries read differently, from being read at all,
 * and bounds the recursion of the parser. */
static bool check_characters(const Safetensors *s, const char *text, size_t n, Error *e) {
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\') i++;
            in_string = c != '"';
            continue;
        }
        in_string = c == '"';
        depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        if (depth > 3)
            return refuse(s, NULL, e, "byte %zu of the header: nested deeper than 3 levels", i);
        if (!c || !strchr("{}[]:,\"0123456789nul \t\r\n", c)) /* "nul" spells null */
            return refuse(s, NULL, e,
                          "byte %zu of the header: expected text, lists and whole numbers from 0, "
                          "got the byte 0x%02x",
                          i, (unsigned char)c);
    }
    return true;
}

/* Finds the header's text, checks its frame, and parses it into s->header. */
static bool parse_header(Safetensors *s, Error *e) {
    if (s->n_bytes < 8) return refuse(s, NULL, e, "expected at least 8 bytes, got %zu", s->n_bytes);
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | s->bytes[i];
    if (n > SAFETENSORS_MAX_HEADER_BYTES)
        return refuse(s, NULL, e, "the header claims %llu bytes, more than the %d that are allowed",
                      (unsigned long long)n, SAFETENSORS_MAX_HEADER_BYTES);
    if (n > s->n_bytes - 8)
        return refuse(s, NULL, e, "the header claims %llu bytes, and only %zu follow",
                      (unsigned long long)n, s->n_bytes - 8);
    s->header_bytes = (size_t)n;
    const char *text = (const char *)s->bytes + 8;
    if (!n || text[0] != '{') return refuse(s, NULL, e, "the header does not begin with {");
    while (text[n - 1] == ' ') n--;
    if (text[n - 1] != '}')
        return refuse(s, NULL, e, "the header does not end with } and spaces alone");
    if (!check_characters(s, text, (size_t)n, e)) return false;
    json_error_t at;
    s->header = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, &at);
    if (!s->header)
        return refuse(s, NULL, e, "byte %d of the header: not valid JSON: %s", at.position,
                      at.text);
    return true;
}

static bool take_metadata(Safetensors *s, json_t *object, Error *e) {
    if (json_is_null(object)) return true;
    if (!json_is_object(object))
        return refuse(s, NULL, e, "expected __metadata__ to be an object of texts");
    SafetensorsMetadata *list = xcalloc(json_object_size(object), sizeof *list);
    s->metadata = list;
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        if (!json_is_string(value))
            return refuse(s, NULL, e, "expected a text for \"%.120s\" in __metadata__", key);
        list[s->n_metadata++] = (SafetensorsMetadata){key, json_string_value(value)};
    }
    qsort(list, s->n_metadata, sizeof *list, by_key);
    return true;
}

static bool take_dtype(const Safetensors *s, SafetensorsTensor *t, const json_t *dtype, Error *e) {
    const char *name = json_string_value(dtype);
    for (size_t i = 0; name && i < COUNT(STORED); i++) {
        if (strcmp(STORED[i].name, name)) continue;
        t->dtype_name = STORED[i].name;
        t->bits = STORED[i].bits;
        if (!dtype_from_name(name, &t->dtype)) t->dtype = DT_COUNT;
        return true;
    }
    return refuse(s, t->name, e, "expected a known dtype such as F32 or BF16, got \"%.40s\"",
                  name ? name : "no text");
}

/* The shape, and *bytes that a tensor of it has. */
static bool take_shape(const Safetensors *s, SafetensorsTensor *t, const json_t *shape,
                       size_t *bytes, Error *e) {
    size_t n = json_array_size(shape), bits = 1;
    if (!json_is_array(shape) || n > SAFETENSORS_MAX_DIMS)
        return refuse(s, t->name, e, "expected a shape of at most %d dimensions",
                      SAFETENSORS_MAX_DIMS);
    t->n_dims = (int)n;
    bool fits = true;
    for (size_t i = 0; i < n; i++) {
        const json_t *d = json_array_get(shape, i);
        t->shape[i] = json_integer_value(d);
        if (!json_is_integer(d) || t->shape[i] < 0)
            return refuse(s, t->name, e, "expected whole numbers from 0 in its shape");
        fits = fits && !__builtin_mul_overflow(bits, (size_t)t->shape[i], &bits);
    }
    if (!fits || __builtin_mul_overflow(bits, (size_t)t->bits, &bits) || bits % 8)
        return refuse(s, t->name, e, "its shape is not a possible number of bytes");
    *bytes = bits / 8;
    return true;
}

/* One tensor of the header. Its place is inside the file and of the right size afterwards. */
static bool take_tensor(const Safetensors *s, SafetensorsTensor *t, json_t *fields, Error *e) {
    if (!t->name[0]) return refuse(s, t->name, e, "expected a name that is not empty");
    for (const char *c = t->name; *c; c++)
        if ((unsigned char)*c < ' ')
            return refuse(s, NULL, e, "a tensor's name holds a control character");
    json_t *dtype, *shape, *offsets;
    if (json_unpack(fields, "{so so so !}", "dtype", &dtype, "shape", &shape, "data_offsets",
                    &offsets))
        return refuse(s, t->name, e, "expected exactly dtype, shape and data_offsets");
    size_t bytes = 0;
    if (!take_dtype(s, t, dtype, e) || !take_shape(s, t, shape, &bytes, e)) return false;
    json_int_t begin, end, n_data = (json_int_t)(s->n_bytes - 8 - s->header_bytes);
    if (json_unpack(offsets, "[II!]", &begin, &end))
        return refuse(s, t->name, e, "expected two whole numbers in data_offsets");
    if (begin < 0 || begin > end || end > n_data)
        return refuse(s, t->name, e,
                      "its data_offsets [%lld, %lld] are not inside the %lld bytes of data", begin,
                      end, n_data);
    if ((size_t)(end - begin) != bytes)
        return refuse(s, t->name, e, "its shape and dtype make %zu bytes, its data_offsets %lld",
                      bytes, end - begin);
    t->data = s->bytes + 8 + s->header_bytes + begin;
    t->bytes = bytes;
    return true;
}

/* In the order of the data each tensor begins where the last one ended, and the last ends with the
 * file: nothing is read twice and nothing hides. */
static bool check_cover(const Safetensors *s, Error *e) {
    const uint8_t *at = s->bytes + 8 + s->header_bytes;
    for (size_t i = 0; i < s->n_tensors; i++) {
        const SafetensorsTensor *t = &s->tensors[i];
        if (t->data != at)
            return refuse(s, t->name, e, "its data do not begin where the tensor before it ends");
        at += t->bytes;
    }
    if (at != s->bytes + s->n_bytes)
        return refuse(s, NULL, e, "%zu bytes at its end belong to no tensor",
                      (size_t)(s->bytes + s->n_bytes - at));
    return true;
}

static bool parse(Safetensors *s, Error *e) {
    if (!parse_header(s, e)) return false;
    SafetensorsTensor *list = xcalloc(json_object_size(s->header), sizeof *list);
    s->tensors = list;
    const char *key;
    json_t *value;
    json_object_foreach(s->header, key, value) {
        if (!strcmp(key, "__metadata__")) {
            if (!take_metadata(s, value, e)) return false;
            continue;
        }
        SafetensorsTensor *t = &list[s->n_tensors++];
        t->name = key;
        if (!take_tensor(s, t, value, e)) return false;
    }
    qsort(list, s->n_tensors, sizeof *list, by_offset);
    if (!check_cover(s, e)) return false;
    qsort(list, s->n_tensors, sizeof *list, by_name);
    return true;
}

static bool finish(Safetensors *s, Error *e) {
    if (parse(s, e)) return true;
    safetensors_close(s);
    return false;
}

bool safetensors_parse(Safetensors *s, const void *bytes, size_t n, const char *path, Error *e) {
    *s = (Safetensors){.path = xstrdup(path), .bytes = bytes, .n_bytes = n};
    return finish(s, e);
}

bool safetensors_open_fd(Safetensors *s, int fd, const char *path, Error *e) {
    *s = (Safetensors){0};
    struct stat st;
    if (fstat(fd, &st))
        return error_set(e, EXIT_WORLD, "%.300s: cannot be examined: %s.", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return error_set(e, EXIT_USER, "%.300s: expected a safetensors file, got a %s.", path,
                         S_ISDIR(st.st_mode) ? "folder" : "device, pipe or socket");
    if (!st.st_size) return safetensors_parse(s, "", 0, path, e); /* mmap takes no empty file */
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED)
        return error_set(e, EXIT_WORLD,
                         "%.300s: its %lld bytes cannot be mapped: %s. See `ulimit -v`.", path,
                         (long long)st.st_size, strerror(errno));
    *s = (Safetensors){
        .path = xstrdup(path), .bytes = map, .n_bytes = (size_t)st.st_size, .mapped = true};
    return finish(s, e);
}

bool safetensors_open(Safetensors *s, const char *path, Error *e) {
    *s = (Safetensors){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not make us wait */
    if (fd < 0)
        return error_set(e, EXIT_USER, "%.300s: expected a safetensors file: %s. Check the path.",
                         path, strerror(errno));
    bool ok = safetensors_open_fd(s, fd, path, e);
    close(fd);
    return ok;
}

void safetensors_close(Safetensors *s) {
    json_decref(s->header);
    free((void *)s->tensors);
    free((void *)s->metadata);
    free(s->path);
    if (s->mapped) munmap((void *)s->bytes, s->n_bytes);
    *s = (Safetensors){0};
}

const SafetensorsTensor *safetensors_find(const Safetensors *s, const char *name) {
    SafetensorsTensor key = {.name = name};
    return bsearch(&key, s->tensors, s->n_tensors, sizeof key, by_name);
}

int64_t safetensors_count(const SafetensorsTensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->n_dims; i++) n *= t->shape[i];
    return n;
}

const char *safetensors_metadata(const Safetensors *s, const char *key) {
    if (!s->n_metadata) return NULL;
    SafetensorsMetadata wanted = {.key = key};
    const SafetensorsMetadata *m =
        bsearch(&wanted, s->metadata, s->n_metadata, sizeof wanted, by_key);
    return m ? m->value : NULL;
}

/* Where the 32 digits of the file's digest begin; 0: they are not where cogsmith writes them. */
static size_t digest_offset(const Safetensors *s) {
    static const char field[] = "\"" SAFETENSORS_DIGEST_KEY "\":\"";
    const char *digest = safetensors_metadata(s, SAFETENSORS_DIGEST_KEY);
    if (!digest || strlen(digest) != 32) return 0;
    const uint8_t *at = memmem(s->bytes + 8, s->header_bytes, field, sizeof field - 1);
    if (!at) return 0;
    at += sizeof field - 1;
    const uint8_t *end = s->bytes + 8 + s->header_bytes;
    return end - at >= 32 && !memcmp(at, digest, 32) ? (size_t)(at - s->bytes) : 0;
}

bool safetensors_digest(const Safetensors *s, char hex[33], Error *e) {
    size_t field = digest_offset(s);
    if (!field && safetensors_metadata(s, SAFETENSORS_DIGEST_KEY))
        return refuse(s, NULL, e,
                      "its digest \"" SAFETENSORS_DIGEST_KEY
                      "\" is not 32 hex digits, written as cogsmith does");
    XXH3_state_t *state = XXH3_createState();
    CHECK(state, "out of host memory");
    XXH3_128bits_reset(state);
    if (field) {
        XXH3_128bits_update(state, s->bytes, field);
        XXH3_128bits_update(state, "00000000000000000000000000000000", 32);
        field += 32;
    }
    XXH3_128bits_update(state, s->bytes + field, s->n_bytes - field);
    XXH128_canonical_t digest;
    XXH128_canonicalFromHash(&digest, XXH3_128bits_digest(state));
    XXH3_freeState(state);
    for (int i = 0; i < 16; i++) snprintf(hex + 2 * i, 3, "%02x", digest.digest[i]);
    return true;
}

bool safetensors_verify(const Safetensors *s, Error *e) {
    for (size_t i = 0; i < s->n_metadata; i++) {
        int edits = edit_distance(s->metadata[i].key, SAFETENSORS_DIGEST_KEY);
        if (edits == 1 || edits == 2)
            return refuse(s, NULL, e, "its header says \"%s\" in place of " SAFETENSORS_DIGEST_KEY,
                          s->metadata[i].key);
    }
    const char *expected = safetensors_metadata(s, SAFETENSORS_DIGEST_KEY);
    if (!expected) return true;
    char hex[33];
    if (!safetensors_digest(s, hex, e)) return false;
    if (!strcmp(hex, expected)) return true;
    return refuse(s, NULL, e,
                  "its digest is %s where its header says %s: it is not as cogsmith wrote it", hex,
                  expected);
}
