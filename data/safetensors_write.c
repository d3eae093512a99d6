/* Owns the writer of safetensors files: the published writer's order, the header, the digest, and
 * the reading back. */
#define _GNU_SOURCE
#include "data/safetensors.h"

#include "data/whole.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static const char ZEROS[] = "00000000000000000000000000000000";
enum { DIGEST_CHARS = sizeof ZEROS - 1 };

/* The published writer puts wide types first: this, its enumeration, backwards. */
static const DType TYPE_ORDER[] = {DT_BOOL, DT_U8,  DT_I8,  DT_F8_E5M2, DT_F8_E4M3,
                                   DT_I16,  DT_U16, DT_F16, DT_BF16,    DT_I32,
                                   DT_U32,  DT_F32, DT_F64, DT_I64,     DT_U64};
_Static_assert(COUNT(TYPE_ORDER) == DT_COUNT, "a type has no place in the file order");

/* A file on its way to the disk. */
typedef struct {
    const SafetensorsFile *file;
    size_t *order; /* of the items in the file */
    WholeFile out;
    XXH3_state_t *hash;   /* of what was written, the digest field as zeros */
    size_t digest_offset; /* 0: none */
    void *buffer;         /* SAFETENSORS_FILL_BYTES */
} Writer;

static int type_rank(DType dtype) {
    int rank = 0;
    while (TYPE_ORDER[rank] != dtype) rank++;
    return rank;
}

static int in_file_order(const void *a, const void *b, void *items) {
    const SafetensorsItem *x = &((const SafetensorsItem *)items)[*(const size_t *)a];
    const SafetensorsItem *y = &((const SafetensorsItem *)items)[*(const size_t *)b];
    int by_type = type_rank(y->dtype) - type_rank(x->dtype);
    return by_type ? by_type : strcmp(x->name, y->name);
}

size_t safetensors_item_bytes(const SafetensorsItem *item) {
    size_t bytes = dtype_size(item->dtype);
    for (int i = 0; i < item->n_dims; i++) {
        bool fits =
            item->shape[i] >= 0 && !__builtin_mul_overflow(bytes, (size_t)item->shape[i], &bytes);
        CHECK(fits, "%s: dimension %d is %lld", item->name, i, (long long)item->shape[i]);
    }
    return bytes;
}

/* Adds a new key; NULL values come from text that is not UTF-8. */
static void add(json_t *object, const char *key, json_t *value) {
    CHECK(value && !json_object_get(object, key), "\"%s\" is twice in a header, or not UTF-8", key);
    CHECK(!json_object_set_new(object, key, value), "\"%s\" is not UTF-8", key);
}

static json_t *metadata_object(const SafetensorsFile *file) {
    json_t *object = json_object();
    for (size_t i = 0; i < file->n_metadata; i++)
        add(object, file->metadata[i].key, json_string(file->metadata[i].value));
    if (file->digest) add(object, SAFETENSORS_DIGEST_KEY, json_string(ZEROS));
    return object;
}

/* The item's fields; *end is where its data end, and begin on entry. */
static json_t *item_object(const SafetensorsItem *item, size_t *end) {
    CHECK(item->name[0] && item->n_dims <= SAFETENSORS_MAX_DIMS, "tensor \"%s\"", item->name);
    json_t *shape = json_array();
    for (int i = 0; i < item->n_dims; i++)
        json_array_append_new(shape, json_integer(item->shape[i]));
    json_int_t begin = (json_int_t)*end;
    *end += safetensors_item_bytes(item);
    return json_pack("{s:s, s:o, s:[I,I]}", "dtype", dtype_name(item->dtype), "shape", shape,
                     "data_offsets", begin, (json_int_t)*end);
}

/* The header as text with its padding; *n bytes. */
static char *header_text(const Writer *w, size_t *n) {
    const SafetensorsFile *file = w->file;
    json_t *header = json_object();
    if (file->n_metadata || file->digest) add(header, "__metadata__", metadata_object(file));
    size_t end = 0;
    for (size_t i = 0; i < file->n_items; i++) {
        const SafetensorsItem *item = &file->items[w->order[i]];
        add(header, item->name, item_object(item, &end));
    }
    size_t length = json_dumpb(header, NULL, 0, JSON_COMPACT);
    *n = (size_t)align_up((int64_t)length, 8);
    CHECK(length && *n <= SAFETENSORS_MAX_HEADER_BYTES, "a header of %zu bytes", length);
    char *text = xcalloc(*n, 1);
    memset(text, ' ', *n);
    json_dumpb(header, text, length, JSON_COMPACT);
    json_decref(header);
    return text;
}

