/*
 * A CUDA runtime without a GPU, for tests: what kernels/cuda calls, in C, over host memory.
 *
 * Streams are queues of closures that run late: nothing that is enqueued happens before somebody waits for it or polls
 * (each poll of an event does a little of the work), so that a host that reads too early, or changes what a copy has
 * still to read, gets wrong bytes. Copies are checked against the allocations that they touch; what the host may use in
 * an asynchronous copy must be pinned. Fresh device memory is all ones: NaN, or a huge index.
 */
#ifndef PEN_EMULATE_H
#define PEN_EMULATE_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What the machine pretends to be. */
typedef enum pen_emulated_machine {
    PEN_EMULATE_GPU,        /* one GPU */
    PEN_EMULATE_NO_DRIVER,  /* as the static runtime finds it: no libcuda */
    PEN_EMULATE_OLD_DRIVER, /* a driver that knows CUDA 11.4 */
    PEN_EMULATE_NO_DEVICE,  /* a driver, but CUDA_VISIBLE_DEVICES= */
    PEN_EMULATE_OTHER_GPU,  /* a GPU that the build has no kernels for */
} pen_emulated_machine;
void pen_emulate_machine(pen_emulated_machine machine);

/* From now on every call on the device fails, as when it fell off the bus; false: it works again. */
void pen_emulate_lost(bool lost);

/* Device memory that is left, in bytes. */
void pen_emulate_memory(unsigned long long bytes);

/* A program that does not call these takes from its environment EMULATED_MACHINE (gpu, no-driver, old-driver,
 * no-device, other-gpu), EMULATED_GPUS (how many, 1), EMULATED_MEMORY (bytes) and EMULATED_LOST: after so many pieces
 * of work the GPU is lost. */

/* The order in which a block's threads run between barriers: 0 by number, 1 backwards, 2 … some random order. A kernel
 * that lacks a barrier gives other results in another one. */
void pen_emulate_order(unsigned order);

#ifdef __cplusplus
}
#endif

#endif
