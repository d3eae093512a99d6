/* The index of a cache folder, and digests. Only cache.c uses it.
 *
 * index.jsonl: a first line {"cogsmith_cache": 1, "xxh3": digest of the rest of the file}, then for
 * each part a line {"file", "bytes", "xxh3"} followed by the lines of its entries, which are also
 * the part's own /entries. */
#pragma once

#include "data/cache.h"

typedef struct {
    CacheEntry entry;
    int part;    /* -1: in the part that is still open */
    char *group; /* "/latents/5x16x8x12" */
    int64_t row;
    char digest[CACHE_KEY_CHARS]; /* of the stored arrays, in order */
} CacheRecord;

typedef struct {
    char *file; /* "part-000001.h5" */
    int64_t bytes;
    char digest[CACHE_KEY_CHARS];
} CachePart;

typedef struct {
    CacheRecord **records;
    int n_entries;
    CachePart *parts;
    int n_parts;
    int *slots; /* hash table over the keys: record + 1, or 0 */
    int n_slots;
} CacheIndex;

/* A missing index is an empty one. */
bool cache_index_read(CacheIndex *x, const char *folder, Error *e);
bool cache_index_write(const CacheIndex *x, const char *folder, Error *e);
void cache_index_free(CacheIndex *x);

CacheRecord *cache_index_add(CacheIndex *x, const CacheEntry *entry);
/* Forgets entries from `first` on, and the open part. */
void cache_index_truncate(CacheIndex *x, int first);
/* Forgets parts whose file is not there, and their entries; no part may be open. Whether there were
 * any. */
bool cache_index_drop_missing(CacheIndex *x, const char *folder);
int cache_index_find(const CacheIndex *x, CacheKind kind, const char *key);

bool cache_index_has_part(const CacheIndex *x, const char *file);
/* The number after that of every part. */
int cache_index_next_part(const CacheIndex *x);
/* "part-000001.h5"; the caller frees it. */
char *cache_part_name(int number);
/* Entries from `first` on as the part's text; the caller frees it. */
char *cache_index_entries_text(const CacheIndex *x, int first);
/* Syncs a finished part, whose entries begin at `first`, and renames it to `file`. */
bool cache_index_add_part(CacheIndex *x, const char *folder, const char *temporary,
                          const char *file, int first, Error *e);
/* Adds a whole part by its own /entries. */
bool cache_index_adopt(CacheIndex *x, const char *folder, const char *file, const char *text,
                       Error *e);
/* Compares a part's file with its digest. */
bool cache_index_verify_part(const CacheIndex *x, const char *folder, int part, Error *e);

/* Names of part files, and of temporaries of any file, in a folder; the caller frees them. */
int cache_folder_parts(const char *folder, char ***names);

void cache_key_bytes(CacheKey *k, const void *bytes, size_t n);
