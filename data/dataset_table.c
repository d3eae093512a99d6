/* Owns reading tables: CSV (RFC 4180) with a header, JSON lists and JSON lines. */
#include "data/dataset_read.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_COLUMNS = 256, MAX_CELLS = COUNT(((TableRow *)0)->cells) };

/* One line of a CSV file, which quotes may make longer than a line of text. */
typedef struct {
    Span cells[MAX_COLUMNS];
    size_t n, line; /* where it begins */
} Record;

/* A cell from t->rest on, unquoted in place. NULL, or what is wrong. */
static const char *read_cell(TextFile *t, Span *cell, bool *last) {
    char *at = (char *)t->rest.at, *end = at + t->rest.n, *to = at;
    if (at < end && *at == '"') {
        for (at++; at < end && !(*at == '"' && (at + 1 == end || at[1] != '"')); at++) {
            if (*at == '"') at++; /* of two quotes one stays */
            t->line += *at == '\n';
            *to++ = *at;
        }
        if (at == end) return "a quoted cell has no end.";
        at++;
        if (at < end && *at == '\r') at++;
        if (at < end && *at != ',' && *at != '\n')
            return "there is text after a quoted cell. Write a quote inside one twice.";
        *cell = (Span){t->rest.at, (size_t)(to - t->rest.at)};
    } else {
        while (at < end && *at != ',' && *at != '\n') at++;
        *cell = span_strip((Span){t->rest.at, (size_t)(at - t->rest.at)});
    }
    *last = at == end || *at == '\n';
    at += at < end;
    t->rest = (Span){at, (size_t)(end - at)};
    return NULL;
}

/* The next record that is not blank; false at the end. */
static bool read_record(TextFile *t, Record *record, const char **wrong) {
    for (bool last; t->rest.n;) {
        record->n = 0;
        record->line = t->line + 1;
        for (last = false; !last && !*wrong;) {
            Span cell = {0};
            *wrong = read_cell(t, &cell, &last);
            if (record->n < MAX_COLUMNS)
                record->cells[record->n++] = cell;
            else
                *wrong = "too many cells.";
        }
        t->line++;
        if (*wrong || record->n > 1 || record->cells[0].n) return true;
    }
    return false;
}

static bool use_record(DatasetReader *r, const TextFile *t, const char *const *columns,
                       const Record *head, const Record *record, TableEach *each, void *context) {
    TableRow row = {.file = t->name, .line = record->line, .columns = columns};
    if (record->n != head->n)
        return dataset_problem(r, t->name, record->line, "%zu cells, and the header has %zu.",
                               record->n, head->n);
    for (size_t c = 0; columns[c]; c++)
        for (size_t k = 0; k < head->n; k++)
            if (span_is(span_strip(head->cells[k]), columns[c])) row.cells[c] = record->cells[k];
    return each(context, r, &row);
}

static bool read_csv(DatasetReader *r, TextFile *t, const char *const *columns, TableEach *each,
                     void *context) {
    Record head = {0}, record;
    const char *wrong = NULL;
    if (!read_record(t, &head, &wrong)) return dataset_fail(r, t->name, 0, "the table is empty.");
    if (wrong) return dataset_fail(r, t->name, head.line, "%s", wrong);
    while (read_record(t, &record, &wrong)) {
        if (wrong) return dataset_fail(r, t->name, record.line, "%s", wrong);
        if (!use_record(r, t, columns, &head, &record, each, context)) return false;
    }
    return true;
}

/* Takes the wanted members of one JSON object. The row is used before the object goes. */
static bool use_object(DatasetReader *r, const json_t *object, TableRow *row, TableEach *each,
                       void *context) {
    char numbers[MAX_CELLS][24];
    if (!json_is_object(object))
        return dataset_problem(r, row->file, row->line, "expected an object {...}.");
    for (size_t c = 0; row->columns[c]; c++) {
        const json_t *v = json_object_get(object, row->columns[c]);
        row->cells[c] = (Span){0};
        if (json_is_string(v)) {
            row->cells[c] = (Span){json_string_value(v), json_string_length(v)};
        } else if (json_is_integer(v)) {
            snprintf(numbers[c], sizeof numbers[c], "%lld", (long long)json_integer_value(v));
            row->cells[c] = span_of(numbers[c]);
        } else if (v && !json_is_null(v))
            return dataset_problem(r, row->file, row->line, "\"%s\": expected a text.",
                                   row->columns[c]);
    }
    return each(context, r, row);
}

static bool read_json_lines(DatasetReader *r, TextFile *t, const char *const *columns,
                            TableEach *each, void *context) {
    Span line;
    while (text_line(t, &line)) {
        json_error_t at;
        if (!line.n) continue;
        TableRow row = {.file = t->name, .line = t->line, .columns = columns};
        json_t *object = json_loadb(line.at, line.n, JSON_REJECT_DUPLICATES, &at);
        bool go_on = object ? use_object(r, object, &row, each, context)
                            : dataset_problem(r, t->name, t->line,
                                              "not valid JSON at column %d: %s. Each line is one "
                                              "object.",
                                              at.column, at.text);
        json_decref(object);
        if (!go_on) return false;
    }
    return true;
}

static bool read_json_list(DatasetReader *r, TextFile *t, const char *const *columns,
                           TableEach *each, void *context) {
    json_error_t at;
    json_t *list = json_loadb(t->rest.at, t->rest.n, JSON_REJECT_DUPLICATES, &at);
    if (!list)
        return dataset_fail(r, t->name, (size_t)MAX(at.line, 1), "not valid JSON at column %d: %s.",
                            at.column, at.text);
    bool go_on = json_is_array(list);
    if (!go_on) dataset_fail(r, t->name, 1, "expected a list [...] of objects.");
    for (size_t i = 0; i < json_array_size(list) && go_on; i++) {
        TableRow row = {.file = t->name, .line = i + 1, .columns = columns};
        go_on = use_object(r, json_array_get(list, i), &row, each, context);
    }
    json_decref(list);
    return go_on;
}

bool table_read(DatasetReader *r, const char *name, const char *const *columns, TableEach *each,
                void *context) {
    TextFile t;
    const char *dot = strrchr(name, '.');
    if (!text_open(&t, r, name, r->e)) return false;
    bool ok = !strcmp(dot, ".csv")    ? read_csv(r, &t, columns, each, context)
              : !strcmp(dot, ".json") ? read_json_list(r, &t, columns, each, context)
                                      : read_json_lines(r, &t, columns, each, context);
    text_close(&t);
    return ok;
}
