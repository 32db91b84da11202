/*
 * Packed weights; see pack.h. Two forms: numbers, which are transposed, and blocks of codes, scales and factors.
 */
#include "pack.h"

#include <string.h>

enum { ROWS = PEN_PACK_ROWS, BLOCK = PEN_QUANT_BLOCK };

/* ---- Numbers --------------------------------------------------------------------------------------------------- */

/* 32 of one row, `size` bytes each, to and from their places in a block [32][16]. */
static void pack_numbers(const unsigned char *source, size_t size, int row, unsigned char *packed) {
    for (size_t i = 0; i < BLOCK; i++) memcpy(packed + size * (ROWS * i + (size_t)row), source + size * i, size);
}

static void gather_numbers(const unsigned char *packed, size_t size, int row, unsigned char *target) {
    for (size_t i = 0; i < BLOCK; i++) memcpy(target + size * i, packed + size * (ROWS * i + (size_t)row), size);
}

/* ---- Codes ----------------------------------------------------------------------------------------------------- */

/* Bits [from, from + width) of 32 codes of one row, to and from their planes; 4 codes, a vector's, at a time. */
static inline void pack_planes(const uint8_t *q, int from, int width, int row, unsigned char *planes) {
    const uint32_t mask = ((1U << width) - 1) * 0x01010101U;
    uint32_t words[8] = {0};
    for (int shift = 0; shift < 8; shift += width)
        for (int plane = 0; plane < width; plane++, q += 4) {
            uint32_t four;
            memcpy(&four, q, sizeof four);
            words[plane] |= (four >> from & mask) << shift;
        }
    for (int plane = 0; plane < width; plane++) memcpy(planes + 64 * plane + 4 * row, &words[plane], 4);
}

static void add_planes(const unsigned char *planes, int row, int width, int to, uint8_t *q) {
    const uint32_t mask = ((1U << width) - 1) * 0x01010101U;
    for (int shift = 0; shift < 8; shift += width)
        for (int plane = 0; plane < width; plane++, q += 4) {
            uint32_t word, four;
            memcpy(&word, planes + 64 * plane + 4 * row, sizeof word);
            memcpy(&four, q, sizeof four);
            four |= (word >> shift & mask) << to;
            memcpy(q, &four, sizeof four);
        }
}

static void pack_codes(const pen_quant *quant, const uint8_t *q, int row, unsigned char *planes) {
    switch (quant->bits) { /* constants, so that loops unroll: packing is most of what loading takes */
    case 2: pack_planes(q, 0, 2, row, planes); break;
    case 3:
        pack_planes(q, 0, 2, row, planes);
        pack_planes(q, 2, 1, row, planes + 64 * 2);
        break;
    case 8: pack_planes(q, 0, 8, row, planes); break;
    default:
        pack_planes(q, 0, 4, row, planes);
        if (quant->bits == 5) pack_planes(q, 4, 1, row, planes + 64 * 4);
        if (quant->bits == 6) pack_planes(q, 4, 2, row, planes + 64 * 4);
    }
}

static void read_codes(const pen_quant *quant, const unsigned char *planes, int row, uint8_t *q) {
    int low = pen_packed_low_bits(quant);
    memset(q, 0, BLOCK);
    add_planes(planes, row, low, 0, q);
    if (quant->bits > low) add_planes(planes + 64 * low, row, quant->bits - low, low, q);
}

/* ---- Scales and factors ---------------------------------------------------------------------------------------- */

/* The two bytes of 32 values, 16 apart. */
static void pack_scales(const pen_quant *quant, const pen_block *block, int piece, int row, unsigned char *scales) {
    if (quant->share == BLOCK) {
        scales[row] = (unsigned char)block->scale[piece];
        scales[ROWS + row] = (unsigned char)block->min[piece];
        return;
    }
    for (int half = 0; half < 2; half++) {
        int scale = block->scale[2 * piece + half], min = block->min[2 * piece + half];
        scales[ROWS * half + row] = (unsigned char)(quant->m < 0 ? scale : scale | min << 4);
    }
}

static void read_scales(const pen_quant *quant, const unsigned char *scales, int row, pen_block *piece) {
    if (quant->share == BLOCK) {
        piece->scale[0] = (int8_t)scales[row];
        piece->min[0] = (int8_t)scales[ROWS + row];
        return;
    }
    for (int half = 0; half < 2; half++) {
        unsigned char byte = scales[ROWS * half + row];
        piece->scale[half] = (int8_t)(quant->m < 0 ? byte : byte & 15);
        piece->min[half] = (int8_t)(byte >> 4);
    }
}

static void put_half(unsigned char *halves, int index, const unsigned char *source, uint16_t flipped) {
    uint16_t half;
    memcpy(&half, source, sizeof half);
    half ^= flipped;
    memcpy(halves + 2 * index, &half, sizeof half);
}

static float get_f16(const unsigned char *halves, int index) {
    uint16_t half;
    memcpy(&half, halves + 2 * index, sizeof half);
    return pen_f16_to_f32(half);
}

