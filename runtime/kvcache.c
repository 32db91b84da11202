/* Block tables of paged KV; see kvcache.h. */
#include "kvcache.h"

#include "kvpool.h"

#include <assert.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

typedef struct layer_group {
    int window;
    pen_kvpool *pool;
    int32_t *entries; /* [sequences][table_blocks] */
    int *begins;      /* [sequences] first entry of the table that is not stale */
} layer_group;

typedef struct tables {
    int end, told;        /* entries of a table, the same in all groups */
    int named;            /* full blocks that were remembered … */
    pen_kv_digest digest; /* … and the digest of the last of them */
} tables;

struct pen_kvcache {
    EVP_MD *hash; /* fetched once: looking it up takes longer than a block does */
    int group_count, table_blocks;
    layer_group groups[PEN_KV_GROUPS];
    tables *sequences;      /* [sequences] */
    pen_kv_digest *digests; /* [table_blocks] of the tokens that a sequence begins with */
    pen_kv_copy *copies;    /* [copy_capacity] */
    int copy_count, copy_capacity;
    pen_kv_counts counts;
};

int pen_kv_blocks_for(int positions) {
    return (positions + PEN_KV_BLOCK - 1) / PEN_KV_BLOCK;
}

int pen_kv_first_seen(int window, int position) {
    return window > 0 && position >= window ? (position - window + 1) / PEN_KV_BLOCK : 0;
}

int pen_kv_blocks_held(int window, int rows, int positions) {
    int all = pen_kv_blocks_for(positions);
    if (window == 0) return all;
    /* What `rows` rows see, at its worst place: a block's last position comes first. */
    int64_t seen = (int64_t)window - 1 + rows, held = (seen + PEN_KV_BLOCK - 2) / PEN_KV_BLOCK + 1;
    return held < all ? (int)held : all;
}

int pen_kv_short_group(const pen_kv_pools *pools, int rows, int positions) {
    for (int g = 0; g < pools->count; g++)
        if (pen_kv_blocks_held(pools->windows[g], rows, positions) > pools->blocks[g]) return g;
    return -1;
}

/* ---- Making ------------------------------------------------------------------------------------------------------ */

static pen_status make_group(layer_group *g, int blocks, int window, int sequences, int table_blocks) {
    g->window = window;
    g->entries = calloc((size_t)sequences * (size_t)table_blocks, sizeof *g->entries);
    g->begins = calloc((size_t)sequences, sizeof *g->begins);
    if (!g->entries || !g->begins) return pen_fail(PEN_NO_MEMORY, "no memory for the tables of %d KV blocks", blocks);
    return pen_kvpool_create(blocks, &g->pool);
}

static pen_status fill(pen_kvcache *cache, const pen_kv_pools *pools, int sequences) {
    cache->hash = EVP_MD_fetch(NULL, "SHA256", NULL);
    if (!cache->hash) return pen_fail(PEN_UNSUPPORTED, "OpenSSL has no SHA-256");
    cache->sequences = calloc((size_t)sequences, sizeof *cache->sequences);
    cache->digests = calloc((size_t)cache->table_blocks, sizeof *cache->digests);
    /* A sequence that grows copies at most one block in a group, and a step may let all of them grow. */
    cache->copy_capacity = sequences * pools->count;
    cache->copies = calloc((size_t)cache->copy_capacity, sizeof *cache->copies);
    if (!cache->sequences || !cache->digests || !cache->copies)
        return pen_fail(PEN_NO_MEMORY, "no memory for the tables of %d sequences", sequences);
    for (int g = 0; g < pools->count; g++)
        PEN_TRY(make_group(&cache->groups[g], pools->blocks[g], pools->windows[g], sequences, cache->table_blocks));
    return PEN_OK;
}

pen_status pen_kvcache_create(const pen_kv_pools *pools, int sequences, int context, pen_kvcache **out) {
    pen_kvcache *cache = calloc(1, sizeof *cache);
    if (!cache) return pen_fail(PEN_NO_MEMORY, "no memory for the tables of %d sequences", sequences);
    cache->group_count = pools->count;
    cache->table_blocks = pen_kv_blocks_for(context);
    pen_status status = fill(cache, pools, sequences);
    if (status != PEN_OK) {
        pen_kvcache_destroy(cache);
        return status;
    }
    *out = cache;
    return PEN_OK;
}

void pen_kvcache_destroy(pen_kvcache *cache) {
    if (!cache) return;
    for (int g = 0; g < cache->group_count; g++) {
        free(cache->groups[g].entries);
        free(cache->groups[g].begins);
        pen_kvpool_destroy(cache->groups[g].pool);
    }
    free(cache->sequences);
    free(cache->digests);
    free(cache->copies);
    EVP_MD_free(cache->hash);
    free(cache);
}

static int32_t *table_of(const pen_kvcache *cache, int g, int sequence) {
    return cache->groups[g].entries + (size_t)sequence * (size_t)cache->table_blocks;
}

static int first_seen(const layer_group *g, int position) {
    return pen_kv_first_seen(g->window, position);
}

/* ---- Beginning --------------------------------------------------------------------------------------------------- */

