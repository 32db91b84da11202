/*
 * The blocks of one group's pool: how many tables each is in, and what it can be found by. A block that is in no table
 * stays findable until it is taken for something else; those that cannot be found go first, then the one unused for
 * longest.
 */
#ifndef PEN_KVPOOL_H
#define PEN_KVPOOL_H

#include "status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct pen_kvpool pen_kvpool;

/* Of all tokens up to the end of a block: SHA-256, so that nobody can make two texts share a block. */
typedef struct pen_kv_digest {
    uint8_t bytes[32];
} pen_kv_digest;

pen_status pen_kvpool_create(int blocks, pen_kvpool **pool);
void pen_kvpool_destroy(pen_kvpool *pool);

int32_t pen_kvpool_take(pen_kvpool *pool); /* a block to write into, held once; one must be free */
void pen_kvpool_hold(pen_kvpool *pool, int32_t block);
void pen_kvpool_drop(pen_kvpool *pool, int32_t block);
int pen_kvpool_holders(const pen_kvpool *pool, int32_t block);
int pen_kvpool_free_blocks(const pen_kvpool *pool); /* that nobody holds */

int32_t pen_kvpool_find(const pen_kvpool *pool, const pen_kv_digest *digest); /* −1: none */
/* From now on the block is found by this digest, unless another already is. */
void pen_kvpool_name(pen_kvpool *pool, int32_t block, const pen_kv_digest *digest);

void pen_kvpool_unname(pen_kvpool *pool, int32_t block); /* it is found by nothing any more */
void pen_kvpool_forget_all(pen_kvpool *pool);            /* no block is found by anything any more */

#endif
