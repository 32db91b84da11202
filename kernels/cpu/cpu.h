/*
 * The CPU device: packed weights, a thread pool, and per operation a plain reference and a fast version.
 *
 * The instruction set is chosen at run time; PEN_CPU_REFERENCE runs the plain C oracle of every operation, single
 * threaded, on the same packed memory. All instruction sets give the same bits.
 */
#ifndef PEN_CPU_H
#define PEN_CPU_H

#include "kernels.h"

typedef enum pen_cpu_isa {
    PEN_CPU_AUTO,
    PEN_CPU_REFERENCE,
    PEN_CPU_PORTABLE,
    PEN_CPU_AVX2,    /* with FMA and F16C */
    PEN_CPU_AVXVNNI, /* and vpdpbusd on registers of 256 bits; differs from AVX2 in linear.isa.c only */
    PEN_CPU_AVX512,  /* AVX-512 F, BW, VL, DQ, VNNI */
} pen_cpu_isa;

typedef struct pen_cpu_options {
    pen_cpu_isa isa;
    pen_activations activations;
    bool kv_q8_0;    /* K and V in q8_0, not f16; not with PEN_ACTIVATIONS_F32 */
    int threads;     /* ≥ 1, the calling thread included */
    const int *cpus; /* [threads] logical CPUs to pin to, or NULL: no pinning */
    bool may_spin;   /* threads wait by spinning between operations (they have cores of their own) */
} pen_cpu_options;

/* PEN_UNSUPPORTED where this machine lacks the instruction set asked for. */
pen_status pen_cpu_device_create(const pen_cpu_options *options, pen_device **device);

/* Space-separated names of the instruction sets that this machine can run: "reference portable avx2 avxvnni avx512". */
const char *pen_cpu_isa_names(void);
/* Name to instruction set ("auto", "avx2", …); PEN_USAGE lists the names. */
pen_status pen_cpu_isa_parse(const char *name, pen_cpu_isa *isa);

#endif
