/* Statistics of a sample: what a report says of latencies. */
#ifndef PEN_STATISTICS_H
#define PEN_STATISTICS_H

#include <stddef.h>

typedef struct pen_statistics {
    double mean, p50, p90, p99;
} pen_statistics;

/* All 0 of an empty sample. Sorts `values`. A percentile between two values is interpolated. */
pen_statistics pen_statistics_of(double *values, size_t count);

#endif
