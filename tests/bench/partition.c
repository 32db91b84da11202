/*
 * How long the exact solver takes, in time of one core (the machine may be shared): median of several problems of UNITS
 * units on STAGES stages (default 1000 on 64), for equal devices, mixed devices and mixed devices with tight memory
 * limits.
 *
 *     bench_partition [UNITS STAGES [REPEATS]]
 */
#include "partition.h"
#include "clock.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct kind {
    const char *name;
    int devices;
    double slack; /* memory limit ÷ what equal shares need; 0: no limits */
    double head;  /* the last unit's time ÷ a layer's: a large one leaves the other stages free, with ties to break */
} kind;

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Layers between 15 and 20 ms with a few odd ones, kinds of device at speeds 1, 1.3, 1.6, … in turn.
 */
static void fill(const kind *k, int units, int stages, pen_partition_unit *unit, pen_partition_stage *stage,
                 double *time_ms) {
    double bytes = 0;
    for (int u = 0; u < units; u++) {
        double ms = 15 + rand() % 5000 * 1e-3;
        if (u % 97 == 0) ms *= 3;
        if (u == units - 1) ms *= k->head;
        for (int d = 0; d < k->devices; d++) time_ms[d * units + u] = ms / (1 + 0.3 * d) * (1 + rand() % 100 * 1e-4);
        unit[u] = (pen_partition_unit){.name = "unit",
                                       .weight_bytes = 3000000000u + (unsigned)rand() % 1000000000u,
                                       .kv_bytes_per_token = 4096,
                                       .workspace_bytes = (unsigned)rand() % 100000000u};
        bytes += (double)unit[u].weight_bytes + 4096.0 * 100000;
    }
    for (int s = 0; s < stages; s++)
        stage[s] = (pen_partition_stage){.device = s % k->devices,
                                         .memory_bytes = (uint64_t)(bytes / stages * k->slack),
                                         .send_ms = s + 1 < stages ? 0.05 : 0,
                                         .wire_ms = s + 1 < stages ? 1 : 0};
}

int main(int argc, char **argv) {
    int units = argc > 2 ? atoi(argv[1]) : 1000, stages = argc > 2 ? atoi(argv[2]) : 64;
    int repeats = argc > 3 ? atoi(argv[3]) : 21;
    if (units < 1 || units > PEN_PARTITION_UNITS_MAX || stages < 1 || stages > units || repeats < 1) {
        fprintf(stderr, "usage: bench_partition [UNITS STAGES [REPEATS]]\n");
        return 2;
    }
    const kind kinds[] = {{"equal devices", 1, 0, 1},
                          {"4 kinds of device", 4, 0, 1},
                          {"4 kinds, tight memory", 4, 1.25, 1},
                          {"4 kinds, enormous head", 4, 2, 1000}};
    pen_partition_unit *unit = calloc((size_t)units, sizeof *unit);
    pen_partition_stage *stage = calloc((size_t)stages, sizeof *stage);
    double *time_ms = calloc(4 * (size_t)units, sizeof *time_ms), *taken = calloc((size_t)repeats, sizeof *taken);
    int *first = calloc((size_t)stages + 1, sizeof *first), failed = 0;
    if (!unit || !stage || !time_ms || !taken || !first) return 5;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const kind *k = &kinds[i];
        pen_partition_problem problem = {.unit_count = units,
                                         .stage_count = stages,
                                         .device_count = k->devices,
                                         .units = unit,
                                         .stages = stage,
                                         .time_ms = time_ms,
                                         .kv_tokens = 100000};
        double max_ms = 0;
        for (int r = 0; r < repeats; r++) {
            srand((unsigned)r + 1);
            fill(k, units, stages, unit, stage, time_ms);
            int64_t start = pen_clock_thread_cpu_ns();
            pen_status status = pen_partition_solve(&problem, first);
            taken[r] = (double)(pen_clock_thread_cpu_ns() - start) * 1e-6;
            max_ms = status == PEN_OK ? pen_partition_evaluate(&problem, first).max_ms : 0;
            if (status != PEN_OK) failed = 1, fprintf(stderr, "%s: %s\n", k->name, pen_last_error());
        }
        qsort(taken, (size_t)repeats, sizeof *taken, ascending);
        printf("%4d units, %3d stages, %-22s  solved in %6.2f ms of a core (median of %d; %.2f … %.2f)  slowest stage "
               "%.1f ms\n",
               units, stages, k->name, taken[repeats / 2], repeats, taken[0], taken[repeats - 1], max_ms);
    }
    free(unit);
    free(stage);
    free(time_ms);
    free(taken);
    free(first);
    return failed;
}
