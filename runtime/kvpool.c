/* A pool of KV blocks; see kvpool.h. */
#include "kvpool.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { NONE = -1 };

typedef struct entry {
    int holders;
    int32_t before, after; /* in the ring of free blocks; valid while nobody holds it */
    bool named;
    int32_t chained; /* the next of its bucket; valid while named */
    pen_kv_digest digest;
} entry;

struct pen_kvpool {
    int blocks, free_count;
    entry *entries;   /* [blocks + 1]: the last is the ring's anchor, with the next block to take behind it */
    int32_t *buckets; /* [bucket_count], a power of two */
    uint32_t bucket_count;
};

static void insert(pen_kvpool *pool, int32_t block, int32_t before) {
    entry *e = pool->entries;
    e[block].before = before;
    e[block].after = e[before].after;
    e[e[block].after].before = block;
    e[before].after = block;
    pool->free_count++;
}

static void extract(pen_kvpool *pool, int32_t block) {
    entry *e = pool->entries;
    e[e[block].before].after = e[block].after;
    e[e[block].after].before = e[block].before;
    pool->free_count--;
}

pen_status pen_kvpool_create(int blocks, pen_kvpool **out) {
    pen_kvpool *pool = calloc(1, sizeof *pool);
    if (pool) {
        pool->blocks = blocks;
        pool->bucket_count = 1;
        while (pool->bucket_count < (uint32_t)blocks) pool->bucket_count *= 2;
        pool->entries = calloc((size_t)blocks + 1, sizeof *pool->entries);
        pool->buckets = malloc(pool->bucket_count * sizeof *pool->buckets);
    }
    if (!pool || !pool->entries || !pool->buckets) {
        pen_kvpool_destroy(pool);
        return pen_fail(PEN_NO_MEMORY, "no memory for the list of %d KV blocks", blocks);
    }
    for (uint32_t b = 0; b < pool->bucket_count; b++) pool->buckets[b] = NONE;
    pool->entries[blocks].before = pool->entries[blocks].after = blocks;
    for (int32_t b = 0; b < blocks; b++) insert(pool, b, pool->entries[blocks].before);
    *out = pool;
    return PEN_OK;
}

void pen_kvpool_destroy(pen_kvpool *pool) {
    if (!pool) return;
    free(pool->entries);
    free(pool->buckets);
    free(pool);
}

/* ---- Names ------------------------------------------------------------------------------------------------------- */

static int32_t *bucket_of(const pen_kvpool *pool, const pen_kv_digest *digest) {
    uint32_t hash;
    memcpy(&hash, digest->bytes, sizeof hash);
    return &pool->buckets[hash & (pool->bucket_count - 1)];
}

int32_t pen_kvpool_find(const pen_kvpool *pool, const pen_kv_digest *digest) {
    int32_t block = *bucket_of(pool, digest);
    while (block != NONE && memcmp(&pool->entries[block].digest, digest, sizeof *digest) != 0)
        block = pool->entries[block].chained;
    return block;
}

void pen_kvpool_unname(pen_kvpool *pool, int32_t block) {
    entry *e = &pool->entries[block];
    if (!e->named) return;
    int32_t *link = bucket_of(pool, &e->digest);
    while (*link != block) link = &pool->entries[*link].chained;
    *link = e->chained;
    e->named = false;
}

void pen_kvpool_name(pen_kvpool *pool, int32_t block, const pen_kv_digest *digest) {
    if (pen_kvpool_find(pool, digest) != NONE) return;
    pen_kvpool_unname(pool, block);
    entry *e = &pool->entries[block];
    int32_t *bucket = bucket_of(pool, digest);
    e->named = true;
    e->digest = *digest;
    e->chained = *bucket;
    *bucket = block;
}

void pen_kvpool_forget_all(pen_kvpool *pool) {
    for (int32_t b = 0; b < pool->blocks; b++) pen_kvpool_unname(pool, b);
}

/* ---- Holders ----------------------------------------------------------------------------------------------------- */

int32_t pen_kvpool_take(pen_kvpool *pool) {
    assert(pool->free_count > 0);
    int32_t block = pool->entries[pool->blocks].after;
    pen_kvpool_unname(pool, block);
    pen_kvpool_hold(pool, block);
    return block;
}

void pen_kvpool_hold(pen_kvpool *pool, int32_t block) {
    if (pool->entries[block].holders++ == 0) extract(pool, block);
}

/* A block that nobody can find is the next one taken, while it is still in the processor's cache. */
void pen_kvpool_drop(pen_kvpool *pool, int32_t block) {
    entry *e = &pool->entries[block];
    assert(e->holders > 0);
    if (--e->holders == 0) insert(pool, block, e->named ? pool->entries[pool->blocks].before : pool->blocks);
}

int pen_kvpool_holders(const pen_kvpool *pool, int32_t block) {
    return pool->entries[block].holders;
}

int pen_kvpool_free_blocks(const pen_kvpool *pool) {
    return pool->free_count;
}
