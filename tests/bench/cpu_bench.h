/*
 * What programs that time operations of the CPU device share: they are called as NAME [THREADS] [INSTRUCTION SET], and
 * what fails ends them.
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

static inline pen_buffer *random_buffer(pen_device *device, size_t floats) {
    pen_buffer *buffer;
    check(pen_buffer_create(device, floats * sizeof(float), &buffer));
    float *values = pen_buffer_host(buffer);
    for (size_t i = 0; i < floats; i++) values[i] = (float)(rand() % 2001 - 1000) / 1000;
    return buffer;
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
