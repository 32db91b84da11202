/* Between the parts of the emulation: a stream takes closures, and memory is known. */
#ifndef PEN_EMULATE_STREAM_HPP
#define PEN_EMULATE_STREAM_HPP

#include "cuda_runtime_api.h"

#include <functional>

void pen_emulate_enqueue(cudaStream_t stream, std::function<void()> work);

/* Whether these bytes are the device's, in one allocation. */
bool pen_emulate_is_device(const void *at, size_t bytes);

#endif
