/* Bytes in order: how messages are written and read. A writer has room for what it is given; a reader never goes beyond
 * what it was given. */
#ifndef PEN_BYTES_H
#define PEN_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct pen_writer {
    unsigned char *at;
} pen_writer;

static inline void pen_put(pen_writer *writer, const void *data, size_t bytes) {
    if (bytes > 0) memcpy(writer->at, data, bytes);
    writer->at += bytes;
}

typedef struct pen_reader {
    const unsigned char *at;
    size_t left;
} pen_reader;

static inline bool pen_get(pen_reader *reader, void *data, size_t bytes) {
    if (bytes > reader->left) return false;
    if (bytes > 0) memcpy(data, reader->at, bytes);
    reader->at += bytes;
    reader->left -= bytes;
    return true;
}

/* The next `count` ≥ 0 elements, where they are; NULL where the message ends before. */
static inline const void *pen_take(pen_reader *reader, int32_t count, size_t size) {
    const void *at = reader->at;
    size_t bytes = (size_t)count * size;
    if (bytes > reader->left) return NULL;
    reader->at += bytes;
    reader->left -= bytes;
    return at;
}

#endif
