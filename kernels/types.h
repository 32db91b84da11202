/*
 * Weight types: the registry of types.def as an enum and a table, and the one dequantiser that defines each.
 */
#ifndef PEN_TYPES_H
#define PEN_TYPES_H

#include <stddef.h>
#include <stdint.h>

typedef enum pen_type {
#define PEN_TYPE(name, gguf, values, bytes) PEN_TYPE_##name,
#include "types.def"
#undef PEN_TYPE
    PEN_TYPE_COUNT
} pen_type;

typedef struct pen_type_info {
    const char *name; /* "Q4_1" */
    int gguf;         /* number in a GGUF file */
    int block_values; /* values per block, along a row */
    int block_bytes;  /* bytes per block in a GGUF file */
} pen_type_info;

const pen_type_info *pen_type_get(pen_type type);

/* Finds a type by its GGUF number, or by its name in any case. Returns 0, or -1 where there is none. */
int pen_type_by_gguf(uint32_t number, pen_type *type);
int pen_type_by_name(const char *name, pen_type *type);

/* Bytes of a row of `cols` values; cols must be a multiple of block_values. */
size_t pen_type_row_bytes(pen_type type, int64_t cols);

/* Writes the f32 values of one row of `cols` values in GGUF layout to out[cols]. Products and sums are rounded
 * separately (no FMA), which is what the `gguf` package does, so results are equal bit for bit. */
void pen_type_dequantize_row(pen_type type, const void *row, int64_t cols, float *out);

/* IEEE half to single and back (round to nearest even), in plain C: equal on every machine. */
float pen_f16_to_f32(uint16_t half);
uint16_t pen_f32_to_f16(float value);

#endif
