/* Weights that are no numbers: what pen_type_all_finite says of random blocks is what dequantising them shows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gguf_image.h"
#include "type_check.h"

#include <math.h>

enum { BLOCKS = 4, VALUES_MAX = BLOCKS * 256, BYTES_MAX = 4 * VALUES_MAX, MXFP4 = 39 };

static bool dequantised_finite(pen_type type, const unsigned char *blocks) {
    static float values[VALUES_MAX];
    int count = BLOCKS * pen_type_get(type)->block_values;
    pen_type_dequantize_row(type, blocks, count, values);
    for (int i = 0; i < count; i++)
        if (!isfinite(values[i])) return false;
    return true;
}

static void test_says_what_dequantising_shows(void **state) {
    (void)state;
    uint64_t seed = 99;
    for (int t = 0; t < PEN_TYPE_COUNT; t++) {
        const pen_type_info *info = pen_type_get((pen_type)t);
        size_t bytes = BLOCKS * (size_t)info->block_bytes;
        unsigned char blocks[BYTES_MAX];
        int finite = 0, rounds = info->block_values == 1 ? 20000 : 2000;
        for (int round = 0; round < rounds; round++) {
            for (size_t i = 0; i < bytes; i++) blocks[i] = (unsigned char)next_random(&seed);
            /* An exponent alone: 253 and 254 are numbers, but some products with them are not. */
            for (int b = 0; info->gguf == MXFP4 && b < BLOCKS; b++)
                if (blocks[b * info->block_bytes] >= 253) blocks[b * info->block_bytes] = round % 8 ? 252 : 255;
            bool expected = dequantised_finite((pen_type)t, blocks);
            if (info->gguf == MXFP4) {
                expected = true;
                for (int b = 0; b < BLOCKS; b++) expected &= blocks[b * info->block_bytes] != 255;
            }
            if (pen_type_all_finite((pen_type)t, blocks, bytes) != expected)
                fail_msg("%s: %s", info->name, expected ? "a finite block refused" : "NaN or infinity not seen");
            finite += expected;
        }
        assert_in_range(finite, rounds / 10, rounds - 1); /* both happen */
    }
}

static void test_nothing_is_finite(void **state) {
    (void)state;
    for (int t = 0; t < PEN_TYPE_COUNT; t++) assert_true(pen_type_all_finite((pen_type)t, "", 0));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_says_what_dequantising_shows),
        cmocka_unit_test(test_nothing_is_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
