/* Sets of texts; see id_set.h. Open addressing, at most half full. */
#include "id_set.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

struct pen_id_set {
    XXH128_hash_t *slots; /* [capacity] all zero: free */
    size_t capacity, count;
};

static bool is_free(const XXH128_hash_t *slot) {
    return slot->low64 == 0 && slot->high64 == 0;
}

/* The text's slot, or the free one where it belongs. */
static XXH128_hash_t *find(const pen_id_set *set, XXH128_hash_t hash) {
    size_t at = hash.low64 & (set->capacity - 1);
    while (!is_free(&set->slots[at]) && !XXH128_isEqual(set->slots[at], hash)) at = (at + 1) & (set->capacity - 1);
    return &set->slots[at];
}

static pen_status grow(pen_id_set *set) {
    pen_id_set larger = {.capacity = 2 * set->capacity, .count = set->count};
    larger.slots = calloc(larger.capacity, sizeof *larger.slots);
    if (!larger.slots) return pen_fail(PEN_NO_MEMORY, "no memory for %zu ids", set->count);
    for (size_t i = 0; i < set->capacity; i++)
        if (!is_free(&set->slots[i])) *find(&larger, set->slots[i]) = set->slots[i];
    free(set->slots);
    *set = larger;
    return PEN_OK;
}

pen_status pen_id_set_create(pen_id_set **out) {
    pen_id_set *set = calloc(1, sizeof *set);
    if (set) *set = (pen_id_set){.slots = calloc(1024, sizeof *set->slots), .capacity = 1024};
    *out = set;
    if (set && set->slots) return PEN_OK;
    pen_id_set_destroy(set);
    *out = NULL;
    return pen_fail(PEN_NO_MEMORY, "no memory for ids");
}

void pen_id_set_destroy(pen_id_set *set) {
    if (!set) return;
    free(set->slots);
    free(set);
}

pen_status pen_id_set_add(pen_id_set *set, pen_text text, bool *added) {
    XXH128_hash_t hash = XXH3_128bits(text.data, text.length);
    if (is_free(&hash)) hash.low64 = 1;
    XXH128_hash_t *slot = find(set, hash);
    *added = is_free(slot);
    if (!*added) return PEN_OK;
    *slot = hash;
    set->count++;
    return 2 * set->count > set->capacity ? grow(set) : PEN_OK;
}
