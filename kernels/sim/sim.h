/*
 * The simulated device: it takes the time that its owner says a unit takes, and no core.
 *
 * Nothing is computed. A virtual stream has an end; every unit between its markers moves that end on, and an event is
 * done when the clock has reached the end that it was recorded at. Memory is counted as on a device with 16-bit
 * activations, and exists only as far as the host sees it: what is written, read or chosen has memory of its own; rows
 * that travel over links, whose values mean nothing, share one area.
 *
 * Chosen tokens are made up: a function of seed, choice and position alone, so that they do not depend on the split.
 */
#ifndef PEN_SIM_H
#define PEN_SIM_H

#include "kernels.h"

/* What a unit is about to work on. */
typedef struct pen_sim_load {
    int rows, logit_rows;
    int decodes;           /* rows that are their run's only one */
    double decode_context; /* positions before one of them, on average … */
    double prompt_context; /* … and before the run of another row */
    double at_s;           /* seconds since the device was made, before --time-scale: when the unit begins */
} pen_sim_load;

/* Milliseconds of a unit, before scaling. */
typedef double pen_sim_unit_ms(void *context, int unit, const pen_sim_load *load);

typedef struct pen_sim_options {
    const char *name; /* goes into profiles and logs; copied */
    double time_scale;
    pen_sim_unit_ms *unit_ms;
    void *context; /* kept alive by the caller */
} pen_sim_options;

pen_status pen_sim_device_create(const pen_sim_options *options, pen_device **device);

/* The token that is made up for a position of a text, below `vocab`. */
int32_t pen_sim_token(uint64_t seed, int choice, int position, int vocab);

#endif
