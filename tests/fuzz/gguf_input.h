/*
 * Inputs with GGUF files in them: bytes, a file, perhaps the second file of a split model. Nothing says how long each
 * is: a file begins where its first eight bytes stand.
 */
#ifndef PEN_GGUF_INPUT_H
#define PEN_GGUF_INPUT_H

#include <stddef.h>
#include <stdint.h>

/* Where in data[from, size) a file begins; `size` where none does. */
size_t gguf_begin(const uint8_t *data, size_t from, size_t size);

/* Makes data[0, size) the files of a model, for which opening its first part asks; returns its path. The last call's
 * files are gone then. */
const char *gguf_files(const uint8_t *data, size_t size);

#endif
