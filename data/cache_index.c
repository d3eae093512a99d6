/* Owns the index file, its hash table, and the files of parts as files. */
#define _GNU_SOURCE
#include "data/cache_index.h"

#include "data/whole.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char NAME[] = "index.jsonl";
static const char *const KINDS[CACHE_KINDS] = {
    [CACHE_LATENTS] = "latents", [CACHE_EMBEDDING] = "embedding", [CACHE_IMAGE] = "image"};

static bool damaged(const char *path, int line, const char *what, Error *e) {
    return error_set(
        e, EXIT_DATA,
        "%.600s:%d: %s: the cache's index is damaged. Remove it, and prepare again adds "
        "the parts that are whole",
        path, line, what);
}

/* ---- entries ----------------------------------------------------------------------------------
 */

static unsigned slot_of(const CacheIndex *x, CacheKind kind, const char *key) {
    unsigned h = 2166136261u + (unsigned)kind;
    for (; *key; key++) h = (h ^ (unsigned char)*key) * 16777619u;
    return h % (unsigned)x->n_slots;
}

static void insert_slot(CacheIndex *x, int i) {
    const CacheEntry *n = &x->records[i]->entry;
    unsigned s = slot_of(x, n->kind, n->key);
    while (x->slots[s]) s = (s + 1) % (unsigned)x->n_slots;
    x->slots[s] = i + 1;
}

/* Rebuilds the table; it is never more than half full. */
static void rebuild_slots(CacheIndex *x) {
    x->n_slots = MAX(64, 4 * x->n_entries);
    free(x->slots);
    x->slots = xcalloc((size_t)x->n_slots, sizeof *x->slots);
    for (int i = 0; i < x->n_entries; i++) insert_slot(x, i);
}

int cache_index_find(const CacheIndex *x, CacheKind kind, const char *key) {
    if (!x->n_slots) return -1;
    for (unsigned s = slot_of(x, kind, key); x->slots[s]; s = (s + 1) % (unsigned)x->n_slots) {
        const CacheEntry *n = &x->records[x->slots[s] - 1]->entry;
        if (n->kind == kind && !strcmp(n->key, key)) return x->slots[s] - 1;
    }
    return -1;
}

static const char *copy_text(const char *s) { return s ? xstrdup(s) : NULL; }

static char *group_of(const CacheEntry *entry) {
    const int64_t *s = entry->shape;
    if (entry->kind == CACHE_EMBEDDING)
        return xprintf("/embeddings/%lldx%lld", (long long)s[0], (long long)s[1]);
    if (entry->kind == CACHE_IMAGE)
        return xprintf("/images/%lldx%lldx%lld", (long long)s[0], (long long)s[1], (long long)s[2]);
    return xprintf("/latents/%lldx%lldx%lldx%lld", (long long)s[0], (long long)s[1],
                   (long long)s[2], (long long)s[3]);
}

CacheRecord *cache_index_add(CacheIndex *x, const CacheEntry *entry) {
    CacheRecord *r = xcalloc(1, sizeof *r);
    *r = (CacheRecord){.entry = *entry, .part = -1};
    r->entry.source = copy_text(entry->source);
    r->entry.caption = copy_text(entry->caption);
    r->entry.embedding = copy_text(entry->embedding);
    r->group = group_of(entry);
    x->records = xrealloc(x->records, (size_t)(x->n_entries + 1) * sizeof *x->records);
    x->records[x->n_entries++] = r;
    if (2 * x->n_entries > x->n_slots)
        rebuild_slots(x);
    else
        insert_slot(x, x->n_entries - 1);
    return r;
}

static void free_record(CacheRecord *r) {
    free((char *)r->entry.source);
    free((char *)r->entry.caption);
    free((char *)r->entry.embedding);
    free(r->group);
    free(r);
}

void cache_index_truncate(CacheIndex *x, int first) {
    while (x->n_entries > first) free_record(x->records[--x->n_entries]);
    rebuild_slots(x);
}

