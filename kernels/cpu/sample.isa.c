/* Inner kernels of picking tokens for one instruction set; see ops.h. Rows end within a vector: padded with −∞. */
#include "ops.isa.h"

static v16 load_logits(const float *x, int i, int count) {
    if (count - i >= 16) return v16_load(x + i);
    float padded[16];
    v16_store(padded, v16_all(-INFINITY));
    memcpy(padded, x + i, (size_t)(count - i) * sizeof *x);
    return v16_load(padded);
}

pen_logit_slice PEN_ISA_NAME(pen_sample_slice)(const float *logits, int count, bool sums) {
    const v16 infinite = v16_all(INFINITY), zero = v16_all(0), one = v16_all(1);
    v16 largest = v16_all(-INFINITY), bad = zero, sum = zero;
    for (int i = 0; i < count; i += 16) {
        v16 x = load_logits(logits, i, count);
        bad = v16_add(bad, v16_select_less(x, infinite, zero, one)); /* neither NaN nor +∞ is less */
        largest = v16_max(largest, x);
    }
    pen_logit_slice slice = {.max = v16_largest(largest), .bad = v16_sum(bad) > 0};
    if (slice.bad || slice.max == -INFINITY || !sums) return slice;
    v16 top = v16_all(slice.max);
    for (int i = 0; i < count; i += 16) sum = v16_add(sum, v16_exp(v16_sub(load_logits(logits, i, count), top)));
    slice.sum = (double)v16_sum(sum);
    return slice;
}

void PEN_ISA_NAME(pen_sample_weights)(const float *x, int count, float max, float scale, float *out) {
    v16 top = v16_all(max), factor = v16_all(scale);
    for (int i = 0; i < count; i += 16) {
        v16 weight = v16_exp(v16_mul(v16_sub(load_logits(x, i, count), top), factor));
        float padded[16];
        v16_store(padded, weight);
        memcpy(out + i, padded, (size_t)(count - i < 16 ? count - i : 16) * sizeof *out);
    }
}
