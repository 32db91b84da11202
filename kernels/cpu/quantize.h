/*
 * The int8 form of activations: blocks of 32 values with one scale, and what the weights' biases and minima need of
 * each block. cpu_device.h says how the values are rounded.
 */
#ifndef PEN_QUANTIZE_H
#define PEN_QUANTIZE_H

#include <stdint.h>

typedef struct pen_activation_block {
    int8_t q[32];
    float scale;
    float scaled_sum; /* scale·(float)Σq */
    int16_t sums[2];  /* Σ of each half of q */
} pen_activation_block;

#endif
