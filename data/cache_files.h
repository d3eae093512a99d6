/* What is known of files by their bytes, remembered in a cache folder, so that an unchanged dataset
 * and unchanged weights need not be read again to know their keys.
 *
 * A file counts as unchanged while its path, device, inode, size, and times of change (mtime,
 * ctime) are. One that changed within the last second is not remembered: a clock may be too coarse
 * to tell a second change from the first. files.jsonl: {"cogsmith_files": 1, "xxh3": digest of the
 * rest} and
 * {"files": {path: ...}, "bad": {key: why}}. It is a memory only: a missing or damaged one costs
 * time and nothing else.
 *
 * Safe to use from several threads.
 */
#pragma once

#include "data/cache.h"
#include "data/video.h"

typedef struct CacheFiles CacheFiles;

/* Of a cache's folder, which need not exist. */
CacheFiles *cache_files_open(const char *folder);
void cache_files_close(CacheFiles *f);
/* Writes the memory if it has changed; the caller holds the cache's lock. */
bool cache_files_save(CacheFiles *f, Error *e);

/* The digest of a file's bytes. false: *e (EXIT_DATA). */
bool cache_files_digest(CacheFiles *f, const char *path, char digest[CACHE_KEY_CHARS], Error *e);
/* The digest of a component: the names and bytes of the .safetensors, .json and .model files of its
 * folder. */
bool cache_files_digest_folder(CacheFiles *f, const char *folder, char digest[CACHE_KEY_CHARS],
                               Error *e);
/* The same from a few hundred reads, whatever the size, and nothing is remembered: each file's name
 * and cache_key_sample. Other weights have another one, but for what no sample fell on. */
bool cache_files_sample_folder(const char *folder, char digest[CACHE_KEY_CHARS], Error *e);
/* video_probe of a file that is unchanged since its digest was taken is asked once. *reader is
 * opened when it is needed. Of the info, what decides about windows, and hdr, width and height. */
bool cache_files_probe(CacheFiles *f, const char *path, VideoReader **reader, VideoInfo *info,
                       Error *e);
/* Whether a file is still the one whose digest was given. */
bool cache_files_unchanged(CacheFiles *f, const char *path);

/* Why the value of this key could not be made, of the caller's own; NULL: nothing is known against
 * it. */
char *cache_files_bad(CacheFiles *f, const char *key);
/* why NULL: it could be made after all. */
void cache_files_set_bad(CacheFiles *f, const char *key, const char *why);
