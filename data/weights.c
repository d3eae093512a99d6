/* Owns finding a component's files, the rules of a shard index, and the joint table of tensors. */
#define _GNU_SOURCE
#include "data/weights.h"

#include "data/json.h"
#include "data/nearest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const STEMS[] = {"diffusion_pytorch_model", "model", "pytorch_lora_weights",
                                    "adapter_model"};
static const char *const ENDINGS[] = {".safetensors.index.json", ".safetensors"};

/* A component's folder while it is opened. */
typedef struct {
    int fd;
    const char *path;
} Folder;

/* One line of weight_map. */
typedef struct {
    const char *tensor, *shard;
} IndexEntry;

typedef struct {
    Json json; /* owns the names */
    IndexEntry *entries;
    size_t n; /* by tensor name */
} Index;

static int by_tensor(const void *a, const void *b) {
    return strcmp(((const IndexEntry *)a)->tensor, ((const IndexEntry *)b)->tensor);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const SafetensorsTensor *)a)->name, ((const SafetensorsTensor *)b)->name);
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static const char *file_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* ^[A-Za-z0-9._-]+\.safetensors$ */
static bool is_shard_name(const char *name) {
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t n = strlen(name), ending = strlen(".safetensors");
    return n > ending && !strcmp(name + n - ending, ".safetensors") && strspn(name, letters) == n;
}

/* Opens a plain file of the folder, whatever its name holds: no other folder can be reached. */
static int open_inside(const Folder *folder, const char *name, Error *e) {
    CHECK(!strchr(name, '/'), "%s", name);
    int fd = openat(folder->fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd >= 0) return fd;
    if (errno == ELOOP)
        error_set(e, EXIT_USER,
                  "%.300s/%.200s: is a symbolic link, and a model folder's links are not followed. "
                  "Copy the folder with `cp -rL`, or download it with `--local-dir`.",
                  folder->path, name);
    else
        error_set(e, EXIT_USER,
                  "%.300s/%.200s: expected a file: %s. Download the folder again, or mend it.",
                  folder->path, name, strerror(errno));
    return -1;
}

static bool open_shard(Weights *w, const Folder *folder, const char *name, Error *e) {
    int fd = open_inside(folder, name, e);
    if (fd < 0) return false;
    char *path = xprintf("%s/%s", folder->path, name);
    bool ok = safetensors_open_fd(&w->shards[w->n_shards], fd, path, e);
    w->n_shards += ok;
    free(path);
    close(fd);
    return ok;
}

static bool take_entry(void *context, const char *tensor, const char *shard, Error *e) {
    Index *index = context;
    if (!is_shard_name(shard))
        return error_set(e, EXIT_USER,
                         "%.300s: \"%.120s\": expected a file of this folder such as "
                         "model-00001-of-00002.safetensors, got a name that could lead elsewhere. "
                         "Do not use this model, or fetch it from its publisher.",
                         index->json.path, tensor);
    if (!(index->n & (index->n - 1))) /* room for a power of two is full */
        index->entries = xrealloc(index->entries, MAX(2 * index->n, 1) * sizeof *index->entries);
    index->entries[index->n++] = (IndexEntry){tensor, shard};
    return true;
}

static bool index_read(Index *index, const Folder *folder, const char *name, Error *e) {
    *index = (Index){0};
    int fd = open_inside(folder, name, e);
    if (fd < 0) return false;
    char *path = xprintf("%s/%s", folder->path, name);
    Json map;
    bool ok = json_open_fd(&index->json, fd, path, e) &&
              json_require(&index->json, "weight_map", e) &&
              json_get_object(&index->json, "weight_map", &map, e) &&
              json_each_string(&map, take_entry, index, e);
    if (ok && index->n) qsort(index->entries, index->n, sizeof *index->entries, by_tensor);
    free(path);
    close(fd);
    return ok;
}

static void index_close(Index *index) {
    json_close(&index->json);
    free(index->entries);
}

static const IndexEntry *index_find(const Index *index, const char *tensor) {
    IndexEntry key = {.tensor = tensor};
    return index->n ? bsearch(&key, index->entries, index->n, sizeof key, by_tensor) : NULL;
}

/* Opens each shard that the index names, once, in the order of their names. */
static bool open_shards(Weights *w, const Folder *folder, const Index *index, Error *e) {
    const char **names = xcalloc(index->n, sizeof *names);
    for (size_t i = 0; i < index->n; i++) names[i] = index->entries[i].shard;
    qsort(names, index->n, sizeof *names, by_text);
    w->shards = xcalloc(index->n, sizeof *w->shards);
    bool ok = true;
    for (size_t i = 0; i < index->n && ok; i++)
        if (!i || strcmp(names[i], names[i - 1])) ok = open_shard(w, folder, names[i], e);
    free(names);
    return ok;
}

static const Safetensors *shard_named(const Weights *w, const char *name) {
    for (size_t i = 0; i < w->n_shards; i++)
        if (!strcmp(file_name(w->shards[i].path), name)) return &w->shards[i];
    return NULL;
}

