/*
 * Weights that are no numbers; see type_check.h. By GGUF number, because that is what a block's layout belongs to.
 * An exponent of all ones is an infinity or a NaN in every float format here.
 */
#include "type_check.h"

#include <assert.h>
#include <string.h>

enum { F16 = 0x7c00, BF16 = 0x7f80 }; /* exponents */

/* The loops have no early end, so that they become vector code. */
static bool finite_singles(const unsigned char *at, size_t count) {
    const uint32_t exponent = 0x7f800000;
    uint32_t bad = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, at + 4 * i, sizeof bits);
        bad |= (bits & exponent) == exponent;
    }
    return !bad;
}

/* A half every `stride` bytes. */
static inline bool finite_halves(const unsigned char *at, size_t stride, size_t count, uint16_t exponent) {
    uint16_t bad = 0;
    for (size_t i = 0; i < count; i++) {
        uint16_t bits;
        memcpy(&bits, at + i * stride, sizeof bits);
        bad |= (bits & exponent) == exponent;
    }
    return !bad;
}

/* Exponents alone, of which 255 is NaN. */
static bool finite_exponents(const unsigned char *at, size_t stride, size_t count) {
    bool bad = false;
    for (size_t i = 0; i < count; i++) bad |= at[i * stride] == 255;
    return !bad;
}

bool pen_type_all_finite(pen_type type, const void *blocks, size_t bytes) {
    const pen_type_info *info = pen_type_get(type);
    const unsigned char *at = blocks;
    size_t stride = (size_t)info->block_bytes, count = bytes / stride;
    switch (info->gguf) {
    case 0 /* F32 */: return finite_singles(at, count);
    case 1 /* F16 */: return finite_halves(at, 2, count, F16);
    case 30 /* BF16 */: return finite_halves(at, 2, count, BF16);
    case 2 /* Q4_0 */:
    case 6 /* Q5_0 */:
    case 8 /* Q8_0 */:
    case 20 /* IQ4_NL */: return finite_halves(at, stride, count, F16);
    case 3 /* Q4_1 */:
    case 7 /* Q5_1 */:
    case 12 /* Q4_K */:
    case 13 /* Q5_K */: return finite_halves(at, stride, count, F16) && finite_halves(at + 2, stride, count, F16);
    case 10 /* Q2_K */: return finite_halves(at + 80, stride, count, F16) && finite_halves(at + 82, stride, count, F16);
    case 11 /* Q3_K */: return finite_halves(at + 108, stride, count, F16);
    case 14 /* Q6_K */: return finite_halves(at + 208, stride, count, F16);
    case 39 /* MXFP4 */: return finite_exponents(at, stride, count);
    }
    assert(!"a weight type whose scales are not known");
    return true;
}
