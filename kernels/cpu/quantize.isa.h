/* Rounding of 32 values to an activation block: shared by the kernels that store activation rows. */
#ifndef PEN_QUANTIZE_ISA_H
#define PEN_QUANTIZE_ISA_H

#include "math.isa.h"
#include "quantize.h"

#include <float.h>
#include <stdbool.h>

/* Values 0…15 and 16…31 of the block. The largest magnitude is found on the bits, where NaN is above all. */
static inline void quantize_block(v16 low, v16 high, pen_activation_block *block) {
    int32_t bits = v16i_largest(v16i_max(v16_bits(v16_abs(low)), v16_bits(v16_abs(high))));
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    bool finite = largest <= FLT_MAX, zero = largest < 0x1p-100F;
    v16 inverse = v16_all(zero ? 0 : 127.0F / largest);
    if (!finite) low = high = inverse = v16_all(0);
    v16i q_low = v16_round_i32(v16_mul(low, inverse)), q_high = v16_round_i32(v16_mul(high, inverse));
    v16i_store_i8(block->q, q_low);
    v16i_store_i8(block->q + 16, q_high);
    int32_t sum_low = v16i_sum(q_low), sum_high = v16i_sum(q_high);
    block->scale = !finite ? NAN : zero ? 0 : largest / 127.0F;
    block->scaled_sum = block->scale * (float)(sum_low + sum_high);
    block->sums[0] = (int16_t)sum_low;
    block->sums[1] = (int16_t)sum_high;
}

#endif