/* A tensor of a shard must be in the index, and there under this shard. */
static bool check_tensor(const Weights *w, const Index *index, const Safetensors *shard,
                         const char *tensor, Error *e) {
    const IndexEntry *entry = index_find(index, tensor);
    if (!entry) {
        Nearest near = nearest_to(tensor);
        for (size_t i = 0; i < index->n; i++) nearest_offer(&near, index->entries[i].tensor);
        return error_set(
            e, EXIT_USER,
            "%.300s: holds the tensor \"%.120s\", which %.200s does not list%s%.120s%s."
            " Download the folder again, or mend the index.",
            shard->path, tensor, file_name(index->json.path),
            near.best ? " (the nearest is \"" : "", near.best ? near.best : "",
            near.best ? "\")" : "");
    }
    const char *name = file_name(shard->path);
    if (!strcmp(entry->shard, name)) return true;
    bool twice = safetensors_find(shard_named(w, entry->shard), tensor);
    return error_set(e, EXIT_USER,
                     twice ? "%.300s: tensor \"%.120s\" is in two files, %.200s and %.200s: "
                             "expected it in one. Download the folder again, or remove one."
                           : "%.300s: tensor \"%.120s\" is listed in %.200s, and lies in %.200s. "
                             "Download the folder again, or mend the index.",
                     index->json.path, tensor, entry->shard, name);
}

/* A tensor of the index must be in its shard. */
static bool check_entry(const Weights *w, const Index *index, const IndexEntry *entry, Error *e) {
    const Safetensors *shard = shard_named(w, entry->shard);
    if (safetensors_find(shard, entry->tensor)) return true;
    Nearest near = nearest_to(entry->tensor);
    for (size_t i = 0; i < shard->n_tensors; i++) nearest_offer(&near, shard->tensors[i].name);
    return error_set(e, EXIT_USER,
                     "%.300s: lists the tensor \"%.120s\", which %.200s does not hold%s%.120s%s. "
                     "Download the folder again, or mend the index.",
                     index->json.path, entry->tensor, entry->shard,
                     near.best ? " (the nearest is \"" : "", near.best ? near.best : "",
                     near.best ? "\")" : "");
}

/* metadata.total_size is optional, and some writers made it a float. */
static bool check_total(const Weights *w, const Index *index, Error *e) {
    Json metadata;
    double listed = -1, total = 0;
    if (!json_get_object(&index->json, "metadata", &metadata, e) ||
        !json_get_double(&metadata, "total_size", &listed, e))
        return false;
    for (size_t i = 0; i < w->n_shards; i++)
        for (size_t k = 0; k < w->shards[i].n_tensors; k++)
            total += (double)w->shards[i].tensors[k].bytes;
    if (!json_has(&metadata, "total_size") || listed == total) return true;
    return error_set(e, EXIT_USER,
                     "%.300s: metadata.total_size is %.0f, and the tensors have %.0f bytes. "
                     "Download the folder again, or mend the index.",
                     index->json.path, listed, total);
}

static bool check_index(const Weights *w, const Index *index, Error *e) {
    for (size_t i = 0; i < w->n_shards; i++)
        for (size_t k = 0; k < w->shards[i].n_tensors; k++)
            if (!check_tensor(w, index, &w->shards[i], w->shards[i].tensors[k].name, e))
                return false;
    for (size_t i = 0; i < index->n; i++)
        if (!check_entry(w, index, &index->entries[i], e)) return false;
    return check_total(w, index, e);
}

/* The joint table. The shards' tensors differ in name by now. */
static void join_shards(Weights *w) {
    for (size_t i = 0; i < w->n_shards; i++) w->n_tensors += w->shards[i].n_tensors;
    SafetensorsTensor *t = w->tensors = xcalloc(w->n_tensors, sizeof *t);
    for (size_t i = 0; i < w->n_shards; i++) {
        memcpy(t, w->shards[i].tensors, w->shards[i].n_tensors * sizeof *t);
        t += w->shards[i].n_tensors;
    }
    qsort(w->tensors, w->n_tensors, sizeof *t, by_name);
}

/* The one file to start from; NULL with *e set when there is none, or more than one. */
static char *find_start(const Folder *folder, Error *e) {
    char *found = NULL;
    struct stat st;
    for (size_t i = 0; i < COUNT(STEMS) * COUNT(ENDINGS); i++) {
        char *name = xprintf("%s%s", STEMS[i / COUNT(ENDINGS)], ENDINGS[i % COUNT(ENDINGS)]);
        bool there = !fstatat(folder->fd, name, &st, AT_SYMLINK_NOFOLLOW);
        if (there && found) {
            error_set(e, EXIT_USER, "%.300s: holds both %s and %s: remove the one not to be read.",
                      folder->path, found, name);
            free(found);
            free(name);
            return NULL;
        }
        if (there)
            found = name;
        else
            free(name);
    }
    if (!found)
        error_set(
            e, EXIT_USER,
            "%.300s: expected diffusion_pytorch_model.safetensors or model.safetensors, or one "
            "of them with .index.json. Files ending in .bin or .pt must be converted first.",
            folder->path);
    return found;
}

