/*
 * Memory for weights, on huge pages. Most weights of a small model are smaller than two huge pages, and reading a model
 * through pages of 4 KiB costs a third of the memory's bandwidth; so weights share pieces, one behind the other in the
 * order in which they are made, which is the order in which a step reads them.
 *
 * A piece is returned when the last weight in it is. Memory that no weight was written to is address space only.
 */
#ifndef PEN_ARENA_H
#define PEN_ARENA_H

#include <stddef.h>

typedef struct pen_arena_piece pen_arena_piece;

/* All zero: an arena that holds nothing. */
typedef struct pen_arena {
    pen_arena_piece *pieces;
} pen_arena;

/* Memory with undefined contents, aligned to a cache line; NULL where there is none. */
void *pen_arena_take(pen_arena *arena, size_t bytes);
void pen_arena_give(pen_arena *arena, void *memory);

#endif
