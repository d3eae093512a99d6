/* The SentencePiece library for C: the one place where cogsmith has C++ (sentencepiece.cc). */
#pragma once

#include "kernels/base.h"

typedef struct SentencePiece SentencePiece;

/* `model`: the bytes of spiece.model, not kept. They must have passed spiece_check. NULL: *e
 * (EXIT_USER) says why; `path` is for its text. */
SentencePiece *sentencepiece_open(const void *model, size_t n, const char *path, Error *e);
void sentencepiece_close(SentencePiece *s);

/* How many pieces there are. */
int64_t sentencepiece_count(const SentencePiece *s);
/* The id of a piece; -1: there is no such piece. */
int64_t sentencepiece_id(const SentencePiece *s, const char *piece);

/* The ids of a text of n bytes, in memory that the caller frees, and *count of them. Malformed
 * UTF-8 counts as U+FFFD. */
bool sentencepiece_encode(const SentencePiece *s, const char *text, size_t n, int64_t **ids,
                          size_t *count, Error *e);
