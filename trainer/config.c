/* Owns the life of a Config: defaults, the YAML file, the arguments, and every complaint about
 * them. The only file that sees libyaml; it takes events, so that a hostile document costs no more
 * than its own length.
 */
#define _POSIX_C_SOURCE 200809L
#include "data/nearest.h"
#include "trainer/config_table.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { FILE_BYTES = 1 << 20, LIST_ITEMS = 256, KEYS_OF_SECTION = 32, CHOICES = 16 };

/* One document on its way into a config. */
typedef struct {
    yaml_parser_t parser;
    yaml_event_t event; /* the last one */
    Config *config;
    const char *text; /* the whole document */
    const char *name; /* of the file, for places */
    Error *error;
} Reader;

/* A key already seen in one mapping. */
typedef struct {
    char path[CONFIG_KEY_BYTES];
    int line;
} Seen;

static bool complain(Error *e, const char *place, const char *path, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* `place: path: text` with EXIT_USER. Returns false. */
static bool complain(Error *e, const char *place, const char *path, const char *format, ...) {
    char text[800];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return error_set(e, EXIT_USER, "%.200s: %.80s%s%s", place, path, *path ? ": " : "", text);
}

static char *place_of(const Reader *r, yaml_mark_t mark) {
    return xprintf("%s:%zu:%zu", r->name, mark.line + 1, mark.column + 1);
}

static bool complain_at(Reader *r, yaml_mark_t mark, const char *path, const char *text) {
    char *place = place_of(r, mark);
    complain(r->error, place, path, "%s", text);
    free(place);
    return false;
}

/* The first key whose last name is this one, as in "rank" for "lora.rank". */
static const char *key_by_last_name(const char *path) {
    const char *last = strrchr(path, '.');
    last = last ? last + 1 : path;
    for (int i = 0; i < CONFIG_KEYS; i++) {
        const char *dot = strrchr(CONFIG_TABLE[i].path, '.');
        if (dot && !strcmp(dot + 1, last)) return CONFIG_TABLE[i].path;
    }
    return NULL;
}

/* Whether `got` is the first letters of the words of a name, as "lr" of "learning_rate". */
static bool is_initials(const char *got, const char *name) {
    for (; *got && *got == *name; got++) {
        name += strcspn(name, "_");
        if (!*name) return !got[1];
        name++;
    }
    return false;
}

/* The first key whose last name has these initials, of two letters at least; NULL: none. */
static const char *key_by_initials(const char *path) {
    const char *last = strrchr(path, '.');
    last = last ? last + 1 : path;
    for (int i = 0; i < CONFIG_KEYS; i++) {
        const char *dot = strrchr(CONFIG_TABLE[i].path, '.');
        if (dot && *last && last[1] && is_initials(last, dot + 1)) return CONFIG_TABLE[i].path;
    }
    return NULL;
}

/* The known key or section that an unknown path stands for, or NULL. */
static const char *suggest(const char *path) {
    const char *names[CONFIG_KEYS + CONFIG_SECTIONS];
    for (int i = 0; i < CONFIG_KEYS; i++) names[i] = CONFIG_TABLE[i].path;
    for (int i = 0; i < CONFIG_SECTIONS; i++) names[CONFIG_KEYS + i] = CONFIG_SECTION_TABLE[i].name;
    const char *initials = key_by_initials(path);
    if (initials) return initials;
    const char *near = nearest_name(path, names, COUNT(names)), *same = key_by_last_name(path);
    bool sectionless = !strchr(path, '.'); /* other trainers' flat "rank": the section is missing */
    return same && (sectionless || !near) ? same : near;
}

static bool complain_unknown(Error *e, const char *place, const char *path) {
    const char *near = suggest(path);
    if (near) return complain(e, place, path, "no such key; did you mean '%s'?", near);
    return complain(e, place, path, "no such key; `cogsmith VERB --help` lists the keys");
}

/* The choice or size that `got` stands for, of its own memory, or NULL. */
static char *suggest_value(const Key *key, const char *got) {
    if (key->type == KEY_SIZE) return key_near_size(got);
    char *list = xstrdup(key->type == KEY_CHOICE ? key->choices : ""), *rest = list;
    const char *names[CHOICES];
    int n = 0;
    for (char *name; (name = strtok_r(rest, "|", &rest));) {
        CHECK(n < CHOICES, "%s has more choices than that", key->path);
        names[n++] = name;
    }
    const char *near = nearest_name(got, names, n);
    char *copy = near ? xstrdup(near) : NULL;
    free(list);
    return copy;
}

static bool complain_value(Error *e, const char *place, const Key *key, const char *got) {
    char *expected = key_expected(key), *near = suggest_value(key, got);
    if (near)
        complain(e, place, key->path, "expected %s, not '%.80s'; did you mean '%s'?", expected, got,
                 near);
    else
        complain(e, place, key->path, "expected %s, not '%.80s'; without the key: %s", expected,
                 got, key->text ? key->text : key->unset);
    free(near);
    free(expected);
    return false;
}

/* Takes items[n] as the value of the key and remembers the place. `got` is what to quote. */
static bool accept(Config *c, const Key *key, const char *const *items, int n, const char *place,
                   const char *got, Error *e) {
    if (!key_set(c, key, items, n)) return complain_value(e, place, key, got);
    char **slot = &c->places[key - CONFIG_TABLE];
    free(*slot);
    *slot = key_has_value(c, key) ? xstrdup(place) : NULL;
    return true;
}

/* Line and column of a byte, columns counted in characters. */
static yaml_mark_t mark_at(const char *text, size_t offset) {
    yaml_mark_t mark = {.index = offset};
    for (size_t i = 0; i < offset; i++) {
        if (((unsigned char)text[i] & 0xC0) != 0x80) mark.column++;
        if (text[i] == '\n') mark.line++, mark.column = 0;
    }
    return mark;
}

/* Whether a tab indents the line of the mark. */
static bool tab_before(const char *text, yaml_mark_t mark) {
    for (size_t line = 0; line < mark.line; line++) {
        text += strcspn(text, "\n");
        text += *text == '\n';
    }
    return text[strspn(text, " ")] == '\t';
}

static bool complain_syntax(Reader *r) {
    const yaml_parser_t *p = &r->parser;
    bool unreadable = p->error == YAML_READER_ERROR; /* then problem_mark is not set */
    yaml_mark_t mark = unreadable ? mark_at(r->text, p->problem_offset) : p->problem_mark;
    bool tab = !unreadable && tab_before(r->text, mark);
    char *text = xprintf("not YAML: %s", tab ? "a tab; indent with blanks" : p->problem);
    complain_at(r, mark, "", text);
    free(text);
    return false;
}

/* The properties that no event may have. */
static const char *forbidden(const yaml_event_t *event) {
    const yaml_char_t *anchor = NULL, *tag = NULL;
    if (event->type == YAML_ALIAS_EVENT)
        return "aliases (*name) are not taken; write the value out";
    if (event->type == YAML_SCALAR_EVENT)
        anchor = event->data.scalar.anchor, tag = event->data.scalar.tag;
    if (event->type == YAML_SEQUENCE_START_EVENT)
        anchor = event->data.sequence_start.anchor, tag = event->data.sequence_start.tag;
    if (event->type == YAML_MAPPING_START_EVENT)
        anchor = event->data.mapping_start.anchor, tag = event->data.mapping_start.tag;
    if (anchor) return "anchors (&name) are not taken; write the value where it is used";
    if (tag) return "tags (!name) are not taken; write the plain value";
    if (event->type == YAML_SCALAR_EVENT &&
        strlen((const char *)event->data.scalar.value) != event->data.scalar.length)
        return "a NUL character cannot be part of a key or value";
    return NULL;
}

static bool next_event(Reader *r, const char *path) {
    yaml_event_delete(&r->event);
    if (!yaml_parser_parse(&r->parser, &r->event)) return complain_syntax(r);
    const char *why = forbidden(&r->event);
    return why ? complain_at(r, r->event.start_mark, path, why) : true;
}

static const char *scalar(const Reader *r) { return (const char *)r->event.data.scalar.value; }

static bool is_null(const Reader *r) {
    if (r->event.data.scalar.style != YAML_PLAIN_SCALAR_STYLE) return false;
    return !*scalar(r) || !strcmp(scalar(r), "~") || !strcmp(scalar(r), "null");
}

/* The items of a list that has begun, each of its own memory; false after a complaint. */
static bool read_items(Reader *r, const char *path, char **items, int *n) {
    for (*n = 0;;) {
        if (!next_event(r, path)) return false;
        if (r->event.type == YAML_SEQUENCE_END_EVENT) return true;
        if (r->event.type != YAML_SCALAR_EVENT || is_null(r))
            return complain_at(r, r->event.start_mark, path,
                               "expected a plain value as item of the list; lists do not nest");
        if (*n == LIST_ITEMS)
            return complain_at(r, r->event.start_mark, path, "the list is longer than 256 items");
        items[(*n)++] = xstrdup(scalar(r));
    }
}

static bool read_list(Reader *r, const Key *key, const char *place) {
    char *items[LIST_ITEMS];
    int n = 0;
    bool ok = read_items(r, key->path, items, &n);
    if (ok) {
        char *got = xprintf("[%s%s]", n ? items[0] : "", n > 1 ? ", ..." : "");
        ok = accept(r->config, key, (const char *const *)items, n, place, got, r->error);
        free(got);
    }
    for (int i = 0; i < n; i++) free(items[i]);
    return ok;
}

/* The value of a key, whose first event is the current one. */
static bool read_value(Reader *r, const Key *key) {
    yaml_event_type_t type = r->event.type;
    char *place = place_of(r, r->event.start_mark);
    bool ok = false;
    if (type == YAML_MAPPING_START_EVENT)
        complain_value(r->error, place, key, "{...}");
    else if (type == YAML_SEQUENCE_START_EVENT && key_is_list(key))
        ok = read_list(r, key, place);
    else if (type == YAML_SEQUENCE_START_EVENT)
        complain_value(r->error, place, key, "[...]");
    else if (key_is_list(key) || is_null(r))
        complain_value(r->error, place, key, scalar(r));
    else
        ok = accept(r->config, key, &(const char *){scalar(r)}, 1, place, scalar(r), r->error);
    free(place);
    return ok;
}

static bool read_mapping(Reader *r, const char *section);

/* A section's value: a mapping of its keys, or nothing at all. */
static bool read_section(Reader *r, const char *path) {
    if (r->event.type == YAML_MAPPING_START_EVENT) return read_mapping(r, path);
    if (r->event.type == YAML_SCALAR_EVENT && is_null(r)) return true;
    return complain_at(r, r->event.start_mark, path,
                       "expected its keys on the lines below, indented, as `key: value`");
}

/* Joins section and name into path; complains about names that are no keys, or were seen before. */
static bool read_key(Reader *r, const char *section, char path[CONFIG_KEY_BYTES], Seen *seen,
                     int n_seen) {
    yaml_mark_t mark = r->event.start_mark;
    if (r->event.type != YAML_SCALAR_EVENT)
        return complain_at(r, mark, section, "expected a key and its value, as `key: value`");
    char *full = xprintf("%s%s%s", section, *section ? "." : "", scalar(r));
    bool known = key_index(full) >= 0 || key_is_section(full), dotted = strchr(scalar(r), '.');
    snprintf(path, CONFIG_KEY_BYTES, "%s", full);
    char *place = place_of(r, mark);
    const Seen *before = NULL;
    for (int i = 0; i < n_seen && !before; i++)
        if (!strcmp(seen[i].path, full)) before = &seen[i];
    if (dotted && known)
        complain(r->error, place, full,
                 "keys are nested in a file; write `%.*s:`, and the rest "
                 "on the next line, indented",
                 (int)strcspn(scalar(r), "."), scalar(r));
    else if (!known)
        complain_unknown(r->error, place, full);
    else if (before)
        complain(r->error, place, full, "given twice; the first is on line %d", before->line);
    free(place);
    free(full);
    return known && !dotted && !before;
}

static bool read_mapping(Reader *r, const char *section) {
    Seen seen[KEYS_OF_SECTION];
    for (int n = 0;; n++) {
        if (!next_event(r, section)) return false;
        if (r->event.type == YAML_MAPPING_END_EVENT) return true;
        CHECK(n < KEYS_OF_SECTION, "section '%s' has more keys than that", section);
        char *path = seen[n].path;
        if (!read_key(r, section, path, seen, n)) return false;
        seen[n].line = (int)r->event.start_mark.line + 1;
        if (!next_event(r, path)) return false;
        int index = key_index(path);
        if (!(index >= 0 ? read_value(r, &CONFIG_TABLE[index]) : read_section(r, path)))
            return false;
    }
}

/* Everything up to the first event inside the document; *empty when there is no document. */
static bool begin_document(Reader *r, const char *path, bool *empty) {
    if (!next_event(r, path) || !next_event(r, path)) return false;
    *empty = r->event.type == YAML_STREAM_END_EVENT;
    return *empty || next_event(r, path);
}

static bool end_document(Reader *r, const char *path) {
    if (!next_event(r, path) || !next_event(r, path)) return false;
    if (r->event.type == YAML_STREAM_END_EVENT) return true;
    return complain_at(r, r->event.start_mark, path, "a second document begins; one is read");
}

static bool read_document(Reader *r) {
    bool empty;
    if (!begin_document(r, "", &empty)) return false;
    if (empty) return true;
    return read_section(r, "") && end_document(r, "");
}

static void reader_open(Reader *r, size_t bytes) {
    CHECK(yaml_parser_initialize(&r->parser), "libyaml has no memory");
    yaml_parser_set_encoding(&r->parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r->parser, (const yaml_char_t *)r->text, bytes);
}

static void reader_close(Reader *r) {
    yaml_event_delete(&r->event);
    yaml_parser_delete(&r->parser);
}

/* The first byte that does not belong to UTF-8, or `bytes`. text[bytes] must be NUL. */
static size_t utf8_length(const char *text, size_t bytes) {
    uint32_t code;
    size_t i = 0;
    for (int n = 1; i < bytes && n; i += n) n = utf8_decode(text + i, &code);
    return i;
}

static bool read_checked(Reader *r, size_t bytes) {
    size_t valid = utf8_length(r->text, bytes);
    if (valid < bytes)
        return complain_at(r, mark_at(r->text, valid), "",
                           "not UTF-8; save the file in this encoding");
    reader_open(r, bytes);
    bool ok = read_document(r);
    reader_close(r);
    return ok;
}

bool config_read_text(Config *c, const char *text, size_t bytes, const char *name, Error *e) {
    if (bytes > FILE_BYTES)
        return complain(e, name, "", "larger than 1 MiB; a config is some dozens of lines");
    if (bytes >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) text += 3, bytes -= 3; /* byte order mark */
    char *copy = xcalloc(bytes + 1, 1);
    memcpy(copy, text, bytes);
    Reader r = {.config = c, .text = copy, .name = name, .error = e};
    bool ok = read_checked(&r, bytes);
    free(copy);
    return ok;
}

bool config_read_file(Config *c, const char *path, Error *e) {
    FILE *file = fopen(path, "rb");
    if (!file)
        return complain(e, path, "", "cannot be opened: %s; expected a YAML file", strerror(errno));
    char *text = xcalloc(FILE_BYTES + 1, 1);
    size_t bytes = fread(text, 1, FILE_BYTES + 1, file);
    bool ok = !ferror(file);
    if (!ok) complain(e, path, "", "cannot be read: %s; expected a YAML file", strerror(errno));
    fclose(file);
    ok = ok && config_read_text(c, text, bytes, path, e);
    free(text);
    return ok;
}

/* "[a, b]" into the key, through the reader that a file would go through. */
static bool assign_list(Config *c, const Key *key, const char *text, const char *place, Error *e) {
    Reader r = {.config = c, .text = text, .name = place};
    reader_open(&r, strlen(text));
    bool empty, ok = begin_document(&r, "", &empty) && !empty &&
                     r.event.type == YAML_SEQUENCE_START_EVENT && read_list(&r, key, place) &&
                     end_document(&r, "");
    reader_close(&r);
    return ok || complain_value(e, place, key, text);
}

static bool assign_text(Config *c, const Key *key, const char *text, const char *place, Error *e) {
    if (key_is_list(key)) return assign_list(c, key, text, place, e);
    return accept(c, key, &text, 1, place, text, e);
}

bool config_assign(Config *c, const char *assignment, Error *e) {
    char *place = xprintf("command line: '%.120s'", assignment), *path = xstrdup(assignment);
    bool valid = !assignment[utf8_length(assignment, strlen(assignment))];
    char *value = strchr(path, '=');
    bool ok = false;
    if (value) *value++ = 0;
    int index = key_index(path);
    if (!valid)
        complain(e, place, "", "not UTF-8; give the value in a file saved as UTF-8");
    else if (!value)
        complain(e, place, "", "expected key.path=value");
    else if (index < 0 && key_is_section(path))
        complain(e, place, path, "expected one of its keys, as %s.NAME=value", path);
    else if (index < 0)
        complain_unknown(e, place, path);
    else
        ok = assign_text(c, &CONFIG_TABLE[index], value, place, e);
    free(place);
    free(path);
    return ok;
}

Config *config_new(void) {
    Config *c = xcalloc(1, sizeof *c);
    c->places = xcalloc(CONFIG_KEYS, sizeof *c->places);
    for (int i = 0; i < CONFIG_KEYS; i++) {
        const Key *key = &CONFIG_TABLE[i];
        if (!key->text) continue;
        Error e = {0};
        bool ok = assign_text(c, key, key->text, "default", &e);
        CHECK(ok, "%s", e.text);
        free(c->places[i]);
        c->places[i] = NULL;
    }
    return c;
}

void config_free(Config *c) {
    for (int i = 0; c && i < CONFIG_KEYS; i++) {
        key_unset(c, &CONFIG_TABLE[i]);
        free(c->places[i]);
    }
    if (c) free(c->places);
    free(c);
}

static int known_index(const char *path) {
    int index = key_index(path);
    CHECK(index >= 0, "no key '%s' in the table", path);
    return index;
}

bool config_is_set(const Config *c, const char *path) {
    return c->places[known_index(path)] != NULL;
}

bool config_section_is_set(const Config *c, const char *section) {
    size_t n = strlen(section);
    bool set = false;
    for (int i = 0; i < CONFIG_KEYS; i++) {
        const char *path = CONFIG_TABLE[i].path;
        set |= !strncmp(path, section, n) && path[n] == '.' && c->places[i];
    }
    return set;
}

const char *config_place(const Config *c, const char *path) {
    const char *place = c->places[known_index(path)];
    return place ? place : "default";
}

void config_die(const Config *c, const char *path, const char *format, ...) {
    char text[1000];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    die("%s: %s: %s", config_place(c, path), path, text);
}

void config_require(const Config *c, const char *path, const char *verb) {
    const Key *key = &CONFIG_TABLE[known_index(path)];
    if (key_has_value(c, key)) return;
    die("%s: needed by %s; give it as %s=... or in the config file", path, verb, path);
}
