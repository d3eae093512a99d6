/* Owns the comparison of ranks at the start of a run. */
#define _POSIX_C_SOURCE 200809L
#include "trainer/same.h"

#include "data/cache.h"
#include "trainer/config_table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where the first line begins in which two texts differ. */
static size_t first_difference(const char *a, const char *b) {
    size_t line = 0;
    for (size_t i = 0; a[i] && a[i] == b[i]; i++)
        if (a[i] == '\n') line = i + 1;
    return line;
}

static void name_difference(const char *what, int rank, const char *first, const char *other) {
    size_t at = first_difference(first, other);
    const char *a = first + at, *b = other + at;
    fprintf(
        stderr,
        "cogsmith: rank %d was started with another %s than rank 0: it has \"%.*s\" where rank 0 "
        "has \"%.*s\". All ranks need the same program, configuration and data. The job ends\n",
        rank, what, (int)strcspn(b, "\n"), b, (int)strcspn(a, "\n"), a);
}

/* The text of every rank, padded with zeros to *room bytes. */
static char *gather_texts(Comm *c, const char *text, size_t *room) {
    int64_t mine = (int64_t)strlen(text), most = 0;
    int64_t *lengths = xcalloc((size_t)c->size, sizeof *lengths);
    c->all_gather(c, NULL, DT_I64, 1, &mine, lengths);
    for (int i = 0; i < c->size; i++) most = MAX(most, lengths[i]);
    *room = (size_t)most + 1;
    char *padded = xcalloc(*room, 1), *all = xcalloc((size_t)c->size, *room);
    memcpy(padded, text, (size_t)mine);
    c->all_gather(c, NULL, DT_U8, (int64_t)*room, padded, all);
    free(lengths);
    free(padded);
    return all;
}

void ranks_agree(Comm *c, const char *what, const char *text) {
    size_t room;
    if (c->size == 1) return;
    char *all = gather_texts(c, text, &room);
    int other = 1;
    while (other < c->size && !strcmp(all, all + (size_t)other * room)) other++;
    if (other < c->size) {
        if (c->rank == 0) name_difference(what, other, all, all + (size_t)other * room);
        free(gather_texts(c, "", &room)); /* no rank is gone before it is said */
        exit(EXIT_USER);
    }
    free(all);
}

int64_t ranks_least(Comm *c, Stream *s, int64_t mine) {
    if (c->size == 1 || c->recording) return mine;
    int64_t *all = xcalloc((size_t)c->size, sizeof *all), least = mine;
    c->all_gather(c, s, DT_I64, 1, &mine, all);
    for (int i = 0; i < c->size; i++) least = MIN(least, all[i]);
    free(all);
    return least;
}

/* A line for each key, with its path; of the caller's own. */
static char *list_keys(const Config *config) {
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    CHECK(out, "the list of keys");
    for (int i = 0; i < CONFIG_KEYS; i++) {
        const Key *key = &CONFIG_TABLE[i];
        char *value = key_has_value(config, key) ? key_format(config, key) : xstrdup("(not set)");
        fprintf(out, "%s: %s\n", key->path, value);
        free(value);
    }
    CHECK(!fclose(out), "the list of keys");
    return text;
}

void ranks_program(const char *verb) {
    char digest[CACHE_KEY_CHARS];
    Error e;
    if (comm_world_size() == 1) return;
    CacheKey *key = cache_key_open("program");
    if (!cache_key_file(key, "/proc/self/exe", &e)) die_error(&e);
    cache_key_close(key, digest);
    char *text = xprintf("cogsmith " COGSMITH_VERSION " (digest %.12s) %s", digest, verb);
    comm_program(text);
    free(text);
}

void ranks_agree_to_start(Comm *c, const Config *config) {
    if (c->size == 1) return;
    char *keys = list_keys(config);
    ranks_agree(c, "configuration", keys);
    free(keys);
}
