/* The device that a process computes on: what --device means on its machine. */
#ifndef PEN_DEVICE_OPEN_H
#define PEN_DEVICE_OPEN_H

#include "config.h"
#include "kernels.h"
#include "machine.h"

/* Opens it for rank `local` of the `ranks` on this machine, whose part of the cores is `share`. `auto` is a GPU where
 * there is one that can be used; with `cuda` there must be. Not for simulated devices. */
pen_status pen_device_open(const pen_config *config, const pen_share *share, int local, int ranks, pen_device **device);

#endif
