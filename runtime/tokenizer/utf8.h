/* UTF-8, one sequence at a time (RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF). */
#ifndef PEN_UTF8_H
#define PEN_UTF8_H

#include <stddef.h>

/*
 * What text[0 … length) begins with; length ≥ 1.
 *    n > 0  a whole character of n bytes
 *    0      all of the text is the valid beginning of a character
 *    n < 0  no character: the first −n bytes are the longest part that could begin one (at least one byte)
 */
static inline int pen_utf8_next(const char *text, size_t length) {
    const unsigned char *byte = (const unsigned char *)text, first = byte[0];
    if (first < 0x80) return 1;
    if (first < 0xc2 || first > 0xf4) return -1;
    int bytes = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    unsigned char low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    unsigned char high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    for (int i = 1; i < bytes; i++, low = 0x80, high = 0xbf) {
        if ((size_t)i == length) return 0;
        if (byte[i] < low || byte[i] > high) return -i;
    }
    return bytes;
}

#endif
