/* Weight types: the registry, halves exhaustively, and dequantisers against values worked out by the gguf package. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "types.h"

#include <math.h>
#include <string.h>

static void test_types_are_found_by_number_and_name(void **state) {
    (void)state;
    pen_type type;
    assert_int_equal(pen_type_by_gguf(3, &type), 0);
    assert_int_equal(type, PEN_TYPE_Q4_1);
    assert_int_equal(pen_type_by_name("q8_0", &type), 0);
    assert_int_equal(type, PEN_TYPE_Q8_0);
    assert_int_equal(pen_type_by_gguf(39, &type), 0);
    assert_int_equal(type, PEN_TYPE_MXFP4);
    assert_int_equal(pen_type_by_gguf(4, &type), -1);
    assert_int_equal(pen_type_by_gguf(UINT32_MAX, &type), -1);
    assert_int_equal(pen_type_by_name("Q4", &type), -1);
    assert_string_equal(pen_type_get(PEN_TYPE_Q4_0)->name, "Q4_0");
    assert_int_equal(pen_type_row_bytes(PEN_TYPE_Q4_1, 576), 576 / 32 * 20);
    assert_int_equal(pen_type_row_bytes(PEN_TYPE_Q6_K, 512), 420);
    assert_int_equal(pen_type_row_bytes(PEN_TYPE_F16, 7), 14);
}

/* The value of a half by its definition. */
static double half_value(int half) {
    int exponent = half >> 10 & 31, fraction = half & 1023;
    double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return half & 0x8000 ? -magnitude : magnitude;
}

static void test_every_half_widens_and_narrows_to_itself(void **state) {
    (void)state;
    for (int half = 0; half < 65536; half++) {
        float wide = pen_f16_to_f32((uint16_t)half);
        if ((half & 0x7c00) == 0x7c00) {
            if (half & 0x3ff)
                assert_true(isnan(wide) && isnan(pen_f16_to_f32(pen_f32_to_f16(wide))));
            else
                assert_true(isinf(wide) && pen_f32_to_f16(wide) == half);
            continue;
        }
        assert_true((double)wide == half_value(half));
        assert_int_equal(pen_f32_to_f16(wide), half);
    }
}

static void test_narrowing_rounds_to_nearest_even(void **state) {
    (void)state;
    for (int half = 0; half < 0x7bff; half++) { /* between each positive half and the next */
        double low = half_value(half), high = half_value(half + 1);
        float middle = (float)((low + high) / 2);
        assert_int_equal(pen_f32_to_f16(middle), half & 1 ? half + 1 : half);
        assert_int_equal(pen_f32_to_f16(nextafterf(middle, 0)), half);
        assert_int_equal(pen_f32_to_f16(nextafterf(middle, INFINITY)), half + 1);
        assert_int_equal(pen_f32_to_f16(-middle), 0x8000 | (half & 1 ? half + 1 : half));
    }
    assert_int_equal(pen_f32_to_f16(65519.996F), 0x7bff);
    assert_int_equal(pen_f32_to_f16(65520.0F), 0x7c00);
    assert_int_equal(pen_f32_to_f16(3.4e38F), 0x7c00);
}

/* One block of each type, made at random, and the bits of the 32 floats that gguf.quants.dequantize makes of it. */
static const unsigned char q4_0_block[] = {192, 40,  184, 171, 238, 171, 20,  206, 245,
                                           153, 204, 5,   37,  53,  213, 206, 192, 173};
static const uint32_t q4_0_values[] = {
    0x00000000, 0x3de40000, 0x3e640000, 0x3de40000, 0xbe180000, 0x3e640000, 0xbde40000, 0x3d180000,
    0x3e180000, 0xbde40000, 0xbde40000, 0xbde40000, 0xbde40000, 0x3e640000, 0xbe980000, 0x3e3e0000,
    0x3de40000, 0x3d980000, 0x3e640000, 0x3d980000, 0xbe850000, 0x3e180000, 0x3e850000, 0x3d180000,
    0x3e180000, 0xbe980000, 0xbe640000, 0xbe3e0000, 0x3e3e0000, 0x3e180000, 0x3e180000, 0x3d980000};
static const unsigned char q4_1_block[] = {192, 40, 147, 182, 118, 4,   87, 161, 124, 71,
                                           42,  73, 237, 16,  194, 250, 10, 103, 206, 13};
static const uint32_t q4_1_values[] = {
    0xbe40c000, 0xbe866000, 0xbe1ac000, 0xbebf6000, 0x3d0d0000, 0xbe1ac000, 0xbd230000, 0xbd9d8000,
    0x3d928000, 0xbed26000, 0xbeac6000, 0xbd230000, 0xbd230000, 0xbe1ac000, 0x3dde8000, 0x3d928000,
    0xbe1ac000, 0xbed26000, 0xbe66c000, 0xbd230000, 0xbe1ac000, 0xbe866000, 0xbeac6000, 0xbe866000,
    0x3dde8000, 0xbebf6000, 0x3d0d0000, 0x3e154000, 0xbed26000, 0xbe40c000, 0x3d0d0000, 0xbed26000};
static const unsigned char q8_0_block[] = {192, 40,  38,  71,  133, 118, 36,  98, 196, 35, 57,  146,
                                           50,  179, 145, 104, 206, 53,  141, 33, 181, 39, 151, 11,
                                           180, 138, 66,  0,   165, 98,  123, 12, 144, 184};
