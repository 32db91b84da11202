/*
 * What handing a microbatch to the next stage costs, measured on the link that the run will use: between each pair of
 * neighbours in turn go rows of the workload's size, and a byte comes back.
 */
#ifndef PEN_LINK_COST_H
#define PEN_LINK_COST_H

#include "kernels.h"
#include "link.h"
#include "world.h"

/* Milliseconds that `bytes` bytes take from this rank's stage to the next one; 0 on the last stage. Collective over
 * the replica's stages. A neighbour that does not answer for `patience_s` is lost. Where it fails the link is
 * destroyed, since rows may be under way. */
pen_status pen_link_cost(pen_world *world, pen_link **link, pen_device *device, size_t bytes, double patience_s,
                         double *ms);

#endif
