/* UTF-8 by the book (RFC 3629): no overlong forms, no surrogates, nothing above U+10FFFF. */
#pragma once

#include "kernels/base.h"

/* The offset of the first malformed byte; n: there is none. */
size_t utf8_invalid_at(const char *text, size_t n);

/* Bytes of white space, as Python's str.isspace has it, at the beginning and at the end. */
size_t utf8_leading_space(const char *text, size_t n);
size_t utf8_trailing_space(const char *text, size_t n);
