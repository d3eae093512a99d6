/* Owns the T5 tokenizer: its folder, the special tokens, and the shape of its output. */
#define _POSIX_C_SOURCE 200809L
#include "data/tokenizer.h"

#include "data/json.h"
#include "data/sentencepiece.h"
#include "data/spiece.h"
#include "data/utf8.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the folder -------------------------------------------------------------------------------
 */

static SentencePiece *open_pieces(const char *path, Error *e) {
    FILE *file = fopen(path, "rb");
    struct stat st;
    if (!file || fstat(fileno(file), &st) || !S_ISREG(st.st_mode) ||
        st.st_size > SPIECE_MAX_BYTES) {
        error_set(e, EXIT_USER, "%.300s: expected the tokenizer's SentencePiece model: %s", path,
                  !file ? strerror(errno) : "not a file, or too large to be one");
        if (file) fclose(file);
        return NULL;
    }
    size_t n = (size_t)st.st_size;
    char *model = xcalloc(n, 1);
    n = fread(model, 1, n, file);
    fclose(file);
    SentencePiece *s =
        spiece_check(model, n, path, e) ? sentencepiece_open(model, n, path, e) : NULL;
    free(model);
    return s;
}

/* A later definition of a token replaces an earlier one. */
static void add_special(Tokenizer *t, const char *text, int64_t id, bool eats_left,
                        bool eats_right) {
    int i = 0;
    if (!*text) return;
    while (i < t->n_special && strcmp(t->special[i].text, text)) i++;
    if (i == t->n_special)
        t->special = xrealloc(t->special, (size_t)++t->n_special * sizeof *t->special);
    else
        free(t->special[i].text);
    t->special[i] = (SpecialToken){xstrdup(text), strlen(text), id, eats_left, eats_right};
}

/* tokenizer_config.json says "<pad>", or {"content": "<pad>", ...}. */
static bool token_text(const Json *j, const char *key, const char **text, Error *e) {
    Json object;
    if (json_get_string(j, key, text, NULL)) return true;
    return json_get_object(j, key, &object, e) && json_get_string(&object, "content", text, e);
}

/* pad_token, eos_token, unk_token: all of them pieces. */
static bool add_role(Tokenizer *t, const Json *j, const char *key, const char *usual, int64_t *id,
                     Error *e) {
    const char *text = usual;
    if (j->root && !token_text(j, key, &text, e)) return false;
    *id = sentencepiece_id(t->pieces, text);
    if (*id < 0)
        return error_set(e, EXIT_USER,
                         "%.300s: \"%s\": expected a piece of spiece.model, got %.80s",
                         j->root ? j->path : "spiece.model", key, text);
    add_special(t, text, *id, false, false);
    return true;
}

static bool check_id(const Json *j, const char *key, int64_t id, Error *e) {
    if (id >= 0 && id < SPIECE_MAX_PIECES) return true;
    return error_set(e, EXIT_USER, "%.300s: \"%.80s\": expected an id from 0 to %d", j->path, key,
                     SPIECE_MAX_PIECES - 1);
}

/* One entry of added_tokens_decoder: "800": {"content": "<extra_id_99>", "lstrip": true, ...}. */
static bool take_decoder_entry(void *tokenizer, const Json *j, const char *key, Error *e) {
    Json entry;
    const char *text = NULL;
    bool left = false, right = false, word = false;
    char *end;
    int64_t id = strtoll(key, &end, 10);
    if (*end || end == key) id = -1;
    if (!check_id(j, key, id, e) || !json_get_object(j, key, &entry, e) ||
        !json_require(&entry, "content", e) || !json_get_string(&entry, "content", &text, e) ||
        !json_get_bool(&entry, "lstrip", &left, e) || !json_get_bool(&entry, "rstrip", &right, e) ||
        !json_get_bool(&entry, "single_word", &word, e))
        return false;
    if (word)
        return error_set(e, EXIT_USER,
                         "%.300s: \"%.80s\": expected single_word false, as T5's tokenizers have",
                         j->path, key);
    add_special(tokenizer, text, id, left, right);
    return true;
}

