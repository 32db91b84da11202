/*
 * The CUDA device: one NVIDIA GPU, driven by one stream.
 *
 * Nothing of CUDA shows here. A binary built with it runs on a machine without a driver: pen_cuda_device_count() then
 * says why there is no GPU to use.
 */
#ifndef PEN_CUDA_H
#define PEN_CUDA_H

#include "kernels.h"

typedef struct pen_cuda_options {
    pen_activations activations;
    bool deterministic; /* one numeric contract for any number of rows, also where cuBLASLt would be faster */
    int local_rank;     /* of this process on its machine: it takes GPU local_rank mod count */
} pen_cuda_options;

/* GPUs that this process may use, at least 1; PEN_UNSUPPORTED says why there is none: no driver, one that is too old,
 * no device. */
pen_status pen_cuda_device_count(int *count);

pen_status pen_cuda_device_create(const pen_cuda_options *options, pen_device **device);

/* Bytes of the device's memory, and those that nobody has taken yet: the plan's limit. */
pen_status pen_cuda_device_memory(pen_device *device, size_t *free_bytes, size_t *total_bytes);

#endif
