/* Owns the names of what is sampled. */
#define _POSIX_C_SOURCE 200809L
#include "trainer/sample_paths.h"

#include "data/whole.h"
#include "trainer/call_files.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NAME_BYTES = 48 };

static bool ends_in(const char *path, const char *end) {
    size_t n = strlen(path), m = strlen(end);
    return n > m && !strcasecmp(path + n - m, end);
}

/* "A red ball, rolling." and 42 -> "a-red-ball-rolling-42.mp4" */
static char *name_of(const char *prompt, long long seed) {
    char name[NAME_BYTES + 1];
    size_t n = 0;
    for (const char *p = prompt; *p && n < NAME_BYTES; p++) {
        unsigned char c = (unsigned char)*p;
        if (c < 128 && isalnum(c))
            name[n++] = (char)tolower(c);
        else if (n && name[n - 1] != '-')
            name[n++] = '-';
    }
    while (n && name[n - 1] == '-') n--;
    name[n] = 0;
    return xprintf("%s-%lld.mp4", n ? name : "sample", seed);
}

static void number_files(SamplePaths *p, const Config *c) {
    Error e;
    const char *folder = c->sample.out ? c->sample.out : "samples";
    if (ends_in(folder, ".mp4") || ends_in(folder, ".png"))
        config_die(c, "sample.out", "with sample.prompts it is a folder; found %s", folder);
    if (!folders_make(folder, &e)) config_die(c, "sample.out", "%s", e.text);
    for (int i = 0; i < p->count; i++) p->items[i] = xprintf("%s/%03d.mp4", folder, i);
}

SamplePaths sample_paths(const Config *c, const StringList *prompts) {
    SamplePaths p = {.items = xcalloc((size_t)prompts->count, sizeof *p.items),
                     .count = prompts->count};
    const char *out = c->sample.out;
    if (c->sample.prompts)
        number_files(&p, c);
    else
        p.items[0] = out ? xstrdup(out) : name_of(prompts->items[0], (long long)c->sample.seed);
    p.sheet = ends_in(p.items[0], ".png");
    if (!p.sheet && !ends_in(p.items[0], ".mp4"))
        config_die(c, "sample.out",
                   "%s: expected a name that ends in .mp4, or .png for a contact "
                   "sheet",
                   out);
    check_writable(c, "sample.out", p.items[0]);
    if (!c->sample.latents_out) return p;
    if (p.count > 1)
        config_die(c, "sample.latents_out", "one file goes with one prompt, and there are %d",
                   p.count);
    check_writable(c, "sample.latents_out", c->sample.latents_out);
    return p;
}

void sample_paths_free(SamplePaths *p) {
    for (int i = 0; i < p->count; i++) free(p->items[i]);
    free(p->items);
    *p = (SamplePaths){0};
}
