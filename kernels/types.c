/*
 * Weight types; see types.h. In plain C: here stands what the bytes of a file mean, and every device's kernels are
 * tested against it.
 */
#include "types.h"

#include <assert.h>
#include <string.h>
#include <strings.h>

static const pen_type_info types[] = {
#define PEN_TYPE(name, gguf, values, bytes) {#name, gguf, values, bytes, {.bits = 0}},
#define PEN_QUANT(name, gguf, values, bytes, bits, zero, share, d, m, codes)                                           \
    {#name, gguf, values, bytes, {bits, zero, share, d, m, codes}},
#include "types.def"
};

/* The levels of IQ4_NL, and the numbers of two bits of exponent and one of fraction, doubled; both with zero added. */
const uint8_t pen_codes_iq4_nl[16] = {128 - 127, 128 - 104, 128 - 83, 128 - 65, 128 - 49, 128 - 35,
                                      128 - 22,  128 - 10,  128 + 1,  128 + 13, 128 + 25, 128 + 38,
                                      128 + 53,  128 + 69,  128 + 89, 128 + 113};
const uint8_t pen_codes_mxfp4[16] = {16,     16 + 1, 16 + 2, 16 + 3, 16 + 4, 16 + 6, 16 + 8, 16 + 12,
                                     16 - 0, 16 - 1, 16 - 2, 16 - 3, 16 - 4, 16 - 6, 16 - 8, 16 - 12};

const pen_type_info *pen_type_get(pen_type type) {
    assert((unsigned)type < PEN_TYPE_COUNT);
    return &types[type];
}

int pen_type_by_gguf(uint32_t number, pen_type *type) {
    for (int t = 0; t < PEN_TYPE_COUNT; t++)
        if ((uint32_t)types[t].gguf == number) return *type = (pen_type)t, 0;
    return -1;
}

int pen_type_by_name(const char *name, pen_type *type) {
    for (int t = 0; t < PEN_TYPE_COUNT; t++)
        if (strcasecmp(types[t].name, name) == 0) return *type = (pen_type)t, 0;
    return -1;
}

size_t pen_type_row_bytes(pen_type type, int64_t cols) {
    const pen_type_info *info = pen_type_get(type);
    assert(cols >= 0 && cols % info->block_values == 0);
    return (size_t)(cols / info->block_values) * (size_t)info->block_bytes;
}

/* ---- Short floats ---------------------------------------------------------------------------------------------- */

static float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

float pen_f16_to_f32(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 0) { /* zero or subnormal: fraction · 2^−24, exact in f32 */
        float magnitude = (float)fraction * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    if (exponent == 31) /* infinity, or a NaN made quiet as the hardware does */
        return float_of_bits(sign | 0x7f800000 | fraction << 13 | (fraction ? 0x400000 : 0));
    return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

uint16_t pen_f32_to_f16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff)); /* NaN, quiet */
    if (magnitude >= 0x477ff000) return sign | 0x7c00; /* rounds to 65536 or more: infinity */
    if (magnitude < 0x38800000) { /* below 2^−14: subnormal; adding ½ puts 2^−24 at the last bit and rounds */
        uint32_t rounded;
        float shifted = float_of_bits(magnitude) + 0.5f;
        memcpy(&rounded, &shifted, sizeof rounded);
        return (uint16_t)(sign | (rounded - 0x3f000000));
    }
    uint32_t odd = magnitude >> 13 & 1;
    return (uint16_t)(sign | ((magnitude - 0x38000000 + 0xfff + odd) >> 13));
}

float pen_bf16_to_f32(uint16_t half) {
    return float_of_bits((uint32_t)half << 16);
}

float pen_e8m0_to_f32(uint8_t exponent) {
    return float_of_bits(exponent < 2 ? 0x00200000U << exponent : (uint32_t)(exponent - 1) << 23);
}

/* ---- Blocks ---------------------------------------------------------------------------------------------------- */

