/* Block tables of paged KV; see kvcache.h. */
#include "kvcache.h"

#include <assert.h>
#include <stdlib.h>

/* A sequence's part of a group. */
typedef struct holding {
    int begin;    /* first entry of the table that is not stale */
    int reserved; /* blocks that it may hold at a time */
} holding;

typedef struct pool {
    int window;
    int spare_count;
    int promised;      /* blocks reserved and not in a table: of those spare, this many have an owner */
    int32_t *spare;    /* [blocks] a stack: the block freed last is the next one used, and still in cache */
    int32_t *tables;   /* [sequences][table_blocks] */
    holding *holdings; /* [sequences] */
} pool;

struct pen_kvcache {
    int groups, table_blocks, rows;
    int *ends; /* [sequences] entries of a table, the same in all groups */
    pool pools[PEN_KV_GROUPS];
};

int pen_kv_blocks_for(int positions) {
    return (positions + PEN_KV_BLOCK - 1) / PEN_KV_BLOCK;
}

int pen_kv_blocks_held(int window, int rows, int positions) {
    int all = pen_kv_blocks_for(positions);
    if (window == 0) return all;
    /* What `rows` rows see, at its worst place: a block's last position comes first. */
    int64_t seen = (int64_t)window - 1 + rows, held = (seen + PEN_KV_BLOCK - 2) / PEN_KV_BLOCK + 1;
    return held < all ? (int)held : all;
}

static bool make_pool(pool *p, int blocks, int window, int sequences, int table_blocks) {
    p->window = window;
    p->spare_count = blocks;
    p->spare = malloc((size_t)blocks * sizeof *p->spare);
    p->tables = malloc((size_t)sequences * (size_t)table_blocks * sizeof *p->tables);
    p->holdings = calloc((size_t)sequences, sizeof *p->holdings);
    for (int i = 0; p->spare && i < blocks; i++) p->spare[i] = blocks - 1 - i;
    return p->spare && p->tables && p->holdings;
}

pen_status pen_kvcache_create(const pen_kv_pools *pools, int sequences, int context, int rows, pen_kvcache **out) {
    pen_kvcache *cache = calloc(1, sizeof *cache);
    bool made = cache != NULL;
    if (cache) {
        cache->groups = pools->count;
        cache->table_blocks = pen_kv_blocks_for(context);
        cache->rows = rows;
        cache->ends = calloc((size_t)sequences, sizeof *cache->ends);
        made = cache->ends != NULL;
        for (int g = 0; g < pools->count; g++)
            made = make_pool(&cache->pools[g], pools->blocks[g], pools->windows[g], sequences, cache->table_blocks) &&
                   made;
    }
    if (!made) {
        pen_kvcache_destroy(cache);
        return pen_fail(PEN_NO_MEMORY, "no memory for the tables of %d KV blocks", pools->blocks[0]);
    }
    *out = cache;
    return PEN_OK;
}

void pen_kvcache_destroy(pen_kvcache *cache) {
    if (!cache) return;
    for (int g = 0; g < cache->groups; g++) {
        free(cache->pools[g].spare);
        free(cache->pools[g].tables);
        free(cache->pools[g].holdings);
    }
    free(cache->ends);
    free(cache);
}

static int held(const pen_kvcache *cache, const pool *p, int sequence) {
    return cache->ends[sequence] - p->holdings[sequence].begin;
}

bool pen_kvcache_reserve(pen_kvcache *cache, int sequence, int positions) {
    int more[PEN_KV_GROUPS];
    if (pen_kv_blocks_for(positions) > cache->table_blocks) return false;
    for (int g = 0; g < cache->groups; g++) {
        const pool *p = &cache->pools[g];
        more[g] = pen_kv_blocks_held(p->window, cache->rows, positions) - p->holdings[sequence].reserved;
        if (more[g] > pen_kvcache_free_blocks(cache, g)) return false;
    }
    for (int g = 0; g < cache->groups; g++) {
        if (more[g] <= 0) continue;
        cache->pools[g].holdings[sequence].reserved += more[g];
        cache->pools[g].promised += more[g];
    }
    return true;
}

static void grow(pen_kvcache *cache, pool *p, int sequence, int position, int end) {
    int32_t *table = p->tables + (size_t)sequence * (size_t)cache->table_blocks;
    holding *own = &p->holdings[sequence];
    int seen = p->window > 0 && position >= p->window ? position - p->window + 1 : 0;
    for (; own->begin < seen / PEN_KV_BLOCK; own->begin++) {
        p->spare[p->spare_count++] = table[own->begin];
        p->promised++;
    }
    for (int i = cache->ends[sequence]; i < end; i++) {
        table[i] = p->spare[--p->spare_count];
        p->promised--;
    }
    assert(end - own->begin <= own->reserved);
}

void pen_kvcache_grow(pen_kvcache *cache, int sequence, int position, int rows) {
    assert(rows <= cache->rows && position <= cache->ends[sequence] * PEN_KV_BLOCK);
    int end = pen_kv_blocks_for(position + rows);
    for (int g = 0; g < cache->groups; g++) grow(cache, &cache->pools[g], sequence, position, end);
    cache->ends[sequence] = end;
}

void pen_kvcache_release(pen_kvcache *cache, int sequence) {
    for (int g = 0; g < cache->groups; g++) {
        pool *p = &cache->pools[g];
        const int32_t *table = pen_kvcache_table(cache, g, sequence);
        p->promised -= p->holdings[sequence].reserved - held(cache, p, sequence);
        for (int i = cache->ends[sequence]; i > p->holdings[sequence].begin;) p->spare[p->spare_count++] = table[--i];
        p->holdings[sequence] = (holding){0};
    }
    cache->ends[sequence] = 0;
}

const int32_t *pen_kvcache_table(const pen_kvcache *cache, int group, int sequence) {
    return cache->pools[group].tables + (size_t)sequence * (size_t)cache->table_blocks;
}

int pen_kvcache_table_begin(const pen_kvcache *cache, int group, int sequence) {
    return cache->pools[group].holdings[sequence].begin;
}

int pen_kvcache_table_end(const pen_kvcache *cache, int sequence) {
    return cache->ends[sequence];
}

int pen_kvcache_free_blocks(const pen_kvcache *cache, int group) {
    return cache->pools[group].spare_count - cache->pools[group].promised;
}
