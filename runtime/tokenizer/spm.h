/*
 * SentencePiece's BPE (`tokenizer.ggml.model` = llama): the neighbouring pair that makes the token with the best score
 * is joined, the leftmost among equals, until no pair makes a token. A text of n bytes takes O(n log n).
 *
 * What is no token is spelt in byte tokens where the vocabulary has them, and is the unknown token (one for a run)
 * where it has none. Ids are those of the sentencepiece library, with one difference: a byte that is not UTF-8 becomes
 * its own byte token instead of those of U+FFFD, so that no text is lost.
 */
#ifndef PEN_SPM_H
#define PEN_SPM_H

#include "specials.h"

typedef struct pen_spm pen_spm;

/* Reads what the file says besides the vocabulary, which outlives it, as do the special tokens. */
pen_status pen_spm_open(const pen_gguf *gguf, const pen_vocab *vocab, const pen_specials *specials, pen_spm **spm);
void pen_spm_close(pen_spm *spm);

/* Appends the tokens of a text, with a space before it where the model was trained so. User-defined tokens are found,
 * control tokens are not. */
pen_status pen_spm_encode(pen_spm *spm, const char *text, size_t length, pen_tokens *tokens);

/* What decoding takes from the beginning of a text: the space that encoding added there, or all spaces. */
typedef enum pen_spm_strip { PEN_SPM_STRIP_NOTHING, PEN_SPM_STRIP_SPACE, PEN_SPM_STRIP_SPACES } pen_spm_strip;
pen_spm_strip pen_spm_strips(const pen_spm *spm);

#endif
