/*
 * The machine as this process may use it: cores, CPU quota, memory. Affinity masks and control groups count.
 *
 * And the division of a machine between the ranks that share it, a pure function of what each of them sees, so that
 * rank 0 can decide for all and a test can try every case.
 */
#ifndef PEN_MACHINE_H
#define PEN_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

enum { PEN_CORES_MAX = 512, PEN_HOST_MAX = 64 };

/* Plain data: it travels between ranks as bytes. */
typedef struct pen_machine {
    char host[PEN_HOST_MAX];
    uint64_t id;                 /* equal for ranks that share one machine (host name and boot) */
    uint64_t memory;             /* bytes that are free for us: of the machine, or of the control group if less */
    double quota;                /* CPUs that the control group may use at a time; 0: no limit */
    int cores_installed;         /* physical cores of the machine that our control group may use */
    int core_count;              /* physical cores in this process's affinity mask */
    int16_t cpu[PEN_CORES_MAX];  /* [core_count] one logical CPU of each, in the machine's own (NUMA) order */
    int16_t numa[PEN_CORES_MAX]; /* [core_count] the NUMA node of each */
} pen_machine;

void pen_machine_look(pen_machine *machine);

/* One rank's part of its machine. Plain data as well. */
typedef struct pen_share {
    int threads;     /* ≥ 1: cores of its own, or 1 where ranks outnumber cores */
    bool own_cores;  /* cpu[threads] are this rank's alone: pin to them. Otherwise pin nothing */
    bool may_spin;   /* waiting by spinning takes nothing away from another rank */
    uint64_t memory; /* bytes that are free for all of the machine's ranks together: gpu_share.h divides them */
    int16_t cpu[PEN_CORES_MAX];
    int16_t numa[PEN_CORES_MAX]; /* the NUMA node of each */
} pen_share;

/* Divides one machine between the ranks on it; machines[i] is what rank i of them sees. Cores that several may use
 * are dealt out so that nobody shares one; more ranks than cores means one unpinned thread each. */
void pen_machine_divide(const pen_machine *const *machines, int ranks, pen_share *shares);

/* `share` for a rank that was told to use `threads` threads (0: what the share says). */
void pen_share_set_threads(pen_share *share, int threads);

/* How many NUMA nodes the rank's threads are pinned to; 0: they are not. */
int pen_share_numa_nodes(const pen_share *share);

/* Keeps this thread, and those that it will make, on the cores next to the device at this address of the PCI bus, of
 * those that the process may use; false where there is no such device, or no such core. */
bool pen_machine_stay_near(const char *bus);

#endif
