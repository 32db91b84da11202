/*
 * The thread pool; see pool.h.
 *
 * Every thread owns a share, a range of task numbers packed into one atomic word {next, end}, and anyone takes a task
 * by advancing `next` with a compare-and-swap. A successful take is valid for whatever operation the word belongs to at
 * that moment, and that operation cannot end before the task is done: so a worker that wakes late needs no check, and
 * the caller waits for tasks only, never for workers.
 */
#include "pool.h"

#include "clock.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SPIN_NS = 50000, POKE_NS = 200000, CACHE_LINE = 64 };

typedef struct share {
    _Alignas(CACHE_LINE) _Atomic uint64_t range; /* end << 32 | next */
} share;

typedef struct worker {
    pen_pool *pool;
    int index;
    pthread_t thread;
} worker;

struct pen_pool {
    int threads;
    bool may_spin;
    worker *workers; /* [threads]; 0 is the caller */
    share *shares;   /* [threads] */

    /* The operation. The plain members are written before the shares are released and read after a take. */
    pen_pool_task *task;
    void *context;
    _Alignas(CACHE_LINE) _Atomic int unfinished; /* tasks */

    _Alignas(CACHE_LINE) _Atomic unsigned operation; /* counts up; workers wait for a change */
    _Atomic int sleepers;
    _Atomic bool stop;
    pthread_mutex_t lock;
    pthread_cond_t wake;

    void (*poke)(void *context);
    void *poke_context;
    int64_t poked_ns;
    bool pinned;
    cpu_set_t caller_cpus; /* before we pinned the caller */
};

static void cpu_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void pen_pool_poke(pen_pool *pool) {
    if (!pool->poke) return;
    int64_t now = pen_clock_ns();
    if (now - pool->poked_ns < POKE_NS) return;
    pool->poke(pool->poke_context);
    pool->poked_ns = pen_clock_ns();
}

/* The next task of a share, or −1. */
static int take(share *from) {
    uint64_t range = atomic_load_explicit(&from->range, memory_order_acquire);
    while ((uint32_t)range < range >> 32)
        if (atomic_compare_exchange_weak_explicit(&from->range, &range, range + 1, memory_order_acq_rel,
                                                  memory_order_acquire))
            return (int)(uint32_t)range;
    return -1;
}

/* Runs tasks until none is left to take: the own share first, then the others'. */
static void work(pen_pool *pool, int thread) {
    for (int i = 0; i < pool->threads; i++) {
        share *from = &pool->shares[(thread + i) % pool->threads];
        for (int task; (task = take(from)) >= 0;) {
            pool->task(pool->context, task, thread);
            atomic_fetch_sub_explicit(&pool->unfinished, 1, memory_order_release);
            if (thread == 0) pen_pool_poke(pool);
        }
    }
}

