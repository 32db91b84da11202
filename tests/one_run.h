/*
 * The batch of tests that look at one operation: a single run from position 0, for which no KV is read.
 */
#ifndef PEN_ONE_RUN_H
#define PEN_ONE_RUN_H

#include "kernels.h"

static inline void set_rows(pen_device *device, int rows, const int32_t *tokens, int logit_count,
                            const int32_t *logit_rows) {
    static const int32_t table[4096 / PEN_KV_BLOCK];
    pen_run run = {.rows = rows, .tables = {table, table}};
    pen_batch batch = {.rows = rows,
                       .run_count = 1,
                       .runs = &run,
                       .tokens = tokens,
                       .logit_count = logit_count,
                       .logit_rows = logit_rows};
    pen_device_set_batch(device, &batch);
}

#endif
