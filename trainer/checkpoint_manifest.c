/* Owns manifest.json: where a run stands, and the digests that tell a whole checkpoint. */
#define _XOPEN_SOURCE 700
#include "trainer/checkpoint_manifest.h"

#include "data/cache.h"
#include "data/json.h"
#include "data/whole.h"

#include <ctype.h>
#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char DIGEST_FIELD[] = "\"xxh3\": \"";
static const char NO_DIGEST[] = "00000000000000000000000000000000";
enum { DIGITS = CHECKPOINT_DIGEST_CHARS - 1, MAX_MANIFEST = 1 << 24 };

static bool digest_file(const char *path, char digest[CHECKPOINT_DIGEST_CHARS], Error *e) {
    CacheKey *k = cache_key_open("checkpoint");
    bool ok = cache_key_file(k, path, e);
    cache_key_close(k, digest);
    return ok;
}

static void digest_text(const char *text, char digest[CHECKPOINT_DIGEST_CHARS]) {
    CacheKey *k = cache_key_open("manifest");
    cache_key_text(k, "text", text);
    cache_key_close(k, digest);
}

/* Where the text has its own digest; NULL: nowhere. */
static char *own_digest(char *text) {
    char *at = strstr(text, DIGEST_FIELD);
    if (!at) return NULL;
    at += strlen(DIGEST_FIELD);
    return strlen(at) >= DIGITS ? at : NULL;
}

/* ---- writing ----------------------------------------------------------------------------------
 */

