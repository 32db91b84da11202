/*
 * Byte-pair encoding of one word: its bytes become tokens, and the neighbouring pair with the earliest merge is joined
 * (the leftmost among equals) until no merge fits. A word of n bytes takes O(n log n).
 */
#ifndef PEN_BPE_H
#define PEN_BPE_H

#include "tokenizer.h"

typedef struct pen_bpe pen_bpe;

typedef struct pen_merge { /* token ids; the earlier in the list, the sooner it is done */
    int32_t left, right, result;
} pen_merge;

/* Takes over `merges` (malloc'ed), also when it fails. `bytes` are the tokens of single bytes, −1 for one that has
 * none: it is left out. *repeated is the index of a merge whose pair was there before, or −1: then nothing is created.
 */
pen_status pen_bpe_create(pen_merge *merges, size_t count, const int32_t bytes[256], pen_bpe **bpe, int64_t *repeated);
void pen_bpe_destroy(pen_bpe *bpe);

/* Appends the tokens of a word. */
pen_status pen_bpe_encode(pen_bpe *bpe, const char *word, size_t length, pen_tokens *tokens);

#endif
