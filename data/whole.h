/* Files and folders that appear on disk whole or not at all: written under a temporary name beside
 * the final one, synced, renamed, and the folder around them synced. Whatever fails, the temporary
 * is removed and what had the final name before keeps it. Errors are EXIT_WORLD.
 *
 *     WholeFile f;
 *     if (!whole_open(&f, path, e)) return false;
 *     bool ok = whole_write(&f, bytes, n, e) && ...;
 *     return ok ? whole_commit(&f, e) : whole_discard(&f);
 *
 * A process that is killed leaves its temporary, named <path>.tmp.<pid>.<n>. A file size limit is
 * an error only where SIGXFSZ is ignored.
 */
#pragma once

#include "kernels/base.h"

#include <sys/types.h>

typedef struct {
    char *path, *temporary;
    int fd; /* of the temporary, for reading and writing */
} WholeFile;

bool whole_open(WholeFile *f, const char *path, Error *e);
/* Appends. */
bool whole_write(WholeFile *f, const void *bytes, size_t n, Error *e);
/* Replaces bytes that were written. */
bool whole_write_at(WholeFile *f, const void *bytes, size_t n, size_t offset, Error *e);
/* Puts the bytes on the disk; whole_commit does it too. */
bool whole_sync(WholeFile *f, Error *e);
/* Syncs and renames. Ends the use of *f, also on failure. */
bool whole_commit(WholeFile *f, Error *e);
/* Removes the temporary and ends the use of *f. Returns false, to end a failed function with. */
bool whole_discard(WholeFile *f);

/* A whole file of one text. */
bool whole_text(const char *path, const char *text, Error *e);

/* A folder under a temporary name: the caller writes into `temporary`. */
typedef struct {
    char *path, *temporary;
} WholeFolder;

/* The final name must be free or an empty folder; else *e is EXIT_USER. */
bool whole_folder_open(WholeFolder *f, const char *path, Error *e);
bool whole_folder_commit(WholeFolder *f, Error *e);
bool whole_folder_discard(WholeFolder *f);

/* Removes what killed writers left in a folder: temporaries, and what has a name that begins with
 * `prefix` (NULL: nothing else). A folder that is not there holds nothing. */
bool whole_sweep(const char *folder, const char *prefix, Error *e);

/* Reads at most n bytes of an open file, fewer at its end; -1: errno. */
ssize_t file_read(int fd, void *buffer, size_t n);

/* Makes a folder and those above it, or only those above a path, as far as they are missing. */
bool folders_make(const char *path, Error *e);
bool folders_make_above(const char *path, Error *e);
/* Puts a folder's list of files on the disk. */
bool folder_sync(const char *path, Error *e);
/* Renames a finished folder and syncs the folder around it; both names are in one folder. */
bool folder_rename(const char *from, const char *to, Error *e);
/* A symbolic link that appears, or replaces another, at once. */
bool whole_link(const char *path, const char *target, Error *e);
/* Removes a folder with all that is in it; links are removed, not followed. What is not there is
 * removed already. */
bool tree_remove(const char *path, Error *e);