static const uint32_t q8_0_values[] = {
    0x3fb48000, 0x4028a000, 0xc0921000, 0x408c2000, 0x3fab0000, 0x4068c000, 0xc00e8000, 0x3fa64000,
    0x40076000, 0xc082a000, 0x3fed8000, 0xc036e000, 0xc083d000, 0x40770000, 0xbfed8000, 0x3ffbc000,
    0xc0889000, 0x3f9cc000, 0xc0322000, 0x3fb94000, 0xc0796000, 0x3ed10000, 0xc0348000, 0xc08c2000,
    0x401cc000, 0x00000000, 0xc0582000, 0x4068c000, 0x40921000, 0x3ee40000, 0xc0850000, 0xc02b0000};

static void check(pen_type type, const unsigned char *block, const uint32_t *expected) {
    float got[32];
    pen_type_dequantize_row(type, block, 32, got);
    assert_memory_equal(got, expected, sizeof got);
}

static void test_blocks_dequantise_as_the_gguf_package_does(void **state) {
    (void)state;
    check(PEN_TYPE_Q4_0, q4_0_block, q4_0_values);
    check(PEN_TYPE_Q4_1, q4_1_block, q4_1_values);
    check(PEN_TYPE_Q8_0, q8_0_block, q8_0_values);
}

/* FNV-1a of the bits of 512 values of each type, from random blocks with the same two factors, as the gguf package
 * makes them; tests/reference/types_compare.py compares values. */
static void test_every_quantised_type_dequantises_as_the_gguf_package_does(void **state) {
    (void)state;
    static const struct {
        pen_type type;
        uint64_t hash;
    } expected[] = {
        {PEN_TYPE_Q4_0, 0xff66a0727893e63d},   {PEN_TYPE_Q4_1, 0x2302343b0b468d45},
        {PEN_TYPE_Q5_0, 0xb523afc8f1f821a6},   {PEN_TYPE_Q5_1, 0x73dffc100ddf4834},
        {PEN_TYPE_Q8_0, 0xa2680b40f88875bb},   {PEN_TYPE_Q2_K, 0x2f12442edcc109cc},
        {PEN_TYPE_Q3_K, 0xacabf893221519fb},   {PEN_TYPE_Q4_K, 0x1eeed65c870ceb31},
        {PEN_TYPE_Q5_K, 0x48f8d467d875c3ef},   {PEN_TYPE_Q6_K, 0x05499ab735f8f962},
        {PEN_TYPE_IQ4_NL, 0xcc961ccc78b4d722}, {PEN_TYPE_MXFP4, 0x94f06a84ded4f2ee},
    };
    assert_int_equal(sizeof expected / sizeof *expected, PEN_TYPE_COUNT - 3);
    for (size_t t = 0; t < sizeof expected / sizeof *expected; t++) {
        const pen_type_info *info = pen_type_get(expected[t].type);
        unsigned char row[512 / 32 * 34];
        size_t size = pen_type_row_bytes(expected[t].type, 512);
        uint64_t random = 1, hash = 0xcbf29ce484222325;
        for (size_t i = 0; i < size; i++) {
            random = random * 6364136223846793005U + 1442695040888963407U;
            row[i] = (unsigned char)(random >> 56);
        }
        const uint16_t factors[2] = {0x28c0, 0xb2a1};
        for (unsigned char *block = row; block < row + size; block += info->block_bytes) {
            if (info->quant.d >= 0) memcpy(block + info->quant.d, &factors[0], 2);
            if (info->quant.m >= 0) memcpy(block + info->quant.m, &factors[1], 2);
        }
        float values[512];
        unsigned char bytes[sizeof values];
        pen_type_dequantize_row(expected[t].type, row, 512, values);
        memcpy(bytes, values, sizeof values);
        for (size_t i = 0; i < sizeof bytes; i++) hash = (hash ^ bytes[i]) * 0x100000001b3;
        if (hash != expected[t].hash) fail_msg("%s", info->name);
    }
}

static void test_float_rows(void **state) {
    (void)state;
    const uint16_t halves[] = {0x3c00, 0xc000, 0x0001};
    const float floats[] = {1, -2, 0x1p-24F};
    float got[3];
    pen_type_dequantize_row(PEN_TYPE_F16, halves, 3, got);
    assert_memory_equal(got, floats, sizeof got);
    const uint16_t upper_halves[] = {0x3f80, 0xc000, 0x3380};
    memset(got, 0, sizeof got);
    pen_type_dequantize_row(PEN_TYPE_BF16, upper_halves, 3, got);
    assert_memory_equal(got, floats, sizeof got);
    memset(got, 0, sizeof got);
    pen_type_dequantize_row(PEN_TYPE_F32, floats, 3, got);
    assert_memory_equal(got, floats, sizeof got);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types_are_found_by_number_and_name),
        cmocka_unit_test(test_every_half_widens_and_narrows_to_itself),
        cmocka_unit_test(test_narrowing_rounds_to_nearest_even),
        cmocka_unit_test(test_blocks_dequantise_as_the_gguf_package_does),
        cmocka_unit_test(test_every_quantised_type_dequantises_as_the_gguf_package_does),
        cmocka_unit_test(test_float_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
