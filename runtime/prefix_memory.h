/*
 * What a replica has probably computed lately: the chained hashes of the blocks of prompts that were sent there. Of a
 * prompt that begins the same, so much need not be computed again. A guess of rank 0's about another rank's KV cache,
 * and bounded: what was sent there longest ago is forgotten first.
 */
#ifndef PEN_PREFIX_MEMORY_H
#define PEN_PREFIX_MEMORY_H

#include "status.h"

#include <stdint.h>

typedef struct pen_prefix_memory pen_prefix_memory;

pen_status pen_prefix_memory_create(pen_prefix_memory **memory);
void pen_prefix_memory_destroy(pen_prefix_memory *memory);

/* How many blocks at the beginning of hashes[count] are known. */
int pen_prefix_memory_known(const pen_prefix_memory *memory, const uint64_t *hashes, int count);
void pen_prefix_memory_remember(pen_prefix_memory *memory, const uint64_t *hashes, int count);

#endif
