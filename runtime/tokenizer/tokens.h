/* Lists of ids, as they are made inside the tokenizer; the type itself is everybody's. */
#ifndef PEN_TOKENS_H
#define PEN_TOKENS_H

#include "tokenizer.h"

/* Appends ids to a list. */
pen_status pen_tokens_append(pen_tokens *tokens, const int32_t *ids, size_t count);

#endif
