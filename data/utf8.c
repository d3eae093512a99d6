/* Owns the reading of UTF-8. */
#include "data/utf8.h"

/* Bytes of the character at text[0], of which `n` bytes are left: 1 to 4; 0: it is malformed or
 * cut, or nothing is left. *code, unless NULL, is its code point. */
static size_t character(const char *text, size_t n, uint32_t *code) {
    static const uint32_t FIRST[] = {0, 0, 0x80, 0x800, 0x10000}; /* of each length */
    if (!n) return 0;
    uint32_t lead = (uint8_t)text[0], value = lead;
    size_t length = lead < 0x80 ? 1 : lead < 0xc0 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if (!length || length > n || lead > 0xf4) return 0;
    if (length > 1) value = lead & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        uint32_t next = (uint8_t)text[i];
        if (next >> 6 != 2) return 0;
        value = value << 6 | (next & 0x3f);
    }
    if (value < FIRST[length] || value > 0x10ffff || value >> 11 == 0xd800 >> 11) return 0;
    if (code) *code = value;
    return length;
}

size_t utf8_invalid_at(const char *text, size_t n) {
    size_t at = 0, length;
    while ((length = character(text + at, n - at, NULL))) at += length;
    return at;
}

static bool is_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

size_t utf8_leading_space(const char *text, size_t n) {
    size_t at = 0, length;
    uint32_t c = 0;
    while ((length = character(text + at, n - at, &c)) && is_space(c)) at += length;
    return at;
}

size_t utf8_trailing_space(const char *text, size_t n) {
    size_t end = n;
    while (end) {
        size_t begin = end - 1;
        while (begin && (uint8_t)text[begin] >> 6 == 2) begin--;
        uint32_t c = 0;
        if (character(text + begin, end - begin, &c) != end - begin || !is_space(c)) break;
        end = begin;
    }
    return n - end;
}
