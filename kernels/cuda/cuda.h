/*
 * The CUDA device: one NVIDIA GPU, driven by one stream.
 *
 * Nothing of CUDA shows here. A binary built with it runs on a machine without a driver: pen_cuda_device_count() then
 * says why there is no GPU to use. So it does in a build without CUDA (absent.c), and nobody else has to ask.
 */
#ifndef PEN_CUDA_H
#define PEN_CUDA_H

#include "kernels.h"

typedef struct pen_cuda_options {
    pen_activations activations;
    int gpu;     /* below pen_cuda_device_count() */
    int threads; /* that pack weights; 0: the caller alone */
} pen_cuda_options;

/* "13.0": what this was built with; NULL: built without CUDA. */
const char *pen_cuda_version(void);

/* GPUs that this process may use, at least 1; PEN_UNSUPPORTED says why there is none: a build without CUDA, no driver,
 * one that is too old, no device. */
pen_status pen_cuda_device_count(int *count);

pen_status pen_cuda_device_create(const pen_cuda_options *options, pen_device **device);

#endif
