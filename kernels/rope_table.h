/* The rotation table of a model as every device computes it, on the host and with equal bits everywhere. */
#ifndef PEN_ROPE_TABLE_H
#define PEN_ROPE_TABLE_H

#include "kernels.h"

/* table[positions][dims/2][2]: cosine and sine, times the magnitude. */
size_t pen_rope_table_bytes(const pen_rope_options *options);
void pen_rope_table_fill(const pen_rope_options *options, float *table);

#endif
