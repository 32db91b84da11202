/*
 * Block tables of paged KV against a model of the memory they stand for: every block of every group has contents, which
 * random sequences write, copy, share and find again; whatever a row sees must be what its own tokens made.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kvcache.h"

enum { SEQUENCES = 6, CONTEXT = 200, ROWS = 24, MOST = 64, TEXTS = 4 };

/* What K and V of a position depend on: all tokens up to it. */
typedef uint64_t content;

typedef struct world {
    pen_kv_pools pools;
    pen_kvcache *cache;
    content memory[PEN_KV_GROUPS][MOST][PEN_KV_BLOCK];
    int32_t stage_tables[PEN_KV_GROUPS][SEQUENCES][MOST]; /* as the stages know them */
    int32_t tokens[SEQUENCES][CONTEXT];
    content contents[SEQUENCES][CONTEXT];
    int length[SEQUENCES], next[SEQUENCES]; /* 0: no sequence */
} world;

static int below(int limit) {
    return rand() % limit;
}

/* Few texts, so that sequences begin alike; then they go their own way. */
static void make_tokens(world *w, int s, int from) {
    content hash = from > 0 ? w->contents[s][from - 1] : 1;
    int text = below(TEXTS), common = below(CONTEXT);
    for (int p = from; p < CONTEXT; p++) {
        w->tokens[s][p] = p < common ? text * 1000 + p : below(1000000);
        hash = (hash ^ (content)w->tokens[s][p]) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 29;
        w->contents[s][p] = hash;
    }
}

static void make_world(world *w, const pen_kv_pools *pools) {
    memset(w, 0, sizeof *w);
    w->pools = *pools;
    assert_int_equal(pen_kvcache_create(pools, SEQUENCES, CONTEXT, &w->cache), PEN_OK);
}

static int first_seen(const world *w, int g, int position) {
    int window = w->pools.windows[g];
    return window > 0 && position >= window ? position - window + 1 : 0;
}

/* Nobody's block is free, nothing is lost. */
static void check_pools(const world *w) {
    for (int g = 0; g < w->pools.count; g++) {
        bool used[MOST] = {false};
        int count = 0;
        for (int s = 0; s < SEQUENCES; s++)
            for (int i = pen_kvcache_begin(w->cache, g, s); i < pen_kvcache_end(w->cache, s); i++) {
                int32_t block = pen_kvcache_table(w->cache, g, s)[i];
                assert_in_range(block, 0, w->pools.blocks[g] - 1);
                count += !used[block];
                used[block] = true;
            }
        assert_int_equal(pen_kvcache_free_blocks(w->cache, g), w->pools.blocks[g] - count);
    }
}

static void open_sequence(world *w, int s) {
    make_tokens(w, s, 0);
    w->length[s] = 1 + below(CONTEXT);
    w->next[s] = pen_kvcache_open(w->cache, s, w->tokens[s], w->length[s]);
    assert_in_range(w->next[s], 0, w->length[s] - 1);
    assert_int_equal(w->next[s] % PEN_KV_BLOCK, 0);
}

/* A step, as the stages run it: copies, then each row writes its own and reads what it sees. */
static void run_rows(world *w, int s, int rows) {
    int count, told = pen_kvcache_told(w->cache, s), end = pen_kvcache_end(w->cache, s);
    const pen_kv_copy *copies = pen_kvcache_take_copies(w->cache, &count);
    for (int c = 0; c < count; c++)
        memcpy(w->memory[copies[c].group][copies[c].to], w->memory[copies[c].group][copies[c].from],
               sizeof w->memory[0][0]);
    for (int g = 0; g < w->pools.count; g++)
        memcpy(w->stage_tables[g][s] + told, pen_kvcache_table(w->cache, g, s) + told,
               (size_t)(end - told) * sizeof(int32_t));
    pen_kvcache_tell(w->cache, s);
    for (int p = w->next[s]; p < w->next[s] + rows; p++)
        for (int g = 0; g < w->pools.count; g++) {
            const int32_t *table = w->stage_tables[g][s];
            w->memory[g][table[p / PEN_KV_BLOCK]][p % PEN_KV_BLOCK] = w->contents[s][p];
            for (int q = first_seen(w, g, p); q <= p; q++)
                assert_true(w->memory[g][table[q / PEN_KV_BLOCK]][q % PEN_KV_BLOCK] == w->contents[s][q]);
        }
    w->next[s] += rows;
    pen_kvcache_remember(w->cache, s, w->tokens[s], w->next[s]);
}

