/* Owns the two ways to see the table: a config as commented YAML, and the keys of a verb's help. */
#define _POSIX_C_SOURCE 200809L
#include "trainer/config_table.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DOC_COLUMN = 44 };

/* Opens the sections of `path` that `last` did not have open; returns the depth of the key. */
static int print_sections(FILE *out, const char *last, const char *path) {
    int depth = 0;
    size_t begin = 0;
    for (size_t i = 0; path[i]; i++) {
        if (path[i] != '.') continue;
        if (strncmp(last, path, i + 1))
            fprintf(out, "%*s%.*s:\n", 2 * depth, "", (int)(i - begin), path + begin);
        begin = i + 1;
        depth++;
    }
    return depth;
}

static void print_section_doc(FILE *out, const char *last, const char *path) {
    size_t n = strcspn(path, ".");
    if (!strncmp(last, path, n) && last[n] == path[n]) return;
    for (int i = 0; i < CONFIG_SECTIONS; i++) {
        const Section *section = &CONFIG_SECTION_TABLE[i];
        if (strlen(section->name) == n && !strncmp(section->name, path, n))
            fprintf(out, "%s# %s: %s\n", *last ? "\n" : "", section->name, section->doc);
    }
}

char *config_dump(const Config *c) {
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    CHECK(out, "open_memstream: %s", strerror(errno));
    const char *last = "";
    for (int i = 0; i < CONFIG_KEYS; i++) {
        const Key *key = &CONFIG_TABLE[i];
        bool set = key_has_value(c, key);
        char *value = set ? key_format(c, key) : xprintf("(%s)", key->unset);
        print_section_doc(out, last, key->path);
        int depth = print_sections(out, last, key->path);
        const char *dot = strrchr(key->path, '.');
        char *line = xprintf("%*s%s%s: %s", 2 * depth, "", set ? "" : "# ",
                             dot ? dot + 1 : key->path, value);
        fprintf(out, "%-*s # %s\n", DOC_COLUMN, line, key->doc);
        last = key->path;
        free(line);
        free(value);
    }
    CHECK(!fclose(out), "the dump: %s", strerror(errno));
    return text;
}

/* Whether `name` is one of the words of `names`. */
static bool has_word(const char *names, const char *name) {
    size_t n = strlen(name);
    for (const char *at = names; (at = strstr(at, name)); at += n)
        if ((at == names || at[-1] == ' ') && (at[n] == ' ' || !at[n])) return true;
    return false;
}

static void print_key_help(const Key *key) {
    if (!key->text)
        printf("  %s (%s)\n", key->path, key->unset);
    else
        printf(key_is_list(key) ? "  %s %s\n" : "  %s [%s]\n", key->path, key->text);
    bool obvious = key->type == KEY_STRING || key->type == KEY_PATH || key->type == KEY_DEVICE;
    char *expected = key_expected(key);
    printf(obvious ? "      %s\n" : "      %s (%s)\n", key->doc, expected);
    free(expected);
}

void config_help(const char *sections) {
    for (int i = 0; i < CONFIG_SECTIONS; i++) {
        const Section *section = &CONFIG_SECTION_TABLE[i];
        if (!has_word(sections, section->name)) continue;
        printf("\n%s: %s\n", section->name, section->doc);
        for (int k = 0; k < CONFIG_KEYS; k++) {
            const char *path = CONFIG_TABLE[k].path;
            size_t n = strlen(section->name);
            if (!strncmp(path, section->name, n) && (!path[n] || path[n] == '.'))
                print_key_help(&CONFIG_TABLE[k]);
        }
    }
}

char *config_differences(const Config *before, const Config *now, const char *sections,
                         const char *except) {
    char *text = xstrdup("");
    for (int i = 0; i < CONFIG_KEYS; i++) {
        const Key *key = &CONFIG_TABLE[i];
        char *section = xprintf("%.*s", (int)strcspn(key->path, "."), key->path);
        bool compared = has_word(sections, section) && !has_word(except, key->path);
        char *old = key_has_value(before, key) ? key_format(before, key) : xstrdup("not set");
        char *new = key_has_value(now, key) ? key_format(now, key) : xstrdup("not set");
        if (compared && strcmp(old, new)) {
            char *longer = xprintf("%s  %s: was %s, is %s\n", text, key->path, old, new);
            free(text);
            text = longer;
        }
        free(section);
        free(old);
        free(new);
    }
    return text;
}
