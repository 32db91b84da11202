/*
 * Which GPU a rank takes, and how much of a memory it may fill: pure functions of what the ranks say of themselves.
 *
 * A rank knows only its own device. What it shares with whom shows on rank 0, where two that name the same address of
 * the same machine have one GPU between them, however the launcher came to give it to both.
 */
#ifndef PEN_GPU_SHARE_H
#define PEN_GPU_SHARE_H

#include "kernels.h"

#include <stdint.h>

/* The GPU, of `gpus`, that suits rank `local` of the `ranks` on a machine: each its own, in their order. Where there
 * are too few, neighbours share, since it is between neighbours that rows go. */
int pen_gpu_for(int local, int ranks, int gpus);

/* The memory that a rank computes in. Plain data: it travels between ranks as bytes. */
typedef struct pen_memory {
    int node;
    char bus[PEN_BUS_MAX]; /* of the GPU whose memory it is; "": the machine's */
    uint64_t free;         /* bytes; of a machine before any rank took some */
    uint64_t held;         /* of a GPU besides, by this rank's device, which a plan may use anew */
} pen_memory;

/* How many of the ranks compute in rank r's memory, itself among them. */
int pen_memory_sharers(const pen_memory *memories, int ranks, int r);
/* Bytes that rank r may fill: of a GPU its part of `utilization` of what is free or held by these ranks, of a machine
 * its part of what is free. */
uint64_t pen_memory_limit(const pen_memory *memories, int ranks, int r, double utilization);

#endif
