/*
 * bench_limits [THREADS]: what this machine can do at most with 1, 2, 4 … THREADS threads (all of its cores), as JSON.
 */
#include "limit.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    long most = argc > 1 ? strtol(argv[1], NULL, 10) : sysconf(_SC_NPROCESSORS_ONLN);
    if (argc > 2 || most < 1 || most > BENCH_THREADS_MAX) {
        fprintf(stderr, "usage: bench_limits [THREADS]\n");
        return 2;
    }
    int threads = (int)most;
    printf("{\"int8\": \"%s\", \"f32\": \"%s\", \"limits\": [", bench_limit_instructions(BENCH_INT8),
           bench_limit_instructions(BENCH_F32));
    for (int n = 1; n <= threads; n = n < threads && 2 * n > threads ? threads : 2 * n)
        printf("%s\n {\"threads\": %d, \"read_gb_s\": %.2f, \"int8_tops\": %.4f, \"f32_tflops\": %.4f}",
               n > 1 ? "," : "", n, bench_limit_read(n), bench_limit_tops(BENCH_INT8, n),
               bench_limit_tops(BENCH_F32, n));
    printf("\n]}\n");
    return 0;
}
