/*
 * Byte-pair encoding; see bpe.h.
 *
 * The symbols of a word are a linked list in an array. A heap holds the joins that are possible, as rank << 32 | index
 * of the left symbol, so the smallest number is the earliest merge and the leftmost place. A join that meanwhile lost
 * one of its symbols is not searched for in the heap, but recognised when it comes out: the symbols are then not those
 * of its merge.
 *
 * Looking up pairs in megabytes of merges is most of the work. So the pairs of bytes, with which every word begins,
 * have a small table, and a place of the hash table of all pairs holds a part of the hash beside the rank: the merge
 * itself, elsewhere in memory, is looked at only where that agrees.
 */
#include "bpe.h"

#include "heap.h"
#include "tokens.h"

#include <stdlib.h>
#include <string.h>

enum { NONE = -1 };

typedef struct symbol {
    int32_t id; /* NONE: joined to the symbol before it */
    int32_t before, after;
} symbol;

struct pen_bpe {
    pen_merge *merges;
    uint64_t *slots; /* high half of the hash of (left, right), and rank + 1; 0: empty */
    size_t mask;
    int32_t bytes[256];
    uint32_t byte_pairs[256][256]; /* rank + 1; 0: no merge */
    /* For the word at hand; they grow to the longest seen. */
    symbol *symbols;
    size_t symbol_capacity;
    pen_heap heap;
};

/* ---- Merges ---------------------------------------------------------------------------------------------------- */

/* Every bit of the pair takes part in every bit of the high half. */
static uint64_t hash(int32_t left, int32_t right) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    pair = (pair ^ pair >> 29) * UINT64_C(0x9E3779B97F4A7C15);
    return (pair ^ pair >> 32) * UINT64_C(0xD6E8FEB86659FD93);
}

/* The slot of the pair, or the empty one where it belongs. */
static uint64_t *merge_slot(const pen_bpe *bpe, int32_t left, int32_t right) {
    uint64_t pair = hash(left, right);
    size_t at = (size_t)(pair >> 20) & bpe->mask;
    for (; bpe->slots[at]; at = (at + 1) & bpe->mask) {
        if ((bpe->slots[at] ^ pair) >> 32) continue;
        const pen_merge *merge = &bpe->merges[(uint32_t)bpe->slots[at] - 1];
        if (merge->left == left && merge->right == right) break;
    }
    return &bpe->slots[at];
}

pen_status pen_bpe_create(pen_merge *merges, size_t count, const int32_t bytes[256], pen_bpe **bpe_out,
                          int64_t *repeated) {
    *bpe_out = NULL;
    *repeated = NONE;
    pen_bpe *bpe = calloc(1, sizeof *bpe);
    size_t slots = 16;
    while (slots < 2 * count) slots *= 2;
    if (bpe) {
        bpe->merges = merges;
        bpe->mask = slots - 1;
        bpe->slots = calloc(slots, sizeof *bpe->slots);
        memcpy(bpe->bytes, bytes, sizeof bpe->bytes);
    }
    if (!bpe || !bpe->slots) {
        if (!bpe) free(merges);
        pen_bpe_destroy(bpe);
        return pen_fail(PEN_NO_MEMORY, "no memory for %zu merges", count);
    }
    for (size_t rank = 0; rank < count; rank++) {
        uint64_t *slot = merge_slot(bpe, merges[rank].left, merges[rank].right);
        if (*slot) {
            *repeated = (int64_t)rank;
            pen_bpe_destroy(bpe);
            return PEN_OK;
        }
        *slot = hash(merges[rank].left, merges[rank].right) >> 32 << 32 | (rank + 1);
    }
    for (int left = 0; left < 256; left++)
        for (int right = 0; right < 256; right++)
            bpe->byte_pairs[left][right] = (uint32_t)*merge_slot(bpe, bytes[left], bytes[right]);
    *bpe_out = bpe;
    return PEN_OK;
}

void pen_bpe_destroy(pen_bpe *bpe) {
    if (!bpe) return;
    free(bpe->merges);
    free(bpe->slots);
    free(bpe->symbols);
    free(bpe->heap.items);
    free(bpe);
}

/* ---- A word ---------------------------------------------------------------------------------------------------- */

/* Room for the symbols of a word. Each has one join at the start, and each of the fewer than n joins done adds two. */
static pen_status reserve(pen_bpe *bpe, size_t length) {
    if (length <= bpe->symbol_capacity) return PEN_OK;
    if (length > INT32_MAX) return pen_fail(PEN_UNSUPPORTED, "a word of %zu bytes cannot be tokenised", length);
    size_t capacity = length + 64;
    free(bpe->symbols);
    free(bpe->heap.items);
    bpe->symbols = malloc(capacity * sizeof *bpe->symbols);
    bpe->heap.items = malloc(3 * capacity * sizeof *bpe->heap.items);
    bpe->symbol_capacity = bpe->symbols && bpe->heap.items ? capacity : 0;
    return bpe->symbol_capacity ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for a word of %zu bytes", length);
}

/* Puts the join of a symbol with the one after it on the heap, if there is a merge for it. */
static void propose(pen_bpe *bpe, int32_t left) {
    if (left == NONE || bpe->symbols[left].after == NONE) return;
    uint64_t found = *merge_slot(bpe, bpe->symbols[left].id, bpe->symbols[bpe->symbols[left].after].id);
    if (found) pen_heap_push(&bpe->heap, (found - 1) << 32 | (uint32_t)left);
}

static void join(pen_bpe *bpe, uint64_t proposal) {
    const pen_merge *merge = &bpe->merges[proposal >> 32];
    int32_t index = (int32_t)(uint32_t)proposal;
    symbol *left = &bpe->symbols[index];
    if (left->id != merge->left || left->after == NONE) return;
    symbol *right = &bpe->symbols[left->after];
    if (right->id != merge->right) return;

    left->id = merge->result;
    left->after = right->after;
    right->id = NONE;
    if (left->after != NONE) bpe->symbols[left->after].before = index;
    propose(bpe, left->before);
    propose(bpe, index);
}

pen_status pen_bpe_encode(pen_bpe *bpe, const char *word, size_t length, pen_tokens *tokens) {
    PEN_TRY(reserve(bpe, length));
    bpe->heap.count = 0;
    int32_t count = 0;
    unsigned char before = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)word[i];
        if (bpe->bytes[byte] == NONE) continue;
        uint64_t rank = count ? bpe->byte_pairs[before][byte] : 0;
        if (rank) pen_heap_push(&bpe->heap, (rank - 1) << 32 | (uint32_t)(count - 1));
        bpe->symbols[count] = (symbol){bpe->bytes[byte], count - 1, count + 1};
        before = byte;
        count++;
    }
    if (count == 0) return PEN_OK;
    bpe->symbols[count - 1].after = NONE;

    while (bpe->heap.count) join(bpe, pen_heap_pop(&bpe->heap));
    for (int32_t i = 0; i != NONE; i = bpe->symbols[i].after)
        PEN_TRY(pen_tokens_append(tokens, &bpe->symbols[i].id, 1));
    return PEN_OK;
}
