/* Clock maps; see clock_map.h. */
#include "clock_map.h"

#include <math.h>

/* Over a shorter time than this many times the probes' error no drift shows: 200 ppm is what bad crystals have. */
#define DRIFT_MOST 200e-6

static int64_t took(const pen_clock_probe *probe) {
    return probe->heard_ns - probe->asked_ns;
}

static const pen_clock_probe *best(const pen_clock_probe *probes, int count) {
    const pen_clock_probe *found = probes;
    for (int i = 1; i < count; i++)
        if (took(&probes[i]) < took(found)) found = &probes[i];
    return found;
}

pen_clock_map pen_clock_map_same(void) {
    return (pen_clock_map){.rate = 1};
}

pen_clock_map pen_clock_map_fit(const pen_clock_probe *before, int before_count, const pen_clock_probe *after,
                                int after_count) {
    const pen_clock_probe *first = best(before, before_count), *last = best(after, after_count);
    pen_clock_map map = {.other_ns = first->other_ns,
                         .ours_ns = first->asked_ns + took(first) / 2,
                         .rate = 1,
                         .error_ns = (double)(took(first) > took(last) ? took(first) : took(last)) / 2};
    double others = (double)(last->other_ns - first->other_ns);
    double ours = (double)(last->asked_ns + took(last) / 2 - map.ours_ns);
    if (others > 0 && 2 * map.error_ns < DRIFT_MOST * others) {
        map.rate = ours / others;
    } else if (took(last) < took(first)) { /* the better one alone */
        map.other_ns = last->other_ns;
        map.ours_ns = last->asked_ns + took(last) / 2;
    }
    return map;
}

int64_t pen_clock_map_ours(const pen_clock_map *map, int64_t other_ns) {
    return map->ours_ns + llround(map->rate * (double)(other_ns - map->other_ns));
}
