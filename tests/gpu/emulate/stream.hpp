/* Between the two halves of the emulation: a stream takes closures. */
#ifndef PEN_EMULATE_STREAM_HPP
#define PEN_EMULATE_STREAM_HPP

#include "cuda_runtime_api.h"

#include <functional>

void pen_emulate_enqueue(cudaStream_t stream, std::function<void()> work);

#endif