/* One entry of added_tokens.json: "<extra_id_99>": 800. */
static bool take_added(void *tokenizer, const Json *j, const char *key, Error *e) {
    int64_t id = -1;
    if (!json_get_int(j, key, &id, e) || !check_id(j, key, id, e)) return false;
    Tokenizer *t = tokenizer;
    for (int i = 0; i < t->n_special; i++)
        if (!strcmp(t->special[i].text, key) && t->special[i].id == id) return true;
    add_special(t, key, id, false, false);
    return true;
}

/* <extra_id_k> count down from the end of the vocabulary; white space beside them goes too. */
static void add_extra_ids(Tokenizer *t, int64_t n) {
    int64_t first = sentencepiece_count(t->pieces);
    for (int64_t k = 0; k < n; k++) {
        char text[40];
        snprintf(text, sizeof text, "<extra_id_%lld>", (long long)k);
        add_special(t, text, first + n - 1 - k, true, true);
    }
}

static bool check_class(const Json *j, Error *e) {
    const char *class = "T5Tokenizer";
    bool legacy = true;
    if (!json_get_string(j, "tokenizer_class", &class, e) ||
        !json_get_bool(j, "legacy", &legacy, e))
        return false;
    if (strcmp(class, "T5Tokenizer") && strcmp(class, "T5TokenizerFast"))
        return error_set(e, EXIT_USER,
                         "%.300s: \"tokenizer_class\": expected T5Tokenizer, got %.80s", j->path,
                         class);
    if (!legacy)
        return error_set(e, EXIT_USER,
                         "%.300s: \"legacy\": expected true, as every published CogVideoX has it",
                         j->path);
    return true;
}

/* What tokenizer_config.json says; *j is zeroed where there is none. */
static bool read_settings(Tokenizer *t, const Json *j, const char *added_path, Error *e) {
    int64_t extra_ids = 100, unknown;
    if (j->root && (!check_class(j, e) || !json_get_int(j, "extra_ids", &extra_ids, e) ||
                    !json_get_int(j, "model_max_length", &t->max_length, e)))
        return false;
    if (extra_ids < 0 || extra_ids > 10000)
        return error_set(e, EXIT_USER, "%.300s: \"extra_ids\": expected 0 to 10000", j->path);
    if (t->max_length < 2 || t->max_length > TOKENIZER_MAX_LENGTH)
        return error_set(e, EXIT_USER, "%.300s: \"model_max_length\": expected 2 to %d, got %lld",
                         j->path, TOKENIZER_MAX_LENGTH, (long long)t->max_length);
    if (!add_role(t, j, "pad_token", "<pad>", &t->pad, e) ||
        !add_role(t, j, "eos_token", "</s>", &t->eos, e) ||
        !add_role(t, j, "unk_token", "<unk>", &unknown, e))
        return false;
    add_extra_ids(t, extra_ids);
    Json decoder;
    if (j->root && json_has(j, "added_tokens_decoder"))
        return json_get_object(j, "added_tokens_decoder", &decoder, e) &&
               json_each_key(&decoder, take_decoder_entry, t, e);
    Json added;
    if (access(added_path, F_OK)) return true;
    bool ok = json_open(&added, added_path, e) && json_each_key(&added, take_added, t, e);
    json_close(&added);
    return ok;
}

static int longer_first(const void *x, const void *y) {
    const SpecialToken *a = x, *b = y;
    return (a->bytes < b->bytes) - (a->bytes > b->bytes);
}

