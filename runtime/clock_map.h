/*
 * How another machine's clock relates to ours: an offset and a drift, estimated from short conversations. Pure.
 *
 * A probe is a question and its answer, which says the other clock's time. Where both ways take equally long, that time
 * was half-way between asking and hearing; so the probe that took the shortest errs the least. Two groups of probes,
 * before and after a run, give the drift between them.
 */
#ifndef PEN_CLOCK_MAP_H
#define PEN_CLOCK_MAP_H

#include <stdint.h>

typedef struct pen_clock_probe {
    int64_t asked_ns, heard_ns; /* our clock */
    int64_t other_ns;           /* the other's, in between */
} pen_clock_probe;

typedef struct pen_clock_map {
    int64_t other_ns, ours_ns; /* the same moment on both clocks */
    double rate;               /* our nanoseconds in one of the other's */
    double error_ns;           /* at most, at either group: half of what its best probe took */
} pen_clock_map;

/* One clock for both: what the ranks of a machine have. */
pen_clock_map pen_clock_map_same(void);

/* Each group has at least one probe. Where they lie too close to tell a drift from noise, none is assumed. */
pen_clock_map pen_clock_map_fit(const pen_clock_probe *before, int before_count, const pen_clock_probe *after,
                                int after_count);

int64_t pen_clock_map_ours(const pen_clock_map *map, int64_t other_ns);

#endif
