/* The memory of prefixes; see prefix_memory.h. A set-associative table: a hash has a place in one set only, where the
 * one that was used least recently makes room for it. */
#include "prefix_memory.h"

#include <stdbool.h>
#include <stdlib.h>

enum { SETS = 4096, WAYS = 4 }; /* 16,384 blocks: 262,144 tokens */

typedef struct block {
    uint64_t hash;
    uint64_t used; /* when; 0: the place is free */
} block;

struct pen_prefix_memory {
    uint64_t now; /* counts blocks that were remembered */
    block sets[SETS][WAYS];
};

pen_status pen_prefix_memory_create(pen_prefix_memory **memory) {
    *memory = calloc(1, sizeof **memory);
    return *memory ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory to remember prompts by");
}

void pen_prefix_memory_destroy(pen_prefix_memory *memory) {
    free(memory);
}

static bool knows(const pen_prefix_memory *memory, uint64_t hash) {
    const block *set = memory->sets[hash % SETS];
    for (int way = 0; way < WAYS; way++)
        if (set[way].used && set[way].hash == hash) return true;
    return false;
}

int pen_prefix_memory_known(const pen_prefix_memory *memory, const uint64_t *hashes, int count) {
    int known = 0;
    while (known < count && knows(memory, hashes[known])) known++;
    return known;
}

/* From the end on, so that of a prompt that is too long the beginning stays. */
void pen_prefix_memory_remember(pen_prefix_memory *memory, const uint64_t *hashes, int count) {
    for (int i = count - 1; i >= 0; i--) {
        block *set = memory->sets[hashes[i] % SETS], *place = set;
        for (int way = 0; way < WAYS; way++) {
            if (set[way].used && set[way].hash == hashes[i]) {
                place = &set[way];
                break;
            }
            if (set[way].used < place->used) place = &set[way];
        }
        *place = (block){hashes[i], ++memory->now};
    }
}
