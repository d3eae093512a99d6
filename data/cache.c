/* Owns the cache folder: its lock, its index, which part holds what, and digests. */
#define _GNU_SOURCE
#include "data/cache.h"

#include "data/cache_index.h"
#include "data/cache_part.h"
#include "data/lock.h"
#include "data/whole.h"
#include "kernels/kernels.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    PART_ENTRIES = 64,     /* a part is closed after so many entries, */
    PART_BYTES = 64 << 20, /* or so many bytes: what a kill can cost at most */
    OPEN_PARTS = 128,      /* files held open for reading, of the 1,024 that a process may have */
};

struct Cache {
    char *folder;
    int lock;       /* descriptor of the lock file; -1: reading, or joined */
    bool joined;    /* writes parts, and leaves the index alone */
    int part, step; /* the number of the next part, and from one to the next */
    CacheIndex index;
    PartReader **readers; /* [n_readers] by part, opened on first use */
    bool *verified;       /* [n_readers] the part's file was compared with its digest */
    int n_readers, n_open, next_closed;
    PartWriter *writer; /* the open part, or NULL */
    char *temporary;    /* its path */
    int first_new;      /* first entry of the open part */
    int64_t new_bytes;  /* in the open part */
};

static char *in_folder(const Cache *c, const char *name) {
    return xprintf("%s/%s", c->folder, name);
}

/* ---- opening ----------------------------------------------------------------------------------
 */

/* Entries of a whole part that the index does not know: its writer was killed in between. */
static bool adopt(Cache *c, const char *name, Error *e) {
    char *path = in_folder(c, name);
    PartReader *reader = part_open(path, e);
    char *text = reader ? part_entries(reader, e) : NULL;
    bool ok = text && cache_index_adopt(&c->index, c->folder, name, text, e);
    part_close(reader);
    free(text);
    free(path);
    return ok;
}

static bool part_exists(const Cache *c) {
    char *name = cache_part_name(c->part), *path = in_folder(c, name);
    bool exists = !access(path, F_OK);
    free(name);
    free(path);
    return exists;
}

/* The name of the next part: no file has it, also not one of a rank that outlived its job. */
static char *next_part(Cache *c) {
    while (part_exists(c)) c->part += c->step;
    return cache_part_name(c->part);
}

static bool has_index(const Cache *c) {
    char *path = in_folder(c, "index.jsonl");
    bool has = !access(path, F_OK);
    free(path);
    return has;
}

/* Removes temporaries and adopts whole parts that a killed writer left; forgets parts that someone
 * removed. A new folder is a cache at once, whatever becomes of its first writer. */
static bool sweep(Cache *c, Error *e) {
    char **names;
    int n = cache_folder_parts(c->folder, &names);
    bool ok = true, changed = cache_index_drop_missing(&c->index, c->folder) || !has_index(c);
    for (int i = 0; i < n; i++) {
        if (strstr(names[i], ".tmp")) {
            char *path = in_folder(c, names[i]);
            unlink(path);
            free(path);
        } else if (ok && !cache_index_has_part(&c->index, names[i])) {
            ok = adopt(c, names[i], e);
            changed = true;
        }
        free(names[i]);
    }
    free(names);
    return ok && (!changed || cache_index_write(&c->index, c->folder, e));
}

static void release(Cache *c) {
    for (int i = 0; i < c->n_readers; i++) part_close(c->readers[i]);
    if (c->writer) part_abandon(c->writer);
    if (c->temporary) unlink(c->temporary);
    folder_unlock(c->lock);
    cache_index_free(&c->index);
    free(c->readers);
    free(c->verified);
    free(c->temporary);
    free(c->folder);
    free(c);
}

Cache *cache_open(const char *folder, bool writing, Error *e) {
    Cache *c = xcalloc(1, sizeof *c);
    *c = (Cache){.folder = xstrdup(folder), .lock = -1, .step = 1};
    bool ok = true;
    if (writing && mkdir(folder, 0777) && errno != EEXIST)
        ok = error_set(e, EXIT_WORLD, "%.600s: the cache's folder cannot be made: %s", folder,
                       strerror(errno));
    if (ok && writing) ok = (c->lock = folder_lock(folder, "writes this cache", e)) >= 0;
    ok = ok && cache_index_read(&c->index, folder, e) && (!writing || sweep(c, e));
    c->part = cache_index_next_part(&c->index);
    if (ok) return c;
    release(c);
    return NULL;
}

