/* Owns the order of operations that makes a file or folder appear whole. */
#define _XOPEN_SOURCE 700
#include "data/whole.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* How many leftovers of killed processes with our pid to step over. */
enum { MAX_TRIES = 100 };

static bool failed(const char *path, const char *what, Error *e) {
    const char *hint = errno == ENOSPC || errno == EDQUOT ? " Make room and start again."
                       : errno == ENOENT                  ? " Check that the folder exists."
                       : errno == EACCES || errno == EROFS
                           ? " Choose a folder that you may write to."
                           : "";
    return error_set(e, EXIT_WORLD, "%.300s: cannot %s: %s.%s", path, what, strerror(errno), hint);
}

/* `path` without trailing slashes, so that a suffix makes a neighbour. */
static char *plain_path(const char *path) {
    char *copy = xstrdup(path);
    for (size_t n = strlen(copy); n > 1 && copy[n - 1] == '/'; n--) copy[n - 1] = 0;
    return copy;
}

static char *temporary_name(const char *path, int try) {
    return xprintf("%s.tmp.%ld.%d", path, (long)getpid(), try);
}

bool folder_sync(const char *path, Error *e) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* EINVAL: a file system that cannot sync folders, and so needs no syncing of them. */
    bool ok = fd >= 0 && (!fsync(fd) || errno == EINVAL);
    if (!ok) failed(path, "sync the folder", e);
    if (fd >= 0) close(fd);
    return ok;
}

static bool sync_parent(const char *path, Error *e) {
    char *copy = xstrdup(path);
    bool ok = folder_sync(dirname(copy), e);
    free(copy);
    return ok;
}

