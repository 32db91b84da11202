/*
 * The int8 forms of activations: blocks of 32 values with one scale, and what the weights' biases and minima need of
 * each block. cpu_device.h says how the values are rounded.
 */
#ifndef PEN_QUANTIZE_H
#define PEN_QUANTIZE_H

#include <stdint.h>

typedef struct pen_activation_factors {
    float scale;
    float scaled_sum; /* scale·(float)Σq */
    int32_t minus[2]; /* −Σ of each half of q: a bias that is a power of two is this, shifted */
} pen_activation_factors;

/* x ≈ scale·q */
typedef struct pen_activation_block {
    int8_t q[32];
    pen_activation_factors factors;
} pen_activation_block;

/* x ≈ scale·q with q = 128·parts[0] + parts[1] */
typedef struct pen_fine_block {
    int8_t parts[2][32];
    pen_activation_factors factors;
} pen_fine_block;

enum { PEN_INT8_MOST = 127, PEN_FINE_MOST = 127 * 128, PEN_FINE_SHIFT = 7 };

#endif
