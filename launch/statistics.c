/* Statistics; see statistics.h. */
#include "statistics.h"

#include <stdlib.h>

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of sorted values: the one at `share` of the way from the first to the last. */
static double percentile(const double *values, size_t count, double share) {
    double place = share * (double)(count - 1);
    size_t below = (size_t)place, above = below + 1 < count ? below + 1 : below;
    return values[below] + (place - (double)below) * (values[above] - values[below]);
}

pen_statistics pen_statistics_of(double *values, size_t count) {
    if (count == 0) return (pen_statistics){0};
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += values[i];
    qsort(values, count, sizeof *values, compare);
    return (pen_statistics){.mean = sum / (double)count,
                            .p50 = percentile(values, count, 0.5),
                            .p90 = percentile(values, count, 0.9),
                            .p99 = percentile(values, count, 0.99)};
}
