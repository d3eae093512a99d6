/* Owns the layouts made of text files: clips beside captions, and lists line by line. */
#include "data/dataset_read.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* name without its extension, in `folder` below the dataset's, with another extension. */
static char *sibling(const char *folder, const char *name, const char *extension) {
    Span stem = stem_of(name);
    return xprintf("%s%s%.*s%s", folder, *folder ? "/" : "", (int)stem.n, stem.at, extension);
}

static char *below(const char *folder, const char *name) {
    return xprintf("%s%s%s", folder, *folder ? "/" : "", name);
}

static bool same_stem(const char *a, const char *b) {
    Span x = stem_of(a), y = stem_of(b);
    return x.n == y.n && !memcmp(x.at, y.at, x.n);
}

static bool add_captioned(DatasetReader *r, const char *videos, const char *name,
                          const char *file) {
    TextFile text;
    Error why;
    if (!text_open(&text, r, file, &why)) return dataset_leave_out(r, &why);
    bool go_on = dataset_add(r, &(DatasetRow){.file = file,
                                              .line = 1,
                                              .base_video = videos,
                                              .video = span_of(name),
                                              .caption = text.rest});
    text_close(&text);
    return go_on;
}

/* A clip and the text file of its stem. */
static bool add_pair(DatasetReader *r, const char *videos, const char *name, const char *captions,
                     const Listing *texts) {
    char *beside = sibling("", name, ".txt"), *file = sibling(captions, name, ".txt");
    char *clip = below(videos, name);
    bool go_on = listing_has(texts, beside)
                     ? add_captioned(r, videos, name, file)
                     : dataset_problem(r, clip, 0, "it has no caption: expected %.200s.", file);
    free(beside);
    free(file);
    free(clip);
    return go_on;
}

static int by_stem(const void *a, const void *b) {
    Span x = stem_of(*(char *const *)a), y = stem_of(*(char *const *)b);
    int order = memcmp(x.at, y.at, MIN(x.n, y.n));
    return order ? order : (x.n > y.n) - (x.n < y.n);
}

/* How many clips from `at` on share a stem: there must be one only. */
static size_t clips_of_stem(const Listing *clips, size_t at) {
    size_t n = 1;
    while (at + n < clips->n && same_stem(clips->names[at], clips->names[at + n])) n++;
    return n;
}

/* Text files without a clip: a clip was lost, or the file is something else. */
static bool check_orphans(DatasetReader *r, const Listing *texts, const char *captions,
                          const Listing *clips) {
    for (size_t i = 0; i < texts->n; i++) {
        const char *dot = strrchr(texts->names[i], '.');
        if (!dot || strcmp(dot, ".txt") != 0 ||
            bsearch(&texts->names[i], clips->names, clips->n, sizeof *clips->names, by_stem))
            continue;
        char *file = below(captions, texts->names[i]);
        bool go_on = dataset_problem(r, file, 0,
                                     "there is no clip of this name. Add it, or take the text file "
                                     "out of the folder.");
        free(file);
        if (!go_on) return false;
    }
    return true;
}

static bool add_pairs(DatasetReader *r, const char *videos, const Listing *clips,
                      const char *captions, const Listing *texts) {
    for (size_t i = 0, n; i < clips->n; i += n) {
        bool go_on;
        n = clips_of_stem(clips, i);
        const char *name = clips->names[i];
        if (n == 1)
            go_on = add_pair(r, videos, name, captions, texts);
        else
            go_on = dataset_problem(r, name, 0,
                                    "%.200s has the same stem, and a caption belongs to one clip. "
                                    "Rename one of them.",
                                    clips->names[i + 1]);
        if (!go_on) return false;
    }
    return check_orphans(r, texts, captions, clips);
}

bool read_pairs(DatasetReader *r, const char *videos, const char *captions) {
    Listing all = {0}, texts = {0}, clips = {0};
    char *video_folder = xprintf("%s/%s", r->folder, videos);
    char *text_folder = xprintf("%s/%s", r->folder, captions);
    bool ok = listing_read(&all, video_folder, r->e) && listing_read(&texts, text_folder, r->e);
    clips.names = xcalloc(all.n, sizeof *clips.names);
    for (size_t i = 0; i < all.n; i++)
        if (is_video_name(all.names[i])) clips.names[clips.n++] = all.names[i];
    qsort(clips.names, clips.n, sizeof *clips.names, by_stem);
    r->d->layout = *videos ? xprintf("clips in %s/ with captions in %s/", videos, captions)
                           : xstrdup("clips beside their captions (a.mp4 with a.txt)");
    if (ok && !clips.n) ok = dataset_fail(r, videos, 0, "there is no clip in it.");
    ok = ok && add_pairs(r, videos, &clips, captions, &texts);
    free(clips.names);
    listing_free(&all);
    listing_free(&texts);
    free(video_folder);
    free(text_folder);
    return ok;
}

bool read_single(DatasetReader *r, const char *name) {
    r->d->layout = xstrdup("one clip with its caption");
    return add_pair(r, "", name, "", &r->listing);
}

/* The lines of a list, blank ones at its end left out. */
typedef struct {
    TextFile text;
    Span *lines;
    size_t n;
} List;

static bool list_read(List *l, const DatasetReader *r, const char *name) {
    Span line;
    *l = (List){0};
    if (!text_open(&l->text, r, name, r->e)) return false;
    size_t blank = 0;
    for (size_t n = 0; text_line(&l->text, &line); n++) {
        l->lines = xrealloc(l->lines, (n + 1) * sizeof *l->lines);
        l->lines[n] = line;
        if (line.n && blank)
            return dataset_fail(r, name, blank,
                                "a blank line: lines of the lists belong together one to one.");
        if (line.n)
            l->n = n + 1;
        else if (!blank)
            blank = n + 1;
    }
    return l->n ? true : dataset_fail(r, name, 0, "the list is empty.");
}

static void list_free(List *l) {
    text_close(&l->text);
    free(l->lines);
}

static bool same_length(const DatasetReader *r, const List *a, const List *b) {
    if (a->n == b->n) return true;
    return dataset_fail(r, b->text.name, MIN(a->n, b->n) + 1,
                        "%s has %zu lines and %s has %zu: they must belong together one to one.",
                        b->text.name, b->n, a->text.name, a->n);
}

bool read_lists(DatasetReader *r, const char *captions, const char *videos, const char *images) {
    List c = {0}, v = {0}, i = {0};
    r->d->layout = images ? xprintf("%s with %s and %s, line by line", captions, videos, images)
                          : xprintf("%s with %s, line by line", captions, videos);
    bool ok = list_read(&c, r, captions) && list_read(&v, r, videos) && same_length(r, &c, &v);
    if (images) ok = ok && list_read(&i, r, images) && same_length(r, &c, &i);
    for (size_t k = 0; k < c.n && ok; k++)
        ok = dataset_add(r, &(DatasetRow){.file = captions,
                                          .line = k + 1,
                                          .video_list = videos,
                                          .image_list = images,
                                          .base_video = "",
                                          .base_image = "",
                                          .video = v.lines[k],
                                          .image = images ? i.lines[k] : (Span){0},
                                          .caption = c.lines[k]});
    list_free(&c);
    list_free(&v);
    list_free(&i);
    return ok;
}
