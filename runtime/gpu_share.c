/* GPUs and memories among ranks; see gpu_share.h. */
#include "gpu_share.h"

#include <string.h>

/* Left for the program, the libraries and the page tables where the machine's memory is the limit. */
static const uint64_t machine_reserve = UINT64_C(256) << 20;

int pen_gpu_for(int local, int ranks, int gpus) {
    return ranks <= gpus ? local : (int)((int64_t)local * gpus / ranks);
}

static bool share(const pen_memory *a, const pen_memory *b) {
    return a->node == b->node && strcmp(a->bus, b->bus) == 0;
}

int pen_memory_sharers(const pen_memory *memories, int ranks, int r) {
    int sharers = 0;
    for (int i = 0; i < ranks; i++) sharers += share(&memories[i], &memories[r]);
    return sharers;
}

uint64_t pen_memory_limit(const pen_memory *memories, int ranks, int r, double utilization) {
    uint64_t all = memories[r].free, sharers = (uint64_t)pen_memory_sharers(memories, ranks, r);
    if (!memories[r].bus[0]) {
        uint64_t part = all / sharers;
        return part > 2 * machine_reserve ? part - machine_reserve : part;
    }
    for (int i = 0; i < ranks; i++)
        if (share(&memories[i], &memories[r])) all += memories[i].held;
    return (uint64_t)((double)(all / sharers) * utilization);
}
