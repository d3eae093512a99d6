/* The table behind the configuration, for config*.c alone: what a key is, and values as text. */
#pragma once

#include "trainer/config.h"

typedef enum {
    KEY_STRING,  /* char *, may be "" */
    KEY_PATH,    /* char *, never "" */
    KEY_INT,     /* int64_t */
    KEY_SIZE,    /* int64_t bytes: digits, then nothing or KiB, MiB, GiB, TiB */
    KEY_FLOAT,   /* double, finite */
    KEY_BOOL,    /* bool: true | false */
    KEY_CHOICE,  /* an enum: one of `choices`, in the enum's order */
    KEY_DEVICE,  /* DeviceChoice */
    KEY_FLOATS,  /* FloatList of exactly `count` items */
    KEY_STRINGS, /* StringList, not empty */
} KeyType;

typedef struct {
    const char *path; /* "memory.base.home" */
    KeyType type;
    size_t offset;       /* in Config */
    const char *text;    /* the default as a user would write it; NULL: unset */
    double min, max;     /* of numbers, both included */
    const char *choices; /* "lora|full" */
    int count;           /* items of a KEY_FLOATS */
    const char *doc;
    const char *unset; /* what an unset key means, for --help and the dump; NULL: nothing */
} Key;

enum { CONFIG_KEYS = 91, CONFIG_SECTIONS = 15, CONFIG_KEY_BYTES = 64 };
#define KEY_NO_MAX 0x1p63 /* as `max`: no limit but the type's */

/* Sections in the order of the table: "model" and what it is about. */
typedef struct {
    const char *name, *doc;
} Section;

extern const Key CONFIG_TABLE[CONFIG_KEYS];
extern const Section CONFIG_SECTION_TABLE[CONFIG_SECTIONS];

/* The row of a path, or -1. */
int key_index(const char *path);
/* Whether some key lies below this path. */
bool key_is_section(const char *path);
bool key_is_list(const Key *key);

/* What a value of the key looks like, of its own memory: "a whole number from 1 to 4096". */
char *key_expected(const Key *key);
/* The size that was probably meant, of its own memory ("8GiB" for "8 gigs"); NULL: none. */
char *key_near_size(const char *text);

/* Writes items[n] (n is 1 except for lists) into the key's field, freeing what was there. False,
 * with the field untouched, when they are not a value of the key. */
bool key_set(Config *c, const Key *key, const char *const *items, int n);
/* False: unset. */
bool key_has_value(const Config *c, const Key *key);
void key_unset(Config *c, const Key *key);

/* The value as YAML text of its own memory, strings quoted. The key must have one. */
char *key_format(const Config *c, const Key *key);

/* Bytes of the first character of s and its code point; 0 when s does not start with well-formed
 * UTF-8 (overlong forms and surrogates are not). */
int utf8_decode(const char *s, uint32_t *code);
