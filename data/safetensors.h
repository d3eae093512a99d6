/* The safetensors file format: reading a file without copying it, and writing one whole.
 *
 *     u64 little-endian N | N bytes of JSON header | tensor data
 *     header: {"__metadata__": {text: text}, name: {"dtype", "shape", "data_offsets"}, ...}
 *
 * The reader treats every byte as hostile. It makes all checks of the published implementation
 * (tensors cover the data exactly, in order, without hole or overlap; sizes agree with shapes; all
 * products without overflow) and refuses more: duplicate keys of any kind, a header that does not
 * begin with `{` or is padded with anything but spaces, unknown fields, more than 8 dimensions,
 * names that are empty or hold characters below the blank, headers above 16 MB. Values are not
 * looked at.
 *
 *     Safetensors s;
 *     Error e;
 *     if (!safetensors_open(&s, "model.safetensors", &e)) die_error(&e);
 *     const SafetensorsTensor *t = safetensors_find(&s, "proj_out.weight");
 *     ...
 *     safetensors_close(&s);
 */
#pragma once

#include "kernels/base.h"

enum { SAFETENSORS_MAX_DIMS = 8, SAFETENSORS_MAX_HEADER_BYTES = 16000000 };

/* The metadata key of the file's own digest: XXH3-128 as 32 lower-case hex digits, over the whole
 * file with these 32 characters replaced by '0'. */
#define SAFETENSORS_DIGEST_KEY "cogsmith.xxh3"

/* One tensor of a file. All pointers live as long as the Safetensors. */
typedef struct {
    const char *name;
    const char *dtype_name; /* as in the file: also "F4", "F8_E8M0", "C64", ... */
    DType dtype;            /* DT_COUNT: a type that cogsmith stores and never computes with */
    int bits;               /* of one element */
    int n_dims;
    int64_t shape[SAFETENSORS_MAX_DIMS];
    /* Read-only, little-endian, row-major. Files of other writers may begin a tensor at any byte:
     * read through memcpy or a backend's cast. Valid to point at, even with 0 bytes. */
    const void *data;
    size_t bytes;
} SafetensorsTensor;

typedef struct {
    const char *key, *value;
} SafetensorsMetadata;

/* An open file. The arrays are for iteration: tensors by name (strcmp order), metadata by key. */
typedef struct {
    char *path; /* for error texts */
    const SafetensorsTensor *tensors;
    size_t n_tensors;
    const SafetensorsMetadata *metadata;
    size_t n_metadata;
    size_t header_bytes; /* N: tensor data begins at 8 + N */
    const uint8_t *bytes;
    size_t n_bytes;
    struct json_t *header; /* owns the strings */
    bool mapped;           /* bytes are our mapping, else the caller's */
} Safetensors;

/* Maps a regular file read-only and checks its header; touches no page of tensor data. On failure
 * nothing is left open, *s is zeroed, and *e (EXIT_USER; EXIT_WORLD if the machine refused) tells
 * the path, the tensor, what was expected and what to do. */
bool safetensors_open(Safetensors *s, const char *path, Error *e);
/* The same for an open descriptor, which stays the caller's; `path` is for error texts. */
bool safetensors_open_fd(Safetensors *s, int fd, const char *path, Error *e);
/* The same for `n` bytes in memory, which stay the caller's and must outlive *s. */
bool safetensors_parse(Safetensors *s, const void *bytes, size_t n, const char *path, Error *e);
/* Also right for a zeroed *s. */
void safetensors_close(Safetensors *s);

/* NULL: no such tensor, no such key. */
const SafetensorsTensor *safetensors_find(const Safetensors *s, const char *name);
/* How many values it has. */
int64_t safetensors_count(const SafetensorsTensor *t);
const char *safetensors_metadata(const Safetensors *s, const char *key);

/* XXH3-128 of the whole file as 32 hex digits and a NUL; reads every byte. The file's own digest
 * field, if it has one, counts as '0' characters; false: it has one that cannot be read. */
bool safetensors_digest(const Safetensors *s, char hex[33], Error *e);
/* Compares the file with its own digest. True also when the file carries none (which
 * safetensors_metadata tells), but a key two edits or fewer from the digest's is a damaged one. */
bool safetensors_verify(const Safetensors *s, Error *e);

/* A tensor to be written. */
typedef struct {
    const char *name;
    DType dtype;
    int n_dims;
    int64_t shape[SAFETENSORS_MAX_DIMS];
    const void *data; /* NULL: the bytes come from SafetensorsFile.fill */
} SafetensorsItem;

/* Puts bytes [offset, offset + bytes) of item `item` into `buffer`. Called in file order, in pieces
 * of at most SAFETENSORS_FILL_BYTES; a false return (with *e set) ends the writing. */
typedef bool SafetensorsFill(void *context, size_t item, size_t offset, size_t bytes, void *buffer,
                             Error *e);
enum { SAFETENSORS_FILL_BYTES = 1 << 22 };

typedef struct {
    const SafetensorsItem *items; /* in any order; the file has the published writer's order */
    size_t n_items;
    const SafetensorsMetadata *metadata; /* written in this order */
    size_t n_metadata;
    bool digest; /* adds SAFETENSORS_DIGEST_KEY to the metadata */
    SafetensorsFill *fill;
    void *context; /* for fill */
} SafetensorsFile;

/* Writes the file under a temporary name beside `path`, syncs it, reads it back and compares, then
 * renames it. After a failure the temporary is gone and what was at `path` is as it was; *e is
 * EXIT_WORLD (full disk, missing folder) or what fill said. Names that are empty, not UTF-8 or
 * there twice are bugs (CHECK). SIGXFSZ must be ignored for a file size limit to be an error. */
bool safetensors_write(const char *path, const SafetensorsFile *file, Error *e);

/* The bytes of an item's data. */
size_t safetensors_item_bytes(const SafetensorsItem *item);
