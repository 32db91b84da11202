/*
 * How programs begin that time operations of the CPU device: with NAME [THREADS] [INSTRUCTION SET], and all else that
 * fails ends them.
 */
#ifndef PEN_CPU_BENCH_H
#define PEN_CPU_BENCH_H

#include "cpu.h"
#include "limit.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void check(pen_status status) {
    if (status == PEN_OK) return;
    fprintf(stderr, "penstock: %s\n", pen_last_error());
    exit(1);
}

/* By default as many threads as there are processors, and the best instruction set. */
static inline pen_cpu_options bench_options(int argc, char **argv, const char *usage) {
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    int threads = argc > 1 ? atoi(argv[1]) : (int)online;
    if (threads < 1 || threads > BENCH_THREADS_MAX) {
        fprintf(stderr, "usage: %s\n", usage);
        exit(2);
    }
    pen_cpu_options options = {.threads = threads, .activations = PEN_ACTIVATIONS_FAST, .may_spin = threads <= online};
    check(pen_cpu_isa_parse(argc > 2 ? argv[2] : "auto", &options.isa));
    return options;
}

#endif
