/*
 * Text to token ids and back.
 *
 * A tokenizer is made from a GGUF's metadata (`tokenizer.ggml.model` = gpt2, byte-level BPE, or llama, SentencePiece's
 * BPE) and copies what it needs, so the file may be closed. It is used from one thread at a time: encoding works in
 * buffers that it owns.
 *
 * A model without a file (`synthetic:…`) has no vocabulary: its ids-only tokenizer turns each byte of a text into the
 * id byte mod vocabulary and shows token 123 as "<123>".
 *
 * Text is bytes. Bytes that are not UTF-8 are tokenised too: in byte-level BPE each run of them as a word of its own,
 * in SentencePiece's as byte tokens. A byte whose token the vocabulary lacks (SmolLM2's lacks 21 that text hardly
 * holds) is left out by byte-level BPE, as Hugging Face's tokenizers do, and part of an unknown token with
 * SentencePiece.
 *
 * SentencePiece and special tokens in a text: what is between control tokens is encoded as the sentencepiece library
 * encodes a text (with a space before it where the model was trained so); user-defined tokens are part of such a text.
 */
#ifndef PEN_TOKENIZER_H
#define PEN_TOKENIZER_H

#include "gguf.h"

typedef struct pen_tokenizer pen_tokenizer;

/* A list of ids that grows; zero-initialised it is empty. */
typedef struct pen_tokens {
    int32_t *ids;
    size_t count, capacity;
} pen_tokens;
void pen_tokens_free(pen_tokens *tokens);

/* Some bytes that belong to somebody else. */
typedef struct pen_text {
    const char *data; /* not zero-terminated */
    size_t length;
} pen_text;

/* PEN_BAD_INPUT for a vocabulary that contradicts itself, PEN_UNSUPPORTED for a kind of tokenizer we do not have. */
pen_status pen_tokenizer_open(const pen_gguf *gguf, pen_tokenizer **tokenizer);
pen_status pen_tokenizer_create_ids(int vocab_size, pen_tokenizer **tokenizer);
void pen_tokenizer_close(pen_tokenizer *tokenizer);

enum {
    PEN_ENCODE_BOS = 1,     /* begin with BOS, where the model's metadata asks for it */
    PEN_ENCODE_SPECIAL = 2, /* recognise control tokens in the text; without it, "<|im_end|>" is ten characters */
    PEN_ENCODE_EOS = 4,     /* end with EOS, where the model's metadata asks for it */
};

/* Appends the ids of a text. User-defined tokens are part of the vocabulary and are always recognised. */
pen_status pen_tokenizer_encode(pen_tokenizer *tokenizer, const char *text, size_t length, unsigned flags,
                                pen_tokens *tokens);

int pen_tokenizer_vocab_size(const pen_tokenizer *tokenizer);
int32_t pen_tokenizer_bos(const pen_tokenizer *tokenizer);             /* −1: none */
int32_t pen_tokenizer_eos(const pen_tokenizer *tokenizer);             /* −1: none */
bool pen_tokenizer_is_end(const pen_tokenizer *tokenizer, int32_t id); /* EOS, end of turn, … : generation ends */
bool pen_tokenizer_is_control(const pen_tokenizer *tokenizer, int32_t id);
/* The bytes that a token stands for, perhaps a part of a character; empty for an id outside the vocabulary, which a
 * model with a padded output may choose. */
pen_text pen_tokenizer_piece(const pen_tokenizer *tokenizer, int32_t id);

/*
 * Streaming: ids go in one by one, text comes out as soon as it is whole characters. What is no UTF-8 becomes U+FFFD,
 * one for each longest part of a character that is valid so far, as in Hugging Face's decode: all that is returned is
 * valid UTF-8, and the same however the stream was cut into calls. Where encoding put a space before the text, the text
 * that comes back begins without it.
 */
typedef struct pen_detokenizer pen_detokenizer;

enum {
    PEN_DECODE_CONTROL = 1,   /* show control tokens as their names, rather than as nothing */
    PEN_DECODE_CONTINUED = 2, /* there is text before it: keep the space that SentencePiece would take for its own */
};

/* The tokenizer outlives the detokenizer. */
pen_status pen_detokenizer_create(const pen_tokenizer *tokenizer, unsigned flags, pen_detokenizer **detokenizer);
void pen_detokenizer_destroy(pen_detokenizer *detokenizer);
/* The text that is complete with this token. Valid until the next call. */
pen_text pen_detokenizer_push(pen_detokenizer *detokenizer, int32_t id);
/* The rest, at the end of a text; the detokenizer is ready for another one. */
pen_text pen_detokenizer_finish(pen_detokenizer *detokenizer);

#endif
