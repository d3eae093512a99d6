/* The T5 tokenizer: captions to token ids, as transformers' T5Tokenizer (legacy) gives them to the
 * published pipelines.
 *
 * The text is taken as it is: no stripping, lower case or unescaping. Literal special tokens
 * ("</s>", "<extra_id_3>") are cut out first, the leftmost and of those the longest; what lies
 * between is encoded by SentencePiece piece by piece. The ids are cut to length - 1, end in EOS
 * (unless they already do) and are padded to `length`.
 *
 *     Error e;
 *     Tokenizer *t = tokenizer_open("CogVideoX-2b/tokenizer", &e);
 *     if (!t) die_error(&e);
 *     bool cut;
 *     if (!tokenizer_encode(t, text, strlen(text), 226, ids, &cut, &e)) die_error(&e);
 *     tokenizer_close(t);
 */
#pragma once

#include "kernels/base.h"

/* What the published models use: max_text_seq_length of every transformer. */
enum { TOKENIZER_LENGTH = 226, TOKENIZER_MAX_LENGTH = 4096, CAPTION_MAX_BYTES = 1 << 20 };

/* A literal that is cut out of the text before SentencePiece sees it. */
typedef struct {
    char *text;
    size_t bytes;
    int64_t id;
    bool eats_left, eats_right; /* white space beside it goes with it */
} SpecialToken;

typedef struct {
    struct SentencePiece *pieces;
    SpecialToken *special; /* [n_special] longest first */
    int n_special;
    int64_t pad, eos;
    int64_t max_length; /* model_max_length of tokenizer_config.json, or TOKENIZER_LENGTH */
} Tokenizer;

/* Reads spiece.model, and tokenizer_config.json and added_tokens.json where they are. NULL: *e
 * (EXIT_USER) says what to do. */
Tokenizer *tokenizer_open(const char *folder, Error *e);
void tokenizer_close(Tokenizer *t);

/* ids [length], 2 <= length <= TOKENIZER_MAX_LENGTH, of `bytes` bytes of text. *cut: the text has
 * more tokens than that. false (EXIT_DATA): the text is not UTF-8, or longer than
 * CAPTION_MAX_BYTES. */
bool tokenizer_encode(const Tokenizer *t, const char *text, size_t bytes, int64_t length,
                      int64_t *ids, bool *cut, Error *e);