Tokenizer *tokenizer_open(const char *folder, Error *e) {
    Tokenizer *t = xcalloc(1, sizeof *t);
    Json config = {0};
    char *model = xprintf("%s/spiece.model", folder);
    char *settings = xprintf("%s/tokenizer_config.json", folder);
    char *added = xprintf("%s/added_tokens.json", folder);
    t->max_length = TOKENIZER_LENGTH;
    t->pieces = open_pieces(model, e);
    bool ok = t->pieces && (access(settings, F_OK) || json_open(&config, settings, e)) &&
              read_settings(t, &config, added, e);
    if (ok) qsort(t->special, (size_t)t->n_special, sizeof *t->special, longer_first);
    json_close(&config);
    free(model);
    free(settings);
    free(added);
    if (ok) return t;
    tokenizer_close(t);
    return NULL;
}

void tokenizer_close(Tokenizer *t) {
    if (!t) return;
    sentencepiece_close(t->pieces);
    for (int i = 0; i < t->n_special; i++) free(t->special[i].text);
    free(t->special);
    free(t);
}

/* ---- a text -----------------------------------------------------------------------------------
 */

/* Ids so far: all of them count, the first `length` are kept. */
typedef struct {
    int64_t *ids;
    size_t length, count;
} Sink;

static void put(Sink *to, int64_t id) {
    if (to->count < to->length) to->ids[to->count] = id;
    to->count++;
}

static bool put_segment(const Tokenizer *t, const char *text, size_t n, Sink *to, Error *e) {
    int64_t *ids;
    size_t count;
    if (!n) return true;
    if (!sentencepiece_encode(t->pieces, text, n, &ids, &count, e)) return false;
    for (size_t i = 0; i < count; i++) put(to, ids[i]);
    free(ids);
    return true;
}

/* The leftmost special token at `at` or behind it, or NULL; *at becomes where it begins, or n. */
static const SpecialToken *find_special(const Tokenizer *t, const char *text, size_t n,
                                        size_t *at) {
    bool begins[256] = {false};
    for (int i = 0; i < t->n_special; i++) begins[(uint8_t)t->special[i].text[0]] = true;
    for (; *at < n; ++*at) {
        if (!begins[(uint8_t)text[*at]]) continue;
        for (int i = 0; i < t->n_special; i++) {
            const SpecialToken *s = &t->special[i];
            if (s->bytes <= n - *at && !memcmp(text + *at, s->text, s->bytes)) return s;
        }
    }
    return NULL;
}

static bool put_text(const Tokenizer *t, const char *text, size_t n, Sink *to, Error *e) {
    const SpecialToken *before = NULL, *next;
    for (size_t at = 0;; before = next) {
        size_t begin = at;
        next = find_special(t, text, n, &at);
        size_t end = at;
        if (before && before->eats_right) begin += utf8_leading_space(text + begin, end - begin);
        if (next && next->eats_left) end -= utf8_trailing_space(text + begin, end - begin);
        if (!put_segment(t, text + begin, end - begin, to, e)) return false;
        if (!next) return true;
        put(to, next->id);
        at += next->bytes;
    }
}

bool tokenizer_encode(const Tokenizer *t, const char *text, size_t bytes, int64_t length,
                      int64_t *ids, bool *cut, Error *e) {
    CHECK(length >= 2 && length <= TOKENIZER_MAX_LENGTH, "length %lld", (long long)length);
    size_t wrong = utf8_invalid_at(text, MIN(bytes, CAPTION_MAX_BYTES));
    if (bytes > CAPTION_MAX_BYTES)
        return error_set(e, EXIT_DATA, "expected a caption of at most %d bytes, got %zu",
                         CAPTION_MAX_BYTES, bytes);
    if (wrong < bytes)
        return error_set(
            e, EXIT_DATA,
            "expected UTF-8, got the byte 0x%02x at offset %zu. Save the text as UTF-8",
            (uint8_t)text[wrong], wrong);
    Sink sink = {ids, (size_t)length - 1, 0};
    if (!put_text(t, text, bytes, &sink, e)) return false;
    *cut = sink.count > sink.length;
    size_t n = MIN(sink.count, sink.length);
    if (!n || ids[n - 1] != t->eos) ids[n++] = t->eos;
    for (; n < (size_t)length; n++) ids[n] = t->pad;
    return true;
}
