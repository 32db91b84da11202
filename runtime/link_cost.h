/*
 * What handing a microbatch to the next stage costs, measured: each pair of neighbours in turn sends a message of the
 * workload's size to and fro.
 */
#ifndef PEN_LINK_COST_H
#define PEN_LINK_COST_H

#include "world.h"

/* Milliseconds that `bytes` bytes take from this rank's stage to the next one; 0 on the last stage. Collective over
 * the replica's stages, after pen_world_arrange. A neighbour that does not answer for `patience_s` is lost. */
pen_status pen_link_cost(pen_world *world, size_t bytes, double patience_s, double *ms);

#endif
