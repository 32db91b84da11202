/* Near names: which of several known words a mistyped one probably meant. */
#ifndef PEN_NEAR_H
#define PEN_NEAR_H

#include <stddef.h>

typedef struct pen_near {
    const char *name; /* the nearest so far; NULL: none is near enough */
    int distance;
} pen_near;

/* Offers a known word (or NULL: nothing) for the mistyped word[length]. It counts as near when a third of the letters
 * or fewer are wrong, missing, too many or swapped with their neighbour, or when the word is the beginning of it. */
void pen_near_offer(pen_near *near, const char *word, size_t length, const char *known);

#endif
