/* Owns the values of the configuration as text: reading them strictly, writing them exactly. */
#define _POSIX_C_SOURCE 200809L
#include "trainer/config_table.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *unit;
    int64_t bytes;
} UNITS[] = {
    {"TiB", INT64_C(1) << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"", 1},
};

static const void *field_of(const Config *c, const Key *key) {
    return (const char *)c + key->offset;
}

/* Bytes of a character by its first one; 0 for bytes that begin none. */
static int utf8_bytes(unsigned char first) {
    if (first < 0x80) return 1;
    if (first < 0xC2 || first > 0xF4) return 0;
    return first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

int utf8_decode(const char *s, uint32_t *code) {
    const unsigned char *u = (const unsigned char *)s;
    int n = utf8_bytes(u[0]);
    *code = n == 1 ? u[0] : u[0] & (0x7F >> n);
    for (int i = 1; i < n; i++) {
        if ((u[i] & 0xC0) != 0x80) return 0;
        *code = *code << 6 | (u[i] & 0x3F);
    }
    bool overlong = (n == 3 && *code < 0x800) || (n == 4 && *code < 0x10000);
    bool surrogate = *code >= 0xD800 && *code < 0xE000;
    return overlong || surrogate || *code > 0x10FFFF ? 0 : n;
}

/* Digits with a sign, nothing around them; exact. */
static bool read_int(const char *text, int64_t *value) {
    size_t digits = text[0] == '-' ? 1 : 0;
    if (!text[digits] || text[digits + strspn(text + digits, "0123456789")]) return false;
    errno = 0;
    *value = strtoll(text, NULL, 10);
    return errno == 0;
}

/* Decimal and finite; neither hexadecimal, nor rounded to 0 or infinity. */
static bool read_float(const char *text, double *value) {
    if (!text[0] || text[strspn(text, "0123456789.+-eE")]) return false;
    char *end;
    errno = 0;
    *value = strtod(text, &end);
    return !*end && errno == 0 && isfinite(*value);
}

static bool read_size(const char *text, int64_t *bytes) {
    size_t digits = strspn(text, "0123456789");
    char number[24];
    if (digits >= sizeof number) return false;
    memcpy(number, text, digits);
    number[digits] = 0;
    if (!read_int(number, bytes)) return false;
    for (size_t i = 0; i < COUNT(UNITS); i++)
        if (!strcmp(text + digits, UNITS[i].unit))
            return !__builtin_mul_overflow(*bytes, UNITS[i].bytes, bytes);
    return false;
}

/* Decimal digits with or without a point, and where they end; 0: there are none. */
static double read_digits(const char *text, const char **end) {
    size_t n = strspn(text, "0123456789.");
    char number[24];
    *end = text + n;
    if (!n || n >= sizeof number) return 0;
    memcpy(number, text, n);
    number[n] = 0;
    return strtod(number, NULL);
}

char *key_near_size(const char *text) {
    const char *end;
    double value = read_digits(text, &end);
    const char *unit = end + strspn(end, " _-"), *letters = "tgmk";
    const char *letter = *unit ? strchr(letters, *unit | 0x20) : NULL; /* in lower case */
    if (value <= 0 || (!letter && *unit && (*unit | 0x20) != 'b')) return NULL;
    size_t i = letter ? (size_t)(letter - letters) : COUNT(UNITS) - 1;
    double bytes = value * (double)UNITS[i].bytes;
    if (bytes >= 0x1p62) return NULL;
    while (i < COUNT(UNITS) - 1 && fmod(bytes, (double)UNITS[i].bytes) != 0) i++;
    return xprintf("%.0f%s", bytes / (double)UNITS[i].bytes, UNITS[i].unit);
}

static bool read_bool(const char *text, bool *value) {
    *value = !strcmp(text, "true");
    return *value || !strcmp(text, "false");
}

/* Where the i-th of "a|b|c" begins, and its length; NULL after the last. */
static const char *choice_at(const char *choices, int i, int *length) {
    for (; i > 0; i--) {
        choices += strcspn(choices, "|");
        if (!*choices++) return NULL;
    }
    *length = (int)strcspn(choices, "|");
    return choices;
}

static bool read_choice(const char *choices, const char *text, int *value) {
    int length;
    const char *name;
    for (int i = 0; (name = choice_at(choices, i, &length)); i++) {
        if ((int)strlen(text) != length || strncmp(text, name, length)) continue;
        *value = i;
        return true;
    }
    return false;
}

static bool read_device(const char *text, DeviceChoice *device) {
    int64_t index = -1;
    if (!strncmp(text, "cuda:", 5)) {
        if (!read_int(text + 5, &index) || index < 0 || index > 1023) return false;
        *device = (DeviceChoice){DEVICE_CUDA, (int)index};
        return true;
    }
    int kind;
    if (!read_choice("auto|cpu|cuda", text, &kind)) return false;
    *device = (DeviceChoice){kind, -1};
    return true;
}

static bool in_range(const Key *key, double value) {
    return value >= key->min && value <= key->max;
}

static bool set_floats(Config *c, const Key *key, const char *const *items, int n) {
    if (n != key->count) return false;
    FloatList list = {xcalloc(n, sizeof *list.items), n};
    for (int i = 0; i < n; i++) {
        if (read_float(items[i], &list.items[i]) && in_range(key, list.items[i])) continue;
        free(list.items);
        return false;
    }
    key_unset(c, key);
    memcpy((char *)c + key->offset, &list, sizeof list);
    return true;
}

static bool set_strings(Config *c, const Key *key, const char *const *items, int n) {
    for (int i = 0; i < n; i++)
        if (!*items[i]) return false;
    if (!n) return false;
    StringList list = {xcalloc(n, sizeof *list.items), n};
    for (int i = 0; i < n; i++) list.items[i] = xstrdup(items[i]);
    key_unset(c, key);
    memcpy((char *)c + key->offset, &list, sizeof list);
    return true;
}

static bool set_string(Config *c, const Key *key, const char *text) {
    if (key->type == KEY_PATH && !*text) return false;
    char *copy = xstrdup(text);
    key_unset(c, key);
    memcpy((char *)c + key->offset, &copy, sizeof copy);
    return true;
}

static bool set_number(Config *c, const Key *key, const char *text) {
    union {
        int64_t i;
        double f;
        bool b;
        int choice;
        DeviceChoice device;
    } value;
    size_t bytes = sizeof value.i;
    bool ok = false;
    if (key->type == KEY_INT) ok = read_int(text, &value.i) && in_range(key, (double)value.i);
    if (key->type == KEY_SIZE) ok = read_size(text, &value.i) && in_range(key, (double)value.i);
    if (key->type == KEY_FLOAT) ok = read_float(text, &value.f) && in_range(key, value.f);
    if (key->type == KEY_BOOL) ok = read_bool(text, &value.b), bytes = sizeof value.b;
    if (key->type == KEY_CHOICE)
        ok = read_choice(key->choices, text, &value.choice), bytes = sizeof value.choice;
    if (key->type == KEY_DEVICE) ok = read_device(text, &value.device), bytes = sizeof value.device;
    if (ok) memcpy((char *)c + key->offset, &value, bytes);
    return ok;
}

static bool is_text(const Key *key) { return key->type == KEY_STRING || key->type == KEY_PATH; }

bool key_is_list(const Key *key) { return key->type == KEY_FLOATS || key->type == KEY_STRINGS; }

bool key_set(Config *c, const Key *key, const char *const *items, int n) {
    if (key->type == KEY_FLOATS) return set_floats(c, key, items, n);
    if (key->type == KEY_STRINGS) return set_strings(c, key, items, n);
    if (!key->text && (!*items[0] || (!is_text(key) && !strcmp(items[0], "auto")))) {
        key_unset(c, key);
        return true;
    }
    return is_text(key) ? set_string(c, key, items[0]) : set_number(c, key, items[0]);
}

bool key_has_value(const Config *c, const Key *key) {
    if (key->text) return true;
    if (is_text(key)) return *(char *const *)field_of(c, key) != NULL;
    if (key->type == KEY_FLOAT) return *(const double *)field_of(c, key) != 0;
    return *(const int64_t *)field_of(c, key) != 0;
}

void key_unset(Config *c, const Key *key) {
    void *field = (char *)c + key->offset;
    if (is_text(key)) {
        free(*(char **)field);
        *(char **)field = NULL;
    } else if (key->type == KEY_STRINGS) {
        StringList *list = field;
        for (int i = 0; i < list->count; i++) free(list->items[i]);
        free(list->items);
        *list = (StringList){0};
    } else if (key->type == KEY_FLOATS) {
        free(((FloatList *)field)->items);
        *(FloatList *)field = (FloatList){0};
    } else if (key->type == KEY_FLOAT) {
        *(double *)field = 0;
    } else if (key->type == KEY_INT || key->type == KEY_SIZE) {
        *(int64_t *)field = 0;
    }
}

/* The shortest decimal that reads back as the same number. */
static void print_float(FILE *out, double value) {
    char text[32];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    fputs(text, out);
}

static void print_size(FILE *out, int64_t bytes) {
    size_t i = 0;
    while (bytes % UNITS[i].bytes) i++;
    fprintf(out, "%lld%s", (long long)(bytes / UNITS[i].bytes), UNITS[i].unit);
}

/* Double-quoted YAML; what a YAML reader would refuse or fold is escaped. */
static void print_quoted(FILE *out, const char *s) {
    uint32_t code;
    fputc('"', out);
    for (int n; *s; s += n) {
        n = utf8_decode(s, &code);
        CHECK(n, "a string of the configuration is not UTF-8");
        bool plain = code >= 0x20 && (code < 0x7F || code > 0x9F) && code != 0x2028 &&
                     code != 0x2029 && code != 0xFEFF && code != 0xFFFE && code != 0xFFFF;
        if (code == '"' || code == '\\')
            fprintf(out, "\\%c", (char)code);
        else if (plain)
            fwrite(s, 1, n, out);
        else
            fprintf(out, "\\u%04X", (unsigned)code);
    }
    fputc('"', out);
}

static void print_list(FILE *out, const Config *c, const Key *key) {
    const StringList *strings = field_of(c, key);
    const FloatList *floats = field_of(c, key);
    int n = key->type == KEY_STRINGS ? strings->count : floats->count;
    fputc('[', out);
    for (int i = 0; i < n; i++) {
        if (i) fputs(", ", out);
        if (key->type == KEY_STRINGS)
            print_quoted(out, strings->items[i]);
        else
            print_float(out, floats->items[i]);
    }
    fputc(']', out);
}

static void print_choice(FILE *out, const char *choices, int i) {
    int length;
    const char *name = choice_at(choices, i, &length);
    CHECK(name, "choice %d of %s", i, choices);
    fprintf(out, "%.*s", length, name);
}

static void print_device(FILE *out, const DeviceChoice *device) {
    print_choice(out, "auto|cpu|cuda", (int)device->kind);
    if (device->index >= 0) fprintf(out, ":%d", device->index);
}

char *key_format(const Config *c, const Key *key) {
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    CHECK(out, "open_memstream: %s", strerror(errno));
    const void *field = field_of(c, key);
    switch (key->type) {
    case KEY_STRING:
    case KEY_PATH:
        print_quoted(out, *(char *const *)field);
        break;
    case KEY_INT:
        fprintf(out, "%lld", (long long)*(const int64_t *)field);
        break;
    case KEY_SIZE:
        print_size(out, *(const int64_t *)field);
        break;
    case KEY_FLOAT:
        print_float(out, *(const double *)field);
        break;
    case KEY_BOOL:
        fputs(*(const bool *)field ? "true" : "false", out);
        break;
    case KEY_CHOICE:
        print_choice(out, key->choices, *(const int *)field);
        break;
    case KEY_DEVICE:
        print_device(out, field);
        break;
    case KEY_FLOATS:
    case KEY_STRINGS:
        print_list(out, c, key);
        break;
    }
    fclose(out);
    return text;
}

static void print_range(FILE *out, const Key *key) {
    fputs(key->max >= KEY_NO_MAX ? ", " : " from ", out);
    print_float(out, key->min);
    fputs(key->max >= KEY_NO_MAX ? " or more" : " to ", out);
    if (key->max < KEY_NO_MAX) print_float(out, key->max);
}

static void print_choices(FILE *out, const char *choices) {
    int length, next;
    for (int i = 0;; i++) {
        const char *name = choice_at(choices, i, &length);
        if (!name) return;
        const char *between = !i ? "" : choice_at(choices, i + 1, &next) ? ", " : " or ";
        fprintf(out, "%s%.*s", between, length, name);
    }
}

char *key_expected(const Key *key) {
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    CHECK(out, "open_memstream: %s", strerror(errno));
    switch (key->type) {
    case KEY_STRING:
        fputs("text", out);
        break;
    case KEY_PATH:
        fputs("a path", out);
        break;
    case KEY_SIZE:
        fputs("a whole number of bytes, or with a unit KiB, MiB, GiB or TiB (8GiB)", out);
        break;
    case KEY_BOOL:
        fputs("true or false", out);
        break;
    case KEY_CHOICE:
        print_choices(out, key->choices);
        break;
    case KEY_DEVICE:
        fputs("auto, cpu, cuda or cuda:N", out);
        break;
    case KEY_STRINGS:
        fputs("a list of names in brackets, such as [to_q, to_k]", out);
        break;
    case KEY_INT:
        fputs("a whole number", out);
        break;
    case KEY_FLOAT:
        fputs("a number", out);
        break;
    case KEY_FLOATS:
        fprintf(out, "a list of %d numbers in brackets, each", key->count);
        break;
    }
    if (key->type == KEY_INT || key->type == KEY_FLOAT || key->type == KEY_FLOATS)
        print_range(out, key);
    fclose(out);
    return text;
}
