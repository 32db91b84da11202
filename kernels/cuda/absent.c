/* The CUDA device of a build without CUDA: there is none; see cuda.h. */
#include "cuda.h"

#include <stddef.h>

static pen_status absent(void) {
    return pen_fail(PEN_UNSUPPORTED, "this program was built without CUDA (cmake -DPENSTOCK_CUDA=ON needs nvcc)");
}

const char *pen_cuda_version(void) {
    return NULL;
}

pen_status pen_cuda_device_count(int *count) {
    *count = 0;
    return absent();
}

pen_status pen_cuda_device_create(const pen_cuda_options *options, pen_device **device) {
    (void)options;
    (void)device;
    return absent();
}
