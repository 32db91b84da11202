/* Block tables of paged KV; see kvcache.h. */
#include "kvcache.h"

#include "kernels.h"

#include <assert.h>
#include <stdlib.h>

struct pen_kvcache {
    int blocks, table_blocks;
    int spare_count;
    int promised;    /* blocks reserved and not yet in a table: of those spare, this many have an owner */
    int32_t *spare;  /* [blocks] a stack: the block freed last is the next one used, and still in cache */
    int32_t *tables; /* [sequences][table_blocks] */
    int *used;       /* [sequences] blocks in the table */
    int *reserved;   /* [sequences] blocks that the table may grow to */
};

int pen_kvcache_blocks_for(int positions) {
    return (positions + PEN_KV_BLOCK - 1) / PEN_KV_BLOCK;
}

pen_status pen_kvcache_create(int blocks, int sequences, int context, pen_kvcache **out) {
    pen_kvcache *cache = calloc(1, sizeof *cache);
    if (cache) {
        cache->blocks = cache->spare_count = blocks;
        cache->table_blocks = pen_kvcache_blocks_for(context);
        cache->spare = malloc((size_t)blocks * sizeof *cache->spare);
        cache->tables = malloc((size_t)sequences * (size_t)cache->table_blocks * sizeof *cache->tables);
        cache->used = calloc((size_t)sequences, sizeof *cache->used);
        cache->reserved = calloc((size_t)sequences, sizeof *cache->reserved);
    }
    if (!cache || !cache->spare || !cache->tables || !cache->used || !cache->reserved) {
        pen_kvcache_destroy(cache);
        return pen_fail(PEN_NO_MEMORY, "no memory for the tables of %d KV blocks", blocks);
    }
    for (int i = 0; i < blocks; i++) cache->spare[i] = blocks - 1 - i;
    *out = cache;
    return PEN_OK;
}

void pen_kvcache_destroy(pen_kvcache *cache) {
    if (!cache) return;
    free(cache->spare);
    free(cache->tables);
    free(cache->used);
    free(cache->reserved);
    free(cache);
}

bool pen_kvcache_reserve(pen_kvcache *cache, int sequence, int positions) {
    int wanted = pen_kvcache_blocks_for(positions);
    int more = wanted - cache->reserved[sequence];
    if (wanted > cache->table_blocks || more > pen_kvcache_free_blocks(cache)) return false;
    if (more > 0) {
        cache->reserved[sequence] = wanted;
        cache->promised += more;
    }
    return true;
}

void pen_kvcache_grow(pen_kvcache *cache, int sequence, int positions) {
    int wanted = pen_kvcache_blocks_for(positions);
    assert(wanted <= cache->reserved[sequence]);
    int32_t *table = cache->tables + (size_t)sequence * (size_t)cache->table_blocks;
    while (cache->used[sequence] < wanted) {
        table[cache->used[sequence]++] = cache->spare[--cache->spare_count];
        cache->promised--;
    }
}

void pen_kvcache_release(pen_kvcache *cache, int sequence) {
    const int32_t *table = pen_kvcache_table(cache, sequence);
    cache->promised -= cache->reserved[sequence] - cache->used[sequence];
    while (cache->used[sequence] > 0) cache->spare[cache->spare_count++] = table[--cache->used[sequence]];
    cache->reserved[sequence] = 0;
}

const int32_t *pen_kvcache_table(const pen_kvcache *cache, int sequence) {
    return cache->tables + (size_t)sequence * (size_t)cache->table_blocks;
}

int pen_kvcache_table_blocks(const pen_kvcache *cache, int sequence) {
    return cache->used[sequence];
}

int pen_kvcache_free_blocks(const pen_kvcache *cache) {
    return cache->spare_count - cache->promised;
}
