/*
 * GGUF files, versions 2 and 3: metadata and the table of tensors.
 *
 * The file is untrusted: every count, size, offset, type, dimension and alignment is checked against the file's length
 * before it is used; an error names the file, the key or the tensor. Nothing is mapped: the header is read into memory
 * of our own and tensor data by pread, so that a file cut short under us is an error, not a SIGBUS, and no page of a
 * foreign tensor is touched.
 *
 * A model may be split into files NAME-00001-of-0000N.gguf, as llama.cpp's gguf-split does it: any of them opens all.
 * The first has the metadata. A file that ends behind its header opens, too: what it says of the model is all there.
 */
#ifndef PEN_GGUF_H
#define PEN_GGUF_H

#include "status.h"
#include "types.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct pen_gguf pen_gguf;

typedef struct pen_gguf_tensor {
    const char *name;
    uint32_t gguf_type; /* as in the file; `type` is valid only where `known` */
    bool known;
    pen_type type;
    int dims;         /* 1 … 4 */
    int64_t shape[4]; /* GGUF order: shape[0] is the row length (K), shape[1] the number of rows (N); 1 past dims */
    int part;         /* the file that holds its data, from 0 … */
    uint64_t offset;  /* … and where there */
    uint64_t bytes;   /* 0 for a type we do not know */
} pen_gguf_tensor;

pen_status pen_gguf_open(const char *path, pen_gguf **gguf);
void pen_gguf_close(pen_gguf *gguf);

/* PEN_BAD_INPUT, naming file and tensor, where the data of a tensor is not all there. */
pen_status pen_gguf_check_data(const pen_gguf *gguf);

const char *pen_gguf_path(const pen_gguf *gguf); /* of the file with the metadata */
int pen_gguf_version(const pen_gguf *gguf);
int pen_gguf_part_count(const pen_gguf *gguf);      /* files */
uint64_t pen_gguf_file_bytes(const pen_gguf *gguf); /* of all files */
/* Hash over metadata and the table of tensors (names, types, shapes, offsets) and the files' lengths: equal files give
 * equal hashes, and no tensor data is read. */
uint64_t pen_gguf_hash(const pen_gguf *gguf);

/* ---- Metadata. Getters return PEN_BAD_INPUT, naming file and key, for a missing key or a value of another type;
 * integers of any width and sign are accepted where the value fits. The _or forms take a default for a missing key
 * (a wrong type is still an error). Strings and arrays belong to the gguf. ------------------------------------- */
typedef struct pen_gguf_string {
    const char *data; /* not NUL-terminated; may hold any bytes */
    size_t length;
} pen_gguf_string;

bool pen_gguf_has(const pen_gguf *gguf, const char *key);
pen_status pen_gguf_i64(const pen_gguf *gguf, const char *key, int64_t min, int64_t max, int64_t *value);
pen_status pen_gguf_i64_or(const pen_gguf *gguf, const char *key, int64_t min, int64_t max, int64_t fallback,
                           int64_t *value);
pen_status pen_gguf_f64(const pen_gguf *gguf, const char *key, double *value);
pen_status pen_gguf_f64_or(const pen_gguf *gguf, const char *key, double fallback, double *value);
pen_status pen_gguf_bool_or(const pen_gguf *gguf, const char *key, bool fallback, bool *value);
pen_status pen_gguf_str(const pen_gguf *gguf, const char *key, pen_gguf_string *value);
/* Arrays: length, then elements. *_at writes element i; i is below the length. */
pen_status pen_gguf_array(const pen_gguf *gguf, const char *key, size_t *length);
pen_status pen_gguf_array_str(const pen_gguf *gguf, const char *key, size_t i, pen_gguf_string *value);
pen_status pen_gguf_array_i64(const pen_gguf *gguf, const char *key, size_t i, int64_t *value);
pen_status pen_gguf_array_f64(const pen_gguf *gguf, const char *key, size_t i, double *value);

/* For `inspect`: key i and its value as short printable text. */
size_t pen_gguf_key_count(const pen_gguf *gguf);
void pen_gguf_key_text(const pen_gguf *gguf, size_t i, char *key, size_t key_size, char *value, size_t value_size);

/* ---- Tensors --------------------------------------------------------------------------------------------------- */
size_t pen_gguf_tensor_count(const pen_gguf *gguf);
const pen_gguf_tensor *pen_gguf_tensor_at(const pen_gguf *gguf, size_t i);
const pen_gguf_tensor *pen_gguf_tensor_find(const pen_gguf *gguf, const char *name); /* NULL: none */

/* The name of a GGUF type number, of many more than we can compute with: "Q4_K"; "unknown" where there is none. */
const char *pen_gguf_type_name(uint32_t gguf_type);

/* Reads bytes [offset, offset + bytes) of a tensor's data into target. PEN_IO / PEN_BAD_INPUT name file and tensor. */
pen_status pen_gguf_read(const pen_gguf *gguf, const pen_gguf_tensor *tensor, uint64_t offset, size_t bytes,
                         void *target);

#endif
