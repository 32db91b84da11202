/*
 * The vocabulary: what each token is called in the file, the bytes that it stands for, and the way back.
 *
 * GPT-2's files spell a byte as a printable character (a space is "Ġ"): its *alphabet*. A normal token spelt in it
 * stands for those bytes. Other tokens (control, user-defined, or normal ones spelt otherwise) are *literal*: they
 * stand for their own name.
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

pen_status pen_vocab_open(const pen_gguf *gguf, pen_vocab **vocab);
pen_status pen_vocab_create_ids(int size, pen_vocab **vocab);
void pen_vocab_close(pen_vocab *vocab);

int pen_vocab_size(const pen_vocab *vocab);
size_t pen_vocab_longest(const pen_vocab *vocab); /* bytes that a token stands for, at most */
pen_token_kind pen_vocab_kind(const pen_vocab *vocab, int32_t id);
pen_text pen_vocab_piece(const pen_vocab *vocab, int32_t id);

/* −1: none. find_name works in memory of the vocabulary: one thread at a time. */
int32_t pen_vocab_find_name(pen_vocab *vocab, const char *name, size_t length);
int32_t pen_vocab_find_bytes(const pen_vocab *vocab, const char *bytes,
                             size_t length); /* tokens that are not literal */

#endif
