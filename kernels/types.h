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
    PEN_TYPE_COUNT
} pen_type;

/* What the numbers of a quantised block mean; types.def says it in full. */
typedef struct pen_quant {
    int bits; /* of a code; 0 for types that are plain numbers */
    int zero;
    int share;            /* values with one scale */
    int d, m;             /* where the block has its f16 factors, or -1 */
    const uint8_t *codes; /* or NULL */
} pen_quant;

typedef struct pen_type_info {
    const char *name; /* "Q4_1" */
    int gguf;         /* number in a GGUF file */
    int block_values; /* values per block, along a row */
    int block_bytes;  /* bytes per block in a GGUF file */
    pen_quant quant;
} pen_type_info;

extern const uint8_t pen_codes_iq4_nl[16], pen_codes_mxfp4[16];

const pen_type_info *pen_type_get(pen_type type);

/* Finds a type by its GGUF number, or by its name in any case. Returns 0, or -1 where there is none. */
int pen_type_by_gguf(uint32_t number, pen_type *type);
int pen_type_by_name(const char *name, pen_type *type);

/* Bytes of a row of `cols` values; cols must be a multiple of block_values. */
size_t pen_type_row_bytes(pen_type type, int64_t cols);

/* The numbers of one block of a quantised type, taken apart: weight i is (d·scale)·(q − zero), or (d·scale)·q + m·min
 * for types with minima, with the scale and min of i / share. */
enum { PEN_BLOCK_VALUES = 256, PEN_BLOCK_SHARES = 16 };
typedef struct pen_block {
    float d, m;
    uint8_t q[PEN_BLOCK_VALUES]; /* codes, as in the file */
    int8_t scale[PEN_BLOCK_SHARES], min[PEN_BLOCK_SHARES];
} pen_block;

void pen_type_split(pen_type type, const unsigned char *bytes, pen_block *block);

/* out[values] = the first `values` weights of a block. */
void pen_block_dequantize(const pen_quant *quant, const pen_block *block, int values, float *out);

/* Writes the f32 values of one row of `cols` values in GGUF layout to out[cols]. Products and sums are rounded
 * separately (no FMA), which is what the `gguf` package does, so results are equal bit for bit. */
void pen_type_dequantize_row(pen_type type, const void *row, int64_t cols, float *out);

/* IEEE half to single and back (round to nearest even), in plain C: equal on every machine. */
float pen_f16_to_f32(uint16_t half);
uint16_t pen_f32_to_f16(float value);

/* A single cut to its upper half, exactly; and the scale of a block of MXFP4: 2^(exponent − 128). */
float pen_bf16_to_f32(uint16_t half);
float pen_e8m0_to_f32(uint8_t exponent);

#endif