bool whole_open(WholeFile *f, const char *path, Error *e) {
    *f = (WholeFile){.path = plain_path(path), .fd = -1};
    for (int try = 0; try < MAX_TRIES && f->fd < 0; try++) {
        free(f->temporary);
        f->temporary = temporary_name(f->path, try);
        f->fd = open(f->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (f->fd < 0 && errno != EEXIST) break;
    }
    if (f->fd >= 0) return true;
    failed(f->temporary, "create the file", e);
    free(f->temporary); /* another's, or nobody's: not ours to remove */
    f->temporary = NULL;
    return whole_discard(f);
}

bool whole_write(WholeFile *f, const void *bytes, size_t n, Error *e) {
    const char *at = bytes;
    while (n) {
        ssize_t k = write(f->fd, at, n);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return failed(f->path, "write the file", e);
        at += k, n -= (size_t)k;
    }
    return true;
}

bool whole_write_at(WholeFile *f, const void *bytes, size_t n, size_t offset, Error *e) {
    if (pwrite(f->fd, bytes, n, (off_t)offset) == (ssize_t)n) return true;
    return failed(f->path, "write the file", e);
}

bool whole_sync(WholeFile *f, Error *e) {
    return !fsync(f->fd) || failed(f->path, "put the file on the disk", e);
}

bool whole_commit(WholeFile *f, Error *e) {
    if (!whole_sync(f, e)) return whole_discard(f);
    if (rename(f->temporary, f->path)) {
        failed(f->path, "rename the finished file", e);
        return whole_discard(f);
    }
    free(f->temporary);
    f->temporary = NULL;
    bool ok = sync_parent(f->path, e);
    whole_discard(f);
    return ok;
}

bool whole_discard(WholeFile *f) {
    if (f->fd >= 0) close(f->fd);
    if (f->temporary) unlink(f->temporary);
    free(f->temporary);
    free(f->path);
    *f = (WholeFile){.fd = -1};
    return false;
}

bool whole_text(const char *path, const char *text, Error *e) {
    WholeFile f;
    if (!whole_open(&f, path, e)) return false;
    return whole_write(&f, text, strlen(text), e) ? whole_commit(&f, e) : whole_discard(&f);
}

/* Whether nothing is at `path`, or an empty folder, which rename replaces. */
static bool is_free(const char *path) {
    DIR *d = opendir(path);
    if (!d) return errno == ENOENT;
    bool empty = true;
    for (struct dirent *entry; empty && (entry = readdir(d));)
        empty = !strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..");
    closedir(d);
    return empty;
}

bool whole_folder_open(WholeFolder *f, const char *path, Error *e) {
    *f = (WholeFolder){.path = plain_path(path)};
    if (!is_free(f->path)) {
        error_set(
            e, EXIT_USER,
            "%.300s: expected a name that is free or an empty folder: move it away, or choose "
            "another name.",
            f->path);
        return whole_folder_discard(f);
    }
    for (int try = 0; try < MAX_TRIES; try++) {
        f->temporary = temporary_name(f->path, try);
        if (!mkdir(f->temporary, 0777)) return true;
        bool taken = errno == EEXIST;
        if (!taken) failed(f->temporary, "create the folder", e);
        free(f->temporary);
        f->temporary = NULL;
        if (!taken) return whole_folder_discard(f);
    }
    errno = EEXIST;
    failed(f->path, "create a temporary folder beside it", e);
    return whole_folder_discard(f);
}

bool whole_folder_commit(WholeFolder *f, Error *e) {
    if (rename(f->temporary, f->path)) {
        failed(f->path, "rename the finished folder", e);
        return whole_folder_discard(f);
    }
    free(f->temporary);
    f->temporary = NULL;
    bool ok = sync_parent(f->path, e);
    whole_folder_discard(f);
    return ok;
}

bool whole_folder_discard(WholeFolder *f) {
    Error ignored;
    if (f->temporary) tree_remove(f->temporary, &ignored);
    free(f->temporary);
    free(f->path);
    *f = (WholeFolder){0};
    return false;
}

bool folder_rename(const char *from, const char *to, Error *e) {
    if (rename(from, to)) return failed(to, "rename the finished folder", e);
    return sync_parent(to, e);
}

bool whole_link(const char *path, const char *target, Error *e) {
    char *temporary = temporary_name(path, 0);
    unlink(temporary);
    bool ok = !symlink(target, temporary) && !rename(temporary, path);
    if (!ok) {
        failed(path, "make the link", e);
        unlink(temporary);
    }
    free(temporary);
    return ok && sync_parent(path, e);
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *at) {
    (void)info, (void)type, (void)at;
    return remove(path);
}

bool tree_remove(const char *path, Error *e) {
    enum { DESCRIPTORS = 16 };
    if (!nftw(path, remove_entry, DESCRIPTORS, FTW_DEPTH | FTW_PHYS) || errno == ENOENT)
        return true;
    return failed(path, "remove the folder", e);
}

/* "<name>.tmp.<pid>.<n>" */
static bool is_temporary(const char *name) {
    const char *at = NULL, *next = name;
    while ((next = strstr(next, ".tmp."))) at = next += strlen(".tmp.");
    if (!at || *at == '.') return false;
    at += strspn(at, "0123456789");
    return *at == '.' && at[1] && !at[1 + strspn(at + 1, "0123456789")];
}

bool whole_sweep(const char *folder, const char *prefix, Error *e) {
    DIR *d = opendir(folder);
    bool ok = d || errno == ENOENT || failed(folder, "read the folder", e);
    for (struct dirent *entry; d && ok && (entry = readdir(d));) {
        bool named = prefix && !strncmp(entry->d_name, prefix, strlen(prefix));
        if (!named && !is_temporary(entry->d_name)) continue;
        char *path = xprintf("%s/%s", folder, entry->d_name);
        ok = tree_remove(path, e);
        free(path);
    }
    if (d) closedir(d);
    return ok;
}

ssize_t file_read(int fd, void *buffer, size_t n) {
    size_t got = 0;
    while (got < n) {
        ssize_t k = read(fd, (char *)buffer + got, n - got);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return -1;
        if (!k) break;
        got += (size_t)k;
    }
    return (ssize_t)got;
}

bool folders_make_above(const char *path, Error *e) {
    char *copy = xstrdup(path);
    bool ok = true;
    for (char *slash = strchr(copy + 1, '/'); ok && slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        ok = !mkdir(copy, 0777) || errno == EEXIST || failed(copy, "make the folder", e);
        *slash = '/';
    }
    free(copy);
    return ok;
}

bool folders_make(const char *path, Error *e) {
    char *below = xprintf("%s/", path);
    bool ok = folders_make_above(below, e);
    free(below);
    return ok;
}