/* Waits until the operation counter is no longer `seen`: spinning for a while where that is allowed, then asleep. */
static unsigned wait_for_operation(pen_pool *pool, unsigned seen) {
    unsigned now;
    if (pool->may_spin) {
        int64_t limit = pen_clock_ns() + SPIN_NS;
        do {
            for (int i = 0; i < 32; i++) {
                now = atomic_load_explicit(&pool->operation, memory_order_acquire);
                if (now != seen) return now;
                cpu_pause();
            }
        } while (pen_clock_ns() < limit);
    }
    pthread_mutex_lock(&pool->lock);
    /* Sequentially consistent against the caller's increment: either it sees a sleeper or we see the operation. */
    atomic_fetch_add(&pool->sleepers, 1);
    while ((now = atomic_load(&pool->operation)) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
    return now;
}

static void announce(pen_pool *pool) {
    atomic_fetch_add(&pool->operation, 1);
    if (atomic_load(&pool->sleepers) == 0) return;
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

static void *worker_main(void *argument) {
    worker *self = argument;
    pen_pool *pool = self->pool;
    for (unsigned seen = 0; !atomic_load_explicit(&pool->stop, memory_order_relaxed);) {
        seen = wait_for_operation(pool, seen);
        work(pool, self->index);
    }
    return NULL;
}

void pen_pool_run(pen_pool *pool, pen_pool_task *task, void *context, int tasks) {
    pen_pool_poke(pool);
    if (pool->threads == 1 || tasks == 1) {
        for (int i = 0; i < tasks; i++) {
            task(context, i, 0);
            pen_pool_poke(pool);
        }
        return;
    }
    if (tasks <= 0) return;
    pool->task = task;
    pool->context = context;
    atomic_store_explicit(&pool->unfinished, tasks, memory_order_relaxed);
    for (int t = 0; t < pool->threads; t++) {
        uint64_t next = (uint64_t)tasks * (uint64_t)t / (uint64_t)pool->threads;
        uint64_t end = (uint64_t)tasks * (uint64_t)(t + 1) / (uint64_t)pool->threads;
        atomic_store_explicit(&pool->shares[t].range, end << 32 | next, memory_order_release);
    }
    announce(pool);
    work(pool, 0);

    /* Others still run their last tasks. Whoever has no core of their own must let them have this one. */
    int64_t yield_from = pool->may_spin ? pen_clock_ns() + SPIN_NS : 0;
    while (atomic_load_explicit(&pool->unfinished, memory_order_acquire) > 0) {
        for (int i = 0; i < 32 && atomic_load_explicit(&pool->unfinished, memory_order_relaxed) > 0; i++) cpu_pause();
        pen_pool_poke(pool);
        if (pen_clock_ns() > yield_from) sched_yield();
    }
}

void pen_pool_set_poke(pen_pool *pool, void (*poke)(void *context), void *context) {
    pool->poke = poke;
    pool->poke_context = context;
    pool->poked_ns = pen_clock_ns();
}

int pen_pool_threads(const pen_pool *pool) {
    return pool->threads;
}

static pen_status pin(pthread_t thread, int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_SET(cpu, &set);
    int error = pthread_setaffinity_np(thread, sizeof set, &set);
    if (error) return pen_fail(PEN_UNSUPPORTED, "cannot pin a thread to CPU %d: %s", cpu, strerror(error));
    return PEN_OK;
}

static pen_status start(pen_pool *pool, int threads, const int *cpus) {
    if (cpus) {
        pthread_getaffinity_np(pthread_self(), sizeof pool->caller_cpus, &pool->caller_cpus);
        PEN_TRY(pin(pthread_self(), cpus[0]));
        pool->pinned = true;
    }
    /* `threads` counts those that run, so that destroying a half-started pool joins the right ones. */
    for (pool->threads = 1; pool->threads < threads; pool->threads++) {
        worker *w = &pool->workers[pool->threads];
        *w = (worker){.pool = pool, .index = pool->threads};
        int error = pthread_create(&w->thread, NULL, worker_main, w);
        if (error) return pen_fail(PEN_NO_MEMORY, "cannot start thread %d: %s", pool->threads, strerror(error));
        if (cpus) {
            pen_status status = pin(w->thread, cpus[pool->threads]);
            if (status != PEN_OK) return pool->threads++, status;
        }
    }
    return PEN_OK;
}

pen_status pen_pool_create(int threads, const int *cpus, bool may_spin, pen_pool **pool) {
    assert(threads >= 1);
    pen_pool *made = aligned_alloc(CACHE_LINE, sizeof *made);
    if (!made) return pen_fail(PEN_NO_MEMORY, "no memory for a thread pool");
    memset(made, 0, sizeof *made);
    made->may_spin = may_spin;
    made->workers = calloc((size_t)threads, sizeof *made->workers);
    made->shares = aligned_alloc(CACHE_LINE, (size_t)threads * sizeof *made->shares);
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->wake, NULL);
    pen_status status = PEN_OK;
    if (made->workers && made->shares) {
        memset(made->shares, 0, (size_t)threads * sizeof *made->shares);
        status = start(made, threads, cpus);
    } else {
        status = pen_fail(PEN_NO_MEMORY, "no memory for a pool of %d threads", threads);
    }
    if (status != PEN_OK) {
        pen_pool_destroy(made);
        return status;
    }
    *pool = made;
    return PEN_OK;
}

void pen_pool_destroy(pen_pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, true);
    announce(pool);
    for (int t = 1; t < pool->threads; t++) pthread_join(pool->workers[t].thread, NULL);
    if (pool->pinned) pthread_setaffinity_np(pthread_self(), sizeof pool->caller_cpus, &pool->caller_cpus);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool->shares);
    free(pool->workers);
    free(pool);
}
