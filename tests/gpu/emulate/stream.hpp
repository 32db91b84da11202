/* Between the parts of the emulation: a stream takes closures. */
#ifndef PEN_EMULATE_STREAM_HPP
#define PEN_EMULATE_STREAM_HPP

#include "cuda_runtime_api.h"

#include <functional>

void pen_emulate_enqueue(cudaStream_t stream, std::function<void()> work);
/* Says, from within such a closure, that it waits for something: it stays the first of its stream and is called again.
 */
void pen_emulate_not_yet();

/* Does some of a stream's work. */
void pen_emulate_look(cudaStream_t stream);

bool pen_emulate_is_device_memory(const void *at, size_t bytes);

/* So many bytes fewer are free from now on, as of a library that keeps them for itself. */
void pen_emulate_take_memory(unsigned long long bytes);

#endif
