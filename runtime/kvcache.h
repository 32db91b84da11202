/*
 * Block tables of paged KV: which blocks of the pools hold a sequence's positions. Owned by a replica's leader; stages
 * only hear the numbers. Pure bookkeeping, no memory of a device is touched here.
 *
 * Layers come in groups: those that see all positions, and those that slide over a window. A group has a pool of its
 * own, and a sequence a table in each: entry p / PEN_KV_BLOCK of the table is the block of position p. What has left
 * the window is given up; the table's entries before it are stale and nobody reads them.
 *
 * A block may be in several tables. It is *shared* by sequences that were forked from one another, and copied for the
 * one that writes into it; and it is *found again* by a chained hash of the tokens up to its end, once it is full. A
 * block that is in no table keeps its content until it is needed: the one unused for longest goes first.
 *
 * Because all stages run steps strictly in order, a block counts as written when the step that writes it has been
 * scheduled, and may be handed out again as soon as the last step that reads it has been.
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
/* The first entry of a table that a row at `position` sees where layers see `window` (0: all). */
int pen_kv_first_seen(int window, int position);
/* Blocks that a sequence of `positions` positions holds at most at a time in a group whose layers see `window` (0:
 * all), where it grows by `rows` at a time at most. */
int pen_kv_blocks_held(int window, int rows, int positions);
/* The first group whose pool has fewer blocks than such a sequence holds: it can never run. −1: there is none. */
int pen_kv_short_group(const pen_kv_pools *pools, int rows, int positions);

typedef struct pen_kvcache pen_kvcache;

/* Tables of `sequences` sequences of positions below `context`. */
pen_status pen_kvcache_create(const pen_kv_pools *pools, int sequences, int context, pen_kvcache **cache);
void pen_kvcache_destroy(pen_kvcache *cache);

/* Begins a sequence of `count` tokens, all of whose blocks that are found again are put into its tables: the positions
 * [0, returned) need not be computed. The last one always needs. */
int pen_kvcache_open(pen_kvcache *cache, int sequence, const int32_t *tokens, int count);
/* Begins `sequence` with the positions [0, position) of `parent`, which has those and perhaps more: it shares their
 * blocks and goes on at `position`. It cannot where a window of the parent has left what would be seen from there. */
bool pen_kvcache_can_fork(const pen_kvcache *cache, int parent, int position);
void pen_kvcache_fork(pen_kvcache *cache, int parent, int sequence, int position);
/* Makes the tables cover what rows at positions [position, position + rows) see and are, with blocks that nobody else
 * has where they write; false, and nothing is changed, where a pool has not enough. */
bool pen_kvcache_grow(pen_kvcache *cache, int sequence, int position, int rows);
/* The positions [0, count) hold these tokens, by steps that have been scheduled: full blocks can be found again. */
void pen_kvcache_remember(pen_kvcache *cache, int sequence, const int32_t *tokens, int count);
/* Gives all blocks of a sequence up. */
void pen_kvcache_close(pen_kvcache *cache, int sequence);

/* The pools' contents were lost, while there was no sequence: nothing is found again. */
void pen_kvcache_forget(pen_kvcache *cache);

const int32_t *pen_kvcache_table(const pen_kvcache *cache, int group, int sequence);
int pen_kvcache_begin(const pen_kvcache *cache, int group, int sequence); /* entries before it are stale */
int pen_kvcache_end(const pen_kvcache *cache, int sequence);
int pen_kvcache_free_blocks(const pen_kvcache *cache, int group); /* in no table */

/* Entries [told, end) of a sequence's tables are new to the stages; telling makes them old. */
int pen_kvcache_told(const pen_kvcache *cache, int sequence);
void pen_kvcache_tell(pen_kvcache *cache, int sequence);

/* A block that must be copied before the next step runs, in all layers of a group. */
typedef struct pen_kv_copy {
    int32_t group, from, to;
} pen_kv_copy;
/* Those since the last call; valid until the next growth. */
const pen_kv_copy *pen_kvcache_take_copies(pen_kvcache *cache, int *count);

typedef struct pen_kv_counts {
    uint64_t asked, found; /* tokens that sequences began with, and those of them that were found again */
    uint64_t forks;        /* sequences that began with the blocks of another */
    uint64_t copied;       /* blocks */
} pen_kv_counts;
pen_kv_counts pen_kvcache_counts(const pen_kvcache *cache);

#endif
