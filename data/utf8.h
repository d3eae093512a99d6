/* UTF-8 by the book (RFC 3629): no overlong forms, no surrogates, nothing above U+10FFFF. */
#pragma once

#include "kernels/base.h"

/* Bytes of the character at text[0], of which `n` bytes are left: 1 to 4; 0: it is malformed or
 * cut, or nothing is left. *code, unless NULL, is its code point. */
size_t utf8_char(const char *text, size_t n, uint32_t *code);

/* The offset of the first malformed byte; n: there is none. */
size_t utf8_invalid_at(const char *text, size_t n);

/* Bytes of white space, as Python's str.isspace has it, at the beginning and at the end. */
size_t utf8_leading_space(const char *text, size_t n);
size_t utf8_trailing_space(const char *text, size_t n);
