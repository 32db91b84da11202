/*
 * The tokens of words that were met before. Most words of a text are, and are short: longer ones, and those of many
 * tokens, are not kept. There is one place for each hash, and the latest word has it.
 */
#ifndef PEN_WORD_CACHE_H
#define PEN_WORD_CACHE_H

#include "tokenizer.h"

enum { PEN_CACHED_BYTES = 22, PEN_CACHED_TOKENS = 6 };

typedef struct pen_cached_word {
    uint8_t length; /* 0: empty */
    uint8_t count;
    char word[PEN_CACHED_BYTES];
    int32_t ids[PEN_CACHED_TOKENS];
} pen_cached_word;

typedef struct pen_word_cache pen_word_cache;

pen_word_cache *pen_word_cache_create(void); /* NULL: no memory */
void pen_word_cache_destroy(pen_word_cache *cache);

/* NULL: not there. */
const pen_cached_word *pen_word_cache_find(const pen_word_cache *cache, const char *word, size_t length);
/* The word's tokens are those from `first` on; there may be none. */
void pen_word_cache_keep(pen_word_cache *cache, const char *word, size_t length, const pen_tokens *tokens,
                         size_t first);

#endif
