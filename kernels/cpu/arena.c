/* Memory for weights; see arena.h. */
#include "arena.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { CACHE_LINE = 64, HUGE_PAGE = 2 << 20, PIECE = 64 << 20 };

struct pen_arena_piece {
    pen_arena_piece *next; /* an older one */
    unsigned char *memory;
    size_t size, used;
    size_t taken; /* and not yet given back */
};

static size_t round_up(size_t bytes, size_t to) {
    return (bytes + to - 1) / to * to;
}

static pen_arena_piece *add_piece(pen_arena *arena, size_t bytes) {
    pen_arena_piece *piece = calloc(1, sizeof *piece);
    if (!piece) return NULL;
    piece->size = round_up(bytes > PIECE ? bytes : PIECE, HUGE_PAGE);
    piece->memory = aligned_alloc(HUGE_PAGE, piece->size);
    if (!piece->memory) {
        free(piece);
        return NULL;
    }
    madvise(piece->memory, piece->size, MADV_HUGEPAGE); /* only advice: may fail */
    piece->next = arena->pieces;
    return arena->pieces = piece;
}

void *pen_arena_take(pen_arena *arena, size_t bytes) {
    if (bytes > SIZE_MAX / 2) return NULL;
    bytes = round_up(bytes ? bytes : 1, CACHE_LINE);
    pen_arena_piece *piece = arena->pieces;
    if (!piece || piece->size - piece->used < bytes) piece = add_piece(arena, bytes);
    if (!piece) return NULL;
    unsigned char *memory = piece->memory + piece->used;
    piece->used += bytes;
    piece->taken++;
    return memory;
}

void pen_arena_give(pen_arena *arena, void *memory) {
    uintptr_t at = (uintptr_t)memory;
    pen_arena_piece **link = &arena->pieces;
    while (at - (uintptr_t)(*link)->memory >= (*link)->size) link = &(*link)->next;
    pen_arena_piece *piece = *link;
    assert(piece->taken > 0);
    if (--piece->taken) return;
    *link = piece->next;
    free(piece->memory);
    free(piece);
}
