/* Mutations of JSON as JSON: numbers, kinds, entries of lists and objects, texts. */
#ifndef JSON_MUTATOR_H
#define JSON_MUTATOR_H

#include <stddef.h>
#include <stdint.h>

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

/* Changes the text in place, by rand(); what is no JSON is changed as bytes. Returns its new size. */
size_t json_mutate(uint8_t *data, size_t size, size_t max_size);

#endif
