/* Owns the recognition of dataset layouts, and the life of a Dataset. */
#define _XOPEN_SOURCE 700
#include "data/dataset.h"
#include "data/dataset_read.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char *const CAPTION_LISTS[] = {"prompts.txt", "prompt.txt", "captions.txt",
                                            "caption.txt"};
static const char *const VIDEO_LISTS[] = {"videos.txt", "video.txt"};
static const char *const IMAGE_LISTS[] = {"images.txt", "image.txt"};
static const char *const METADATA[] = {"metadata.csv", "metadata.json", "metadata.jsonl"};

/* Whether a clip of the same stem lies beside a text file, so that it is a caption, not a list. */
static bool is_caption_of_clip(const Listing *l, const char *text) {
    Span stem = stem_of(text);
    for (size_t i = 0; i < l->n; i++) {
        Span other = stem_of(l->names[i]);
        if (is_video_name(l->names[i]) && other.n == stem.n && !memcmp(other.at, stem.at, stem.n))
            return true;
    }
    return false;
}

/* The one of these names that the folder has; NULL: none. *second: another one. */
static const char *one_of(const DatasetReader *r, const char *const *names, size_t n,
                          const char **second) {
    const char *found = NULL;
    for (size_t i = 0; i < n; i++) {
        if (!listing_has(&r->listing, names[i]) || is_caption_of_clip(&r->listing, names[i]))
            continue;
        if (found)
            *second = names[i];
        else
            found = names[i];
    }
    return found;
}

/* A clip that has its caption beside it; NULL: none. `any`: a clip with or without. */
static const char *find_clip(const Listing *l, bool any) {
    for (size_t i = 0; i < l->n; i++) {
        Span stem = stem_of(l->names[i]);
        if (!is_video_name(l->names[i])) continue;
        char *text = xprintf("%.*s.txt", (int)stem.n, stem.at);
        bool captioned = listing_has(l, text);
        free(text);
        if (any || captioned) return l->names[i];
    }
    return NULL;
}

static bool is_folder(const DatasetReader *r, const char *name) {
    struct stat st;
    char *path = xprintf("%s/%s", r->folder, name);
    bool is = listing_has(&r->listing, name) && !stat(path, &st) && S_ISDIR(st.st_mode);
    free(path);
    return is;
}

static bool nothing_found(const DatasetReader *r) {
    static const char *const INSIDE[] = {"train", "videos", "clips", "data"};
    for (size_t i = 0; i < COUNT(INSIDE); i++)
        if (is_folder(r, INSIDE[i]))
            return dataset_fail(r, "", 0,
                                "no dataset is recognised here. Did you mean data.path=%.200s/%s?",
                                r->folder, INSIDE[i]);
    return dataset_fail(r, "", 0,
                        "no dataset is recognised here: expected clips with a .txt of the same "
                        "name, or prompts.txt with videos.txt, or metadata.csv, .json or .jsonl.");
}

static bool ambiguous(const DatasetReader *r, const char *a, const char *b) {
    return dataset_fail(r, "", 0,
                        "%s and %s are two ways to say which caption is whose. Move one of them "
                        "out of the folder.",
                        a, b);
}

/* What a folder has of each layout. */
typedef struct {
    const char *captions, *videos, *images; /* lists */
    const char *metadata;
    const char *pair; /* a clip with its caption beside it */
    const char *second;
} Signs;

static Signs look(const DatasetReader *r) {
    Signs s = {0};
    s.captions = one_of(r, CAPTION_LISTS, COUNT(CAPTION_LISTS), &s.second);
    if (!s.second) s.videos = one_of(r, VIDEO_LISTS, COUNT(VIDEO_LISTS), &s.second);
    if (!s.second) s.images = one_of(r, IMAGE_LISTS, COUNT(IMAGE_LISTS), &s.second);
    if (!s.second) s.metadata = one_of(r, METADATA, COUNT(METADATA), &s.second);
    s.pair = find_clip(&r->listing, false);
    return s;
}

static bool check_signs(const DatasetReader *r, const Signs *s) {
    const char *list = s->videos ? s->videos : s->captions;
    if (s->second)
        return ambiguous(r,
                         s->metadata ? s->metadata
                         : s->images ? s->images
                         : s->videos ? s->videos
                                     : s->captions,
                         s->second);
    if (list && s->metadata) return ambiguous(r, list, s->metadata);
    if (list && s->pair) return ambiguous(r, list, s->pair);
    if (s->metadata && s->pair) return ambiguous(r, s->metadata, s->pair);
    if (s->captions && !s->videos)
        return dataset_fail(r, s->captions, 0,
                            "there is no videos.txt that names the clips in the same order.");
    if (s->videos && !s->captions)
        return dataset_fail(r, s->videos, 0,
                            "there is no prompts.txt with the captions in the same order.");
    return true;
}