/* ---- Blocks ---------------------------------------------------------------------------------------------------- */

/* Blocks of 32 codes of 4 bits: plane v is bytes 4v … of the file's, the last in a block. */
static void pack_nibbles(const pen_type_info *info, const unsigned char *source, int row, unsigned char *planes) {
    source += info->block_bytes - BLOCK / 2;
    for (int plane = 0; plane < 4; plane++) memcpy(planes + 64 * plane + 4 * row, source + 4 * plane, 4);
}

static void pack_pieces(pen_type type, const unsigned char *source, int row, unsigned char *packed) {
    const pen_type_info *info = pen_type_get(type);
    pen_block block;
    pen_type_split(type, source, &block);
    int pieces = pen_packed_pieces(info);
    for (int piece = 0; piece < pieces; piece++) {
        pack_codes(&info->quant, block.q + BLOCK * piece, row, packed + pen_packed_piece_bytes(info) * (size_t)piece);
        if (pieces > 1)
            pack_scales(&info->quant, &block, piece, row, packed + pen_packed_scales(info) + 2 * ROWS * piece);
    }
}

static void pack_block(pen_type type, const unsigned char *source, int row, unsigned char *packed) {
    const pen_type_info *info = pen_type_get(type);
    const pen_quant *quant = &info->quant;
    bool small = info->block_values == BLOCK;
    if (small && quant->bits == 4)
        pack_nibbles(info, source, row, packed);
    else
        pack_pieces(type, source, row, packed);
    if (quant->d < 0)
        packed[pen_packed_d(info) + (size_t)row] = source[0];
    else
        put_half(packed + pen_packed_d(info), row, source + quant->d, 0);
    if (quant->m >= 0) /* the K-types' has the other sign */
        put_half(packed + pen_packed_m(info), row, source + quant->m, small ? 0 : 0x8000);
}

static void read_piece(const pen_type_info *info, const unsigned char *packed, int piece, int row, float *out) {
    const pen_quant *quant = &info->quant;
    pen_block block = {.scale = {1}, .min = {1}};
    read_codes(quant, packed + pen_packed_piece_bytes(info) * (size_t)piece, row, block.q);
    if (pen_packed_pieces(info) > 1)
        read_scales(quant, packed + pen_packed_scales(info) + 2 * ROWS * piece, row, &block);
    const unsigned char *d = packed + pen_packed_d(info);
    block.d = quant->d < 0 ? pen_e8m0_to_f32(d[row]) : get_f16(d, row);
    if (quant->m >= 0) block.m = get_f16(packed + pen_packed_m(info), row);
    pen_block_dequantize(quant, &block, BLOCK, out);
}

/* Values of a packed block, and its bytes. */
static int packed_values(const pen_type_info *info) {
    return info->quant.bits ? info->block_values : BLOCK;
}
static size_t packed_bytes(const pen_type_info *info) {
    return info->quant.bits ? pen_packed_bytes(info) : (size_t)(ROWS * BLOCK * info->block_bytes);
}

size_t pen_pack_group_bytes(pen_type type, int cols) {
    const pen_type_info *info = pen_type_get(type);
    /* Of columns that cannot be packed, too: memory is planned before the weights are made. */
    size_t values = (size_t)packed_values(info);
    return ((size_t)cols + values - 1) / values * packed_bytes(info);
}

void pen_pack_group(pen_type type, const unsigned char *source, int rows, int cols, unsigned char *group) {
    const pen_type_info *info = pen_type_get(type);
    size_t row_bytes = pen_type_row_bytes(type, cols), source_bytes = pen_type_row_bytes(type, packed_values(info));
    if (rows < ROWS) memset(group, 0, pen_pack_group_bytes(type, cols));
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < cols / packed_values(info); b++) {
            const unsigned char *from = source + (size_t)r * row_bytes + (size_t)b * source_bytes;
            unsigned char *to = group + (size_t)b * packed_bytes(info);
            if (info->quant.bits)
                pack_block(type, from, r, to);
            else
                pack_numbers(from, (size_t)info->block_bytes, r, to);
        }
}

void pen_pack_read_block(pen_type type, const unsigned char *data, int cols, int row, int block, float *out) {
    const pen_type_info *info = pen_type_get(type);
    const unsigned char *group = data + (size_t)(row / ROWS) * pen_pack_group_bytes(type, cols);
    int pieces = packed_values(info) / BLOCK;
    const unsigned char *packed = group + (size_t)(block / pieces) * packed_bytes(info);
    if (info->quant.bits) {
        read_piece(info, packed, block % pieces, row % ROWS, out);
        return;
    }
    unsigned char numbers[BLOCK * sizeof(float)];
    gather_numbers(packed, (size_t)info->block_bytes, row % ROWS, numbers);
    pen_type_dequantize_row(type, numbers, BLOCK, out);
}

void pen_pack_read_row(pen_type type, const unsigned char *data, int cols, int row, float *out) {
    for (int b = 0; b < cols / BLOCK; b++) pen_pack_read_block(type, data, cols, row, b, out + BLOCK * b);
}