static bool open_folder(Weights *w, const Folder *folder, Error *e) {
    char *start = find_start(folder, e);
    if (!start) return false;
    bool ok;
    if (strstr(start, ".index.json")) {
        Index index;
        ok = index_read(&index, folder, start, e) && open_shards(w, folder, &index, e) &&
             check_index(w, &index, e);
        index_close(&index);
    } else {
        w->shards = xcalloc(1, sizeof *w->shards);
        ok = open_shard(w, folder, start, e);
    }
    free(start);
    return ok;
}

static bool open_file(Weights *w, int fd, Error *e) {
    w->shards = xcalloc(1, sizeof *w->shards);
    w->n_shards = safetensors_open_fd(w->shards, fd, w->path, e);
    return w->n_shards;
}

bool weights_open(Weights *w, const char *path, Error *e) {
    *w = (Weights){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) {
        error_set(e, EXIT_USER,
                  "%.300s: expected a model component's folder or a .safetensors file: %s. Check "
                  "the path.",
                  path, strerror(errno));
        if (fd >= 0) close(fd);
        return false;
    }
    w->path = xstrdup(path);
    bool ok = S_ISDIR(st.st_mode) ? open_folder(w, &(Folder){fd, path}, e) : open_file(w, fd, e);
    close(fd);
    if (ok)
        join_shards(w);
    else
        weights_close(w);
    return ok;
}

void weights_close(Weights *w) {
    for (size_t i = 0; i < w->n_shards; i++) safetensors_close(&w->shards[i]);
    free(w->shards);
    free(w->tensors);
    free(w->path);
    *w = (Weights){0};
}

bool weights_verify(const Weights *w, Error *e) {
    for (size_t i = 0; i < w->n_shards; i++)
        if (!safetensors_verify(&w->shards[i], e)) return false;
    return true;
}

const SafetensorsTensor *weights_find(const Weights *w, const char *name, Error *e) {
    SafetensorsTensor key = {.name = name};
    const SafetensorsTensor *t = bsearch(&key, w->tensors, w->n_tensors, sizeof key, by_name);
    if (t || !e) return t;
    Nearest near = nearest_to(name);
    for (size_t i = 0; i < w->n_tensors; i++) nearest_offer(&near, w->tensors[i].name);
    error_set(e, EXIT_USER,
              "%.300s: expected the tensor \"%.120s\", and it is not there%s%.120s%s. Check that "
              "config.json and the weights are of one model.",
              w->path, name, near.best ? "; the nearest is \"" : "", near.best ? near.best : "",
              near.best ? "\"" : "");
    return NULL;
}

/* "[3, 4]"; -1 is any. */
static void shape_text(char text[200], int n_dims, const int64_t *shape) {
    int at = snprintf(text, 200, "[");
    for (int i = 0; i < n_dims; i++) {
        at += snprintf(text + at, (size_t)(200 - at), i ? ", " : "");
        if (shape[i] < 0)
            at += snprintf(text + at, (size_t)(200 - at), "any");
        else
            at += snprintf(text + at, (size_t)(200 - at), "%lld", (long long)shape[i]);
    }
    snprintf(text + at, (size_t)(200 - at), "]");
}

const SafetensorsTensor *weights_expect(const Weights *w, const char *name, int n_dims,
                                        const int64_t *shape, Error *e) {
    CHECK(n_dims <= SAFETENSORS_MAX_DIMS, "%s: %d dimensions", name, n_dims);
    const SafetensorsTensor *t = weights_find(w, name, e);
    if (!t) return NULL;
    bool same = t->n_dims == n_dims;
    for (int i = 0; same && i < n_dims; i++) same = shape[i] < 0 || t->shape[i] == shape[i];
    if (same) return t;
    char wanted[200], got[200];
    shape_text(wanted, n_dims, shape);
    shape_text(got, t->n_dims, t->shape);
    error_set(
        e, EXIT_USER,
        "%.300s: tensor \"%.120s\": expected the shape %s, got %s. Check that config.json and "
        "the weights are of one model.",
        w->path, name, wanted, got);
    return NULL;
}

/* Only pages wholly inside the range, which is of one of our mappings: elsewhere MADV_DONTNEED
 * would destroy data. That the system may decline is no error. */
void weights_release(const Weights *w, const void *data, size_t bytes) {
    const uint8_t *at = data;
    bool ours = false;
    for (size_t i = 0; i < w->n_shards && !ours; i++) {
        const Safetensors *s = &w->shards[i];
        ours =
            at >= s->bytes && bytes <= s->n_bytes && (size_t)(at - s->bytes) <= s->n_bytes - bytes;
    }
    CHECK(ours, "%s: %zu bytes at %p are not of its files", w->path, bytes, data);
    int64_t page = sysconf(_SC_PAGESIZE), begin = align_up((int64_t)(intptr_t)data, page);
    int64_t end = ((int64_t)(intptr_t)data + (int64_t)bytes) / page * page;
    if (begin < end) madvise((void *)(intptr_t)begin, (size_t)(end - begin), MADV_DONTNEED);
}
