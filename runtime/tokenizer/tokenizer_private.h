/* What tokenizer.c and detokenizer.c share. */
#ifndef PEN_TOKENIZER_PRIVATE_H
#define PEN_TOKENIZER_PRIVATE_H

#include "bpe.h"
#include "pretokenizer.h"
#include "vocab.h"

enum { PEN_TOKENIZER_ENDS = 16 };

struct pen_tokenizer {
    pen_vocab *vocab;

    /* The rest is unused where there are only ids. */
    bool ids_only;
    const pen_pretokenizer_kind *kind;
    pen_pretokenizer *pretokenizer;
    pen_bpe *bpe;
    int32_t *specials; /* control and user-defined tokens, by the order of their bytes */
    size_t special_count;
    bool begins_special[256]; /* by byte */

    int32_t bos, eos; /* −1: none */
    bool adds_bos;
    int32_t ends[PEN_TOKENIZER_ENDS];
    int end_count;
};

#endif
