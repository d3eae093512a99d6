/* Owns `prepare --verify`: every value of a cache is read and compared with its digest. */
#define _DEFAULT_SOURCE
#include "trainer/prepare.h"

#include "trainer/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { CAPTION_CHARS = 60 };

/* Whose value it is. */
static void say_entry(Progress *bar, const CacheEntry *n) {
    if (n->kind == CACHE_EMBEDDING)
        progress_say(bar, "  lost: the embedding of \"%.*s\"%s", CAPTION_CHARS, n->caption,
                     strlen(n->caption) > CAPTION_CHARS ? " ..." : "");
    else
        progress_say(bar, "  lost: %s of %s, frame%s %lld to %lld",
                     n->kind == CACHE_IMAGE ? "an image condition" : "the latents",
                     n->source ? n->source : n->key, n->frames == 1 ? "" : "s",
                     (long long)n->first_frame, (long long)(n->first_frame + n->frames - 1));
}

static bool read_entry(Cache *cache, int i, Error *e) {
    const CacheEntry *n = cache_entry(cache, i);
    size_t count = (size_t)cache_elements(n);
    float *values = xcalloc(count, sizeof *values);
    float *logvar = n->kind == CACHE_EMBEDDING ? NULL : xcalloc(count, sizeof *logvar);
    bool ok = cache_read(cache, i, values, logvar, e);
    free(values);
    free(logvar);
    return ok;
}

/* How many values are damaged. */
static int64_t read_all(Cache *cache) {
    char said[sizeof((Error *)0)->text] = ""; /* a damaged file is the same error for all in it */
    int64_t damaged = 0;
    int n = cache_count(cache);
    Progress *bar = progress_open("verifying", "entries", 0, n);
    for (int i = 0; i < n; i++) {
        Error e = {0};
        if (!read_entry(cache, i, &e)) {
            if (strcmp(said, e.text)) progress_say(bar, "cogsmith: %s", e.text);
            snprintf(said, sizeof said, "%s", e.text);
            say_entry(bar, cache_entry(cache, i));
            damaged++;
        }
        progress_set(bar, i + 1, NULL);
    }
    progress_close(bar);
    return damaged;
}

int prepare_verify(const Config *c) {
    Error e;
    struct stat info;
    char *folder = wanted_cache_folder(c);
    if (stat(folder, &info) || !S_ISDIR(info.st_mode))
        die("%s: there is no cache here. Run prepare without --verify, or say data.cache=FOLDER",
            folder);
    Cache *cache = cache_open(folder, false, &e);
    if (!cache) die_error(&e);
    int64_t damaged = read_all(cache);
    printf("entries %d\ndamaged %lld\nbytes %lld\n", cache_count(cache), (long long)damaged,
           (long long)cache_bytes(cache));
    cache_close(cache, &e);
    free(folder);
    return damaged ? EXIT_DATA : 0;
}
