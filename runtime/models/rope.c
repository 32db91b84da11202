/* Rotations of context-extension methods as factors per pair (pen_rope_options). */
#include "arch.h"

#include <math.h>

/* The pair, as a fraction, that turns `turns` times in `context` positions. */
static double pair_of(double turns, int dims, double base, int context) {
    return dims * log(context / (turns * 6.283185307179586)) / (2 * log(base));
}

/* Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", section 3.2: the angle of a pair
 * is a blend of its own and that divided by the factor, along a ramp from pairs that turn fast to those that turn
 * slowly. */
void pen_rope_yarn(const pen_rotation *rotation, int dims, int original_context, float *factors) {
    double first = floor(pair_of(rotation->beta_fast, dims, rotation->base, original_context));
    double last = ceil(pair_of(rotation->beta_slow, dims, rotation->base, original_context));
    if (first < 0) first = 0;
    if (last > dims - 1) last = dims - 1;
    double width = last - first > 0.001 ? last - first : 0.001;
    for (int i = 0; i < dims / 2; i++) {
        double ramp = fmin(1, fmax(0, (i - first) / width));
        factors[i] = (float)(1 / (ramp / rotation->yarn + (1 - ramp)));
    }
}
