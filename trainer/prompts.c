/* Owns the prompts of sampling, from the configuration to embeddings. */
#define _POSIX_C_SOURCE 200809L
#include "trainer/prompts.h"
#include "trainer/device.h"

#include "data/tokenizer.h"
#include "kernels/comm.h"
#include "trainer/folder.h"
#include "trainer/progress.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOGETHER = 4 }; /* texts that pass through the encoder at once */

/* ---- prompts ----------------------------------------------------------------------------------
 */

static void add(StringList *p, const char *text) {
    p->items = xrealloc(p->items, (size_t)(p->count + 1) * sizeof *p->items);
    p->items[p->count++] = xstrdup(text);
}

static void read_lines(StringList *p, const char *path) {
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    if (!file) die("%s: expected a text file of one prompt a line: %s", path, strerror(errno));
    while ((n = getline(&line, &room, file)) >= 0) {
        if (memchr(line, 0, (size_t)n))
            die("%s, line %d: expected text, found a zero byte", path, p->count + 1);
        while (n && strchr("\r\n", line[n - 1])) line[--n] = 0;
        if (!line[strspn(line, " \t")])
            die("%s, line %d: expected a prompt, found an empty line; remove it", path,
                p->count + 1);
        add(p, line);
    }
    if (ferror(file)) die("%s: cannot be read: %s", path, strerror(errno));
    if (!p->count) die("%s: expected one prompt a line, found none", path);
    free(line);
    fclose(file);
}

StringList prompts_read(const Config *c) {
    const SampleConfig *s = &c->sample;
    StringList p = {0};
    if (s->prompts && s->prompt)
        config_die(c, "sample.prompts",
                   "goes without sample.prompt, which is given, too (%s); sample.prompt= on the "
                   "command line takes it away",
                   config_place(c, "sample.prompt"));
    if (s->prompts)
        read_lines(&p, s->prompts);
    else if (s->prompt)
        add(&p, s->prompt);
    else
        die("sample.prompt: missing; give it, or a list of prompts as sample.prompts (a single "
            "blank, sample.prompt=' ', is the empty prompt)");
    return p;
}

void prompts_free(StringList *p) {
    for (int i = 0; i < p->count; i++) free(p->items[i]);
    free(p->items);
    *p = (StringList){0};
}

/* ---- embeddings -------------------------------------------------------------------------------
 */

static char *folder_of(const Config *c, const char *component, const char *file) {
    char *folder;
    Error e;
    if (!component_folder(c->model.path, component, file, &folder, &e))
        config_die(c, "model.path", "%s", e.text);
    return folder;
}

/* ids [n,length] */
static int64_t *tokenize(const Config *c, char *const *texts, int n, int64_t length) {
    char *folder = folder_of(c, "tokenizer", "spiece.model");
    int64_t *ids = xcalloc((size_t)(n * length), sizeof *ids);
    Error e;
    Tokenizer *t = tokenizer_open(folder, &e);
    if (!t) die_error(&e);
    for (int i = 0; i < n; i++) {
        bool cut;
        if (!tokenizer_encode(t, texts[i], strlen(texts[i]), length, ids + i * length, &cut, &e))
            die("prompt \"%.60s\": %s", texts[i], e.text);
        if (cut && !comm_world_rank())
            fprintf(stderr,
                    "cogsmith: the prompt \"%.60s...\" is cut: it has more than %lld "
                    "tokens\n",
                    texts[i], (long long)length);
    }
    tokenizer_close(t);
    free(folder);
    return ids;
}

int64_t captions_together(const Config *c, const T5 *t, int64_t length, int64_t most) {
    const double mib = 1 << 20;
    int64_t available = device_available(c), n = most, bytes;
    while ((bytes = t5_bytes(t, n, length)) > available && n > 1) n--;
    if (c->memory.budget && bytes > available)
        config_die(c, "memory.budget",
                   "%.1f MiB is too little: the text encoder needs %.1f MiB, for one text of %lld "
                   "tokens",
                   (double)c->memory.budget / mib,
                   (double)(c->memory.budget - available + bytes) / mib, (long long)length);
    return n;
}

float *prompts_encode(const Config *c, const DitConfig *model, char *const *texts, int n) {
    int64_t length = model->text_length, each = length * model->text_dim;
    if (length < 2 || length > TOKENIZER_MAX_LENGTH)
        die("%s: max_text_seq_length: expected 2 to %d, found %lld", c->model.path,
            TOKENIZER_MAX_LENGTH, (long long)length);
    int64_t *ids = tokenize(c, texts, n, length);
    char *folder = folder_of(c, "text_encoder", "config.json");
    Error e;
    T5 *t = t5_open(folder, device_backend(c), &e);
    if (!t) die_error(&e);
    if (t->config.width != model->text_dim)
        die("%s: expected embeddings of %lld values, as the transformer takes, found %lld: the two "
            "are of different models",
            folder, (long long)model->text_dim, (long long)t->config.width);
    float *embeddings = xcalloc((size_t)(n * each), sizeof *embeddings);
    Progress *p = progress_open("encoding text", "prompts", 0, n);
    int together = (int)captions_together(c, t, length, TOGETHER);
    for (int i = 0; i < n; i += together) {
        int some = MIN(together, n - i);
        if (!t5_encode(t, ids + i * length, some, length, embeddings + i * each, &e)) die_error(&e);
        progress_set(p, i + some, NULL);
    }
    progress_close(p);
    t5_close(t);
    free(ids);
    free(folder);
    return embeddings;
}