/* Another sequence with the same tokens up to a position, which goes its own way from there. Only a window can have
 * left it. */
static bool fork_sequence(world *w, int parent, int s) {
    int position = w->next[parent] - below(w->next[parent] < 40 ? w->next[parent] : 40);
    bool left = false;
    for (int g = 0; g < w->pools.count; g++)
        left = left || pen_kvcache_begin(w->cache, g, parent) * PEN_KV_BLOCK > first_seen(w, g, position);
    if (position == CONTEXT) return false;
    assert_int_equal(pen_kvcache_can_fork(w->cache, parent, position), !left);
    if (left) return false;
    pen_kvcache_fork(w->cache, parent, s, position);
    memcpy(w->tokens[s], w->tokens[parent], sizeof w->tokens[s]);
    memcpy(w->contents[s], w->contents[parent], sizeof w->contents[s]);
    w->next[s] = position;
    make_tokens(w, s, position);
    w->length[s] = position + 1 + below(CONTEXT - position);
    return true;
}

static void close_sequence(world *w, int s) {
    pen_kvcache_close(w->cache, s);
    w->length[s] = w->next[s] = 0;
}

static void live(const pen_kv_pools *pools, int steps) {
    world w;
    make_world(&w, pools);
    int refusals = 0, forks = 0;
    for (int i = 0; i < steps; i++) {
        int s = below(SEQUENCES), other = below(SEQUENCES);
        if (w.length[s] == 0) {
            if (pen_kvcache_told(w.cache, other) > 0 && below(3) == 0)
                forks += fork_sequence(&w, other, s);
            else
                open_sequence(&w, s);
        } else if (w.next[s] == w.length[s] || below(20) == 0) {
            close_sequence(&w, s);
        } else {
            int left = w.length[s] - w.next[s], rows = 1 + below(left < ROWS ? left : ROWS);
            if (pen_kvcache_grow(w.cache, s, w.next[s], rows)) {
                run_rows(&w, s, rows);
            } else {
                refusals++;
                close_sequence(&w, below(2) ? s : other);
            }
        }
        check_pools(&w);
    }
    for (int s = 0; s < SEQUENCES; s++) pen_kvcache_close(w.cache, s);
    for (int g = 0; g < pools->count; g++) assert_int_equal(pen_kvcache_free_blocks(w.cache, g), pools->blocks[g]);
    pen_kv_counts counts = pen_kvcache_counts(w.cache);
    assert_true(refusals > 20 && counts.found > 1000 && counts.found < counts.asked);
    assert_true(forks > 100 && counts.copied > 50);
    assert_int_equal(counts.forks, forks);
    pen_kvcache_destroy(w.cache);
}

static void test_random_lives_see_what_they_wrote(void **state) {
    (void)state;
    srand(7);
    live(&(pen_kv_pools){.count = 1, .blocks = {37}}, 20000);
    live(&(pen_kv_pools){.count = 1, .blocks = {19}, .windows = {33}}, 20000);
    live(&(pen_kv_pools){.count = 2, .blocks = {37, 19}, .windows = {0, 20}}, 20000);
}

static void grow_all(pen_kvcache *cache, int s, const int32_t *tokens, int from, int count) {
    assert_true(pen_kvcache_grow(cache, s, from, count - from));
    pen_kvcache_remember(cache, s, tokens, count);
}