int cache_share(Cache *c, int ranks) {
    c->step = ranks;
    return c->part;
}

Cache *cache_join(const char *folder, int shared, int rank, int ranks, Error *e) {
    Cache *c = cache_open(folder, false, e);
    if (!c) return NULL;
    c->joined = true;
    c->part = shared + rank;
    c->step = ranks;
    return c;
}

bool cache_adopt(Cache *c, Error *e) {
    char **names;
    bool ok = cache_flush(c, e);
    int n = cache_folder_parts(c->folder, &names);
    for (int i = 0; i < n; i++) {
        if (ok && !strstr(names[i], ".tmp") && !cache_index_has_part(&c->index, names[i]))
            ok = adopt(c, names[i], e);
        free(names[i]);
    }
    free(names);
    return ok && cache_index_write(&c->index, c->folder, e);
}

/* ---- writing ----------------------------------------------------------------------------------
 */

static bool open_part(Cache *c, Error *e) {
    if (c->writer) return true;
    char *name = next_part(c);
    c->temporary = xprintf("%s/%s.tmp", c->folder, name);
    free(name);
    unlink(c->temporary);
    c->writer = part_create(c->temporary, e);
    c->first_new = c->index.n_entries;
    c->new_bytes = 0;
    return c->writer != NULL;
}

/* Forgets the open part and its entries. Returns false, to end a failed function with. */
static bool drop_part(Cache *c) {
    if (c->writer) part_abandon(c->writer);
    if (c->temporary) unlink(c->temporary);
    free(c->temporary);
    c->writer = NULL;
    c->temporary = NULL;
    cache_index_truncate(&c->index, c->first_new);
    return false;
}

bool cache_flush(Cache *c, Error *e) {
    if (!c->writer) return true;
    char *text = cache_index_entries_text(&c->index, c->first_new);
    bool ok = part_finish(c->writer, text, e);
    c->writer = NULL;
    free(text);
    char *file = next_part(c);
    ok = ok && cache_index_add_part(&c->index, c->folder, c->temporary, file, c->first_new, e);
    free(file);
    if (!ok) return drop_part(c);
    free(c->temporary);
    c->temporary = NULL;
    return c->joined || cache_index_write(&c->index, c->folder, e);
}

int64_t cache_elements(const CacheEntry *entry) {
    return entry->shape[0] * entry->shape[1] * entry->shape[2] * entry->shape[3];
}

static int dims_of(const CacheEntry *entry) {
    static const int DIMS[CACHE_KINDS] = {4, 2, 3};
    return DIMS[entry->kind];
}

/* Rounds to bf16 and appends as group/name; the digest goes on over the stored bytes. */
static bool append(Cache *c, CacheRecord *r, const char *name, const float *values, int64_t *row,
                   CacheKey *digest, Error *e) {
    int64_t n = cache_elements(&r->entry);
    uint16_t *half = xcalloc((size_t)n, sizeof *half);
    BACKEND_CPU.cast(NULL, DT_F32, DT_BF16, n, values, half);
    cache_key_bytes(digest, half, (size_t)n * sizeof *half);
    bool ok =
        part_append(c->writer, r->group, name, dims_of(&r->entry), r->entry.shape, half, row, e);
    c->new_bytes += n * (int64_t)sizeof *half;
    free(half);
    return ok;
}

