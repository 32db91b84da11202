/* The random number of a draw: a hash of its key alone, the same on every device. */
#ifndef PEN_DRAW_H
#define PEN_DRAW_H

#include "kernels.h"

/* The uniform number in [0, 1) that (seed, choice, position) of a pick stand for. */
double pen_pick_uniform(const pen_pick *pick);

#endif
