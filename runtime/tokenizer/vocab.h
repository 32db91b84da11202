/*
 * The vocabulary: what each token is called in the file, the bytes that it stands for, and the way back.
 *
 * Names are spelt in one of two ways. GPT-2's files spell a byte as a printable character (a space is "Ġ"): its
 * *alphabet*. SentencePiece's files spell a space as U+2581 "▁" (then they hold no plain one), a byte token as
 * "<0x0A>", and the unknown token stands for " ⁇ ". A normal token spelt so stands for those bytes. Other tokens
 * (control, user-defined, or normal ones spelt otherwise) are *literal*: they stand for their own name, in which
 * SentencePiece's user-defined tokens may spell a space as either.
 */
#ifndef PEN_VOCAB_H
#define PEN_VOCAB_H

#include "tokenizer.h"

typedef struct pen_vocab pen_vocab;

typedef enum pen_token_kind { /* as numbered in tokenizer.ggml.token_type */
                              PEN_TOKEN_NORMAL = 1,
                              PEN_TOKEN_UNKNOWN,
                              PEN_TOKEN_CONTROL,
                              PEN_TOKEN_USER_DEFINED,
                              PEN_TOKEN_UNUSED,
                              PEN_TOKEN_BYTE
} pen_token_kind;

typedef enum pen_spelling { PEN_SPELLING_ALPHABET, PEN_SPELLING_SENTENCEPIECE } pen_spelling;

pen_status pen_vocab_open(const pen_gguf *gguf, pen_spelling spelling, pen_vocab **vocab);
pen_status pen_vocab_create_ids(int size, pen_vocab **vocab);
void pen_vocab_close(pen_vocab *vocab);

int pen_vocab_size(const pen_vocab *vocab);
size_t pen_vocab_longest(const pen_vocab *vocab); /* bytes that a token stands for, at most */
pen_token_kind pen_vocab_kind(const pen_vocab *vocab, int32_t id);
pen_text pen_vocab_piece(const pen_vocab *vocab, int32_t id);

/* −1: none. find_name works in memory of the vocabulary: one thread at a time. Neither finds SentencePiece's byte
 * tokens and unknown tokens. */
int32_t pen_vocab_find_name(pen_vocab *vocab, const char *name, size_t length);
int32_t pen_vocab_find_bytes(const pen_vocab *vocab, const char *bytes,
                             size_t length); /* tokens that are not literal */

#endif
