/*
 * The packed layout of weights: from GGUF rows to groups of 16 rows, and one row back to f32. The layout itself is
 * described in cpu_device.h.
 */
#ifndef PEN_PACK_H
#define PEN_PACK_H

#include "cpu_device.h"

/* Bytes of one group: 16 rows × cols values. */
size_t pen_pack_group_bytes(pen_type type, int cols);

/* Packs up to 16 consecutive GGUF rows into a group; missing rows become zero. */
void pen_pack_group(pen_type type, const unsigned char *source, int rows, int cols, unsigned char *group);

/* out[32] = block `block` of 32 values of row `row` of a packed matrix, and out[cols] = the whole row: equal to what
 * pen_type_dequantize_row gives of the source. */
void pen_pack_read_block(pen_type type, const unsigned char *data, int cols, int row, int block, float *out);
void pen_pack_read_row(pen_type type, const unsigned char *data, int cols, int row, float *out);

/* Where a packed block of a quantised type has what; the kernels want these as constants. Of a code's bits the lower
 * ones are in the first planes. */
static inline int pen_packed_low_bits(const pen_quant *quant) {
    return quant->bits == 8 ? 8 : quant->bits >= 4 ? 4 : 2;
}
static inline int pen_packed_pieces(const pen_type_info *type) {
    return type->block_values / PEN_QUANT_BLOCK;
}
static inline size_t pen_packed_piece_bytes(const pen_type_info *type) {
    return 64 * (size_t)type->quant.bits;
}
static inline size_t pen_packed_scales(const pen_type_info *type) {
    return (size_t)pen_packed_pieces(type) * pen_packed_piece_bytes(type);
}
static inline size_t pen_packed_d(const pen_type_info *type) {
    size_t scales = pen_packed_pieces(type) > 1 ? 2 * PEN_PACK_ROWS * (size_t)pen_packed_pieces(type) : 0;
    return pen_packed_scales(type) + scales;
}
static inline size_t pen_packed_m(const pen_type_info *type) {
    return pen_packed_d(type) + PEN_PACK_ROWS * (type->quant.d < 0 ? sizeof(uint8_t) : sizeof(uint16_t));
}
static inline size_t pen_packed_bytes(const pen_type_info *type) {
    return pen_packed_m(type) + (type->quant.m < 0 ? 0 : PEN_PACK_ROWS * sizeof(uint16_t));
}

#endif
