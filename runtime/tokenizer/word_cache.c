/* The cache of words; see word_cache.h. */
#include "word_cache.h"

#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

enum { PLACES = 1 << 14 };

struct pen_word_cache {
    pen_cached_word words[PLACES];
};

pen_word_cache *pen_word_cache_create(void) {
    return calloc(1, sizeof(pen_word_cache));
}

void pen_word_cache_destroy(pen_word_cache *cache) {
    free(cache);
}

static size_t place(const char *word, size_t length) {
    return XXH3_64bits(word, length) % PLACES;
}

const pen_cached_word *pen_word_cache_find(const pen_word_cache *cache, const char *word, size_t length) {
    if (length == 0 || length > PEN_CACHED_BYTES) return NULL;
    const pen_cached_word *cached = &cache->words[place(word, length)];
    return cached->length == length && !memcmp(cached->word, word, length) ? cached : NULL;
}

void pen_word_cache_keep(pen_word_cache *cache, const char *word, size_t length, const pen_tokens *tokens,
                         size_t first) {
    size_t count = tokens->count - first;
    if (length == 0 || length > PEN_CACHED_BYTES || count == 0 || count > PEN_CACHED_TOKENS) return;
    pen_cached_word *cached = &cache->words[place(word, length)];
    cached->length = (uint8_t)length;
    cached->count = (uint8_t)count;
    memcpy(cached->word, word, length);
    memcpy(cached->ids, tokens->ids + first, count * sizeof *cached->ids);
}
