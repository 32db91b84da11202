/*
 * Special tokens in a text: control tokens ("<|im_end|>") and user-defined ones, which stand for their own name
 * wherever it occurs. The first in the text wins, and of those that begin at one place the longest.
 */
#ifndef PEN_SPECIALS_H
#define PEN_SPECIALS_H

#include "vocab.h"

typedef struct pen_specials pen_specials;

/* The vocabulary outlives them. */
pen_status pen_specials_create(const pen_vocab *vocab, pen_specials **specials);
void pen_specials_destroy(pen_specials *specials);

/* The first special token in text[*at … length), and where it is (*at); −1, and the text's length, where there is none.
 * `control`: control tokens too, not only user-defined ones. */
int32_t pen_specials_next(const pen_specials *specials, const char *text, size_t length, bool control, size_t *at);

#endif
