/*
 * What handing a microbatch to the next stage costs, measured: each pair of neighbours in turn sends rows of the
 * workload's size to and fro, from device to device.
 */
#ifndef PEN_LINK_COST_H
#define PEN_LINK_COST_H

#include "kernels.h"
#include "world.h"

/* Milliseconds that `bytes` bytes take from this rank's stage to the next one; 0 on the last stage. Collective over
 * the replica's stages, after pen_world_arrange. A neighbour that does not answer for `patience_s` is lost. */
pen_status pen_link_cost(pen_world *world, pen_device *device, size_t bytes, double patience_s, double *ms);

#endif