static void test_the_longest_unused_goes_first(void **state) {
    (void)state;
    const pen_kv_pools pools = {.count = 1, .blocks = {4}};
    pen_kvcache *cache;
    assert_int_equal(pen_kvcache_create(&pools, 2, 64, &cache), PEN_OK);
    int32_t a[32], b[32], c[17];
    for (int i = 0; i < 32; i++) a[i] = i, b[i] = 100 + i, c[i % 17] = 200 + i;
    assert_int_equal(pen_kvcache_open(cache, 0, a, 32), 0);
    grow_all(cache, 0, a, 0, 32);
    pen_kvcache_close(cache, 0);
    assert_int_equal(pen_kvcache_open(cache, 0, b, 32), 0);
    grow_all(cache, 0, b, 0, 32);
    pen_kvcache_close(cache, 0);
    assert_int_equal(pen_kvcache_open(cache, 0, a, 32), 16); /* used again: b is now the older one */
    pen_kvcache_close(cache, 0);
    assert_int_equal(pen_kvcache_open(cache, 0, c, 17),
                     0); /* takes a's second block, which ends later than its first */
    grow_all(cache, 0, c, 0, 17);
    pen_kvcache_close(cache, 0);
    assert_int_equal(pen_kvcache_open(cache, 0, a, 32), 16);
    pen_kvcache_close(cache, 0);
    assert_int_equal(pen_kvcache_counts(cache).asked, 32 + 32 + 32 + 17 + 32);
    assert_int_equal(pen_kvcache_counts(cache).found, 32);
    pen_kvcache_destroy(cache);
}

static void test_the_last_token_is_always_computed(void **state) {
    (void)state;
    const pen_kv_pools pools = {.count = 1, .blocks = {8}};
    pen_kvcache *cache;
    int32_t tokens[48] = {0};
    assert_int_equal(pen_kvcache_create(&pools, 2, 64, &cache), PEN_OK);
    assert_int_equal(pen_kvcache_open(cache, 0, tokens, 48), 0);
    grow_all(cache, 0, tokens, 0, 48);
    assert_int_equal(pen_kvcache_open(cache, 1, tokens, 48), 32); /* while the first still has them */
    assert_int_equal(pen_kvcache_free_blocks(cache, 0), 5);
    pen_kvcache_close(cache, 1);
    assert_int_equal(pen_kvcache_open(cache, 1, tokens, 49 - 1), 32);
    pen_kvcache_close(cache, 1);
    pen_kvcache_close(cache, 0);
    pen_kvcache_destroy(cache);
}

static int copies_of_growing(pen_kvcache *cache, int s, int position) {
    int count;
    assert_true(pen_kvcache_grow(cache, s, position, 1));
    pen_kvcache_take_copies(cache, &count);
    return count;
}

static void test_only_a_shared_block_is_copied(void **state) {
    (void)state;
    const pen_kv_pools pools = {.count = 2, .blocks = {12, 12}, .windows = {0, 30}};
    pen_kvcache *cache;
    int32_t tokens[64] = {0};
    assert_int_equal(pen_kvcache_create(&pools, 4, 64, &cache), PEN_OK);
    assert_int_equal(pen_kvcache_open(cache, 0, tokens, 41), 0);
    grow_all(cache, 0, tokens, 0, 41); /* three blocks, the last one with 9 positions */
    for (int s = 1; s < 4; s++) pen_kvcache_fork(cache, 0, s, 40);
    assert_int_equal(pen_kvcache_free_blocks(cache, 0), 9);
    /* All but the last to write into it, in both groups; it may be the parent. */
    assert_int_equal(copies_of_growing(cache, 1, 40), 2);
    assert_int_equal(copies_of_growing(cache, 1, 41), 0);
    assert_int_equal(copies_of_growing(cache, 0, 41), 2);
    assert_int_equal(copies_of_growing(cache, 2, 40), 2);
    assert_int_equal(copies_of_growing(cache, 3, 40), 0);
    assert_int_equal(pen_kvcache_free_blocks(cache, 0), 12 - 2 - 4);
    /* A sequence that goes on where a block begins has none to copy. */
    pen_kvcache_close(cache, 1);
    pen_kvcache_fork(cache, 0, 1, 32);
    assert_int_equal(copies_of_growing(cache, 1, 32), 0);
    assert_int_equal(pen_kvcache_counts(cache).copied, 6);
    assert_int_equal(pen_kvcache_counts(cache).forks, 4);
    for (int s = 0; s < 4; s++) pen_kvcache_close(cache, s);
    for (int g = 0; g < 2; g++) assert_int_equal(pen_kvcache_free_blocks(cache, g), 12);
    pen_kvcache_destroy(cache);
}