bool cache_index_drop_missing(CacheIndex *x, const char *folder) {
    int parts = 0, entries = 0, *moved = xcalloc((size_t)x->n_parts + 1, sizeof *moved);
    for (int i = 0; i < x->n_parts; i++) {
        char *path = xprintf("%s/%s", folder, x->parts[i].file);
        bool there = !access(path, F_OK);
        free(path);
        moved[i] = there ? parts : -1;
        if (there)
            x->parts[parts++] = x->parts[i];
        else
            free(x->parts[i].file);
    }
    for (int i = 0; i < x->n_entries; i++) {
        CacheRecord *r = x->records[i];
        r->part = moved[r->part];
        if (r->part >= 0)
            x->records[entries++] = r;
        else
            free_record(r);
    }
    bool dropped = parts < x->n_parts;
    x->n_parts = parts;
    x->n_entries = entries;
    rebuild_slots(x);
    free(moved);
    return dropped;
}

void cache_index_free(CacheIndex *x) {
    for (int i = 0; i < x->n_entries; i++) free_record(x->records[i]);
    for (int i = 0; i < x->n_parts; i++) free(x->parts[i].file);
    free(x->records);
    free(x->parts);
    free(x->slots);
    *x = (CacheIndex){0};
}

/* ---- lines ------------------------------------------------------------------------------------
 */

static void set_text(json_t *j, const char *key, const char *value) {
    if (value) json_object_set_new(j, key, json_string(value));
}

static char *entry_line(const CacheRecord *r) {
    const CacheEntry *n = &r->entry;
    json_t *j = json_pack("{s:s, s:s, s:s, s:I, s:s, s:[I,I,I,I]}", "kind", KINDS[n->kind], "key",
                          n->key, "group", r->group, "row", (json_int_t)r->row, "digest", r->digest,
                          "shape", (json_int_t)n->shape[0], (json_int_t)n->shape[1],
                          (json_int_t)n->shape[2], (json_int_t)n->shape[3]);
    CHECK(j, "cache: entry %s", n->key);
    set_text(j, "source", n->source);
    set_text(j, "caption", n->caption);
    set_text(j, "embedding", n->embedding);
    if (n->kind != CACHE_EMBEDDING) {
        json_object_set_new(j, "first_frame", json_integer(n->first_frame));
        json_object_set_new(j, "frames", json_integer(n->frames));
    }
    if (n->kind == CACHE_IMAGE) json_object_set_new(j, "variant", json_integer(n->variant));
    char *line = json_dumps(j, JSON_COMPACT);
    json_decref(j);
    return line;
}

char *cache_index_entries_text(const CacheIndex *x, int first) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    for (int i = first; i < x->n_entries; i++) {
        char *line = entry_line(x->records[i]);
        fprintf(out, "%s\n", line);
        free(line);
    }
    fclose(out);
    return text;
}

static bool read_entry(CacheIndex *x, const json_t *j, int part) {
    CacheEntry n = {0};
    const char *kind, *key, *digest, *group;
    json_int_t row, s[4], first = 0, frames = 0, variant = 0;
    if (json_unpack(
            (json_t *)j, "{s:s, s:s, s:s, s:I, s:s, s:[I,I,I,I], s?I, s?I, s?I, s?s, s?s, s?s}",
            "kind", &kind, "key", &key, "group", &group, "row", &row, "digest", &digest, "shape",
            &s[0], &s[1], &s[2], &s[3], "first_frame", &first, "frames", &frames, "variant",
            &variant, "source", &n.source, "caption", &n.caption, "embedding", &n.embedding))
        return false;
    while (n.kind < CACHE_KINDS && strcmp(kind, KINDS[n.kind])) n.kind++;
    if (n.kind == CACHE_KINDS || strlen(key) != CACHE_KEY_CHARS - 1 ||
        strlen(digest) != CACHE_KEY_CHARS - 1)
        return false;
    int64_t elements = 1;
    for (int i = 0; i < 4; i++) {
        if (s[i] < 1 || s[i] > 1 << 20 || elements * s[i] > (int64_t)1 << 34) return false;
        n.shape[i] = s[i];
        elements *= s[i];
    }
    memcpy(n.key, key, CACHE_KEY_CHARS);
    n.first_frame = first;
    n.frames = frames;
    n.variant = variant;
    if (cache_index_find(x, n.kind, n.key) >= 0) return true; /* of two parts the first stands */
    CacheRecord *r = cache_index_add(x, &n);
    r->part = part;
    r->row = row;
    memcpy(r->digest, digest, CACHE_KEY_CHARS);
    return !strcmp(group, r->group);
}

