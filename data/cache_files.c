/* Owns the memory of files: files.jsonl, what is in it, and when it may be believed. */
#define _GNU_SOURCE
#include "data/cache_files.h"

#include "data/cache_index.h"
#include "data/whole.h"
#include "kernels/comm.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    SAID_BYTES = 1 << 30, /* files as large as this take a while, which is said */
    MAX_BYTES = 1 << 30,  /* of the memory */
    SAMPLES = 256,        /* of a folder: some seconds on a disk that seeks */
};
static const int64_t SETTLED = 1000000000; /* ns */

struct CacheFiles {
    char *path;
    pthread_mutex_t lock; /* over the JSON */
    json_t *files;        /* by absolute path: the state of the file, "digest", "video" */
    json_t *bad;          /* by key: why */
    json_t *session;      /* by absolute path: the state when its digest was given */
    bool changed;
};

/* ---- the file ---------------------------------------------------------------------------------
 */

static void digest_of(const char *text, char digest[CACHE_KEY_CHARS]) {
    CacheKey *k = cache_key_open("files");
    cache_key_bytes(k, text, strlen(text));
    cache_key_close(k, digest);
}

/* The second line of the file as JSON; NULL: there is none that can be believed. */
static json_t *read_memory(const char *path) {
    FILE *in = fopen(path, "r");
    struct stat info;
    if (!in) return NULL;
    json_t *all = NULL, *head;
    if (!fstat(fileno(in), &info) && info.st_size < MAX_BYTES) {
        char *text = xcalloc((size_t)info.st_size + 1, 1), found[CACHE_KEY_CHARS];
        const char *digest;
        int version;
        text[fread(text, 1, (size_t)info.st_size, in)] = 0;
        size_t n = strcspn(text, "\n");
        const char *rest = text + n + (text[n] == '\n');
        digest_of(rest, found);
        head = json_loadb(text, n, 0, NULL);
        if (!json_unpack(head, "{s:i, s:s}", "cogsmith_files", &version, "xxh3", &digest) &&
            version == 1 && !strcmp(found, digest))
            all = json_loads(rest, 0, NULL);
        json_decref(head);
        free(text);
    }
    fclose(in);
    return all;
}

static json_t *part_of(const json_t *all, const char *name) {
    json_t *part = json_object_get(all, name);
    return json_is_object(part) ? json_incref(part) : json_object();
}

CacheFiles *cache_files_open(const char *folder) {
    CacheFiles *f = xcalloc(1, sizeof *f);
    f->path = xprintf("%s/files.jsonl", folder);
    pthread_mutex_init(&f->lock, NULL);
    json_t *all = read_memory(f->path);
    f->files = part_of(all, "files");
    f->bad = part_of(all, "bad");
    f->session = json_object();
    json_decref(all);
    return f;
}

void cache_files_close(CacheFiles *f) {
    if (!f) return;
    json_decref(f->files);
    json_decref(f->bad);
    json_decref(f->session);
    pthread_mutex_destroy(&f->lock);
    free(f->path);
    free(f);
}

bool cache_files_save(CacheFiles *f, Error *e) {
    pthread_mutex_lock(&f->lock);
    bool ok = true;
    if (f->changed) {
        json_t *all = json_pack("{s:O, s:O}", "files", f->files, "bad", f->bad);
        char *rest = json_dumps(all, JSON_COMPACT), digest[CACHE_KEY_CHARS];
        digest_of(rest, digest);
        char *text = xprintf("{\"cogsmith_files\":1,\"xxh3\":\"%s\"}\n%s", digest, rest);
        ok = whole_text(f->path, text, e);
        f->changed = !ok;
        free(text);
        free(rest);
        json_decref(all);
    }
    pthread_mutex_unlock(&f->lock);
    return ok;
}

/* ---- the state of a file ----------------------------------------------------------------------
 */