static bool read_folder(DatasetReader *r) {
    if (!listing_read(&r->listing, r->folder, r->e)) return false;
    Signs s = look(r);
    if (!check_signs(r, &s)) return false;
    if (s.captions) return read_lists(r, s.captions, s.videos, s.images);
    if (s.metadata)
        return dataset_has(r, "videos/metadata.jsonl") ? read_cogkit(r, s.metadata)
                                                       : read_metadata(r, s.metadata);
    if (find_clip(&r->listing, true)) return read_pairs(r, "", "");
    if (is_folder(r, "videos") && is_folder(r, "labels")) return read_pairs(r, "videos", "labels");
    return nothing_found(r);
}

/* A clip, or a table of any name. */
static bool read_file(DatasetReader *r, const char *name) {
    const char *dot = strrchr(name, '.');
    bool table = dot && (!strcmp(dot, ".csv") || !strcmp(dot, ".json") || !strcmp(dot, ".jsonl"));
    if (table) return read_metadata(r, name);
    if (is_video_name(name))
        return listing_read(&r->listing, r->folder, r->e) && read_single(r, name);
    return dataset_fail(r, name, 0, "expected a folder, a clip, or a .csv, .json or .jsonl file.");
}

/* Without the slashes at its end. */
static char *trimmed(const char *path) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    return span_copy((Span){path, n});
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Clips of the folder that a list or table does not name. */
static size_t count_unnamed(const DatasetReader *r) {
    const Dataset *d = r->d;
    const char **named = xcalloc(d->n_items, sizeof *named);
    size_t unnamed = 0;
    for (size_t i = 0; i < d->n_items; i++) named[i] = strrchr(d->items[i].video, '/') + 1;
    if (d->n_items) qsort(named, d->n_items, sizeof *named, by_name);
    for (size_t i = 0; i < r->listing.n; i++)
        unnamed += is_video_name(r->listing.names[i]) &&
                   !bsearch(&r->listing.names[i], named, d->n_items, sizeof *named, by_name);
    free(named);
    return unnamed;
}

/* Tells the whole in one sentence. */
static bool conclude(DatasetReader *r, bool folder) {
    Dataset *d = r->d;
    if (!d->n_items && d->n_problems)
        return error_set(r->e, EXIT_DATA,
                         "%.300s: none of its items can be used. The first: %.800s", r->folder,
                         d->problems[0]);
    if (!d->n_items) return dataset_fail(r, "", 0, "the dataset is empty.");
    size_t unnamed = folder && !d->n_problems ? count_unnamed(r) : 0;
    char *more =
        unnamed ? xprintf("; clips beside them that are not named: %zu", unnamed) : xstrdup("");
    char *layout = xprintf("%s: %s; %zu item%s%s.", r->folder, d->layout, d->n_items,
                           d->n_items == 1 ? "" : "s", more);
    free(more);
    free(d->layout);
    d->layout = layout;
    return true;
}

bool dataset_open(Dataset *d, const char *path, const char *trigger, bool skip_bad, Error *e) {
    Error unused;
    struct stat st;
    *d = (Dataset){0};
    if (!e) e = &unused;
    char *whole = trimmed(path);
    bool there = !stat(whole, &st), file = there && !S_ISDIR(st.st_mode);
    const char *slash = strrchr(whole, '/'), *name = slash ? slash + 1 : whole;
    DatasetReader r = {.d = d, .trigger = trigger, .skip_bad = skip_bad, .e = e};
    bool ok = false;
    if (!there)
        error_set(e, EXIT_USER, "data.path: %.300s: %s. Expected a folder of clips and captions.",
                  path, strerror(errno));
    else if (file) {
        r.folder = slash ? span_copy((Span){whole, (size_t)(slash - whole)}) : xstrdup(".");
        ok = read_file(&r, name);
    } else {
        r.folder = xstrdup(whole);
        ok = read_folder(&r);
    }
    ok = ok && conclude(&r, !file);
    listing_free(&r.listing);
    free(r.folder);
    free(whole);
    if (!ok) dataset_close(d);
    return ok;
}

void dataset_close(Dataset *d) {
    for (size_t i = 0; i < d->n_items; i++) {
        free(d->items[i].video);
        free(d->items[i].image);
        free(d->items[i].caption);
        free(d->items[i].origin);
    }
    for (size_t i = 0; i < d->n_problems; i++) free(d->problems[i]);
    free(d->items);
    free(d->problems);
    free(d->layout);
    *d = (Dataset){0};
}
