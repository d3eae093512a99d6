/* What the readers of the dataset layouts share. Private to data/dataset*. */
#pragma once

#include "data/dataset.h"

/* Bytes of a text, not ended by NUL. */
typedef struct {
    const char *at;
    size_t n;
} Span;

Span span_of(const char *text);
/* Without white space at either end. */
Span span_strip(Span s);
bool span_is(Span s, const char *text);
char *span_copy(Span s);

/* A whole text file, without its byte order mark. */
typedef struct {
    char *name; /* below the dataset's folder */
    char *bytes;
    Span rest;   /* what is not read yet */
    size_t line; /* number of the line read last */
} TextFile;

/* The names in a folder that do not begin with a dot, sorted by bytes. */
typedef struct {
    char **names;
    size_t n;
} Listing;

typedef struct {
    Dataset *d;
    char *folder;
    Listing listing; /* of the folder */
    const char *trigger;
    bool skip_bad;
    Error *e;
} DatasetReader;

bool listing_read(Listing *l, const char *folder, Error *e);
void listing_free(Listing *l);
bool listing_has(const Listing *l, const char *name);
/* Whether a path below the folder leads anywhere. */
bool dataset_has(const DatasetReader *r, const char *name);
bool is_video_name(const char *name);
Span stem_of(const char *name); /* what is before the last dot */

/* A mistake that spoils the whole dataset. Returns false. `line` 0: none. */
bool dataset_fail(const DatasetReader *r, const char *file, size_t line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* One that spoils an item: false where it stops the reading. */
bool dataset_problem(DatasetReader *r, const char *file, size_t line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The same for an error that is written already. */
bool dataset_leave_out(DatasetReader *r, const Error *why);

/* `name` below the folder. false: *e. */
bool text_open(TextFile *t, const DatasetReader *r, const char *name, Error *e);
void text_close(TextFile *t);
/* The next line, stripped. */
bool text_line(TextFile *t, Span *line);

/* What a layout says of one item. */
typedef struct {
    const char *file; /* of the caption */
    size_t line;
    const char *video_list, *image_list; /* lists that name the files on that line; NULL: `file` */
    const char *base_video, *base_image; /* where the paths begin, below the folder; "": there */
    Span video, image, caption;          /* image.at NULL: none */
} DatasetRow;
/* Adds an item after all checks, or makes a problem of it. */
bool dataset_add(DatasetReader *r, const DatasetRow *row);

/* The layouts. Each sets r->d->layout. */
bool read_pairs(DatasetReader *r, const char *videos, const char *captions);
bool read_single(DatasetReader *r, const char *name);
bool read_lists(DatasetReader *r, const char *captions, const char *videos, const char *images);
bool read_metadata(DatasetReader *r, const char *name);
bool read_cogkit(DatasetReader *r, const char *name);

/* A table with named columns: CSV with a header, a JSON list of objects, or JSON objects by line.
 * Calls `each` for every row; a cell that is not there has at NULL; numbers come as text. */
typedef struct {
    const char *file;
    size_t line; /* of a JSON list: the item, counted from 1 */
    const char *const *columns;
    Span cells[8];
} TableRow;
typedef bool TableEach(void *context, DatasetReader *r, const TableRow *row);
bool table_read(DatasetReader *r, const char *name, const char *const *columns, TableEach *each,
                void *context);
