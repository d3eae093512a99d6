/* Owns the text rows of `probe`: captions to token ids, token ids to embeddings. */
#define _POSIX_C_SOURCE 200809L
#include "trainer/probe_text.h"
#include "trainer/device.h"

#include "data/json.h"
#include "data/t5.h"
#include "data/tokenizer.h"
#include "trainer/dit_config.h"
#include "trainer/folder.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Token ids [n,L] and what comes of them; NULL: not asked for. */
typedef struct {
    int64_t *ids, n, length;
    float *embeddings;
    int64_t width;
} Text;

static char *folder_of(const Config *c, const char *component, const char *file) {
    char *folder;
    Error e;
    if (!component_folder(c->model.path, component, file, &folder, &e))
        config_die(c, "model.path", "%s", e.text);
    return folder;
}

/* ---- captions ---------------------------------------------------------------------------------
 */

/* max_text_seq_length of the transformer where model.path has one, else the tokenizer's own. */
static int64_t text_length(const Config *c, const Tokenizer *t) {
    char *path = xprintf("%s/transformer/config.json", c->model.path);
    int64_t length = t->max_length;
    DitConfig dit;
    Error e;
    if (!access(path, F_OK)) {
        if (!dit_config_read(&dit, path, &e)) die_error(&e);
        length = dit.text_length;
    }
    if (length < 2 || length > TOKENIZER_MAX_LENGTH)
        die("%s: max_text_seq_length: expected 2 to %d, found %lld", path, TOKENIZER_MAX_LENGTH,
            (long long)length);
    free(path);
    return length;
}

/* One line of the file: its ids go behind those of the lines before. */
static void add_caption(Text *x, const Tokenizer *t, const char *line, size_t n, const char *path) {
    char *place = xprintf("%s, line %lld", path, (long long)x->n + 1);
    const char *text;
    bool cut;
    Json j;
    Error e;
    if (!json_parse(&j, line, n, place, &e) || !json_require(&j, "text", &e) ||
        !json_get_string(&j, "text", &text, &e))
        die_error(&e);
    x->ids = xrealloc(x->ids, (size_t)((x->n + 1) * x->length) * sizeof *x->ids);
    if (!tokenizer_encode(t, text, strlen(text), x->length, x->ids + x->n * x->length, &cut, &e))
        die("%s: %s", place, e.text);
    if (cut)
        fprintf(stderr, "cogsmith: %s: the caption is cut: it has more than %lld tokens\n", place,
                (long long)x->length);
    x->n++;
    json_close(&j);
    free(place);
}

static void read_captions(Text *x, const Config *c) {
    char *folder = folder_of(c, "tokenizer", "spiece.model");
    const char *path = c->probe.captions;
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    Error e;
    if (!file) die("%s: expected a file of JSON lines {\"text\": ...}: %s", path, strerror(errno));
    Tokenizer *t = tokenizer_open(folder, &e);
    if (!t) die_error(&e);
    x->length = text_length(c, t);
    while ((n = getline(&line, &room, file)) >= 0) add_caption(x, t, line, (size_t)n, path);
    if (ferror(file)) die("%s: cannot be read: %s", path, strerror(errno));
    if (!x->n) die("%s: expected at least one line {\"text\": ...}", path);
    tokenizer_close(t);
    fclose(file);
    free(line);
    free(folder);
}

/* ---- embeddings -------------------------------------------------------------------------------
 */

/* Whether the input file asks for embeddings, and for nothing else. */
static bool asks_for_embeddings(const Config *c, const Safetensors *file) {
    const SafetensorsTensor *ids = safetensors_find(file, "input_ids");
    if (!ids) {
        if (c->probe.captions)
            config_die(c, "probe.captions", "goes alone, or with input_ids in probe.inputs");
        return false;
    }
    for (size_t i = 0; i < file->n_tensors; i++)
        if (file->tensors + i != ids)
            die("%s: %s: expected input_ids alone; give other inputs in a file of their own",
                file->path, file->tensors[i].name);
    if (ids->dtype != DT_I64 || ids->n_dims != 2 || ids->shape[0] < 1 || ids->shape[1] < 1 ||
        ids->shape[1] > T5_MAX_LENGTH)
        die("%s: input_ids: expected [n,L] of type I64, L at most %d", file->path, T5_MAX_LENGTH);
    return true;
}

static void encode(Text *x, const Config *c, const SafetensorsTensor *ids) {
    static const NumbersChoice CHOICE[] = {
        [DT_F32] = NUMBERS_F32, [DT_BF16] = NUMBERS_BF16, [DT_F16] = NUMBERS_F16};
    char *folder = folder_of(c, "text_encoder", "config.json");
    Error e;
    T5 *t = t5_open(folder, device_backend(c), &e);
    if (!t) die_error(&e);
    if (c->model.dtype != NUMBERS_AUTO && c->model.dtype != CHOICE[t->rows.dtype])
        config_die(c, "model.dtype", "the text encoder is used as stored, in %s; leave it out",
                   dtype_name(t->rows.dtype));
    int64_t n = ids->shape[0], length = ids->shape[1];
    int64_t *copy = memcpy(xcalloc(ids->bytes, 1), ids->data, ids->bytes);
    x->width = t->config.width;
    x->embeddings = xcalloc((size_t)(n * length * x->width), sizeof *x->embeddings);
    if (!t5_encode(t, copy, n, length, x->embeddings, &e)) die_error(&e);
    t5_close(t);
    free(copy);
    free(folder);
}

/* ---- the call ---------------------------------------------------------------------------------
 */

bool probe_text(const Config *c) {
    Text x = {0};
    Safetensors file = {0};
    SafetensorsItem items[2];
    SafetensorsMetadata format = {"format", "pt"};
    SafetensorsFile out = {.items = items, .metadata = &format, .n_metadata = 1};
    Error e;
    if (c->probe.inputs && !safetensors_open(&file, c->probe.inputs, &e)) die_error(&e);
    bool embeds = c->probe.inputs && asks_for_embeddings(c, &file);
    if (c->probe.captions) {
        read_captions(&x, c);
        items[out.n_items++] = (SafetensorsItem){"input_ids", DT_I64, 2, {x.n, x.length}, x.ids};
    }
    if (embeds) {
        const SafetensorsTensor *ids = safetensors_find(&file, "input_ids");
        encode(&x, c, ids);
        items[out.n_items++] = (SafetensorsItem){
            "embeddings", DT_F32, 3, {ids->shape[0], ids->shape[1], x.width}, x.embeddings};
    }
    safetensors_close(&file);
    if (!out.n_items) return false;
    if (!safetensors_write(c->probe.out, &out, &e)) die_error(&e);
    printf("%s\n", c->probe.out);
    free(x.ids);
    free(x.embeddings);
    return true;
}
