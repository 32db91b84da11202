/* Rounding of 32 values to an activation block: shared by the kernels that store activation rows. */
#ifndef PEN_QUANTIZE_ISA_H
#define PEN_QUANTIZE_ISA_H

#include "math.isa.h"
#include "quantize.h"

#include <float.h>
#include <stdbool.h>

/* q[0…15] and q[16…31] become −most … most, the largest magnitude `most`. It is found on the bits, where NaN is above
 * all. */
static inline pen_activation_factors round_block(v16 low, v16 high, float most, v16i q[2]) {
    int32_t bits = v16i_largest(v16i_max(v16_bits(v16_abs(low)), v16_bits(v16_abs(high))));
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    bool finite = largest <= FLT_MAX, zero = largest < 0x1p-100F;
    v16 inverse = v16_all(zero ? 0 : most / largest);
    if (!finite) low = high = inverse = v16_all(0);
    q[0] = v16_round_i32(v16_mul(low, inverse));
    q[1] = v16_round_i32(v16_mul(high, inverse));
    int32_t sums[2] = {v16i_sum(q[0]), v16i_sum(q[1])};
    float scale = !finite ? NAN : zero ? 0 : largest / most;
    return (pen_activation_factors){scale, scale * (float)(sums[0] + sums[1]), {-sums[0], -sums[1]}};
}

static inline void quantize_block(v16 low, v16 high, pen_activation_block *block) {
    v16i q[2];
    block->factors = round_block(low, high, PEN_INT8_MOST, q);
    v16i_store_i8(block->q, q[0]);
    v16i_store_i8(block->q + 16, q[1]);
}

/* The upper part is the nearest multiple of 128, halves up; 2^14 multiples more keep the shifted number positive. */
static inline void quantize_fine_block(v16 low, v16 high, pen_fine_block *block) {
    const int32_t offset = 1 << 14, half = 1 << (PEN_FINE_SHIFT - 1);
    v16i q[2];
    block->factors = round_block(low, high, PEN_FINE_MOST, q);
    for (int i = 0; i < 2; i++) {
        v16i above = v16i_add(q[i], v16i_all((offset << PEN_FINE_SHIFT) + half));
        v16i upper = v16i_sub(v16i_shift_right(above, PEN_FINE_SHIFT), v16i_all(offset));
        v16i_store_i8(block->parts[0] + 16 * i, upper);
        v16i_store_i8(block->parts[1] + 16 * i, v16i_sub(q[i], v16i_shift_left(upper, PEN_FINE_SHIFT)));
    }
}

#endif
