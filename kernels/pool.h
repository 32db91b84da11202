/*
 * The thread pool of a device: the calling thread and its workers run the tasks of one operation together. The CPU
 * computes with it, a GPU's weights are packed by it.
 *
 * Owner: the device, one pool each; only the thread that created it calls pen_pool_run. Workers spin briefly for the
 * next operation where they have cores of their own, then sleep; an idle pool costs no CPU time.
 */
#ifndef PEN_POOL_H
#define PEN_POOL_H

#include "status.h"

#include <stdbool.h>

typedef struct pen_pool pen_pool;

/* `cpus` [threads]: logical CPUs to pin to, or NULL. threads = 1 makes no thread. */
pen_status pen_pool_create(int threads, const int *cpus, bool may_spin, pen_pool **pool);
void pen_pool_destroy(pen_pool *pool);
int pen_pool_threads(const pen_pool *pool);

/* Called by the creating thread between tasks, at most about every 0.2 ms (see pen_device_set_poke). */
void pen_pool_set_poke(pen_pool *pool, void (*poke)(void *context), void *context);

/* For tasks that last longer: may be called within one, on thread 0 only; pokes when it is time to. */
void pen_pool_poke(pen_pool *pool);

/* Runs task(context, i, thread) once for every i in [0, tasks) and returns when all are done. Each thread starts on a
 * contiguous share and takes from the others' when it is through, so results must not depend on who ran what; `thread`
 * (0 is the caller) only selects scratch memory. A task should last between 5 µs and 0.3 ms. */
typedef void pen_pool_task(void *context, int task, int thread);
void pen_pool_run(pen_pool *pool, pen_pool_task *task, void *context, int tasks);

#endif
