/*
 * What gguf.c (opening and checking a file), gguf_split.c (a model in several files) and gguf_metadata.c (getters)
 * share: the parsed header.
 *
 * All offsets are into `header`, and were checked against it when the file was opened.
 */
#ifndef PEN_GGUF_PRIVATE_H
#define PEN_GGUF_PRIVATE_H

#include "gguf.h"

#include <stdio.h>

#define ULL(value) ((unsigned long long)(value)) /* for %llu */

enum { PEN_GGUF_NAME_SHOWN = 80 }; /* of a name, in messages */

typedef enum pen_gguf_value {
    PEN_GGUF_U8,
    PEN_GGUF_I8,
    PEN_GGUF_U16,
    PEN_GGUF_I16,
    PEN_GGUF_U32,
    PEN_GGUF_I32,
    PEN_GGUF_F32,
    PEN_GGUF_BOOL,
    PEN_GGUF_STRING,
    PEN_GGUF_ARRAY,
    PEN_GGUF_U64,
    PEN_GGUF_I64,
    PEN_GGUF_F64,
    PEN_GGUF_VALUE_COUNT
} pen_gguf_value;

extern const uint8_t pen_gguf_value_bytes[PEN_GGUF_VALUE_COUNT];

typedef struct pen_gguf_entry {
    uint32_t name, name_length;
    uint32_t type;      /* pen_gguf_value */
    uint32_t value;     /* where it is; of an array, its first element */
    uint32_t item_type; /* of an array's elements */
    uint64_t count;
    uint32_t *strings; /* [count] where each string (its length field) of an array of them is; else NULL */
} pen_gguf_entry;

/* Names in the order of the file, and a hash table from name to number + 1. */
typedef struct pen_gguf_directory {
    pen_gguf_string *names;
    uint32_t *slots;
    size_t count, mask;
} pen_gguf_directory;

#define PEN_GGUF_NONE ((size_t)-1)
size_t pen_gguf_directory_find(const pen_gguf_directory *directory, const char *name);

/* A file. A model in several is its first, which has the metadata: it owns the others and lists everyone's tensors. */
struct pen_gguf {
    char *path;
    int file;
    int version;
    uint64_t file_bytes;
    uint64_t hash;

    unsigned char *header;
    uint64_t header_bytes; /* read so far; the header may end before */

    pen_gguf_entry *entries;
    size_t entry_count;
    pen_gguf_directory keys;

    pen_gguf_tensor *tensors;
    size_t tensor_count;
    char *tensor_names; /* of this file: all of them, zero-terminated */
    uint64_t data_end;  /* where this file's last tensor ends, or will when all of it is there */

    pen_gguf **parts; /* [part_count], the first is this one; NULL and 0 in the others */
    int part_count;
    pen_gguf_directory tensor_index;
};

/* One file by itself, without parts and index. */
pen_status pen_gguf_open_file(const char *path, pen_gguf **gguf);
/* Refuses a name that is there twice. */
pen_status pen_gguf_index_tensors(pen_gguf *gguf);

#endif