/* Its parent filled the block and was to be found by it; then the block became the child's alone. */
static void test_what_a_child_writes_over_is_not_found_again(void **state) {
    (void)state;
    const pen_kv_pools pools = {.count = 1, .blocks = {8}};
    pen_kvcache *cache;
    int32_t tokens[33] = {0}, other[33] = {0};
    for (int i = 20; i < 33; i++) other[i] = 7;
    assert_int_equal(pen_kvcache_create(&pools, 3, 48, &cache), PEN_OK);
    assert_int_equal(pen_kvcache_open(cache, 0, tokens, 33), 0);
    grow_all(cache, 0, tokens, 0, 33);
    pen_kvcache_fork(cache, 0, 1, 20);
    pen_kvcache_close(cache, 0);
    assert_int_equal(pen_kvcache_open(cache, 0, tokens, 33), 32); /* still as it was */
    pen_kvcache_close(cache, 0);
    grow_all(cache, 1, other, 20, 25);
    assert_int_equal(pen_kvcache_counts(cache).copied, 0);
    assert_int_equal(pen_kvcache_open(cache, 0, tokens, 33), 16);
    grow_all(cache, 1, other, 25, 33);
    assert_int_equal(pen_kvcache_open(cache, 2, other, 33), 32);
    for (int s = 0; s < 3; s++) pen_kvcache_close(cache, s);
    assert_int_equal(pen_kvcache_free_blocks(cache, 0), 8);
    pen_kvcache_destroy(cache);
}

static void test_a_sequence_far_longer_than_its_pool_slides_through_it(void **state) {
    (void)state;
    int held = pen_kv_blocks_held(50, ROWS, CONTEXT);
    const pen_kv_pools pools = {.count = 1, .blocks = {held}, .windows = {50}};
    world w;
    make_world(&w, &pools);
    assert_true(held * PEN_KV_BLOCK < CONTEXT);
    make_tokens(&w, 0, 0);
    assert_int_equal(pen_kvcache_open(w.cache, 0, w.tokens[0], CONTEXT), 0);
    while (w.next[0] < CONTEXT) {
        int left = CONTEXT - w.next[0], rows = left < ROWS ? left : ROWS;
        assert_true(pen_kvcache_grow(w.cache, 0, w.next[0], rows));
        run_rows(&w, 0, rows);
    }
    pen_kvcache_destroy(w.cache);
}

/* Against counting: the most blocks that any place of the rows touches. */
static void test_blocks_held(void **state) {
    (void)state;
    for (int window = 1; window < 70; window++)
        for (int rows = 1; rows < 40; rows++) {
            int most = 0;
            for (int position = 0; position < 300; position++) {
                int seen = position - window + 1 > 0 ? position - window + 1 : 0;
                int touched = (position + rows - 1) / PEN_KV_BLOCK - seen / PEN_KV_BLOCK + 1;
                if (touched > most) most = touched;
            }
            assert_int_equal(pen_kv_blocks_held(window, rows, 100000), most);
            assert_int_equal(pen_kv_blocks_held(window, rows, 16), 1);
        }
    assert_int_equal(pen_kv_blocks_held(0, 8, 33), 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_lives_see_what_they_wrote),
        cmocka_unit_test(test_the_longest_unused_goes_first),
        cmocka_unit_test(test_the_last_token_is_always_computed),
        cmocka_unit_test(test_only_a_shared_block_is_copied),
        cmocka_unit_test(test_what_a_child_writes_over_is_not_found_again),
        cmocka_unit_test(test_a_sequence_far_longer_than_its_pool_slides_through_it),
        cmocka_unit_test(test_blocks_held),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