/* digest = hash of the digest before it and the tokens of a block. */
static bool chain(const pen_kvcache *cache, const pen_kv_digest *before, const int32_t *tokens, pen_kv_digest *digest) {
    struct {
        pen_kv_digest before;
        int32_t tokens[PEN_KV_BLOCK];
    } text;
    text.before = *before;
    memcpy(text.tokens, tokens, sizeof text.tokens);
    return EVP_Digest(&text, sizeof text, digest->bytes, NULL, cache->hash, NULL) == 1;
}

/* Whether what a sequence that goes on behind its first `blocks` blocks sees of them is there in a group. */
static bool is_there(const pen_kvcache *cache, const layer_group *g, int blocks) {
    for (int i = blocks - 1; i >= first_seen(g, blocks * PEN_KV_BLOCK); i--)
        if (pen_kvpool_find(g->pool, &cache->digests[i]) < 0) return false;
    return true;
}

/* A layer that sees everything needs every block. */
static bool is_needed_and_lost(const pen_kvcache *cache, const pen_kv_digest *digest) {
    for (int g = 0; g < cache->group_count; g++)
        if (cache->groups[g].window == 0 && pen_kvpool_find(cache->groups[g].pool, digest) < 0) return true;
    return false;
}

/* The most blocks that all groups have; their digests are in cache->digests. A prompt that nothing is known of costs
 * the hash of its first block. */
static int blocks_found(pen_kvcache *cache, const int32_t *tokens, int count) {
    int most = (count - 1) / PEN_KV_BLOCK, known = 0;
    pen_kv_digest before = {{0}};
    for (; known < most && chain(cache, &before, tokens + PEN_KV_BLOCK * known, &cache->digests[known]); known++) {
        if (is_needed_and_lost(cache, &cache->digests[known])) break;
        before = cache->digests[known];
    }
    for (int blocks = known; blocks > 0; blocks--) {
        bool all = true;
        for (int g = 0; all && g < cache->group_count; g++)
            all = cache->groups[g].window == 0 || is_there(cache, &cache->groups[g], blocks);
        if (all) return blocks;
    }
    return 0;
}

int pen_kvcache_open(pen_kvcache *cache, int sequence, const int32_t *tokens, int count) {
    tables *s = &cache->sequences[sequence];
    assert(s->end == 0 && count > 0 && pen_kv_blocks_for(count) <= cache->table_blocks);
    int blocks = blocks_found(cache, tokens, count);
    for (int g = 0; g < cache->group_count; g++) {
        layer_group *own = &cache->groups[g];
        own->begins[sequence] = first_seen(own, blocks * PEN_KV_BLOCK);
        for (int i = own->begins[sequence]; i < blocks; i++) {
            int32_t block = pen_kvpool_find(own->pool, &cache->digests[i]);
            pen_kvpool_hold(own->pool, block);
            table_of(cache, g, sequence)[i] = block;
        }
    }
    s->end = s->named = blocks;
    if (blocks > 0) s->digest = cache->digests[blocks - 1];
    cache->counts.asked += (uint64_t)count;
    cache->counts.found += (uint64_t)blocks * PEN_KV_BLOCK;
    return blocks * PEN_KV_BLOCK;
}

bool pen_kvcache_can_fork(const pen_kvcache *cache, int parent, int position) {
    for (int g = 0; g < cache->group_count; g++)
        if (cache->groups[g].begins[parent] > first_seen(&cache->groups[g], position)) return false;
    return pen_kv_blocks_for(position) <= cache->sequences[parent].end;
}

void pen_kvcache_fork(pen_kvcache *cache, int parent, int sequence, int position) {
    tables *s = &cache->sequences[sequence];
    int end = pen_kv_blocks_for(position);
    assert(s->end == 0 && pen_kvcache_can_fork(cache, parent, position));
    for (int g = 0; g < cache->group_count; g++) {
        layer_group *own = &cache->groups[g];
        own->begins[sequence] = first_seen(own, position);
        for (int i = own->begins[sequence]; i < end; i++) {
            int32_t block = table_of(cache, g, parent)[i];
            pen_kvpool_hold(own->pool, block);
            table_of(cache, g, sequence)[i] = block;
        }
    }
    s->end = end; /* what is remembered of it begins anew: its parent may be further than it */
    cache->counts.forks++;
}

/* ---- Growing ----------------------------------------------------------------------------------------------------- */

/* Whether the entry that `position` is written to is also somebody else's. */
static bool is_shared(const pen_kvcache *cache, int g, int sequence, int position) {
    int i = position / PEN_KV_BLOCK;
    return i < cache->sequences[sequence].end &&
           pen_kvpool_holders(cache->groups[g].pool, table_of(cache, g, sequence)[i]) > 1;
}

