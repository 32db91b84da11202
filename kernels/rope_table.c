/* Rotation tables; see rope_table.h. */
#include "rope_table.h"

#include "exact.h"

size_t pen_rope_table_bytes(const pen_rope_options *options) {
    return (size_t)options->positions * (size_t)options->dims * sizeof(float);
}

void pen_rope_table_fill(const pen_rope_options *options, float *table) {
    double log_base = pen_exact_log(options->base);
    for (int i = 0; i < options->dims / 2; i++) {
        double turn = pen_exact_exp(-2.0 * i / options->dims * log_base) * options->scale;
        if (options->factors) turn /= (double)options->factors[i];
        for (int p = 0; p < options->positions; p++) {
            double sine, cosine;
            pen_exact_sincos(p * turn, &sine, &cosine);
            float *at = table + (size_t)p * (size_t)options->dims + 2 * (size_t)i;
            at[0] = (float)(cosine * options->magnitude);
            at[1] = (float)(sine * options->magnitude);
        }
    }
}
