/*
 * Weight types; see types.h. One dequantiser per type, in plain C: they define what the bytes of a file mean, and every
 * device's kernels are tested against them.
 */
#include "types.h"

#include <assert.h>
#include <string.h>
#include <strings.h>

static const pen_type_info types[] = {
#define PEN_TYPE(name, gguf, values, bytes) {#name, gguf, values, bytes},
#include "types.def"
#undef PEN_TYPE
};

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

/* ---- Halves ---------------------------------------------------------------------------------------------------- */

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

/* ---- Dequantisers ---------------------------------------------------------------------------------------------- */

static float read_f16(const unsigned char *bytes) {
    uint16_t half;
    memcpy(&half, bytes, sizeof half);
    return pen_f16_to_f32(half);
}

static void dequantize_f16(const unsigned char *row, int64_t cols, float *out) {
    for (int64_t i = 0; i < cols; i++) out[i] = read_f16(row + 2 * i);
}

/* f16 d, 16 bytes of nibbles */
static void dequantize_q4_0(const unsigned char *row, int64_t cols, float *out) {
    for (; cols > 0; cols -= 32, row += 18, out += 32) {
        float d = read_f16(row);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)((row[2 + j] & 15) - 8);
            out[j + 16] = d * (float)((row[2 + j] >> 4) - 8);
        }
    }
}

/* f16 d, f16 m, 16 bytes of nibbles */
static void dequantize_q4_1(const unsigned char *row, int64_t cols, float *out) {
    for (; cols > 0; cols -= 32, row += 20, out += 32) {
        float d = read_f16(row), m = read_f16(row + 2);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)(row[4 + j] & 15) + m;
            out[j + 16] = d * (float)(row[4 + j] >> 4) + m;
        }
    }
}

/* f16 d, 32 int8 */
static void dequantize_q8_0(const unsigned char *row, int64_t cols, float *out) {
    for (; cols > 0; cols -= 32, row += 34, out += 32) {
        float d = read_f16(row);
        for (int j = 0; j < 32; j++) out[j] = d * (float)(int8_t)row[2 + j];
    }
}

void pen_type_dequantize_row(pen_type type, const void *row, int64_t cols, float *out) {
    assert(cols % pen_type_get(type)->block_values == 0);
    switch (type) {
    case PEN_TYPE_F32: memcpy(out, row, (size_t)cols * sizeof *out); return;
    case PEN_TYPE_F16: dequantize_f16(row, cols, out); return;
    case PEN_TYPE_Q4_0: dequantize_q4_0(row, cols, out); return;
    case PEN_TYPE_Q4_1: dequantize_q4_1(row, cols, out); return;
    case PEN_TYPE_Q8_0: dequantize_q8_0(row, cols, out); return;
    case PEN_TYPE_COUNT: break;
    }
    assert(!"a weight type without a dequantiser");
}
