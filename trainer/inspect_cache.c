/* Owns the report on a cache folder: its groups of values, and every entry. */
#include "trainer/inspect.h"

#include "data/cache.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int dims, arrays;
} KINDS[CACHE_KINDS] = {[CACHE_LATENTS] = {"latents", 4, 2},
                        [CACHE_EMBEDDING] = {"embedding", 2, 1},
                        [CACHE_IMAGE] = {"image", 3, 2}};

static json_t *shape_of(const CacheEntry *n) {
    json_t *shape = json_array();
    for (int i = 0; i < KINDS[n->kind].dims; i++)
        json_array_append_new(shape, json_integer(n->shape[i]));
    return shape;
}

static json_t *report_entry(const CacheEntry *n) {
    json_t *j = json_pack("{s:s, s:s, s:o}", "kind", KINDS[n->kind].name, "key", n->key, "shape",
                          shape_of(n));
    if (n->kind != CACHE_EMBEDDING) {
        if (n->source) json_object_set_new(j, "source", inspect_text(n->source));
        json_object_set_new(j, "first_frame", json_integer(n->first_frame));
        json_object_set_new(j, "frames", json_integer(n->frames));
    }
    if (n->kind == CACHE_IMAGE) json_object_set_new(j, "variant", json_integer(n->variant));
    if (n->caption) json_object_set_new(j, "caption", inspect_text(n->caption));
    return j;
}

/* Adds one to the group of this kind and shape. */
static void count(json_t *groups, const CacheEntry *n) {
    json_t *shape = shape_of(n), *group;
    size_t i;
    json_array_foreach(groups, i, group) {
        json_t *entries = json_object_get(group, "entries"),
               *bytes = json_object_get(group, "bytes");
        if (!json_equal(json_object_get(group, "shape"), shape) ||
            strcmp(json_string_value(json_object_get(group, "kind")), KINDS[n->kind].name))
            continue;
        json_integer_set(bytes, json_integer_value(bytes) / json_integer_value(entries) *
                                    (json_integer_value(entries) + 1));
        json_integer_set(entries, json_integer_value(entries) + 1);
        json_decref(shape);
        return;
    }
    json_array_append_new(groups,
                          json_pack("{s:s, s:o, s:i, s:I}", "kind", KINDS[n->kind].name, "shape",
                                    shape, "entries", 1, "bytes",
                                    (json_int_t)(2 * KINDS[n->kind].arrays * cache_elements(n))));
}

bool inspect_is_cache(const char *folder) { return inspect_has(folder, "index.jsonl"); }

json_t *inspect_cache(const char *folder, Error *e) {
    Cache *cache = cache_open(folder, false, e);
    if (!cache) return NULL;
    json_t *groups = json_array(), *entries = json_array();
    for (int i = 0; i < cache_count(cache); i++) {
        count(groups, cache_entry(cache, i));
        json_array_append_new(entries, report_entry(cache_entry(cache, i)));
    }
    json_t *report =
        json_pack("{s:o, s:s, s:I, s:o, s:o}", "path", inspect_text(folder), "kind", "cache",
                  "bytes", (json_int_t)cache_bytes(cache), "groups", groups, "entry_list", entries);
    cache_close(cache, e);
    return report;
}
