/* Owns how the program fails, the table of number types, and host memory for metadata. */
#define _POSIX_C_SOURCE 200809L
#include "kernels/base.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const struct {
    const char *name;
    size_t size;
} DTYPES[DT_COUNT] = {
    [DT_F32] = {"F32", 4},   [DT_BF16] = {"BF16", 2},       [DT_F16] = {"F16", 2},
    [DT_F64] = {"F64", 8},   [DT_I64] = {"I64", 8},         [DT_I32] = {"I32", 4},
    [DT_I16] = {"I16", 2},   [DT_I8] = {"I8", 1},           [DT_U64] = {"U64", 8},
    [DT_U32] = {"U32", 4},   [DT_U16] = {"U16", 2},         [DT_U8] = {"U8", 1},
    [DT_BOOL] = {"BOOL", 1}, [DT_F8_E4M3] = {"F8_E4M3", 1}, [DT_F8_E5M2] = {"F8_E5M2", 1},
};

size_t dtype_size(DType t) { return DTYPES[t].size; }

const char *dtype_name(DType t) { return DTYPES[t].name; }

bool dtype_from_name(const char *name, DType *t) {
    for (int i = 0; i < DT_COUNT; i++) {
        if (strcmp(DTYPES[i].name, name)) continue;
        *t = (DType)i;
        return true;
    }
    return false;
}

void text_disarm(char *text, bool lines) {
    for (; *text; text++) {
        if (!is_control(text) || (lines && *text == '\n')) continue;
        if ((unsigned char)*text == 0xc2) text[1] = '?';
        *text = '?';
    }
}

bool error_set(Error *e, int exit_code, const char *format, ...) {
    if (!e) return false;
    va_list args;
    va_start(args, format);
    vsnprintf(e->text, sizeof e->text, format, args);
    va_end(args);
    text_disarm(e->text, false);
    e->exit_code = exit_code;
    return false;
}

static double pause_seconds;
static const char *speaker = "";

void die_after(double seconds, const char *who) {
    pause_seconds = seconds;
    speaker = who;
}

/* "cogsmith: ", when it is this process's turn to speak. */
static void begin_failure(void) {
    double end = now_seconds() + pause_seconds;
    if (pause_seconds > 0) signal(SIGTERM, SIG_DFL); /* a request to stop ends it now */
    for (double left; (left = end - now_seconds()) > 0;)
        nanosleep(&(struct timespec){0, (long)(1e9 * MIN(left, 0.1))}, NULL);
    fprintf(stderr, "cogsmith: %s", speaker);
}

static char *format_text(const char *format, va_list args) {
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    char *s = xcalloc((size_t)n + 1, 1);
    vsnprintf(s, (size_t)n + 1, format, again);
    va_end(again);
    return s;
}

void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    char *text = format_text(format, args);
    va_end(args);
    text_disarm(text, true);
    begin_failure();
    fprintf(stderr, "%s\n", text);
    exit(EXIT_USER);
}

void die_error(const Error *e) {
    begin_failure();
    fprintf(stderr, "%s\n", e->text);
    exit(e->exit_code);
}

void check_failed(const char *file, int line, const char *condition, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s:%d: bug: %s: ", file, line, condition);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

static void *or_die(void *p, size_t bytes) {
    if (p) return p;
    fprintf(stderr, "cogsmith: out of host memory (%zu bytes wanted)\n", bytes);
    exit(EXIT_WORLD);
}

void *xcalloc(size_t count, size_t size) {
    if (!count || !size) count = size = 1;
    return or_die(calloc(count, size), count * size);
}

void *xrealloc(void *p, size_t size) { return or_die(realloc(p, size ? size : 1), size); }

char *xstrdup(const char *s) {
    size_t n = strlen(s) + 1;
    return memcpy(xcalloc(n, 1), s, n);
}

char *xprintf(const char *format, ...) {
    va_list args;
    va_start(args, format);
    char *s = format_text(format, args);
    va_end(args);
    return s;
}

double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
