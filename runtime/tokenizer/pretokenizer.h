/*
 * Cuts a text into the words that BPE works on, by the patterns of pretokenizers.def (PCRE2, JIT-compiled where it can
 * be), after composing its characters where the model's own tokenizer does so.
 */
#ifndef PEN_PRETOKENIZER_H
#define PEN_PRETOKENIZER_H

#include "status.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct pen_pretokenizer pen_pretokenizer;

enum { PEN_PRETOKENIZER_BOS = 1, PEN_PRETOKENIZER_WHOLE = 2, PEN_PRETOKENIZER_NFC = 4 };
enum { PEN_PRETOKENIZER_PATTERNS = 6 };

typedef struct pen_pretokenizer_kind {
    const char *name;
    bool adds_bos;    /* where the file does not say */
    bool whole_words; /* a word that is a token is that token, whatever the merges would make */
    bool composes;    /* to normalization form C */
    const char *patterns[PEN_PRETOKENIZER_PATTERNS]; /* NULL after the last */
} pen_pretokenizer_kind;

/* NULL: no such kind. */
const pen_pretokenizer_kind *pen_pretokenizer_find(const char *name, size_t length);
/* All names, for messages: "smollm, gpt-2, …". */
const char *pen_pretokenizer_names(void);

pen_status pen_pretokenizer_create(const pen_pretokenizer_kind *kind, pen_pretokenizer **pretokenizer);
void pen_pretokenizer_destroy(pen_pretokenizer *pretokenizer);

/* Calls `word` for each word in order, until it fails. A run of bytes that are not UTF-8 is a word, and the text on
 * either side of it is cut as if it stood alone. */
typedef pen_status pen_word(void *context, const char *word, size_t length);
pen_status pen_pretokenizer_split(pen_pretokenizer *pretokenizer, const char *text, size_t length, pen_word *word,
                                  void *context);

#endif
