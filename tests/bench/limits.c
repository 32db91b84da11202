/*
 * bench_limits [THREADS [read]]: what this machine can do at most with 1, 2, 4 … THREADS threads (all of its cores), as
 * JSON; with `read` only how fast THREADS read memory now.
 */
#include "limit.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    long most = argc > 1 ? strtol(argv[1], NULL, 10) : sysconf(_SC_NPROCESSORS_ONLN);
    bool reads = argc == 3 && strcmp(argv[2], "read") == 0;
    if ((argc > 2 && !reads) || most < 1 || most > BENCH_THREADS_MAX) {
        fprintf(stderr, "usage: bench_limits [THREADS [read]]\n");
        return 2;
    }
    int threads = (int)most;
    if (reads) {
        printf("{\"threads\": %d, \"read_gb_s\": %.2f}\n", threads, bench_limit_read(threads).median);
        return 0;
    }
    printf("{\"int8\": \"%s\", \"f32\": \"%s\", \"limits\": [", bench_limit_instructions(BENCH_INT8),
           bench_limit_instructions(BENCH_F32));
    for (int n = 1; n <= threads; n = n < threads && 2 * n > threads ? threads : 2 * n)
        printf("%s\n {\"threads\": %d, \"read_gb_s\": %.2f, \"int8_tops\": %.4f, \"f32_tflops\": %.4f}",
               n > 1 ? "," : "", n, bench_limit_read(n).best, bench_limit_tops(BENCH_INT8, n),
               bench_limit_tops(BENCH_F32, n));
    printf("\n]}\n");
    return 0;
}
