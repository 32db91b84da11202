/* The counter-based generator of draws; see draw.h. */
#include "draw.h"

static uint64_t mix(uint64_t x) { /* SplitMix64's finaliser */
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

double pen_pick_uniform(const pen_pick *pick) {
    uint64_t x = mix(pick->seed + 0x9e3779b97f4a7c15);
    x = mix(x ^ ((uint64_t)(uint32_t)pick->choice << 32 | (uint32_t)pick->position));
    return (double)(mix(x + 0x9e3779b97f4a7c15) >> 11) * 0x1p-53;
}
