/* Owns files of digests: what tells that a folder is as it was written. */
#define _XOPEN_SOURCE 700
#include "data/digests.h"

#include "data/cache.h"
#include "data/whole.h"

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

const DigestsKind FOLDER_DIGESTS = {
    .name = "digests.json",
    .kind = "folder",
    .skip = ".safetensors",
    .advice = "Make the folder again; if the change is yours, remove its digests.json.",
};

static const char OWN[] = "\"xxh3\": \"";
static const char NONE[] = "00000000000000000000000000000000";
enum { DIGITS = DIGEST_CHARS - 1, MAX_BYTES = 1 << 24 };

static bool digest_file(const DigestsKind *kind, const char *path, char digest[DIGEST_CHARS],
                        Error *e) {
    CacheKey *k = cache_key_open(kind->kind);
    bool ok = cache_key_file(k, path, e);
    cache_key_close(k, digest);
    return ok;
}

static void digest_text(const char *text, char digest[DIGEST_CHARS]) {
    CacheKey *k = cache_key_open("manifest");
    cache_key_text(k, "text", text);
    cache_key_close(k, digest);
}

/* Where the text has its own digest; NULL: nowhere. */
static char *own_digest(char *text) {
    char *at = strstr(text, OWN);
    if (!at) return NULL;
    at += strlen(OWN);
    return strlen(at) >= DIGITS ? at : NULL;
}

/* ---- writing ----------------------------------------------------------------------------------
 */

static bool is_listed(const DigestsKind *kind, const char *name) {
    size_t n = strlen(name), m = kind->skip ? strlen(kind->skip) : 0;
    return name[0] != '.' && !(m && n >= m && !strcmp(name + n - m, kind->skip));
}

/* Adds the digests of all files below folder/below ("" or "adapter/"). */
static bool list_files(const char *folder, const char *below, const DigestsKind *kind,
                       json_t *files, Error *e) {
    char *path = xprintf("%s/%s", folder, below);
    struct dirent **entries = NULL;
    int n = scandir(path, &entries, NULL, alphasort);
    bool ok = n >= 0 || error_set(e, EXIT_WORLD, "%.300s: cannot be read", path);
    for (int i = 0; i < n; i++) {
        char *name = xprintf("%s%s", below, entries[i]->d_name);
        char *file = xprintf("%s/%s", folder, name), *inner = xprintf("%s/", name);
        char digest[DIGEST_CHARS];
        struct stat info;
        if (ok && is_listed(kind, entries[i]->d_name) && !stat(file, &info)) {
            if (S_ISDIR(info.st_mode))
                ok = list_files(folder, inner, kind, files, e);
            else if ((ok = digest_file(kind, file, digest, e)))
                json_object_set_new(
                    files, name,
                    json_pack("{s:I, s:s}", "bytes", (json_int_t)info.st_size, "xxh3", digest));
        }
        free(name);
        free(file);
        free(inner);
        free(entries[i]);
    }
    free(entries);
    free(path);
    return ok;
}

bool digests_write(const char *folder, const DigestsKind *kind, json_t *fields, Error *e) {
    json_t *files = json_object(), *j = json_pack("{s:s}", "xxh3", NONE);
    bool ok = list_files(folder, "", kind, files, e);
    CHECK(j && (!fields || !json_object_update(j, fields)), "digests: JSON");
    json_object_set_new(j, "files", files);
    char *text = json_dumps(j, JSON_INDENT(2)), *path = xprintf("%s/%s", folder, kind->name);
    char digest[DIGEST_CHARS];
    digest_text(text, digest);
    memcpy(own_digest(text), digest, DIGITS);
    ok = ok && whole_text(path, text, e);
    free(path);
    free(text);
    json_decref(j);
    json_decref(fields);
    return ok;
}

/* ---- reading ----------------------------------------------------------------------------------
 */

static bool damaged(const DigestsKind *kind, const char *path, const char *what, Error *e) {
    return error_set(e, EXIT_USER, "%.300s: %s. %s", path, what, kind->advice);
}

static char *read_text(const DigestsKind *kind, const char *path, Error *e) {
    FILE *f = fopen(path, "rb");
    char *text = xcalloc(MAX_BYTES, 1);
    size_t n = f ? fread(text, 1, MAX_BYTES - 1, f) : 0;
    bool ok = f && !ferror(f) && n > 0 && strlen(text) == n;
    if (f) fclose(f);
    if (ok) return text;
    free(text);
    damaged(kind, path, f ? "cannot be read as text" : "is not there", e);
    return NULL;
}

json_t *digests_read(const char *folder, const DigestsKind *kind, Error *e) {
    char *path = xprintf("%s/%s", folder, kind->name), *text = read_text(kind, path, e);
    char *at = text ? own_digest(text) : NULL, stated[DIGEST_CHARS] = "", digest[DIGEST_CHARS];
    json_t *j = NULL;
    if (text && !at) damaged(kind, path, "has no digest", e);
    if (at) {
        memcpy(stated, at, DIGITS);
        memcpy(at, NONE, DIGITS);
        digest_text(text, digest);
        if (strcmp(stated, digest))
            damaged(kind, path, "is not the text that was written", e);
        else if (!(j = json_loads(text, JSON_REJECT_DUPLICATES, NULL)))
            damaged(kind, path, "is not JSON", e);
    }
    free(text);
    free(path);
    return j;
}

/* The list's names must not lead out of the folder. */
static bool is_inside(const char *name) {
    return name[0] != '/' && strcmp(name, "..") && strncmp(name, "../", 3) && !strstr(name, "/../");
}

static bool verify_file(const char *folder, const DigestsKind *kind, const char *name,
                        json_t *about, Error *e) {
    char *path = xprintf("%s/%s", folder, name), digest[DIGEST_CHARS];
    const char *stated;
    json_int_t bytes;
    struct stat info;
    bool ok = true;
    if (!is_inside(name) || json_unpack(about, "{s:I, s:s}", "bytes", &bytes, "xxh3", &stated))
        ok = error_set(e, EXIT_USER, "%.300s/%s: a file's entry is not complete. %s", folder,
                       kind->name, kind->advice);
    else if (stat(path, &info) || !S_ISREG(info.st_mode))
        ok = damaged(kind, path, "is not there", e);
    else if (info.st_size != bytes)
        ok = damaged(kind, path, "has not the size that was written", e);
    else
        ok = digest_file(kind, path, digest, e) &&
             (!strcmp(digest, stated) ||
              damaged(kind, path, "has not the bytes that were written", e));
    free(path);
    return ok;
}

bool digests_verify(const char *folder, const DigestsKind *kind, const json_t *digests, Error *e) {
    json_t *files = json_object_get(digests, "files"), *about;
    const char *name;
    bool ok =
        json_is_object(files) || error_set(e, EXIT_USER, "%.300s/%s: \"files\" is missing. %s",
                                           folder, kind->name, kind->advice);
    json_object_foreach(files, name, about) ok = ok && verify_file(folder, kind, name, about, e);
    return ok;
}
