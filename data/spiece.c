/* Owns the check of spiece.model: the wire format of protobuf, the pieces, and the compiled map of
 * the normalizer, a double-array trie (Yata et al. 2007, as Darts-clone stores it). */
#include "data/spiece.h"

#include "data/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- protobuf's wire format -------------------------------------------------------------------
 */

typedef struct {
    const uint8_t *at, *end;
    bool bad;
} Reader;

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

typedef struct {
    uint64_t number;
    int kind;
    uint64_t value;    /* VARINT */
    const uint8_t *at; /* the others: where it lies, and how long it is */
    size_t n;
} Field;

static uint64_t read_varint(Reader *r) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && r->at < r->end; shift += 7) {
        uint8_t byte = *r->at++;
        value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) return value;
    }
    r->bad = true;
    return 0;
}

/* The next field; false at the end, or where the message is malformed (r->bad). */
static bool next_field(Reader *r, Field *f) {
    if (r->at == r->end || r->bad) return false;
    uint64_t tag = read_varint(r), n = 0;
    *f = (Field){.number = tag >> 3, .kind = (int)(tag & 7)};
    if (f->kind == VARINT)
        f->value = read_varint(r);
    else if (f->kind == BYTES)
        n = read_varint(r);
    else if (f->kind == FIXED32 || f->kind == FIXED64)
        n = f->kind == FIXED32 ? 4 : 8;
    else
        r->bad = true;
    r->bad |= !f->number || n > (uint64_t)(r->end - r->at);
    if (r->bad) return false;
    f->at = r->at;
    f->n = (size_t)n;
    r->at += n;
    return true;
}

static Reader reader_of(const Field *f) { return (Reader){f->at, f->at + f->n, false}; }

/* ---- the compiled map of a normalizer ---------------------------------------------------------
 */

/* u32 bytes of trie | trie units, u32 each | texts that end in NUL */
typedef struct {
    const uint8_t *units;
    size_t n_units, n_texts;
    uint8_t *height; /* by node, plus one; 0: not visited yet */
} Map;

/* The library has room for as many keys that begin each other. */
enum { MAX_KEY_BYTES = 32 };

static uint32_t read_u32(const uint8_t *p) {
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint32_t unit_of(const Map *m, size_t i) { return read_u32(m->units + 4 * i); }

static size_t unit_offset(uint32_t unit) { return (size_t)(unit >> 10) << ((unit >> 6) & 8); }

/* Bytes of the longest key below a node, which is where the labels of its children are looked up;
 * -1: a walk would leave the units or the texts, or be longer than `room`. */
static int key_height(Map *m, size_t node, int room) {
    if (room < 0 || (node | 255) >= m->n_units) return -1;
    if (m->height[node]) return m->height[node] - 1 <= room ? m->height[node] - 1 : -1;
    int most = 0;
    for (size_t label = 0; label < 256; label++) {
        uint32_t unit = unit_of(m, node ^ label);
        if ((unit & 0x800000ffu) != label) continue;
        size_t child = node ^ label ^ unit_offset(unit);
        if (child >= m->n_units) return -1;
        if (unit >> 8 & 1 && (unit_of(m, child) & 0x7fffffffu) >= m->n_texts) return -1;
        int below = key_height(m, child, room - 1);
        if (below < 0) return -1;
        most = MAX(most, below + 1);
    }
    m->height[node] = (uint8_t)(most + 1);
    return most;
}

static bool check_map(const Field *f) {
    if (!f->n) return true;
    if (f->n < 4) return false;
    size_t bytes = read_u32(f->at);
    if (bytes % 4 || !bytes || bytes >= f->n - 4 || f->at[f->n - 1]) return false;
    Map m = {.units = f->at + 4, .n_units = bytes / 4, .n_texts = f->n - 4 - bytes};
    m.height = xcalloc(m.n_units, 1);
    bool good = key_height(&m, unit_offset(unit_of(&m, 0)), MAX_KEY_BYTES) >= 0;
    free(m.height);
    return good;
}

/* ---- the messages -----------------------------------------------------------------------------
 */

/* Returns what is wrong, NULL: nothing. */
static const char *check_piece(Reader r) {
    enum { NORMAL = 1, UNUSED = 5 };
    Field f, text = {0};
    uint64_t type = NORMAL;
    float score = 0;
    while (next_field(&r, &f)) {
        static const int KINDS[] = {0, BYTES, FIXED32, VARINT};
        if (f.number < COUNT(KINDS) && f.kind != KINDS[f.number]) return "a piece is malformed";
        if (f.number == 1) text = f;
        if (f.number == 2) memcpy(&score, f.at, sizeof score);
        if (f.number == 3) type = f.value;
    }
    if (r.bad) return "a piece is malformed";
    if (!text.n || memchr(text.at, 0, text.n) ||
        utf8_invalid_at((const char *)text.at, text.n) != text.n)
        return "a piece is empty, or no UTF-8";
    if (!isfinite(score)) return "a piece's score is not a finite number";
    return type < NORMAL || type > UNUSED ? "a piece is of a kind that T5 does not have" : NULL;
}

static const char *check_trainer(Reader r) {
    enum { MODEL_TYPE = 3, BYTE_FALLBACK = 35, UNIGRAM = 1 };
    Field f;
    while (next_field(&r, &f)) {
        bool known = f.number == MODEL_TYPE || f.number == BYTE_FALLBACK;
        if (known && f.kind != VARINT) return "the trainer's message is malformed";
        if (known && f.value != (f.number == MODEL_TYPE ? UNIGRAM : 0))
            return "it is not a unigram model without byte fallback";
    }
    return r.bad ? "the trainer's message is malformed" : NULL;
}

static const char *check_normalizer(Reader r, bool may_map) {
    enum { CHARSMAP = 2 };
    Field f;
    while (next_field(&r, &f)) {
        if (f.number != CHARSMAP) continue;
        if (f.kind != BYTES) return "a normalizer's message is malformed";
        if (f.n && !may_map) return "it has a denormalizer, which T5 has not";
        if (!check_map(&f)) return "the normalizer's map is damaged";
    }
    return r.bad ? "a normalizer's message is malformed" : NULL;
}

static const char *check_model(Reader r) {
    enum { PIECES = 1, TRAINER, NORMALIZER, SELF_TEST, DENORMALIZER };
    Field f;
    const char *wrong = NULL;
    size_t n = 0;
    while (!wrong && next_field(&r, &f)) {
        if (f.number <= DENORMALIZER && f.kind != BYTES) return "it is malformed";
        if (f.number == PIECES && ++n > SPIECE_MAX_PIECES) return "it has too many pieces";
        if (f.number == PIECES) wrong = check_piece(reader_of(&f));
        if (f.number == TRAINER) wrong = check_trainer(reader_of(&f));
        if (f.number == NORMALIZER || f.number == DENORMALIZER)
            wrong = check_normalizer(reader_of(&f), f.number == NORMALIZER);
    }
    if (wrong) return wrong;
    if (r.bad) return "it is malformed or cut short";
    return n ? NULL : "it has no pieces";
}

bool spiece_check(const void *model, size_t n, const char *path, Error *e) {
    const char *wrong = n > SPIECE_MAX_BYTES
                            ? "it is larger than any published one"
                            : check_model((Reader){model, (const uint8_t *)model + n, false});
    if (!wrong) return true;
    return error_set(e, EXIT_USER,
                     "%.300s: expected a SentencePiece unigram model, as T5 has it: %s. Download "
                     "the file again.",
                     path, wrong);
}
