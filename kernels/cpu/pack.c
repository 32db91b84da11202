/*
 * Packed weights; see pack.h. A type is two functions on one row's share of a block and a line in the table.
 */
#include "pack.h"

#include "cpu_device.h"

#include <assert.h>
#include <string.h>

enum { ROWS = PEN_PACK_ROWS, BLOCK = PEN_QUANT_BLOCK };

/* Copies the f16 number `index` of the row's GGUF block to its place among the block's 16. */
static void pack_f16_scale(const unsigned char *source, int index, unsigned char *scales, int row) {
    memcpy(scales + 2 * row, source + 2 * index, 2);
}

static float read_f16(const unsigned char *halves, int index) {
    uint16_t half;
    memcpy(&half, halves + 2 * index, sizeof half);
    return pen_f16_to_f32(half);
}

/* ---- Q4_0 and Q4_1 --------------------------------------------------------------------------------------------- */

enum { NIBBLES = 4 * 64, SCALES = 2 * ROWS };

static void pack_nibbles(const unsigned char *nibbles, int row, unsigned char *block) {
    for (int v = 0; v < 4; v++) memcpy(block + 64 * v + 4 * row, nibbles + 4 * v, 4);
}

static void read_nibbles(const unsigned char *block, int row, float q[BLOCK]) {
    for (int i = 0; i < 16; i++) {
        unsigned char byte = block[64 * (i / 4) + 4 * row + i % 4];
        q[i] = (float)(byte & 15);
        q[16 + i] = (float)(byte >> 4);
    }
}

static void pack_q4_0(const unsigned char *source, int row, unsigned char *block) {
    pack_nibbles(source + 2, row, block);
    pack_f16_scale(source, 0, block + NIBBLES, row);
}

static void read_q4_0(const unsigned char *block, int row, float *out) {
    float d = read_f16(block + NIBBLES, row);
    read_nibbles(block, row, out);
    for (int i = 0; i < BLOCK; i++) out[i] = d * (out[i] - 8);
}

static void pack_q4_1(const unsigned char *source, int row, unsigned char *block) {
    pack_nibbles(source + 4, row, block);
    pack_f16_scale(source, 0, block + NIBBLES, row);
    pack_f16_scale(source, 1, block + NIBBLES + SCALES, row);
}

static void read_q4_1(const unsigned char *block, int row, float *out) {
    float d = read_f16(block + NIBBLES, row), m = read_f16(block + NIBBLES + SCALES, row);
    read_nibbles(block, row, out);
    for (int i = 0; i < BLOCK; i++) out[i] = d * out[i] + m;
}

/* ---- Q8_0 ------------------------------------------------------------------------------------------------------ */

enum { BYTES = 8 * 64 };

static void pack_q8_0(const unsigned char *source, int row, unsigned char *block) {
    for (int v = 0; v < 8; v++) {
        uint32_t four;
        memcpy(&four, source + 2 + 4 * v, sizeof four);
        four ^= 0x80808080; /* +128 in each byte */
        memcpy(block + 64 * v + 4 * row, &four, sizeof four);
    }
    pack_f16_scale(source, 0, block + BYTES, row);
}

static void read_q8_0(const unsigned char *block, int row, float *out) {
    float d = read_f16(block + BYTES, row);
    for (int i = 0; i < BLOCK; i++) out[i] = d * (float)(block[64 * (i / 4) + 4 * row + i % 4] - 128);
}

/* ---- F16 and F32 ----------------------------------------------------------------------------------------------- */

static void pack_f16(const unsigned char *source, int row, unsigned char *block) {
    for (int i = 0; i < BLOCK; i++) memcpy(block + 2 * (ROWS * i + row), source + 2 * i, 2);
}

static void read_row_f16(const unsigned char *block, int row, float *out) {
    for (int i = 0; i < BLOCK; i++) out[i] = read_f16(block, ROWS * i + row);
}

static void pack_f32(const unsigned char *source, int row, unsigned char *block) {
    for (int i = 0; i < BLOCK; i++) memcpy(block + 4 * (ROWS * i + row), source + 4 * i, 4);
}

static void read_row_f32(const unsigned char *block, int row, float *out) {
    for (int i = 0; i < BLOCK; i++) memcpy(out + i, block + 4 * (ROWS * i + row), 4);
}

/* ---- The table ------------------------------------------------------------------------------------------------- */

static const struct {
    size_t bytes; /* of a packed block */
    void (*pack)(const unsigned char *source, int row, unsigned char *block);
    void (*read)(const unsigned char *block, int row, float *out);
} layouts[PEN_TYPE_COUNT] = {
    [PEN_TYPE_F32] = {4 * ROWS * BLOCK, pack_f32, read_row_f32},
    [PEN_TYPE_F16] = {2 * ROWS * BLOCK, pack_f16, read_row_f16},
    [PEN_TYPE_Q4_0] = {NIBBLES + SCALES, pack_q4_0, read_q4_0},
    [PEN_TYPE_Q4_1] = {NIBBLES + 2 * SCALES, pack_q4_1, read_q4_1},
    [PEN_TYPE_Q8_0] = {BYTES + SCALES, pack_q8_0, read_q8_0},
};

size_t pen_pack_block_bytes(pen_type type) {
    assert((unsigned)type < PEN_TYPE_COUNT && layouts[type].bytes > 0);
    return layouts[type].bytes;
}

size_t pen_pack_group_bytes(pen_type type, int cols) {
    assert(cols % BLOCK == 0);
    return (size_t)(cols / BLOCK) * pen_pack_block_bytes(type);
}

void pen_pack_group(pen_type type, const unsigned char *source, int rows, int cols, unsigned char *group) {
    size_t row_bytes = pen_type_row_bytes(type, cols), source_bytes = pen_type_row_bytes(type, BLOCK);
    size_t block_bytes = pen_pack_block_bytes(type);
    if (rows < ROWS) memset(group, 0, pen_pack_group_bytes(type, cols));
    for (int r = 0; r < rows; r++) {
        const unsigned char *row = source + (size_t)r * row_bytes;
        for (int b = 0; b < cols / BLOCK; b++)
            layouts[type].pack(row + (size_t)b * source_bytes, r, group + (size_t)b * block_bytes);
    }
}

void pen_pack_read_block(pen_type type, const unsigned char *data, int cols, int row, int block, float *out) {
    const unsigned char *group = data + (size_t)(row / ROWS) * pen_pack_group_bytes(type, cols);
    layouts[type].read(group + (size_t)block * pen_pack_block_bytes(type), row % ROWS, out);
}

void pen_pack_read_row(pen_type type, const unsigned char *data, int cols, int row, float *out) {
    for (int b = 0; b < cols / BLOCK; b++) pen_pack_read_block(type, data, cols, row, b, out + BLOCK * b);
}
