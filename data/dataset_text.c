/* Owns what all dataset layouts do: folders, text files, checks of paths and captions, problems. */
#define _XOPEN_SOURCE 700
#include "data/dataset_read.h"
#include "data/tokenizer.h"
#include "data/utf8.h"
#include "data/whole.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TEXT_MAX_BYTES = 1 << 28, TEXT_SHOWN = 200 };

Span span_of(const char *text) { return (Span){text, strlen(text)}; }

Span span_strip(Span s) {
    size_t head = utf8_leading_space(s.at, s.n);
    s.at += head;
    s.n -= head;
    s.n -= utf8_trailing_space(s.at, s.n);
    return s;
}

bool span_is(Span s, const char *text) {
    return s.at && s.n == strlen(text) && !memcmp(s.at, text, s.n);
}

char *span_copy(Span s) {
    char *copy = xcalloc(s.n + 1, 1);
    return s.n ? memcpy(copy, s.at, s.n) : copy;
}

static int by_bytes(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

bool listing_read(Listing *l, const char *folder, Error *e) {
    struct dirent *entry;
    *l = (Listing){0};
    DIR *dir = opendir(folder);
    if (!dir)
        return error_set(e, EXIT_DATA, "%.300s: the folder cannot be read: %s.", folder,
                         strerror(errno));
    for (errno = 0; (entry = readdir(dir)); errno = 0) {
        if (entry->d_name[0] == '.') continue;
        l->names = xrealloc(l->names, (l->n + 1) * sizeof *l->names);
        l->names[l->n++] = xstrdup(entry->d_name);
    }
    int reason = errno;
    closedir(dir);
    if (l->n) qsort(l->names, l->n, sizeof *l->names, by_bytes);
    if (!reason) return true;
    listing_free(l);
    return error_set(e, EXIT_WORLD, "%.300s: the folder cannot be read: %s.", folder,
                     strerror(reason));
}

void listing_free(Listing *l) {
    for (size_t i = 0; i < l->n; i++) free(l->names[i]);
    free(l->names);
    *l = (Listing){0};
}

bool listing_has(const Listing *l, const char *name) {
    return l->n && bsearch(&name, l->names, l->n, sizeof *l->names, by_bytes);
}

bool is_video_name(const char *name) {
    static const char *const EXTENSIONS[] = {"mp4",  "mov",  "mkv", "webm", "avi", "gif",
                                             "m4v",  "mpg",  "ts",  "wmv",  "flv", "ogv",
                                             "mpeg", "m2ts", "3gp", "mts",  "asf", "apng"};
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && dot != name && i < COUNT(EXTENSIONS); i++)
        if (!strcasecmp(dot + 1, EXTENSIONS[i])) return true;
    return false;
}

Span stem_of(const char *name) {
    const char *dot = strrchr(name, '.');
    return (Span){name, dot ? (size_t)(dot - name) : strlen(name)};
}

/* "folder/file:line: text" */
static void describe(const DatasetReader *r, const char *file, size_t line, const char *format,
                     va_list args, Error *e) {
    char text[600], place[24] = "";
    vsnprintf(text, sizeof text, format, args);
    if (line) snprintf(place, sizeof place, ":%zu", line);
    error_set(e, EXIT_DATA, "%.*s%s%.*s%s: %s", TEXT_SHOWN, r->folder, *file ? "/" : "", TEXT_SHOWN,
              file, place, text);
}

bool dataset_fail(const DatasetReader *r, const char *file, size_t line, const char *format, ...) {
    va_list args;
    va_start(args, format);
    describe(r, file, line, format, args, r->e);
    va_end(args);
    return false;
}

bool dataset_leave_out(DatasetReader *r, const Error *why) {
    Dataset *d = r->d;
    if (!r->skip_bad) {
        *r->e = *why;
        return false;
    }
    d->problems = xrealloc(d->problems, (d->n_problems + 1) * sizeof *d->problems);
    d->problems[d->n_problems++] = xstrdup(why->text);
    return true;
}

bool dataset_problem(DatasetReader *r, const char *file, size_t line, const char *format, ...) {
    Error why;
    va_list args;
    va_start(args, format);
    describe(r, file, line, format, args, &why);
    va_end(args);
    return dataset_leave_out(r, &why);
}

bool text_open(TextFile *t, const DatasetReader *r, const char *name, Error *e) {
    char *path = xprintf("%s/%s", r->folder, name);
    struct stat st = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not make us wait */
    bool fits = fd >= 0 && !fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size <= TEXT_MAX_BYTES;
    *t = (TextFile){.name = xstrdup(name), .bytes = fits ? xcalloc((size_t)st.st_size, 1) : NULL};
    ssize_t got = fits ? file_read(fd, t->bytes, (size_t)st.st_size) : -1;
    if (got < 0)
        error_set(e, EXIT_DATA, "%.300s: cannot be read: %s.", path,
                  fd >= 0 && !fits ? "it is not a text file, or too large" : strerror(errno));
    if (fd >= 0) close(fd);
    free(path);
    if (got < 0) {
        text_close(t);
        return false;
    }
    t->rest = (Span){t->bytes, (size_t)got};
    if (got >= 3 && !memcmp(t->bytes, "\xef\xbb\xbf", 3))
        t->rest = (Span){t->bytes + 3, (size_t)got - 3};
    return true;
}

