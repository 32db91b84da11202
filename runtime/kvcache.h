/*
 * Block tables of paged KV: which blocks of the pool hold a sequence's positions. Owned by a replica's leader; stages
 * only hear the numbers. Pure bookkeeping, no memory of a device is touched here.
 *
 * Because all stages run steps strictly in order, a block may be handed out again as soon as the leader has scheduled
 * its owner's last step.
 */
#ifndef PEN_KVCACHE_H
#define PEN_KVCACHE_H

#include "status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct pen_kvcache pen_kvcache;

/* A pool of `blocks` blocks for `sequences` tables of positions below `context`. */
pen_status pen_kvcache_create(int blocks, int sequences, int context, pen_kvcache **cache);
void pen_kvcache_destroy(pen_kvcache *cache);

/* Blocks for `positions` positions. */
int pen_kvcache_blocks_for(int positions);

/* Sets blocks aside so that `sequence` can grow to `positions`; false where the pool has not enough. */
bool pen_kvcache_reserve(pen_kvcache *cache, int sequence, int positions);
/* Makes the table cover [0, positions), which was reserved. */
void pen_kvcache_grow(pen_kvcache *cache, int sequence, int positions);
/* Gives blocks and reservation back. */
void pen_kvcache_release(pen_kvcache *cache, int sequence);

const int32_t *pen_kvcache_table(const pen_kvcache *cache, int sequence);
int pen_kvcache_table_blocks(const pen_kvcache *cache, int sequence);
int pen_kvcache_free_blocks(const pen_kvcache *cache); /* neither in a table nor reserved */

#endif
