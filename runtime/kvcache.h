/*
 * Block tables of paged KV: which blocks of the pools hold a sequence's positions. Owned by a replica's leader; stages
 * only hear the numbers. Pure bookkeeping, no memory of a device is touched here.
 *
 * Layers come in groups: those that see all positions, and those that slide over a window. A group has a pool of its
 * own, and a sequence a table in each: block p / PEN_KV_BLOCK of the table holds position p. What has left the window
 * goes back to the pool; the table's entries before it are stale and nobody reads them.
 *
 * Because all stages run steps strictly in order, a block may be handed out again as soon as the leader has scheduled
 * the last step that reads it.
 */
#ifndef PEN_KVCACHE_H
#define PEN_KVCACHE_H

#include "kernels.h"

/* The pools, in all stages the same. */
typedef struct pen_kv_pools {
    int count;                  /* groups: 1 … PEN_KV_GROUPS */
    int blocks[PEN_KV_GROUPS];  /* in each layer of the group */
    int windows[PEN_KV_GROUPS]; /* positions that a layer of the group sees; 0: all */
} pen_kv_pools;

/* Blocks for `positions` positions. */
int pen_kv_blocks_for(int positions);
/* Blocks that a sequence of `positions` positions holds at most at a time in a group whose layers see `window` (0:
 * all), where it grows by `rows` at a time at most. */
int pen_kv_blocks_held(int window, int rows, int positions);

typedef struct pen_kvcache pen_kvcache;

/* Tables of `sequences` sequences of positions below `context`, which grow by `rows` at a time at most. */
pen_status pen_kvcache_create(const pen_kv_pools *pools, int sequences, int context, int rows, pen_kvcache **cache);
void pen_kvcache_destroy(pen_kvcache *cache);

/* Sets blocks aside so that `sequence` can grow to `positions`; false where a pool has not enough. */
bool pen_kvcache_reserve(pen_kvcache *cache, int sequence, int positions);
/* Makes the tables cover what rows at positions [position, position + rows) see and are; that was reserved. */
void pen_kvcache_grow(pen_kvcache *cache, int sequence, int position, int rows);
/* Gives blocks and reservation back. */
void pen_kvcache_release(pen_kvcache *cache, int sequence);

const int32_t *pen_kvcache_table(const pen_kvcache *cache, int group, int sequence);
int pen_kvcache_table_begin(const pen_kvcache *cache, int group, int sequence); /* entries before it are stale */
int pen_kvcache_table_end(const pen_kvcache *cache, int sequence);
int pen_kvcache_free_blocks(const pen_kvcache *cache, int group); /* neither in a table nor reserved */

#endif
