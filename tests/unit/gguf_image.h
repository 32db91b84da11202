/* A GGUF file being written in memory, valid or not, for tests. Include it after cmocka.h. */
#ifndef PEN_GGUF_IMAGE_H
#define PEN_GGUF_IMAGE_H

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gguf.h"

/* Types of values. */
enum { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 };

typedef struct image {
    unsigned char bytes[1 << 15];
    size_t length;
    uint64_t keys, tensors;
} image;

static inline void put(image *f, const void *value, size_t bytes) {
    assert_true(f->length + bytes <= sizeof f->bytes);
    memcpy(f->bytes + f->length, value, bytes);
    f->length += bytes;
}

static inline void put_u32(image *f, uint32_t value) {
    put(f, &value, sizeof value);
}
static inline void put_u64(image *f, uint64_t value) {
    put(f, &value, sizeof value);
}

static inline void put_string(image *f, const char *text) {
    put_u64(f, strlen(text));
    put(f, text, strlen(text));
}

static inline void begin(image *f) {
    memset(f, 0, sizeof *f);
    put(f, "GGUF", 4);
    put_u32(f, 3);
    put_u64(f, 0); /* tensors and keys: see finish() */
    put_u64(f, 0);
}

static inline void key(image *f, const char *name, uint32_t type) {
    put_string(f, name);
    put_u32(f, type);
    f->keys++;
}

static inline void key_u32(image *f, const char *name, uint32_t value) {
    key(f, name, U32);
    put_u32(f, value);
}

static inline void key_bool(image *f, const char *name, bool value) {
    key(f, name, BOOL);
    put(f, &(char){value}, 1);
}

static inline void key_string(image *f, const char *name, const char *value) {
    key(f, name, STRING);
    put_string(f, value);
}

static inline void key_array(image *f, const char *name, uint32_t item_type, uint64_t count) {
    key(f, name, ARRAY);
    put_u32(f, item_type);
    put_u64(f, count);
}

static inline void tensor(image *f, const char *name, uint32_t type, uint64_t offset, uint32_t dims,
                          const uint64_t *shape) {
    put_string(f, name);
    put_u32(f, dims);
    for (uint32_t d = 0; d < dims; d++) put_u64(f, shape[d]);
    put_u32(f, type);
    put_u64(f, offset);
    f->tensors++;
}

/* Writes the counts, pads to `alignment` and adds `data_bytes` of data: byte i is i. */
static inline void finish(image *f, size_t alignment, size_t data_bytes) {
    memcpy(f->bytes + 8, &f->tensors, 8);
    memcpy(f->bytes + 16, &f->keys, 8);
    f->length = (f->length + alignment - 1) / alignment * alignment;
    for (size_t i = 0; i < data_bytes; i++) put(f, &(unsigned char){(unsigned char)i}, 1);
}

/* The one file that a test program writes to, made and removed by the group's set-up and tear-down. */
static char path[64];

static inline int make_path(void **state) {
    (void)state;
    strcpy(path, "/tmp/penstock-test-XXXXXX");
    int file = mkstemp(path);
    return file < 0 ? -1 : close(file);
}

static inline int remove_path(void **state) {
    (void)state;
    return unlink(path);
}

static inline pen_status open_bytes(const void *bytes, size_t length, pen_gguf **gguf) {
    int file = open(path, O_WRONLY | O_CREAT, 0600); /* not O_TRUNC: file systems flush such a file at every close */
    assert_int_equal(write(file, bytes, length), length);
    assert_int_equal(ftruncate(file, (off_t)length), 0);
    assert_int_equal(close(file), 0);
    return pen_gguf_open(path, gguf);
}

static inline pen_gguf *opened(const image *f) {
    pen_gguf *gguf;
    pen_status status = open_bytes(f->bytes, f->length, &gguf);
    if (status != PEN_OK) fail_msg("%s", pen_last_error());
    return gguf;
}

static inline void assert_error_names(const char *words) {
    if (!strstr(pen_last_error(), words)) fail_msg("\"%s\" does not say \"%s\"", pen_last_error(), words);
}

/* xorshift64*: the same numbers everywhere. */
static inline uint64_t next_random(uint64_t *seed) {
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    return *seed * UINT64_C(0x2545F4914F6CDD1D);
}

#endif