static bool put(Writer *w, const void *bytes, size_t n, Error *e) {
    XXH3_128bits_update(w->hash, bytes, n);
    return whole_write(&w->out, bytes, n, e);
}

static bool put_header(Writer *w, Error *e) {
    static const char field[] = "\"" SAFETENSORS_DIGEST_KEY "\":\"";
    size_t n;
    char *text = header_text(w, &n);
    if (w->file->digest) {
        const char *at = memmem(text, n, field, sizeof field - 1);
        w->digest_offset = 8 + (size_t)(at - text) + sizeof field - 1;
    }
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)(n >> 8 * i);
    bool ok = put(w, length, sizeof length, e) && put(w, text, n, e);
    free(text);
    return ok;
}

static bool put_item(Writer *w, size_t index, Error *e) {
    const SafetensorsItem *item = &w->file->items[index];
    CHECK(item->data || w->file->fill, "%s: no data", item->name);
    size_t bytes = safetensors_item_bytes(item);
    for (size_t at = 0; at < bytes; at += SAFETENSORS_FILL_BYTES) {
        size_t n = MIN(bytes - at, (size_t)SAFETENSORS_FILL_BYTES);
        const void *piece = item->data ? (const char *)item->data + at : w->buffer;
        if (!item->data && !w->file->fill(w->file->context, index, at, n, w->buffer, e))
            return false;
        if (!put(w, piece, n, e)) return false;
    }
    return true;
}

static bool put_all(Writer *w, char hex[33], Error *e) {
    if (!put_header(w, e)) return false;
    for (size_t i = 0; i < w->file->n_items; i++)
        if (!put_item(w, w->order[i], e)) return false;
    XXH128_canonical_t digest;
    XXH128_canonicalFromHash(&digest, XXH3_128bits_digest(w->hash));
    for (int i = 0; i < 16; i++) snprintf(hex + 2 * i, 3, "%02x", digest.digest[i]);
    if (w->digest_offset && !whole_write_at(&w->out, hex, DIGEST_CHARS, w->digest_offset, e))
        return false;
    return whole_sync(&w->out, e);
}

/* Reads the temporary with the reader, from the disk and not from the page cache. */
static bool check(Writer *w, const char *expected, Error *e) {
    posix_fadvise(w->out.fd, 0, 0, POSIX_FADV_DONTNEED);
    Safetensors s;
    char hex[33];
    Error why = {0};
    bool ok = safetensors_open_fd(&s, w->out.fd, w->out.path, &why) &&
              safetensors_digest(&s, hex, &why) && !strcmp(hex, expected);
    safetensors_close(&s);
    if (ok) return true;
    return error_set(e, EXIT_WORLD,
                     "%.300s: reads back otherwise than it was written; the disk may be failing. "
                     "Write to another one. %.400s",
                     w->out.path, why.text);
}

bool safetensors_write(const char *path, const SafetensorsFile *file, Error *e) {
    Writer w = {.file = file};
    if (!whole_open(&w.out, path, e)) return false;
    w.order = xcalloc(file->n_items, sizeof *w.order);
    for (size_t i = 0; i < file->n_items; i++) w.order[i] = i;
    qsort_r(w.order, file->n_items, sizeof *w.order, in_file_order, (void *)file->items);
    w.buffer = xcalloc(file->fill ? SAFETENSORS_FILL_BYTES : 1, 1);
    w.hash = XXH3_createState();
    CHECK(w.hash, "out of host memory");
    XXH3_128bits_reset(w.hash);
    char hex[33];
    bool ok = put_all(&w, hex, e) && check(&w, hex, e);
    XXH3_freeState(w.hash);
    free(w.buffer);
    free(w.order);
    return ok ? whole_commit(&w.out, e) : whole_discard(&w.out);
}
