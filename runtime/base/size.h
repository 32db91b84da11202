/* Sizes in bytes as people read them. */
#ifndef PEN_SIZE_H
#define PEN_SIZE_H

#include <stdint.h>

enum { PEN_SIZE_TEXT = 32 };

/* "512 B", "1.50 MiB", "80.0 GiB": three significant digits, binary units. Returns `text`. */
const char *pen_size_text(uint64_t bytes, char text[PEN_SIZE_TEXT]);

#endif