/* Adds the digests of all files below folder/below ("" or "adapter/"). */
static bool list_files(const char *folder, const char *below, json_t *files, Error *e) {
    char *path = xprintf("%s/%s", folder, below);
    struct dirent **entries = NULL;
    int n = scandir(path, &entries, NULL, alphasort);
    bool ok = n >= 0 || error_set(e, EXIT_WORLD, "%.300s: cannot be read", path);
    for (int i = 0; i < n; i++) {
        char *name = xprintf("%s%s", below, entries[i]->d_name);
        char *file = xprintf("%s/%s", folder, name), *inner = xprintf("%s/", name);
        char digest[CHECKPOINT_DIGEST_CHARS];
        struct stat info;
        if (ok && entries[i]->d_name[0] != '.' && !stat(file, &info)) {
            if (S_ISDIR(info.st_mode))
                ok = list_files(folder, inner, files, e);
            else if ((ok = digest_file(file, digest, e)))
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

bool manifest_write(const char *folder, const Position *at, int world, int zero, Error *e) {
    json_t *files = json_object();
    bool ok = list_files(folder, "", files, e);
    json_t *j = json_pack("{s:s, s:i, s:I, s:I, s:I, s:s, s:i, s:i, s:o}", "xxh3", NO_DIGEST,
                          "cogsmith_checkpoint", 1, "step", (json_int_t)at->step, "samples",
                          (json_int_t)at->samples, "global_batch", (json_int_t)at->global_batch,
                          "dataset", at->dataset, "world", world, "zero", zero, "files", files);
    CHECK(j, "checkpoint: JSON");
    char *text = json_dumps(j, JSON_INDENT(2)), *path = xprintf("%s/manifest.json", folder);
    char digest[CHECKPOINT_DIGEST_CHARS];
    digest_text(text, digest);
    memcpy(own_digest(text), digest, DIGITS);
    ok = ok && whole_text(path, text, e);
    free(path);
    free(text);
    json_decref(j);
    return ok;
}

/* ---- reading ----------------------------------------------------------------------------------
 */

static bool damaged(const char *path, const char *what, Error *e) {
    return error_set(e, EXIT_USER, "%.300s: %s. The checkpoint is damaged: use another one.", path,
                     what);
}

static char *read_text(const char *path, Error *e) {
    FILE *f = fopen(path, "rb");
    char *text = xcalloc(MAX_MANIFEST, 1);
    size_t n = f ? fread(text, 1, MAX_MANIFEST - 1, f) : 0;
    bool ok = f && !ferror(f) && n > 0 && strlen(text) == n;
    if (f) fclose(f);
    if (ok) return text;
    free(text);
    damaged(path, f ? "cannot be read as text" : "is not there", e);
    return NULL;
}

static json_t *manifest_read(const char *folder, Error *e) {
    char *path = xprintf("%s/manifest.json", folder), *text = read_text(path, e);
    char *at = text ? own_digest(text) : NULL, stated[CHECKPOINT_DIGEST_CHARS] = "",
         digest[CHECKPOINT_DIGEST_CHARS];
    json_t *j = NULL;
    if (text && !at) damaged(path, "has no digest", e);
    if (at) {
        memcpy(stated, at, DIGITS);
        memcpy(at, NO_DIGEST, DIGITS);
        digest_text(text, digest);
        if (strcmp(stated, digest))
            damaged(path, "is not the text that was written", e);
        else if (!(j = json_loads(text, JSON_REJECT_DUPLICATES, NULL)))
            damaged(path, "is not JSON", e);
    }
    free(text);
    free(path);
    return j;
}

static bool read_position(json_t *j, const char *folder, Position *at, Error *e) {
    json_int_t step, samples, global;
    const char *dataset;
    int version;
    if (json_unpack(j, "{s:i, s:I, s:I, s:I, s:s}", "cogsmith_checkpoint", &version, "step", &step,
                    "samples", &samples, "global_batch", &global, "dataset", &dataset) ||
        strlen(dataset) != DIGITS)
        return damaged(folder, "manifest.json: a field is missing", e);
    if (version != 1)
        return error_set(e, EXIT_USER,
                         "%.300s: is of version %d, and this program reads version 1. Use the "
                         "program that wrote it, or a newer one.",
                         folder, version);
    *at = (Position){.step = step, .samples = samples, .global_batch = global};
    snprintf(at->dataset, sizeof at->dataset, "%s", dataset);
    return true;
}

bool checkpoint_position(const char *path, Position *position, Error *e) {
    json_t *j = manifest_read(path, e);
    bool ok = j && read_position(j, path, position, e);
    json_decref(j);
    return ok;
}

static bool verify_file(const char *folder, const char *name, json_t *about, Error *e) {
    char *path = xprintf("%s/%s", folder, name), digest[CHECKPOINT_DIGEST_CHARS];
    const char *stated;
    json_int_t bytes;
    struct stat info;
    bool ok = true;
    if (json_unpack(about, "{s:I, s:s}", "bytes", &bytes, "xxh3", &stated))
        ok = damaged(folder, "manifest.json: a file's entry is not complete", e);
    else if (stat(path, &info))
        ok = damaged(path, "is not there", e);
    else if (info.st_size != bytes)
        ok = damaged(path, "has not the size that was written", e);
    else
        ok = digest_file(path, digest, e) &&
             (!strcmp(digest, stated) || damaged(path, "has not the bytes that were written", e));
    free(path);
    return ok;
}

bool checkpoint_verify(const char *path, Position *position, Error *e) {
    json_t *j = manifest_read(path, e), *about;
    bool ok = j && read_position(j, path, position, e);
    const char *name;
    json_object_foreach(json_object_get(j, "files"), name, about) if (ok) ok =
        verify_file(path, name, about, e);
    json_decref(j);
    return ok;
}

/* ---- a folder of them -------------------------------------------------------------------------
 */

char *checkpoint_path(const char *folder, int64_t step) {
    return xprintf("%s/step-%06lld", folder, (long long)step);
}

static int newest_first(const void *x, const void *y) {
    int64_t a = *(const int64_t *)x, b = *(const int64_t *)y;
    return (a < b) - (a > b);
}

int64_t *checkpoint_list(const char *folder, int *n) {
    int64_t *steps = NULL;
    DIR *d = opendir(folder);
    *n = 0;
    for (struct dirent *entry; d && (entry = readdir(d));) {
        const char *digits = entry->d_name + strlen("step-");
        if (strncmp(entry->d_name, "step-", strlen("step-")) || !*digits ||
            digits[strspn(digits, "0123456789")] || strlen(digits) > 15)
            continue;
        steps = xrealloc(steps, (size_t)(*n + 1) * sizeof *steps);
        int64_t step = atoll(digits);
        char *name = checkpoint_path("", step);
        if (!strcmp(name + 1, entry->d_name)) steps[(*n)++] = step;
        free(name);
    }
    if (d) closedir(d);
    if (*n) qsort(steps, (size_t)*n, sizeof *steps, newest_first);
    return steps;
}