static json_int_t nanoseconds(struct timespec t) {
    return (json_int_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* What must stay the same; NULL: the file is not there. The caller ends it with json_decref. */
static json_t *state_of(const char *path) {
    struct stat s;
    if (stat(path, &s)) return NULL;
    return json_pack("[I,I,I,I,I]", (json_int_t)s.st_dev, (json_int_t)s.st_ino,
                     (json_int_t)s.st_size, nanoseconds(s.st_mtim), nanoseconds(s.st_ctim));
}

/* Whether a later change would show in the times. */
static bool settled(const json_t *state) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return nanoseconds(now) - json_integer_value(json_array_get(state, 4)) > SETTLED;
}

/* What is remembered of a file in this state, borrowed; NULL: nothing. With the lock. */
static json_t *recall(const CacheFiles *f, const char *name, const json_t *state) {
    json_t *known = json_object_get(f->files, name);
    return known && json_equal(json_object_get(known, "state"), state) ? known : NULL;
}

/* ---- digests ----------------------------------------------------------------------------------
 */

static bool digest_file(const char *path, const json_t *state, char digest[CACHE_KEY_CHARS],
                        Error *e) {
    int64_t bytes = json_integer_value(json_array_get(state, 2));
    if (bytes >= SAID_BYTES && !comm_world_rank())
        fprintf(stderr, "cogsmith: %s: taking the digest of %.1f GiB, which is remembered\n", path,
                (double)bytes / (1 << 30));
    CacheKey *k = cache_key_open("bytes");
    bool ok = cache_key_file(k, path, e);
    cache_key_close(k, digest);
    return ok;
}

static void remember(CacheFiles *f, const char *name, json_t *state, const char *digest) {
    json_object_set(f->session, name, state);
    if (recall(f, name, state)) return;
    f->changed = true;
    if (settled(state))
        json_object_set_new(f->files, name,
                            json_pack("{s:O, s:s}", "state", state, "digest", digest));
    else
        json_object_del(f->files, name);
}

bool cache_files_digest(CacheFiles *f, const char *path, char digest[CACHE_KEY_CHARS], Error *e) {
    char *name = realpath(path, NULL);
    json_t *state = name ? state_of(name) : NULL;
    if (!state) {
        free(name);
        return error_set(e, EXIT_DATA, "%.900s: cannot be read: %s.", path, strerror(errno));
    }
    pthread_mutex_lock(&f->lock);
    const char *known = json_string_value(json_object_get(recall(f, name, state), "digest"));
    bool ok = known && strlen(known) == CACHE_KEY_CHARS - 1;
    if (ok) {
        memcpy(digest, known, CACHE_KEY_CHARS);
        json_object_set(f->session, name, state);
    }
    pthread_mutex_unlock(&f->lock);
    if (!ok && (ok = digest_file(path, state, digest, e))) {
        pthread_mutex_lock(&f->lock);
        remember(f, name, state, digest);
        pthread_mutex_unlock(&f->lock);
    }
    json_decref(state);
    free(name);
    return ok;
}

bool cache_files_unchanged(CacheFiles *f, const char *path) {
    char *name = realpath(path, NULL);
    json_t *state = name ? state_of(name) : NULL;
    pthread_mutex_lock(&f->lock);
    bool same = state && json_equal(json_object_get(f->session, name), state);
    pthread_mutex_unlock(&f->lock);
    json_decref(state);
    free(name);
    return same;
}

static int counts(const struct dirent *d) {
    const char *dot = strrchr(d->d_name, '.');
    return d->d_name[0] != '.' && dot &&
           (!strcmp(dot, ".safetensors") || !strcmp(dot, ".json") || !strcmp(dot, ".model"));
}

/* The files of a component; -1: *e says why there are none. */
static int list_component(const char *folder, struct dirent ***names, Error *e) {
    int n = scandir(folder, names, counts, alphasort);
    if (n < 0) error_set(e, EXIT_USER, "%.900s: %s", folder, strerror(errno));
    return n;
}

bool cache_files_sample_folder(const char *folder, char digest[CACHE_KEY_CHARS], Error *e) {
    struct dirent **names;
    int n = list_component(folder, &names, e);
    if (n < 0) return false;
    CacheKey *k = cache_key_open("samples of a folder");
    bool ok = true;
    for (int i = 0; i < n; i++) {
        char *path = xprintf("%s/%s", folder, names[i]->d_name);
        cache_key_text(k, "file", names[i]->d_name);
        ok = ok && cache_key_sample(k, path, MAX(1, SAMPLES / n), e);
        free(path);
        free(names[i]);
    }
    free(names);
    cache_key_close(k, digest);
    return ok;
}

bool cache_files_digest_folder(CacheFiles *f, const char *folder, char digest[CACHE_KEY_CHARS],
                               Error *e) {
    struct dirent **names;
    int n = list_component(folder, &names, e);
    if (n < 0) return false;
    CacheKey *k = cache_key_open("folder");
    bool ok = true;
    for (int i = 0; i < n; i++) {
        char *path = xprintf("%s/%s", folder, names[i]->d_name), one[CACHE_KEY_CHARS];
        ok = ok && cache_files_digest(f, path, one, e);
        if (ok) cache_key_text(k, names[i]->d_name, one);
        free(path);
        free(names[i]);
    }
    free(names);
    cache_key_close(k, digest);
    return ok;
}

/* ---- clips ------------------------------------------------------------------------------------
 */

/* The remembered probe of a file in its present state. */
static bool recall_probe(CacheFiles *f, const char *name, const json_t *state, VideoInfo *info) {
    *info = (VideoInfo){0};
    json_int_t frames = 0, width = 0, height = 0;
    int hdr = 0;
    pthread_mutex_lock(&f->lock);
    json_t *video = json_object_get(recall(f, name, state), "video");
    bool known = video && !json_unpack(video, "[f,f,f,I,I,I,i]", &info->seconds, &info->last_second,
                                       &info->fps, &frames, &width, &height, &hdr);
    pthread_mutex_unlock(&f->lock);
    info->frames = frames, info->width = width, info->height = height, info->hdr = hdr;
    return known && info->seconds >= info->last_second && info->last_second >= 0;
}

static void remember_probe(CacheFiles *f, const char *name, const json_t *state,
                           const VideoInfo *i) {
    pthread_mutex_lock(&f->lock);
    json_t *known = recall(f, name, state);
    if (known) {
        json_object_set_new(known, "video",
                            json_pack("[f,f,f,I,I,I,i]", i->seconds, i->last_second, i->fps,
                                      (json_int_t)i->frames, (json_int_t)i->width,
                                      (json_int_t)i->height, (int)i->hdr));
        f->changed = true;
    }
    pthread_mutex_unlock(&f->lock);
}

bool cache_files_probe(CacheFiles *f, const char *path, VideoReader **reader, VideoInfo *info,
                       Error *e) {
    char *name = realpath(path, NULL);
    json_t *state = name ? state_of(name) : NULL;
    bool ok = state && recall_probe(f, name, state, info);
    if (!ok) {
        if (!*reader) *reader = video_reader_open(NULL, e);
        ok = *reader && video_probe(*reader, path, info, e);
        if (ok && state) remember_probe(f, name, state, info);
    }
    json_decref(state);
    free(name);
    return ok;
}

/* ---- what could not be made -------------------------------------------------------------------
 */

char *cache_files_bad(CacheFiles *f, const char *key) {
    pthread_mutex_lock(&f->lock);
    const char *why = json_string_value(json_object_get(f->bad, key));
    char *copy = why ? xstrdup(why) : NULL;
    pthread_mutex_unlock(&f->lock);
    return copy;
}

void cache_files_set_bad(CacheFiles *f, const char *key, const char *why) {
    pthread_mutex_lock(&f->lock);
    f->changed |= why || json_object_get(f->bad, key);
    if (why)
        json_object_set_new(f->bad, key, json_string(why));
    else
        json_object_del(f->bad, key);
    pthread_mutex_unlock(&f->lock);
}
