/*
 * The packed layout of weights, type by type: from GGUF rows to groups of 16 rows, and one row back to f32. The layout
 * itself is described in cpu_device.h.
 */
#ifndef PEN_PACK_H
#define PEN_PACK_H

#include "types.h"

/* Bytes of one block: 16 rows × 32 values. */
size_t pen_pack_block_bytes(pen_type type);
/* Bytes of one group: 16 rows × cols values. */
size_t pen_pack_group_bytes(pen_type type, int cols);

/* Packs up to 16 consecutive GGUF rows into a group; missing rows become zero. */
void pen_pack_group(pen_type type, const unsigned char *source, int rows, int cols, unsigned char *group);

/* out[32] = block `block` of row `row` of a packed matrix, and out[cols] = the whole row: equal to what
 * pen_type_dequantize_row gives of the source. */
void pen_pack_read_block(pen_type type, const unsigned char *data, int cols, int row, int block, float *out);
void pen_pack_read_row(pen_type type, const unsigned char *data, int cols, int row, float *out);

#endif