bool cache_add(Cache *c, const CacheEntry *entry, const float *values, const float *logvar,
               Error *e) {
    CHECK(cache_find(c, entry->kind, entry->key) < 0, "cache entry %s twice", entry->key);
    CHECK((entry->kind == CACHE_EMBEDDING) == !logvar, "latents have two arrays");
    if (!open_part(c, e)) return drop_part(c);
    CacheRecord *r = cache_index_add(&c->index, entry);
    CacheKey *digest = cache_key_open("value");
    int64_t second = 0;
    bool ok = append(c, r, logvar ? "mean" : "values", values, &r->row, digest, e) &&
              (!logvar || append(c, r, "logvar", logvar, &second, digest, e));
    CHECK(!ok || !logvar || second == r->row, "mean and logvar out of step");
    cache_key_close(digest, r->digest);
    if (!ok) return drop_part(c);
    int n = c->index.n_entries - c->first_new;
    return n < PART_ENTRIES && c->new_bytes < PART_BYTES ? true : cache_flush(c, e);
}

bool cache_close(Cache *c, Error *e) {
    if (!c) return true;
    bool ok = cache_flush(c, e);
    release(c);
    return ok;
}

/* ---- reading ----------------------------------------------------------------------------------
 */

int cache_count(const Cache *c) { return c->index.n_entries; }

const CacheEntry *cache_entry(const Cache *c, int i) { return &c->index.records[i]->entry; }

int cache_find(const Cache *c, CacheKind kind, const char *key) {
    return cache_index_find(&c->index, kind, key);
}

int64_t cache_bytes(const Cache *c) {
    int64_t bytes = 0;
    for (int i = 0; i < c->index.n_parts; i++) bytes += c->index.parts[i].bytes;
    return bytes;
}

/* Room for every part, and for one more open file. */
static void make_room(Cache *c) {
    c->readers = xrealloc(c->readers, (size_t)c->index.n_parts * sizeof *c->readers);
    c->verified = xrealloc(c->verified, (size_t)c->index.n_parts * sizeof *c->verified);
    for (; c->n_readers < c->index.n_parts; c->n_readers++) {
        c->readers[c->n_readers] = NULL;
        c->verified[c->n_readers] = false;
    }
    for (; c->n_open >= OPEN_PARTS; c->next_closed = (c->next_closed + 1) % c->n_readers) {
        if (!c->readers[c->next_closed]) continue;
        part_close(c->readers[c->next_closed]);
        c->readers[c->next_closed] = NULL;
        c->n_open--;
    }
}

/* The reader of a part, whose file is compared with its digest before HDF5 sees it. */
static PartReader *reader_of(Cache *c, int part, Error *e) {
    if (part < c->n_readers && c->readers[part]) return c->readers[part];
    make_room(c);
    if (!c->verified[part] && !cache_index_verify_part(&c->index, c->folder, part, e)) return NULL;
    c->verified[part] = true;
    char *path = in_folder(c, c->index.parts[part].file);
    c->readers[part] = part_open(path, e);
    c->n_open += c->readers[part] != NULL;
    free(path);
    return c->readers[part];
}

static bool read_array(PartReader *reader, const CacheRecord *r, const char *name, float *values,
                       CacheKey *digest, Error *e) {
    int64_t n = cache_elements(&r->entry);
    uint16_t *half = xcalloc((size_t)n, sizeof *half);
    bool ok = part_read(reader, r->group, name, r->row, n, half, e);
    cache_key_bytes(digest, half, (size_t)n * sizeof *half);
    if (ok) BACKEND_CPU.cast(NULL, DT_BF16, DT_F32, n, half, values);
    free(half);
    return ok;
}

bool cache_read(Cache *c, int i, float *values, float *logvar, Error *e) {
    const CacheRecord *r = c->index.records[i];
    CHECK(r->part >= 0, "cache entry %s is read before cache_flush", r->entry.key);
    PartReader *reader = reader_of(c, r->part, e);
    if (!reader) return false;
    CacheKey *key = cache_key_open("value");
    char digest[CACHE_KEY_CHARS];
    bool ok = read_array(reader, r, logvar ? "mean" : "values", values, key, e) &&
              (!logvar || read_array(reader, r, "logvar", logvar, key, e));
    cache_key_close(key, digest);
    if (ok && strcmp(digest, r->digest))
        ok = error_set(e, EXIT_DATA,
                       "%.500s/%s: the value of %.300s does not agree with its digest: the file is "
                       "damaged. Remove it and run prepare again",
                       c->folder, c->index.parts[r->part].file,
                       r->entry.source ? r->entry.source : r->entry.caption);
    return ok;
}
