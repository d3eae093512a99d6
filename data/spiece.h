/* The check of a SentencePiece model before its library sees it, for the library believes what a
 * model says: the trie of its normalizer is walked without bounds.
 *
 * A model (spiece.model) is a protobuf ModelProto. Accepted is what T5's tokenizers are: a unigram
 * model of normal, control, unknown, user-defined and unused pieces, with a normalizer whose
 * compiled map stays within itself.
 */
#pragma once

#include "kernels/base.h"

enum { SPIECE_MAX_BYTES = 1 << 24, SPIECE_MAX_PIECES = 1 << 20 };

/* false: *e (EXIT_USER) says what is wrong with the model; `path` is for the text. */
bool spiece_check(const void *model, size_t n, const char *path, Error *e);
