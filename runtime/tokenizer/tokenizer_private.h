/* What tokenizer.c and detokenizer.c share. */
#ifndef PEN_TOKENIZER_PRIVATE_H
#define PEN_TOKENIZER_PRIVATE_H

#include "bpe.h"
#include "pretokenizer.h"
#include "spm.h"
#include "word_cache.h"

enum { PEN_TOKENIZER_ENDS = 16 };

struct pen_tokenizer {
    pen_vocab *vocab;

    /* The rest is unused where there are only ids. */
    bool ids_only;
    pen_specials *specials;
    pen_spm *spm; /* NULL: byte-level BPE, which has the next four */
    const pen_pretokenizer_kind *kind;
    pen_pretokenizer *pretokenizer;
    pen_bpe *bpe;
    pen_word_cache *cache;

    int32_t bos, eos; /* −1: none */
    bool adds_bos, adds_eos;
    int32_t ends[PEN_TOKENIZER_ENDS];
    int end_count;
};

#endif
