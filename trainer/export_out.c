/* Owns the folder of an export: what it may replace, and how it takes its place. */
#define _GNU_SOURCE
#include "trainer/export.h"

#include "data/whole.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char EXPORT_MARK[] = "Exported by cogsmith";

static bool failed(const char *path, const char *what, Error *e) {
    return error_set(e, EXIT_WORLD, "%.300s: cannot %s: %s.", path, what, strerror(errno));
}

static bool ends_with(const char *text, const char *tail) {
    size_t n = strlen(text), m = strlen(tail);
    return n >= m && !strcmp(text + n - m, tail);
}

/* A name that an export may have given. */
static bool is_export_name(const char *name) {
    return !strcmp(name, ".") || !strcmp(name, "..") || !strcmp(name, "README.md") ||
           !strcmp(name, "config.json") || !strcmp(name, "adapter_config.json") ||
           !strcmp(name, "digests.json") || ends_with(name, ".safetensors") ||
           ends_with(name, ".safetensors.index.json");
}

static bool has_mark(const char *folder) {
    char *path = xprintf("%s/README.md", folder), text[8192];
    FILE *f = fopen(path, "r");
    free(path);
    if (!f) return false;
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    return strstr(text, EXPORT_MARK) != NULL;
}

/* What is at the name now. */
typedef enum { FREE, EARLIER_EXPORT, TAKEN } State;

static State state_of(const char *path) {
    DIR *d = opendir(path);
    if (!d) return errno == ENOENT ? FREE : TAKEN;
    int entries = 0;
    bool ours = true;
    for (struct dirent *entry; (entry = readdir(d)); entries++)
        ours = ours && is_export_name(entry->d_name);
    closedir(d);
    return entries <= 2 ? FREE : ours && has_mark(path) ? EARLIER_EXPORT : TAKEN;
}

bool export_out_open(ExportOut *o, const char *path, Error *e) {
    *o = (ExportOut){.path = xstrdup(path)};
    for (size_t n = strlen(o->path); n > 1 && o->path[n - 1] == '/'; n--) o->path[n - 1] = 0;
    State state = state_of(o->path);
    if (state == TAKEN)
        return error_set(e, EXIT_USER,
                         "%.300s: expected a folder that is new, empty, or of an earlier export. "
                         "Choose another export.out, or move this one away.",
                         path);
    o->work = state == FREE ? xstrdup(o->path) : xprintf("%s.new.%ld", o->path, (long)getpid());
    return folders_make_above(o->path, e);
}

/* Removes a folder of files. */
static void remove_flat(const char *folder) {
    DIR *d = opendir(folder);
    for (struct dirent *entry; d && (entry = readdir(d));) unlinkat(dirfd(d), entry->d_name, 0);
    if (d) closedir(d);
    rmdir(folder);
}

/* Exchanges the two names, at once where the file system can. */
static bool exchange(const char *a, const char *b, Error *e) {
    if (!renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE)) return true;
    char *aside = xprintf("%s.old", a);
    bool ok = !rename(b, aside) && !rename(a, b) && !rename(aside, a);
    if (!ok) failed(b, "replace the folder", e);
    free(aside);
    return ok;
}

static int is_shown(const struct dirent *entry) { return entry->d_name[0] != '.'; }

static void print_files(const char *folder) {
    struct dirent **list;
    int n = scandir(folder, &list, is_shown, alphasort);
    for (int i = 0; i < n; i++) {
        printf("%s/%s\n", folder, list[i]->d_name);
        free(list[i]);
    }
    if (n >= 0) free(list);
}

bool export_out_commit(ExportOut *o, Error *e) {
    if (strcmp(o->work, o->path)) {
        if (!exchange(o->work, o->path, e)) return false;
        remove_flat(o->work);
    }
    print_files(o->path);
    return true;
}

void export_out_discard(ExportOut *o) {
    if (o->work && strcmp(o->work, o->path)) remove_flat(o->work);
    free(o->path);
    free(o->work);
    *o = (ExportOut){0};
}
