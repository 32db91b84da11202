/* A heap of 64-bit numbers in an array that its owner has made large enough: the smallest comes out first. */
#ifndef PEN_HEAP_H
#define PEN_HEAP_H

#include <stddef.h>
#include <stdint.h>

typedef struct pen_heap {
    uint64_t *items;
    size_t count;
} pen_heap;

static inline void pen_heap_push(pen_heap *heap, uint64_t item) {
    size_t at = heap->count++;
    for (; at && heap->items[(at - 1) / 2] > item; at = (at - 1) / 2) heap->items[at] = heap->items[(at - 1) / 2];
    heap->items[at] = item;
}

static inline uint64_t pen_heap_pop(pen_heap *heap) {
    uint64_t *items = heap->items, smallest = items[0], last = items[--heap->count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < heap->count; at = child) {
        if (child + 1 < heap->count && items[child + 1] < items[child]) child++;
        if (last <= items[child]) break;
        items[at] = items[child];
    }
    items[at] = last;
    return smallest;
}

#endif