static void add_part(CacheIndex *x, const char *file, int64_t bytes, const char *digest) {
    x->parts = xrealloc(x->parts, (size_t)(x->n_parts + 1) * sizeof *x->parts);
    CachePart *p = &x->parts[x->n_parts++];
    *p = (CachePart){.file = xstrdup(file), .bytes = bytes};
    snprintf(p->digest, sizeof p->digest, "%s", digest);
}

static bool is_part_name(const char *name) {
    int number, length = 0;
    return sscanf(name, "part-%6d.h5%n", &number, &length) == 1 && length == 14 &&
           strlen(name) == 14;
}

/* A line of a part or of an entry of the last part. */
static bool read_line(CacheIndex *x, const char *line, size_t n) {
    json_t *j = json_loadb(line, n, JSON_REJECT_DUPLICATES, NULL);
    const char *file, *digest;
    json_int_t bytes = 0;
    bool ok;
    if (!json_unpack(j, "{s:s, s:I, s:s}", "file", &file, "bytes", &bytes, "xxh3", &digest)) {
        ok = is_part_name(file) && strlen(digest) == CACHE_KEY_CHARS - 1 && bytes >= 0;
        if (ok) add_part(x, file, bytes, digest);
    } else
        ok = x->n_parts && read_entry(x, j, x->n_parts - 1);
    json_decref(j);
    return ok;
}

/* Every line of text; returns the number of the first bad one, or 0. */
static int read_lines(CacheIndex *x, const char *text) {
    for (int line = 1; *text; line++) {
        size_t n = strcspn(text, "\n");
        if (!read_line(x, text, n)) return line;
        text += n + (text[n] == '\n');
    }
    return 0;
}

/* ---- the index file ---------------------------------------------------------------------------
 */

static char *read_text(const char *path, Error *e) {
    FILE *in = fopen(path, "r");
    if (!in) {
        error_set(e, EXIT_WORLD, "%.600s: %s", path, strerror(errno));
        return NULL;
    }
    struct stat info;
    char *text = NULL;
    if (!fstat(fileno(in), &info) && info.st_size < INT32_MAX) {
        text = xcalloc((size_t)info.st_size + 1, 1);
        text[fread(text, 1, (size_t)info.st_size, in)] = 0;
    } else
        error_set(e, EXIT_DATA, "%.600s: not an index", path);
    fclose(in);
    return text;
}

static void digest_text(const char *text, char digest[CACHE_KEY_CHARS]) {
    CacheKey *k = cache_key_open("index");
    cache_key_bytes(k, text, strlen(text));
    cache_key_close(k, digest);
}

bool cache_index_read(CacheIndex *x, const char *folder, Error *e) {
    *x = (CacheIndex){0};
    char *path = xprintf("%s/%s", folder, NAME);
    if (access(path, F_OK)) {
        free(path);
        return true;
    }
    char *text = read_text(path, e), found[CACHE_KEY_CHARS];
    bool ok = text != NULL;
    if (ok) {
        size_t head = strcspn(text, "\n");
        json_t *j = json_loadb(text, head, JSON_REJECT_DUPLICATES, NULL);
        const char *rest = text + head + (text[head] == '\n'), *digest;
        int version;
        if (json_unpack(j, "{s:i, s:s}", "cogsmith_cache", &version, "xxh3", &digest) ||
            version != 1)
            ok = damaged(path, 1, "not the first line of a cache index", e);
        digest_text(rest, found);
        if (ok && strcmp(found, digest)) ok = damaged(path, 1, "its digest does not agree", e);
        json_decref(j);
        int bad = ok ? read_lines(x, rest) : 0;
        if (bad) ok = damaged(path, bad + 1, "not a part or an entry", e);
    }
    free(text);
    free(path);
    return ok;
}

bool cache_index_write(const CacheIndex *x, const char *folder, Error *e) {
    char *text = NULL, digest[CACHE_KEY_CHARS];
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    for (int p = 0; p < x->n_parts; p++) {
        fprintf(out, "{\"file\":\"%s\",\"bytes\":%lld,\"xxh3\":\"%s\"}\n", x->parts[p].file,
                (long long)x->parts[p].bytes, x->parts[p].digest);
        for (int i = 0; i < x->n_entries; i++) {
            if (x->records[i]->part != p) continue;
            char *line = entry_line(x->records[i]);
            fprintf(out, "%s\n", line);
            free(line);
        }
    }
    fclose(out);
    digest_text(text, digest);
    char *path = xprintf("%s/%s", folder, NAME);
    char *whole = xprintf("{\"cogsmith_cache\":1,\"xxh3\":\"%s\"}\n%s", digest, text);
    bool ok = whole_text(path, whole, e);
    free(whole);
    free(path);
    free(text);
    return ok;
}

