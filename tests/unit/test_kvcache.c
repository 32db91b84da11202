/* Block tables of paged KV: no block has two owners, none is lost, what was reserved can be had, what is seen is there.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels.h"
#include "kvcache.h"

enum { SEQUENCES = 6, CONTEXT = 200, ROWS = 24, MOST = 64 };

static const pen_kv_pools all_and_window = {.count = 2, .blocks = {37, 17}, .windows = {0, 20}};

static int blocks_for(const pen_kv_pools *pools, int group, int positions) {
    return pen_kv_blocks_held(pools->windows[group], ROWS, positions);
}

static void check(const pen_kvcache *cache, const pen_kv_pools *pools) {
    for (int g = 0; g < pools->count; g++) {
        int owners[MOST] = {0}, used = 0;
        for (int s = 0; s < SEQUENCES; s++) {
            const int32_t *table = pen_kvcache_table(cache, g, s);
            for (int b = pen_kvcache_table_begin(cache, g, s); b < pen_kvcache_table_end(cache, s); b++) {
                assert_in_range(table[b], 0, pools->blocks[g] - 1);
                assert_int_equal(owners[table[b]]++, 0);
                used++;
            }
        }
        assert_true(pen_kvcache_free_blocks(cache, g) >= 0);
        assert_true(pen_kvcache_free_blocks(cache, g) + used <= pools->blocks[g]);
    }
}

/* Entries that the rows at [position, position + rows) see are live, and those that were live before are what they
 * were. */
static void grow_and_check(pen_kvcache *cache, const pen_kv_pools *pools, int s, int position, int rows) {
    int32_t old[PEN_KV_GROUPS][MOST];
    int old_end = pen_kvcache_table_end(cache, s), end = pen_kv_blocks_for(position + rows);
    for (int g = 0; g < pools->count; g++)
        memcpy(old[g], pen_kvcache_table(cache, g, s), (size_t)old_end * sizeof(int32_t));
    pen_kvcache_grow(cache, s, position, rows);
    assert_int_equal(pen_kvcache_table_end(cache, s), end > old_end ? end : old_end);
    for (int g = 0; g < pools->count; g++) {
        int window = pools->windows[g], begin = pen_kvcache_table_begin(cache, g, s);
        int seen = window > 0 && position - window + 1 > 0 ? position - window + 1 : 0;
        assert_int_equal(begin, seen / PEN_KV_BLOCK);
        for (int b = begin; b < old_end; b++) assert_int_equal(pen_kvcache_table(cache, g, s)[b], old[g][b]);
    }
}

static void live(const pen_kv_pools *pools) {
    pen_kvcache *cache;
    assert_int_equal(pen_kvcache_create(pools, SEQUENCES, CONTEXT, ROWS, &cache), PEN_OK);
    int reserved[SEQUENCES] = {0}, grown[SEQUENCES] = {0}, refusals = 0;
    for (int i = 0; i < 20000; i++) {
        int s = rand() % SEQUENCES;
        if (reserved[s] == 0) {
            int positions = 1 + rand() % CONTEXT, before[PEN_KV_GROUPS];
            bool fits = true;
            for (int g = 0; g < pools->count; g++) {
                before[g] = pen_kvcache_free_blocks(cache, g);
                fits = fits && blocks_for(pools, g, positions) <= before[g];
            }
            assert_int_equal(pen_kvcache_reserve(cache, s, positions), fits);
            if (fits) reserved[s] = positions;
            refusals += !fits;
            for (int g = 0; g < pools->count; g++)
                assert_int_equal(pen_kvcache_free_blocks(cache, g),
                                 before[g] - (fits ? blocks_for(pools, g, positions) : 0));
        } else if (grown[s] < reserved[s]) {
            int most = reserved[s] - grown[s] < ROWS ? reserved[s] - grown[s] : ROWS, rows = 1 + rand() % most;
            int free_blocks = pen_kvcache_free_blocks(cache, 0);
            grow_and_check(cache, pools, s, grown[s], rows);
            grown[s] += rows;
            assert_int_equal(pen_kvcache_free_blocks(cache, 0), free_blocks);
        } else {
            pen_kvcache_release(cache, s);
            reserved[s] = grown[s] = 0;
        }
        check(cache, pools);
    }
    assert_true(refusals > 100);
    for (int s = 0; s < SEQUENCES; s++) pen_kvcache_release(cache, s);
    for (int g = 0; g < pools->count; g++) assert_int_equal(pen_kvcache_free_blocks(cache, g), pools->blocks[g]);
    pen_kvcache_destroy(cache);
}

static void test_random_lives_keep_the_pools_whole(void **state) {
    (void)state;
    srand(7);
    live(&(pen_kv_pools){.count = 1, .blocks = {37}});
    live(&(pen_kv_pools){.count = 1, .blocks = {11}, .windows = {33}});
    live(&all_and_window);
}

static void test_a_sequence_far_longer_than_its_pool_slides_through_it(void **state) {
    (void)state;
    int held = pen_kv_blocks_held(50, ROWS, CONTEXT);
    const pen_kv_pools pools = {.count = 1, .blocks = {held}, .windows = {50}};
    pen_kvcache *cache;
    assert_int_equal(pen_kvcache_create(&pools, 1, CONTEXT, ROWS, &cache), PEN_OK);
    assert_true(held * PEN_KV_BLOCK < CONTEXT);
    assert_true(pen_kvcache_reserve(cache, 0, CONTEXT));
    for (int position = 0, rows; position < CONTEXT; position += rows) {
        rows = CONTEXT - position < ROWS ? CONTEXT - position : ROWS;
        grow_and_check(cache, &pools, 0, position, rows);
    }
    pen_kvcache_destroy(cache);
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

static void test_reservations_can_be_raised_but_not_beyond_a_table(void **state) {
    (void)state;
    pen_kvcache *cache;
    assert_int_equal(pen_kvcache_create(&all_and_window, SEQUENCES, CONTEXT, ROWS, &cache), PEN_OK);
    assert_true(pen_kvcache_reserve(cache, 0, 17));
    assert_int_equal(pen_kvcache_free_blocks(cache, 0), 37 - 2);
    assert_true(pen_kvcache_reserve(cache, 0, 33));
    assert_true(pen_kvcache_reserve(cache, 0, 1));
    assert_int_equal(pen_kvcache_free_blocks(cache, 0), 37 - 3);
    assert_false(pen_kvcache_reserve(cache, 1, CONTEXT + PEN_KV_BLOCK));
    pen_kvcache_release(cache, 0);
    assert_int_equal(pen_kvcache_free_blocks(cache, 0), 37);
    assert_int_equal(pen_kvcache_free_blocks(cache, 1), 17);
    pen_kvcache_destroy(cache);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_lives_keep_the_pools_whole),
        cmocka_unit_test(test_a_sequence_far_longer_than_its_pool_slides_through_it),
        cmocka_unit_test(test_blocks_held),
        cmocka_unit_test(test_reservations_can_be_raised_but_not_beyond_a_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
