/* Owns the layouts made of tables: metadata files, and CogKit's three. */
#include "data/dataset_read.h"

#include <stdlib.h>
#include <string.h>

enum { FILE_NAME, ID, TEXT, PROMPT, CAPTION };
static const char *const COLUMNS[] = {"file_name", "id", "text", "prompt", "caption", NULL};

/* The one caption that a row has. false: it has none, or two, and the problem is told; *go_on is
 * what dataset_problem gave. */
static bool caption_of(DatasetReader *r, const TableRow *row, Span *caption, bool *go_on) {
    int found = 0;
    *caption = (Span){0};
    for (int c = TEXT; c <= CAPTION; c++) {
        if (!row->cells[c].at) continue;
        if (found) {
            *go_on = dataset_problem(r, row->file, row->line,
                                     "has both \"%s\" and \"%s\", and one caption is wanted. "
                                     "Rename one of them.",
                                     COLUMNS[found], COLUMNS[c]);
            return false;
        }
        found = c;
    }
    if (!found) {
        *go_on = dataset_problem(r, row->file, row->line,
                                 "has no caption: expected \"text\", \"prompt\" or \"caption\".");
        return false;
    }
    *caption = row->cells[found];
    return true;
}

static bool add_row(void *context, DatasetReader *r, const TableRow *row) {
    Span caption;
    bool go_on;
    (void)context;
    if (!row->cells[FILE_NAME].at)
        return dataset_problem(r, row->file, row->line,
                               "has no \"file_name\": expected that and \"text\", \"prompt\" or "
                               "\"caption\".");
    if (!caption_of(r, row, &caption, &go_on)) return go_on;
    return dataset_add(r, &(DatasetRow){.file = row->file,
                                        .line = row->line,
                                        .base_video = "",
                                        .video = row->cells[FILE_NAME],
                                        .caption = caption});
}

bool read_metadata(DatasetReader *r, const char *name) {
    r->d->layout = xprintf("%s with file_name and a caption", name);
    return table_read(r, name, COLUMNS, add_row, NULL);
}

/* CogKit: files by id. */
typedef struct {
    char *id, *file_name;
    size_t line;
    bool used;
} Numbered;

typedef struct {
    const char *name; /* the table's */
    Numbered *rows;   /* sorted by id */
    size_t n;
} Numbers;

static int by_id(const void *a, const void *b) {
    return strcmp(((const Numbered *)a)->id, ((const Numbered *)b)->id);
}

static bool take_number(void *context, DatasetReader *r, const TableRow *row) {
    Numbers *n = context;
    if (!row->cells[ID].at || !row->cells[FILE_NAME].at)
        return dataset_problem(r, row->file, row->line, "expected \"id\" and \"file_name\".");
    n->rows = xrealloc(n->rows, (n->n + 1) * sizeof *n->rows);
    n->rows[n->n++] = (Numbered){.id = span_copy(row->cells[ID]),
                                 .file_name = span_copy(row->cells[FILE_NAME]),
                                 .line = row->line};
    return true;
}

static bool numbers_read(Numbers *n, DatasetReader *r, const char *name) {
    *n = (Numbers){.name = name};
    if (!table_read(r, name, COLUMNS, take_number, n)) return false;
    if (n->n) qsort(n->rows, n->n, sizeof *n->rows, by_id);
    for (size_t i = 1; i < n->n; i++)
        if (!by_id(&n->rows[i - 1], &n->rows[i]))
            return dataset_fail(r, name, MAX(n->rows[i - 1].line, n->rows[i].line),
                                "the id %.60s is there twice.", n->rows[i].id);
    return true;
}

static void numbers_free(Numbers *n) {
    for (size_t i = 0; i < n->n; i++) {
        free(n->rows[i].id);
        free(n->rows[i].file_name);
    }
    free(n->rows);
}

static Numbered *number_find(const Numbers *n, Span id) {
    Numbered key = {.id = span_copy(id)};
    Numbered *found = n->n ? bsearch(&key, n->rows, n->n, sizeof *n->rows, by_id) : NULL;
    free(key.id);
    return found;
}

typedef struct {
    Numbers videos, images;
} CogKit;

static bool join_row(void *context, DatasetReader *r, const TableRow *row) {
    CogKit *k = context;
    Span caption;
    bool go_on;
    if (!row->cells[ID].at) return dataset_problem(r, row->file, row->line, "has no \"id\".");
    Numbered *video = number_find(&k->videos, row->cells[ID]);
    Numbered *image = number_find(&k->images, row->cells[ID]);
    if (video && video->used)
        return dataset_fail(r, row->file, row->line, "the id %.60s is there twice.", video->id);
    if (video) video->used = true;
    if (image) image->used = true;
    if (!video)
        return dataset_problem(r, row->file, row->line, "videos/metadata.jsonl has no id %.*s.",
                               (int)MIN(row->cells[ID].n, 60), row->cells[ID].at);
    if (!caption_of(r, row, &caption, &go_on)) return go_on;
    return dataset_add(r, &(DatasetRow){.file = row->file,
                                        .line = row->line,
                                        .base_video = "videos",
                                        .base_image = "images",
                                        .video = span_of(video->file_name),
                                        .image = image ? span_of(image->file_name) : (Span){0},
                                        .caption = caption});
}

static bool check_used(DatasetReader *r, const Numbers *n) {
    for (size_t i = 0; i < n->n; i++)
        if (!n->rows[i].used && !dataset_problem(r, n->name, n->rows[i].line,
                                                 "the id %.60s has no caption.", n->rows[i].id))
            return false;
    return true;
}

bool read_cogkit(DatasetReader *r, const char *name) {
    static const char VIDEOS[] = "videos/metadata.jsonl", IMAGES[] = "images/metadata.jsonl";
    CogKit k = {0};
    bool images = dataset_has(r, IMAGES);
    if (!images && dataset_has(r, "images"))
        return dataset_fail(r, "images", 0, "there is no metadata.jsonl in it that names ids.");
    r->d->layout = xprintf("%s with videos/%s (CogKit's image-to-video layout)", name,
                           images ? " and images/" : "");
    bool ok = numbers_read(&k.videos, r, VIDEOS) &&
              (!images || numbers_read(&k.images, r, IMAGES)) &&
              table_read(r, name, COLUMNS, join_row, &k) && check_used(r, &k.videos) &&
              check_used(r, &k.images);
    numbers_free(&k.videos);
    numbers_free(&k.images);
    return ok;
}
