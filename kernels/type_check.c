/*
 * Weights that are no numbers; see type_check.h. An exponent of all ones is an infinity or a NaN in every float format
 * here.
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

/* Two halves side by side every `stride` bytes: one added to an exponent of all ones carries into the sign. */
static bool finite_pairs(const unsigned char *at, size_t stride, size_t count) {
    const uint32_t exponents = F16 << 16 | F16, ones = 0x04000400, carries = 0x80008000;
    uint32_t bad = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, at + i * stride, sizeof bits);
        bad |= (bits & exponents) + ones;
    }
    return !(bad & carries);
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
    switch (type) {
    case PEN_TYPE_F32: return finite_singles(at, count);
    case PEN_TYPE_F16: return finite_halves(at, 2, count, F16);
    case PEN_TYPE_BF16: return finite_halves(at, 2, count, BF16);
    default: break;
    }
    int d = info->quant.d, m = info->quant.m;
    if (d < 0) return finite_exponents(at, stride, count);
    assert(m < 0 || m == d + 2);
    return m < 0 ? finite_halves(at + d, stride, count, F16) : finite_pairs(at + d, stride, count);
}
