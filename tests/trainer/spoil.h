/* A safetensors file written anew with one thing wrong. Include after cmocka.h. */
#pragma once

#include "tests/data/scratch.h"

#include "data/safetensors.h"

typedef enum {
    DROP,
    RENAME,  /* to `name` */
    ADD,     /* a copy under `name` */
    RESHAPE, /* to `shape`, of as many elements */
    SHAPE,   /* every tensor of the same shape, likewise */
    VALUE,   /* the last element becomes `bits` */
    CAST,    /* the whole becomes zeros of `dtype`, the last element `bits` */
} Act;

typedef struct {
    Act act;
    const char *tensor, *name;
    int n_dims;
    int64_t shape[SAFETENSORS_MAX_DIMS];
    DType dtype;
    uint64_t bits;
} Spoil;

#define DROPPED(t)                                                                                 \
    { .act = DROP, .tensor = t }
#define RENAMED(t, to)                                                                             \
    { .act = RENAME, .tensor = t, .name = to }
#define ADDED(t, as)                                                                               \
    { .act = ADD, .tensor = t, .name = as }
#define RESHAPED(t, n, ...)                                                                        \
    {                                                                                              \
        .act = RESHAPE, .tensor = t, .n_dims = n, .shape = { __VA_ARGS__ }                         \
    }
#define RESHAPED_ALL(t, n, ...)                                                                    \
    {                                                                                              \
        .act = SHAPE, .tensor = t, .n_dims = n, .shape = { __VA_ARGS__ }                           \
    }
#define WITH_LAST(t, value)                                                                        \
    { .act = VALUE, .tensor = t, .bits = value }
#define OF_TYPE(t, type)                                                                           \
    { .act = CAST, .tensor = t, .dtype = type }

static inline bool same_shape(const SafetensorsItem *a, const int64_t *shape, int n_dims) {
    return a->n_dims == n_dims && !memcmp(a->shape, shape, (size_t)n_dims * sizeof *shape);
}

static inline void set_shape(SafetensorsItem *item, const Spoil *s) {
    item->n_dims = s->n_dims;
    memcpy(item->shape, s->shape, sizeof item->shape);
}

/* Data of its own for an item, with the last element set. */
static inline void *set_last(SafetensorsItem *item, uint64_t bits, bool keep) {
    size_t bytes = safetensors_item_bytes(item), size = dtype_size(item->dtype);
    char *data = xcalloc(bytes, 1);
    if (keep) memcpy(data, item->data, bytes);
    memcpy(data + bytes - size, &bits, size);
    item->data = data;
    return data;
}

static inline void spoil_items(SafetensorsItem *items, size_t *n, const Spoil *s, void **own) {
    size_t i = 0;
    while (i < *n && strcmp(items[i].name, s->tensor)) i++;
    if (i == *n) fail_msg("%s is not there", s->tensor);
    int64_t shape[SAFETENSORS_MAX_DIMS];
    int n_dims = items[i].n_dims;
    memcpy(shape, items[i].shape, sizeof shape);
    if (s->act == DROP) items[i] = items[--*n];
    if (s->act == RENAME) items[i].name = s->name;
    if (s->act == RESHAPE) set_shape(&items[i], s);
    if (s->act == VALUE) *own = set_last(&items[i], s->bits, true);
    if (s->act == SHAPE)
        for (size_t k = 0; k < *n; k++)
            if (same_shape(&items[k], shape, n_dims)) set_shape(&items[k], s);
    if (s->act == CAST) {
        items[i].dtype = s->dtype;
        *own = set_last(&items[i], s->bits, false);
    }
    if (s->act == ADD) {
        items[*n] = items[i];
        items[(*n)++].name = s->name;
    }
}

/* Writes the file anew with one thing spoilt; metadata stays. */
static inline void spoil(const char *at, Spoil s) {
    char *path = xstrdup(at);
    Safetensors f;
    Error e = {0};
    if (!safetensors_open(&f, path, &e)) fail_msg("%s", e.text);
    SafetensorsItem *items = xcalloc(f.n_tensors + 1, sizeof *items);
    size_t n = f.n_tensors;
    for (size_t i = 0; i < n; i++) {
        const SafetensorsTensor *t = &f.tensors[i];
        items[i] = (SafetensorsItem){t->name, t->dtype, t->n_dims, {0}, t->data};
        memcpy(items[i].shape, t->shape, sizeof t->shape);
    }
    void *own = NULL;
    spoil_items(items, &n, &s, &own);
    SafetensorsFile file = {
        .items = items, .n_items = n, .metadata = f.metadata, .n_metadata = f.n_metadata};
    if (!safetensors_write(path, &file, &e)) fail_msg("%s", e.text);
    safetensors_close(&f);
    free(own);
    free(items);
    free(path);
}
