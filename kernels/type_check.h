/* Looks for weights that are no numbers, in the bytes of a GGUF file. */
#ifndef PEN_TYPE_CHECK_H
#define PEN_TYPE_CHECK_H

#include "types.h"

#include <stdbool.h>

/* Whether no value of these whole blocks is infinite or NaN: of floats the values are looked at, of quantised types
 * the scales, whose fault every value of their block shares. Faster than memory. */
bool pen_type_all_finite(pen_type type, const void *blocks, size_t bytes);

#endif
