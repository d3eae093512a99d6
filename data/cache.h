/* The cache: encoded clips and image conditions (mean and log-variance of their latents, as the
 * autoencoder gives them, not scaled), and caption embeddings.
 *
 * A folder of HDF5 part files and an index. Keys are digests of everything that a value follows
 * from, so a stale value cannot be read: it has another key. A part is written under a temporary
 * name and renamed when it is whole; the index is rewritten after that. What a killed writer leaves
 * is a temporary file, which the next writer removes, or a whole part that is not in the index yet,
 * which the next writer adds. Every value carries a digest of its own, checked on every read; every
 * part file one of the whole file, checked before HDF5 sees the file.
 *
 * In a part (readable with h5py alone, see tests/data/read_cache.py):
 *     /latents/<F>x<C>x<H>x<W>/mean, logvar   u16 [n,F,C,H,W], attribute dtype "BF16"; a chunk: a
 * clip /images/<C>x<H>x<W>/mean, logvar        u16 [n,C,H,W], likewise /embeddings/<L>x<E>/values
 * u16 [n,L,E], likewise /entries                                u8, UTF-8: JSON, one object a line
 * and entry and an entry is {"kind", "key", "group", "row", "digest", "shape", "source",
 * "first_frame", "frames", "variant", "caption", "embedding"}, without those that its kind does not
 * have.
 *
 * One process writes a cache at a time: it holds the lock file, which names it. Ranks of one job
 * may share the work: rank 0 opens the cache and says cache_share; the others cache_join it, and
 * what they add becomes whole parts of their own; cache_adopt takes those into rank 0's index.
 * Parts that were not adopted are adopted by the next writer.
 */
#pragma once

#include "kernels/base.h"

enum { CACHE_KEY_CHARS = 33 }; /* 32 hex digits and a NUL */

typedef enum { CACHE_LATENTS, CACHE_EMBEDDING, CACHE_IMAGE, CACHE_KINDS } CacheKind;

/* One value. Strings live as long as the cache. */
typedef struct {
    CacheKind kind;
    char key[CACHE_KEY_CHARS];
    int64_t shape[4];   /* latents: F, C, H, W; an image: C, H, W, 1; an embedding: L, E, 1, 1 */
    const char *source; /* the clip or picture it came from; an embedding: NULL */
    int64_t first_frame, frames; /* latents, images: which frames of the clip at data.fps */
    int64_t variant;             /* images: which of the clip's noised encodings */
    const char *caption;   /* an embedding's own; latents: the clip's, as it was at preparation */
    const char *embedding; /* latents: key of the caption's embedding */
} CacheEntry;

typedef struct Cache Cache;

/* Opens a folder. writing: makes it when it is missing, takes the lock, sweeps up after a killed
 * writer, forgets parts whose file was removed. NULL: *e says why (another process writes it; it is
 * not a cache; damage). */
Cache *cache_open(const char *folder, bool writing, Error *e);
/* Writes what is still open. Also right after errors. */
bool cache_close(Cache *c, Error *e);

/* From now on others may join a cache that this process has open for writing, so that there are
 * `ranks` writers. Returns what cache_join wants to know. */
int cache_share(Cache *c, int ranks);
/* The same cache for rank `rank` > 0. It knows what was in the cache, and what it adds itself. */
Cache *cache_join(const char *folder, int shared, int rank, int ranks, Error *e);
/* Takes the whole parts of others into the index. */
bool cache_adopt(Cache *c, Error *e);

int cache_count(const Cache *c);
const CacheEntry *cache_entry(const Cache *c, int i);
/* The entry of this kind and key, or -1. */
int cache_find(const Cache *c, CacheKind kind, const char *key);

/* Elements of one array of the entry (latents and images have two of them). */
int64_t cache_elements(const CacheEntry *entry);
/* Adds a value, stored as bf16: latents and images mean and logvar, an embedding its values and
 * NULL. A key that is there already is a bug. */
bool cache_add(Cache *c, const CacheEntry *entry, const float *values, const float *logvar,
               Error *e);
/* Makes what was added durable: closes the part, writes the index. */
bool cache_flush(Cache *c, Error *e);
/* Reads a value; a damaged one is an error (EXIT_DATA) that names it. */
bool cache_read(Cache *c, int i, float *values, float *logvar, Error *e);
/* Bytes of all part files. */
int64_t cache_bytes(const Cache *c);

/* Keys: XXH3-128 over named fields, in the order in which they are given. */
typedef struct CacheKey CacheKey;
CacheKey *cache_key_open(const char *kind);
void cache_key_text(CacheKey *k, const char *name, const char *value);
void cache_key_number(CacheKey *k, const char *name, double value);
/* The bytes of a whole file; false: *e says why it cannot be read. */
bool cache_key_file(CacheKey *k, const char *path, Error *e);
/* Of a file of any size, a few reads: how large it is, its first 64 KiB or safetensors header, and
 * so many blocks of 16 KiB, spread evenly from there to its very end. */
bool cache_key_sample(CacheKey *k, const char *path, int blocks, Error *e);
void cache_key_close(CacheKey *k, char key[CACHE_KEY_CHARS]);
