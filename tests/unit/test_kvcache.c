/* Block tables of paged KV: no block has two owners, none is lost, and what was reserved can be had. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels.h"
#include "kvcache.h"

enum { BLOCKS = 37, SEQUENCES = 6, CONTEXT = 200 };

static void check(const pen_kvcache *cache) {
    int owners[BLOCKS] = {0}, used = 0;
    for (int s = 0; s < SEQUENCES; s++) {
        const int32_t *table = pen_kvcache_table(cache, s);
        for (int b = 0; b < pen_kvcache_table_blocks(cache, s); b++) {
            assert_in_range(table[b], 0, BLOCKS - 1);
            assert_int_equal(owners[table[b]]++, 0);
            used++;
        }
    }
    assert_true(pen_kvcache_free_blocks(cache) >= 0);
    assert_true(pen_kvcache_free_blocks(cache) + used <= BLOCKS);
}

static void test_random_lives_keep_the_pool_whole(void **state) {
    (void)state;
    pen_kvcache *cache;
    assert_int_equal(pen_kvcache_create(BLOCKS, SEQUENCES, CONTEXT, &cache), PEN_OK);
    int reserved[SEQUENCES] = {0}, grown[SEQUENCES] = {0}, refusals = 0;
    srand(7);
    for (int i = 0; i < 20000; i++) {
        int s = rand() % SEQUENCES;
        if (reserved[s] == 0) {
            int positions = 1 + rand() % CONTEXT, before = pen_kvcache_free_blocks(cache);
            bool fits = pen_kvcache_blocks_for(positions) <= before;
            assert_int_equal(pen_kvcache_reserve(cache, s, positions), fits);
            if (fits) reserved[s] = positions;
            refusals += !fits;
            assert_int_equal(pen_kvcache_free_blocks(cache), before - (fits ? pen_kvcache_blocks_for(positions) : 0));
        } else if (grown[s] < reserved[s]) {
            int old_blocks = pen_kvcache_table_blocks(cache, s), free_blocks = pen_kvcache_free_blocks(cache);
            int32_t old[BLOCKS];
            memcpy(old, pen_kvcache_table(cache, s), (size_t)old_blocks * sizeof *old);
            grown[s] += 1 + rand() % (reserved[s] - grown[s]);
            pen_kvcache_grow(cache, s, grown[s]);
            assert_int_equal(pen_kvcache_table_blocks(cache, s), pen_kvcache_blocks_for(grown[s]));
            assert_memory_equal(old, pen_kvcache_table(cache, s), (size_t)old_blocks * sizeof *old);
            assert_int_equal(pen_kvcache_free_blocks(cache), free_blocks);
        } else {
            pen_kvcache_release(cache, s);
            reserved[s] = grown[s] = 0;
        }
        check(cache);
    }
    assert_true(refusals > 100);
    for (int s = 0; s < SEQUENCES; s++) pen_kvcache_release(cache, s);
    assert_int_equal(pen_kvcache_free_blocks(cache), BLOCKS);
    pen_kvcache_destroy(cache);
}

static void test_reservations_can_be_raised_but_not_beyond_a_table(void **state) {
    (void)state;
    pen_kvcache *cache;
    assert_int_equal(pen_kvcache_create(BLOCKS, SEQUENCES, CONTEXT, &cache), PEN_OK);
    assert_true(pen_kvcache_reserve(cache, 0, 17));
    assert_int_equal(pen_kvcache_free_blocks(cache), BLOCKS - 2);
    assert_true(pen_kvcache_reserve(cache, 0, 33));
    assert_true(pen_kvcache_reserve(cache, 0, 1));
    assert_int_equal(pen_kvcache_free_blocks(cache), BLOCKS - 3);
    assert_false(pen_kvcache_reserve(cache, 1, CONTEXT + PEN_KV_BLOCK));
    pen_kvcache_release(cache, 0);
    assert_int_equal(pen_kvcache_free_blocks(cache), BLOCKS);
    pen_kvcache_destroy(cache);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_lives_keep_the_pool_whole),
        cmocka_unit_test(test_reservations_can_be_raised_but_not_beyond_a_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