static uint16_t read_u16(const unsigned char *bytes) {
    uint16_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* Fields of `width` bits of `count` bytes: field f of byte j, moved to bit `to`, becomes part of q[f·count + j]. */
static inline void spread(const unsigned char *restrict bytes, int count, int width, int to, uint8_t *restrict q) {
    for (int f = 0; f < 8 / width; f++, q += count)
        for (int j = 0; j < count; j++) q[j] |= (uint8_t)((bytes[j] >> f * width & ((1 << width) - 1)) << to);
}

/* Bit i of the 4 bytes is the fifth of q[i]. */
static void spread_fifth_bits(const unsigned char *bytes, uint8_t *q) {
    for (int j = 0; j < 4; j++) spread(bytes + j, 1, 1, 4, q + 8 * j);
}

/* Pairs of bits in 2 × 32 bytes, and nibbles in 4 × 32, of a block of 256. */
static void spread_pairs(const unsigned char *bytes, int to, uint8_t *q) {
    for (int i = 0; i < 2; i++) spread(bytes + 32 * i, 32, 2, to, q + 128 * i);
}
static void spread_nibbles(const unsigned char *bytes, uint8_t *q) {
    for (int i = 0; i < 4; i++) spread(bytes + 32 * i, 32, 4, 0, q + 64 * i);
}

/* 8 scales and 8 minima of 6 bits in 12 bytes: the first four of each with, above them, the upper bits of the others,
 * whose lower bits are the nibbles of the last four bytes. */
static void split_scales_and_minima(const unsigned char *bytes, pen_block *block) {
    for (int i = 0; i < 4; i++) {
        block->scale[i] = bytes[i] & 63;
        block->min[i] = bytes[4 + i] & 63;
        block->scale[4 + i] = (int8_t)((bytes[8 + i] & 15) | (bytes[i] >> 2 & 48));
        block->min[4 + i] = (int8_t)(bytes[8 + i] >> 4 | (bytes[4 + i] >> 2 & 48));
    }
}

static void split_q3_k_scales(const unsigned char *bytes, int8_t *scale) {
    uint8_t six[16] = {0};
    spread(bytes, 8, 4, 0, six);
    spread(bytes + 8, 4, 2, 4, six);
    for (int i = 0; i < 16; i++) scale[i] = (int8_t)(six[i] - 32);
}

void pen_type_split(pen_type type, const unsigned char *bytes, pen_block *block) {
    const pen_type_info *info = pen_type_get(type);
    const pen_quant *quant = &info->quant;
    memset(block->q, 0, (size_t)info->block_values);
    block->d = quant->d < 0 ? pen_e8m0_to_f32(bytes[0]) : pen_f16_to_f32(read_u16(bytes + quant->d));
    block->m = quant->m < 0 ? 0 : pen_f16_to_f32(read_u16(bytes + quant->m));
    if (info->block_values == 32)
        block->scale[0] = block->min[0] = 1;
    else
        block->m = -block->m;
    switch (type) {
    case PEN_TYPE_Q4_0:
    case PEN_TYPE_IQ4_NL: spread(bytes + 2, 16, 4, 0, block->q); return;
    case PEN_TYPE_Q4_1: spread(bytes + 4, 16, 4, 0, block->q); return;
    case PEN_TYPE_MXFP4: spread(bytes + 1, 16, 4, 0, block->q); return;
    case PEN_TYPE_Q5_0:
        spread(bytes + 6, 16, 4, 0, block->q);
        spread_fifth_bits(bytes + 2, block->q);
        return;
    case PEN_TYPE_Q5_1:
        spread(bytes + 8, 16, 4, 0, block->q);
        spread_fifth_bits(bytes + 4, block->q);
        return;
    case PEN_TYPE_Q8_0:
        for (int j = 0; j < 32; j++) block->q[j] = bytes[2 + j] ^ 0x80; /* + 128 */
        return;
    case PEN_TYPE_Q2_K:
        for (int i = 0; i < 16; i++) {
            block->scale[i] = bytes[i] & 15;
            block->min[i] = (int8_t)(bytes[i] >> 4);
        }
        spread_pairs(bytes + 16, 0, block->q);
        return;
    case PEN_TYPE_Q3_K:
        spread(bytes, 32, 1, 2, block->q);
        spread_pairs(bytes + 32, 0, block->q);
        split_q3_k_scales(bytes + 96, block->scale);
        return;
    case PEN_TYPE_Q4_K:
        split_scales_and_minima(bytes + 4, block);
        spread_nibbles(bytes + 16, block->q);
        return;
    case PEN_TYPE_Q5_K:
        split_scales_and_minima(bytes + 4, block);
        spread(bytes + 16, 32, 1, 4, block->q);
        spread_nibbles(bytes + 48, block->q);
        return;
    case PEN_TYPE_Q6_K:
        for (int i = 0; i < 2; i++) spread(bytes + 64 * i, 64, 4, 0, block->q + 128 * i);
        spread_pairs(bytes + 128, 4, block->q);
        memcpy(block->scale, bytes + 192, 16);
        return;
    default: assert(!"a quantised type");
    }
}

/* ---- Dequantisers ---------------------------------------------------------------------------------------------- */

void pen_block_dequantize(const pen_quant *quant, const pen_block *block, int values, float *out) {
    for (int share = 0; share < values / quant->share; share++) {
        float d = block->d * (float)block->scale[share], m = block->m * (float)block->min[share];
        for (int i = share * quant->share; i < (share + 1) * quant->share; i++) {
            int code = quant->codes ? quant->codes[block->q[i]] : block->q[i];
            out[i] = d * (float)(code - quant->zero);
            if (quant->m >= 0) out[i] += m;
        }
    }
}

void pen_type_dequantize_row(pen_type type, const void *row, int64_t cols, float *out) {
    const pen_type_info *info = pen_type_get(type);
    const unsigned char *bytes = row;
    assert(cols % info->block_values == 0);
    switch (type) {
    case PEN_TYPE_F32: memcpy(out, row, (size_t)cols * sizeof *out); return;
    case PEN_TYPE_F16:
        for (int64_t i = 0; i < cols; i++) out[i] = pen_f16_to_f32(read_u16(bytes + 2 * i));
        return;
    case PEN_TYPE_BF16:
        for (int64_t i = 0; i < cols; i++) out[i] = pen_bf16_to_f32(read_u16(bytes + 2 * i));
        return;
    default:
        for (; cols > 0; cols -= info->block_values, bytes += info->block_bytes, out += info->block_values) {
            pen_block block;
            pen_type_split(type, bytes, &block);
            pen_block_dequantize(&info->quant, &block, info->block_values, out);
        }
    }
}
