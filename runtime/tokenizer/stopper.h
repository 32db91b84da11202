/*
 * Stop strings: text goes in piece by piece, and comes out as soon as no stop string can begin in it any more. A text
 * ends before the stop string that ends first in it (of several that end there, the longest), however it was cut into
 * pieces, and of the stop string and what follows nothing comes out.
 */
#ifndef PEN_STOPPER_H
#define PEN_STOPPER_H

#include "tokenizer.h"

typedef struct pen_stopper pen_stopper;

/* Copies. PEN_USAGE for an empty string and one that is not UTF-8: a text would end within a character. */
pen_status pen_stopper_create(const char *const *strings, int count, pen_stopper **stopper);
void pen_stopper_destroy(pen_stopper *stopper);

/* What may be shown now: first `held`, which was kept back, then `fresh`, a part of the text pushed. */
typedef struct pen_stopper_text {
    pen_text held, fresh;
    bool stopped; /* the text ends here */
} pen_stopper_text;

/* Until it has stopped. Valid until the next call, and as long as the text pushed. Where `armed` is false no stop
 * string ends in this piece, though one may begin. */
pen_stopper_text pen_stopper_push(pen_stopper *stopper, pen_text text, bool armed);
/* What is still kept back, where the text ends without a stop string. */
pen_text pen_stopper_finish(pen_stopper *stopper);

#endif