/* Blocks that the group's pool must have: of those that leave the window, the ones nobody else holds count as had. */
static bool has_enough(const pen_kvcache *cache, int g, int sequence, int position, int end) {
    const layer_group *own = &cache->groups[g];
    const tables *s = &cache->sequences[sequence];
    int wanted = is_shared(cache, g, sequence, position), freed = 0;
    if (end > s->end) wanted += end - s->end;
    for (int i = own->begins[sequence]; i < first_seen(own, position) && i < s->end; i++)
        freed += pen_kvpool_holders(own->pool, table_of(cache, g, sequence)[i]) == 1;
    return wanted <= pen_kvpool_free_blocks(own->pool) + freed;
}

static void copy_block(pen_kvcache *cache, int g, int sequence, int i) {
    layer_group *own = &cache->groups[g];
    int32_t *entry = &table_of(cache, g, sequence)[i], copy = pen_kvpool_take(own->pool);
    assert(cache->copy_count < cache->copy_capacity);
    cache->copies[cache->copy_count++] = (pen_kv_copy){.group = g, .from = *entry, .to = copy};
    cache->counts.copied++;
    pen_kvpool_drop(own->pool, *entry);
    *entry = copy;
    if (cache->sequences[sequence].told > i) cache->sequences[sequence].told = i;
}

static void grow(pen_kvcache *cache, int g, int sequence, int position, int end) {
    layer_group *own = &cache->groups[g];
    int32_t *table = table_of(cache, g, sequence);
    int *begin = &own->begins[sequence], old_end = cache->sequences[sequence].end;
    for (; *begin < first_seen(own, position) && *begin < old_end; ++*begin) pen_kvpool_drop(own->pool, table[*begin]);
    int written = position / PEN_KV_BLOCK;
    if (is_shared(cache, g, sequence, position))
        copy_block(cache, g, sequence, written);
    else if (written < old_end)
        pen_kvpool_unname(own->pool, table[written]); /* a parent that has ended may have filled it */
    for (int i = old_end; i < end; i++) table[i] = pen_kvpool_take(own->pool);
}

bool pen_kvcache_grow(pen_kvcache *cache, int sequence, int position, int rows) {
    tables *s = &cache->sequences[sequence];
    assert(rows > 0 && position <= s->end * PEN_KV_BLOCK);
    int end = pen_kv_blocks_for(position + rows);
    assert(end <= cache->table_blocks);
    for (int g = 0; g < cache->group_count; g++)
        if (!has_enough(cache, g, sequence, position, end)) return false;
    for (int g = 0; g < cache->group_count; g++) grow(cache, g, sequence, position, end);
    if (end > s->end) s->end = end;
    return true;
}

void pen_kvcache_remember(pen_kvcache *cache, int sequence, const int32_t *tokens, int count) {
    tables *s = &cache->sequences[sequence];
    assert(pen_kv_blocks_for(count) <= s->end);
    for (; (s->named + 1) * PEN_KV_BLOCK <= count; s->named++) {
        pen_kv_digest digest, before = s->named > 0 ? s->digest : (pen_kv_digest){{0}};
        if (!chain(cache, &before, tokens + s->named * PEN_KV_BLOCK, &digest)) return; /* not found again, then */
        s->digest = digest;
        for (int g = 0; g < cache->group_count; g++)
            if (s->named >= cache->groups[g].begins[sequence])
                pen_kvpool_name(cache->groups[g].pool, table_of(cache, g, sequence)[s->named], &digest);
    }
}

/* From the end: the beginning of a text is what others have in common with it, so it is to be kept for longest. */
void pen_kvcache_close(pen_kvcache *cache, int sequence) {
    tables *s = &cache->sequences[sequence];
    for (int g = 0; g < cache->group_count; g++) {
        layer_group *own = &cache->groups[g];
        for (int i = s->end; i > own->begins[sequence]; i--)
            pen_kvpool_drop(own->pool, table_of(cache, g, sequence)[i - 1]);
        own->begins[sequence] = 0;
    }
    *s = (tables){0};
}

void pen_kvcache_forget(pen_kvcache *cache) {
    for (int g = 0; g < cache->group_count; g++) pen_kvpool_forget_all(cache->groups[g].pool);
}

/* ---- Asking ------------------------------------------------------------------------------------------------------ */

const int32_t *pen_kvcache_table(const pen_kvcache *cache, int group, int sequence) {
    return table_of(cache, group, sequence);
}

int pen_kvcache_begin(const pen_kvcache *cache, int group, int sequence) {
    return cache->groups[group].begins[sequence];
}

int pen_kvcache_end(const pen_kvcache *cache, int sequence) {
    return cache->sequences[sequence].end;
}

int pen_kvcache_free_blocks(const pen_kvcache *cache, int group) {
    return pen_kvpool_free_blocks(cache->groups[group].pool);
}

int pen_kvcache_told(const pen_kvcache *cache, int sequence) {
    return cache->sequences[sequence].told;
}

void pen_kvcache_tell(pen_kvcache *cache, int sequence) {
    cache->sequences[sequence].told = cache->sequences[sequence].end;
}

const pen_kv_copy *pen_kvcache_take_copies(pen_kvcache *cache, int *count) {
    *count = cache->copy_count;
    cache->copy_count = 0;
    return cache->copies;
}

pen_kv_counts pen_kvcache_counts(const pen_kvcache *cache) {
    return cache->counts;
}
