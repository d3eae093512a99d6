/* Owns writing a component's folder: how tensors fill shards, and the index. */
#include "data/weights.h"

#include "data/digests.h"
#include "data/whole.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* A folder on its way to the disk; shard i holds items [begin[i], begin[i + 1]). */
typedef struct {
    const SafetensorsFile *file;
    const char *stem;
    size_t *begin;
    size_t n_shards;
    SafetensorsMetadata *metadata; /* of every shard */
} Save;

/* One shard's view of the caller's fill. */
typedef struct {
    const SafetensorsFile *file;
    size_t first;
} ShardFill;

static bool fill_shard(void *context, size_t item, size_t offset, size_t bytes, void *buffer,
                       Error *e) {
    const ShardFill *s = context;
    return s->file->fill(s->file->context, s->first + item, offset, bytes, buffer, e);
}

/* Greedy, in the order given; a tensor larger than a shard gets one of its own. */
static void cut_shards(Save *s, size_t max_shard_bytes) {
    s->begin = xcalloc(s->file->n_items + 2, sizeof *s->begin);
    size_t filled = 0;
    for (size_t i = 0; i < s->file->n_items; i++) {
        size_t bytes = safetensors_item_bytes(&s->file->items[i]);
        if (i > s->begin[s->n_shards] && bytes > max_shard_bytes - MIN(filled, max_shard_bytes)) {
            s->begin[++s->n_shards] = i;
            filled = 0;
        }
        filled += bytes;
    }
    s->begin[++s->n_shards] = s->file->n_items;
}

static char *shard_name(const Save *s, size_t shard) {
    if (s->n_shards == 1) return xprintf("%s.safetensors", s->stem);
    return xprintf("%s-%05zu-of-%05zu.safetensors", s->stem, shard + 1, s->n_shards);
}

static bool save_shard(const Save *s, const char *folder, size_t shard, Error *e) {
    ShardFill context = {.file = s->file, .first = s->begin[shard]};
    SafetensorsFile file = *s->file;
    file.items += s->begin[shard];
    file.n_items = s->begin[shard + 1] - s->begin[shard];
    file.metadata = s->metadata;
    file.n_metadata = s->file->n_metadata + 1;
    file.fill = s->file->fill ? fill_shard : NULL;
    file.context = &context;
    char *name = shard_name(s, shard), *path = xprintf("%s/%s", folder, name);
    bool ok = safetensors_write(path, &file, e);
    free(name);
    free(path);
    return ok;
}

static bool save_index(const Save *s, const char *folder, Error *e) {
    json_t *map = json_object();
    json_int_t total = 0;
    for (size_t shard = 0; shard < s->n_shards; shard++) {
        char *name = shard_name(s, shard);
        for (size_t i = s->begin[shard]; i < s->begin[shard + 1]; i++) {
            json_object_set_new(map, s->file->items[i].name, json_string(name));
            total += (json_int_t)safetensors_item_bytes(&s->file->items[i]);
        }
        free(name);
    }
    CHECK(json_object_size(map) == s->file->n_items, "two tensors of one name");
    json_t *index = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", total, "weight_map", map);
    char *text = json_dumps(index, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_ENSURE_ASCII);
    char *line = xprintf("%s\n", text),
         *path = xprintf("%s/%s.safetensors.index.json", folder, s->stem);
    bool ok = whole_text(path, line, e);
    json_decref(index);
    free(text);
    free(line);
    free(path);
    return ok;
}

static bool save_text(const char *folder, const WeightsText *text, Error *e) {
    char *path = xprintf("%s/%s", folder, text->name);
    bool ok = whole_text(path, text->text, e);
    free(path);
    return ok;
}

bool weights_save(const char *folder, const char *stem, size_t max_shard_bytes,
                  const SafetensorsFile *file, const WeightsText *texts, size_t n_texts, Error *e) {
    WholeFolder out;
    if (!whole_folder_open(&out, folder, e)) return false;
    Save s = {.file = file, .stem = stem};
    cut_shards(&s, max_shard_bytes);
    s.metadata = xcalloc(file->n_metadata + 1, sizeof *s.metadata);
    s.metadata[0] = (SafetensorsMetadata){"format", "pt"};
    for (size_t i = 0; i < file->n_metadata; i++) s.metadata[i + 1] = file->metadata[i];
    bool ok = true;
    for (size_t i = 0; ok && i < s.n_shards; i++) ok = save_shard(&s, out.temporary, i, e);
    if (ok && s.n_shards > 1) ok = save_index(&s, out.temporary, e);
    for (size_t i = 0; ok && i < n_texts; i++) ok = save_text(out.temporary, &texts[i], e);
    bool others = s.n_shards > 1 || n_texts;
    if (ok && file->digest && others) ok = digests_write(out.temporary, &FOLDER_DIGESTS, NULL, e);
    free(s.metadata);
    free(s.begin);
    return ok ? whole_folder_commit(&out, e) : whole_folder_discard(&out);
}
