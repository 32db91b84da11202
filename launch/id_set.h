/* A set of texts, of which only hashes of 128 bits are kept: a million of them take 32 MB at most. */
#ifndef PEN_ID_SET_H
#define PEN_ID_SET_H

#include "tokenizer.h"

typedef struct pen_id_set pen_id_set;

pen_status pen_id_set_create(pen_id_set **set);
void pen_id_set_destroy(pen_id_set *set);

/* Adds a text; *added tells whether it is new. */
pen_status pen_id_set_add(pen_id_set *set, pen_text text, bool *added);

#endif
