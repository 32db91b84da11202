/*
 * Byte-pair encoding; see bpe.h.
 *
 * The symbols of a word are a linked list in an array. A heap holds the joins that are possible, as rank << 32 | index
 * of the left symbol, so the smallest number is the earliest merge and the leftmost place. A join that meanwhile lost
 * one of its symbols is not searched for in the heap, but recognised when it comes out: the symbols are then not those
 * of its merge. Most words of a text have been seen before: a small cache has their tokens.
 */
#include "bpe.h"

#include "heap.h"
#include "tokens.h"
#include "word_cache.h"

#include <stdlib.h>
#include <string.h>

enum { NONE = -1 };

typedef struct symbol {
    int32_t id; /* NONE: joined to the symbol before it */
    int32_t before, after;
} symbol;

struct pen_bpe {
    pen_merge *merges;
    uint32_t *slots; /* rank + 1, by hash of (left, right) */
    size_t mask;
    int32_t bytes[256];
    pen_word_cache *cache;
    /* For the word at hand; they grow to the longest seen. */
    symbol *symbols;
    size_t symbol_capacity;
    pen_heap heap;
};

/* ---- Merges ---------------------------------------------------------------------------------------------------- */

/* The slot of the pair, or the empty one where it belongs. */
static size_t merge_slot(const pen_bpe *bpe, int32_t left, int32_t right) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t slot = (size_t)((pair * UINT64_C(0x9E3779B97F4A7C15)) >> 32) & bpe->mask;
    for (; bpe->slots[slot]; slot = (slot + 1) & bpe->mask) {
        const pen_merge *merge = &bpe->merges[bpe->slots[slot] - 1];
        if (merge->left == left && merge->right == right) break;
    }
    return slot;
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
        bpe->cache = pen_word_cache_create();
        memcpy(bpe->bytes, bytes, sizeof bpe->bytes);
    }
    if (!bpe || !bpe->slots || !bpe->cache) {
        if (!bpe) free(merges);
        pen_bpe_destroy(bpe);
        return pen_fail(PEN_NO_MEMORY, "no memory for %zu merges", count);
    }
    for (size_t rank = 0; rank < count; rank++) {
        size_t slot = merge_slot(bpe, merges[rank].left, merges[rank].right);
        if (bpe->slots[slot]) {
            *repeated = (int64_t)rank;
            pen_bpe_destroy(bpe);
            return PEN_OK;
        }
        bpe->slots[slot] = (uint32_t)rank + 1;
    }
    *bpe_out = bpe;
    return PEN_OK;
}

void pen_bpe_destroy(pen_bpe *bpe) {
    if (!bpe) return;
    free(bpe->merges);
    free(bpe->slots);
    pen_word_cache_destroy(bpe->cache);
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
    uint32_t found = bpe->slots[merge_slot(bpe, bpe->symbols[left].id, bpe->symbols[bpe->symbols[left].after].id)];
    if (found) pen_heap_push(&bpe->heap, (uint64_t)(found - 1) << 32 | (uint32_t)left);
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

static pen_status encode(pen_bpe *bpe, const char *word, size_t length, pen_tokens *tokens) {
    PEN_TRY(reserve(bpe, length));
    int32_t count = 0;
    for (size_t i = 0; i < length; i++) {
        int32_t id = bpe->bytes[(unsigned char)word[i]];
        if (id == NONE) continue;
        bpe->symbols[count] = (symbol){id, count - 1, count + 1};
        count++;
    }
    if (count == 0) return PEN_OK;
    bpe->symbols[count - 1].after = NONE;

    bpe->heap.count = 0;
    for (int32_t i = 0; i < count; i++) propose(bpe, i);
    while (bpe->heap.count) join(bpe, pen_heap_pop(&bpe->heap));
    for (int32_t i = 0; i != NONE; i = bpe->symbols[i].after)
        PEN_TRY(pen_tokens_append(tokens, &bpe->symbols[i].id, 1));
    return PEN_OK;
}

pen_status pen_bpe_encode(pen_bpe *bpe, const char *word, size_t length, pen_tokens *tokens) {
    const pen_cached_word *cached = pen_word_cache_find(bpe->cache, word, length);
    if (cached) return pen_tokens_append(tokens, cached->ids, cached->count);
    size_t first = tokens->count;
    PEN_TRY(encode(bpe, word, length, tokens));
    pen_word_cache_keep(bpe->cache, word, length, tokens->ids + first, tokens->count - first);
    return PEN_OK;
}
