/* The memory of weights: aligned, never shared, and gone when the last of a piece is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "arena.h"

enum { COUNT = 200, MIB = 1 << 20 };

/* Sizes of a small model's weights, and a few that need pieces of their own. */
static size_t size_of(int i) {
    return i % 50 == 49 ? 80U * MIB : (size_t)(i * 7919 % 3000) * 1000 + (size_t)i;
}

static void test_memory_is_aligned_and_its_own(void **state) {
    (void)state;
    pen_arena arena = {0};
    unsigned char *memory[COUNT];
    for (int i = 0; i < COUNT; i++) {
        memory[i] = pen_arena_take(&arena, size_of(i));
        assert_non_null(memory[i]);
        assert_int_equal((uintptr_t)memory[i] % 64, 0);
        memory[i][0] = (unsigned char)i;
        if (size_of(i)) memory[i][size_of(i) - 1] = (unsigned char)i;
    }
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(memory[i][0], i);
        if (size_of(i)) assert_int_equal(memory[i][size_of(i) - 1], i);
        for (int k = 0; k < i; k++)
            assert_true(memory[k] + size_of(k) <= memory[i] || memory[i] + size_of(i) <= memory[k]);
    }
    for (int i = 0; i < COUNT; i++) {
        assert_non_null(arena.pieces);
        pen_arena_give(&arena, memory[i * 37 % COUNT]); /* 37 and 200 have no common factor: each once */
    }
    assert_null(arena.pieces);
}

static void test_small_weights_share_pages(void **state) {
    (void)state;
    pen_arena arena = {0};
    unsigned char *first = pen_arena_take(&arena, 1000), *second = pen_arena_take(&arena, 1000);
    assert_ptr_equal(second, first + 1024);
    pen_arena_give(&arena, first);
    pen_arena_give(&arena, second);
    assert_null(arena.pieces);
}

static void test_too_much_is_refused(void **state) {
    (void)state;
    pen_arena arena = {0};
    assert_null(pen_arena_take(&arena, SIZE_MAX));
    assert_null(arena.pieces);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_is_aligned_and_its_own),
        cmocka_unit_test(test_small_weights_share_pages),
        cmocka_unit_test(test_too_much_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
