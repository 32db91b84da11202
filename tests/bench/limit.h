/*
 * What this machine can do at most, measured: the numbers that benchmarks hold an operation's speed against.
 *
 * Each is the best of many short runs with all threads at once. A single thread is timed by the core time that it used,
 * as the machine may be shared; several by the clock. The fastest instructions that the processor has are chosen at run
 * time.
 */
#ifndef PEN_BENCH_LIMIT_H
#define PEN_BENCH_LIMIT_H

#include <stddef.h>
#include <stdint.h>

enum { BENCH_THREADS_MAX = 1024 };

typedef enum bench_limit { BENCH_INT8, BENCH_F32, BENCH_LIMITS } bench_limit;

/* The instructions of a limit as "vpdpbusd zmm"; "none" where we know none, and its limit is 0. */
const char *bench_limit_instructions(bench_limit limit);

/* 10^12 multiplications and additions a second (two per value). */
double bench_limit_tops(bench_limit limit, int threads);

/* GB/s of reading memory that no cache holds: at best, and as it is now; neighbours on the same memory may halve it. */
typedef struct bench_reading {
    double best, median;
} bench_reading;

bench_reading bench_limit_read(int threads);

size_t bench_cache_bytes(void);    /* of the last level */
int64_t bench_now_ns(int threads); /* the clock for so many threads */

#endif