void text_close(TextFile *t) {
    free(t->name);
    free(t->bytes);
    *t = (TextFile){0};
}

bool text_line(TextFile *t, Span *line) {
    if (!t->rest.n) return false;
    const char *end = memchr(t->rest.at, '\n', t->rest.n);
    size_t n = end ? (size_t)(end - t->rest.at) : t->rest.n;
    *line = span_strip((Span){t->rest.at, n});
    n += end != NULL;
    t->rest = (Span){t->rest.at + n, t->rest.n - n};
    t->line++;
    return true;
}

bool dataset_has(const DatasetReader *r, const char *name) {
    char *path = xprintf("%s/%s", r->folder, name);
    bool there = !access(path, F_OK);
    free(path);
    return there;
}

/* Whether a relative path climbs above where it starts. */
static bool climbs(const char *path) {
    int depth = 0;
    while (*path) {
        size_t n = strcspn(path, "/");
        if (n == 2 && !memcmp(path, "..", 2))
            depth--;
        else if (n && !(n == 1 && *path == '.'))
            depth++;
        if (depth < 0) return true;
        path += n + (path[n] == '/');
    }
    return false;
}

/* What is wrong with a file name of a list, or NULL. *path, to be freed, is what can be opened. */
static char *refuse_path(const DatasetReader *r, const char *base, Span name, char **path) {
    struct stat st;
    *path = NULL;
    if (!name.n) return xstrdup("there is no file name. Write the path of a clip.");
    if (utf8_invalid_at(name.at, name.n) < name.n || memchr(name.at, 0, name.n))
        return xstrdup("the file name is not UTF-8. Rename the file.");
    char *relative = xprintf("%s%s%.*s", base, *base ? "/" : "", (int)MIN(name.n, 4096), name.at);
    char *text = NULL;
    if (*name.at == '/' || climbs(relative))
        text = xprintf("%.*s leaves the dataset's folder. Move the file into it, or put a symbolic "
                       "link there and name that.",
                       TEXT_SHOWN, relative);
    char *full = xprintf("%s/%s", r->folder, relative);
    if (!text && (stat(full, &st) || access(full, R_OK)))
        text = xprintf("%.*s cannot be read: %s.", TEXT_SHOWN, relative, strerror(errno));
    else if (!text && !S_ISREG(st.st_mode))
        text = xprintf("%.*s is not a file.", TEXT_SHOWN, relative);
    free(relative);
    *path = text ? NULL : full;
    if (text) free(full);
    return text;
}

/* What is wrong with a caption, or NULL. */
static char *refuse_caption(const DatasetReader *r, Span text) {
    size_t bad = utf8_invalid_at(text.at, text.n);
    if (bad < text.n)
        return xprintf("the caption is not UTF-8: see its byte %zu. Save the file as UTF-8.",
                       bad + 1);
    if (text.n && memchr(text.at, 0, text.n)) return xstrdup("the caption has a zero byte in it.");
    if (text.n > CAPTION_MAX_BYTES)
        return xprintf("the caption has %zu bytes, more than %d. Is it a caption?", text.n,
                       CAPTION_MAX_BYTES);
    if (!text.n && !*r->trigger)
        return xstrdup("the caption is empty. Write one, or set data.trigger.");
    return NULL;
}

static char *make_caption(const char *trigger, Span text) {
    Span word = span_of(trigger);
    if (!text.n) return span_copy(span_strip(word));
    const char *blank = word.n && !utf8_trailing_space(word.at, word.n) ? " " : "";
    return xprintf("%s%s%.*s", trigger, blank, (int)text.n, text.at);
}

bool dataset_add(DatasetReader *r, const DatasetRow *row) {
    char *video = NULL, *image = NULL;
    Span caption = span_strip(row->caption);
    const char *where = row->video_list;
    char *text = refuse_path(r, row->base_video, row->video, &video);
    if (!text && row->image.at) {
        where = row->image_list;
        text = refuse_path(r, row->base_image, row->image, &image);
    }
    if (!text) {
        where = NULL;
        text = refuse_caption(r, caption);
    }
    if (text) {
        bool go_on = dataset_problem(r, where ? where : row->file, row->line, "%s", text);
        free(text);
        free(video);
        free(image);
        return go_on;
    }
    Dataset *d = r->d;
    d->items = xrealloc(d->items, (d->n_items + 1) * sizeof *d->items);
    d->items[d->n_items++] = (DatasetItem){.video = video,
                                           .image = image,
                                           .caption = make_caption(r->trigger, caption),
                                           .origin = xprintf("%s:%zu", row->file, row->line)};
    return true;
}