/* ---- parts as files ---------------------------------------------------------------------------
 */

bool cache_index_has_part(const CacheIndex *x, const char *file) {
    for (int i = 0; i < x->n_parts; i++)
        if (!strcmp(x->parts[i].file, file)) return true;
    return false;
}

char *cache_part_name(int number) { return xprintf("part-%06d.h5", number); }

int cache_index_next_part(const CacheIndex *x) {
    int most = 0, number;
    for (int i = 0; i < x->n_parts; i++)
        if (sscanf(x->parts[i].file, "part-%6d", &number) == 1) most = MAX(most, number);
    return most + 1;
}

static bool part_digest(const char *path, int64_t *bytes, char digest[CACHE_KEY_CHARS], Error *e) {
    struct stat info;
    if (stat(path, &info))
        return error_set(e, EXIT_DATA, "%.600s: %s. Run prepare again", path, strerror(errno));
    *bytes = info.st_size;
    CacheKey *k = cache_key_open("part");
    bool ok = cache_key_file(k, path, e);
    cache_key_close(k, digest);
    return ok;
}

static bool register_part(CacheIndex *x, const char *folder, const char *file, Error *e) {
    char *path = xprintf("%s/%s", folder, file), digest[CACHE_KEY_CHARS];
    int64_t bytes = 0;
    bool ok = part_digest(path, &bytes, digest, e);
    if (ok) add_part(x, file, bytes, digest);
    free(path);
    return ok;
}

static bool sync_path(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC);
    bool ok = fd >= 0 && !fsync(fd);
    if (fd >= 0) close(fd);
    return ok;
}

bool cache_index_add_part(CacheIndex *x, const char *folder, const char *temporary,
                          const char *file, int first, Error *e) {
    char *path = xprintf("%s/%s", folder, file);
    bool ok = sync_path(temporary, O_RDONLY) && !rename(temporary, path) &&
              sync_path(folder, O_RDONLY | O_DIRECTORY);
    if (!ok) error_set(e, EXIT_WORLD, "%.600s: %s", path, strerror(errno));
    ok = ok && register_part(x, folder, file, e);
    for (int i = first; ok && i < x->n_entries; i++) x->records[i]->part = x->n_parts - 1;
    free(path);
    return ok;
}

bool cache_index_adopt(CacheIndex *x, const char *folder, const char *file, const char *text,
                       Error *e) {
    int bad;
    if (!register_part(x, folder, file, e)) return false;
    if (!(bad = read_lines(x, text))) return true;
    return error_set(e, EXIT_DATA, "%.500s/%s: entry %d is damaged. Remove the file", folder, file,
                     bad);
}

bool cache_index_verify_part(const CacheIndex *x, const char *folder, int part, Error *e) {
    const CachePart *p = &x->parts[part];
    char *path = xprintf("%s/%s", folder, p->file), digest[CACHE_KEY_CHARS];
    int64_t bytes = 0;
    bool ok = part_digest(path, &bytes, digest, e);
    if (ok && (bytes != p->bytes || strcmp(digest, p->digest)))
        ok = error_set(
            e, EXIT_DATA,
            "%.600s: the file does not agree with its digest: it is damaged. Remove it and "
            "run prepare again",
            path);
    free(path);
    return ok;
}

/* What a killed process left of the index, or of data/cache_files.c's memory. */
static bool is_temporary(const char *name) {
    return !strncmp(name, "index.jsonl.tmp", 15) || !strncmp(name, "files.jsonl.tmp", 15);
}

int cache_folder_parts(const char *folder, char ***names) {
    int n = 0;
    *names = NULL;
    DIR *dir = opendir(folder);
    for (struct dirent *d; dir && (d = readdir(dir));) {
        char stem[15] = {0};
        memcpy(stem, d->d_name, strnlen(d->d_name, sizeof stem - 1));
        if (!is_part_name(stem) && !is_temporary(d->d_name)) continue;
        *names = xrealloc(*names, (size_t)(n + 1) * sizeof **names);
        (*names)[n++] = xstrdup(d->d_name);
    }
    if (dir) closedir(dir);
    return n;
}
