/*
 * SentencePiece's BPE; see spm.h.
 *
 * The text is normalised into a buffer, with plain spaces for "▁". Its symbols, at first single characters, are a
 * linked list in an array. A heap holds the joins that are possible, as order of the score << 32 | index of the left
 * symbol, so the smallest number is the best token at the leftmost place. Each symbol knows the token that it and the
 * next one would make now: a join that comes out of the heap and is not that one any more is out of date.
 *
 * Joins could cross a whole text, as "▁" is a character like others. But where two neighbouring bytes stand side by
 * side in no token of the vocabulary, no token can ever reach across, and what is on either side is independent. The
 * text is cut there: into words, mostly, whose tokens are remembered.
 *
 * A token of kind "unused" may be made on the way, but where it is left in the end it is taken apart again into the two
 * that made it. Those are always the same two: while a stretch of text becomes one token, its joins happen in the order
 * of their scores, whatever is around it, and only the last of them joins two symbols to the whole.
 */
#include "spm.h"

#include "heap.h"
#include "tokens.h"
#include "utf8.h"
#include "word_cache.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NONE = -1 };

typedef struct symbol {
    uint32_t start, length; /* in the text */
    int32_t before, after;
    int32_t id;   /* NONE: a character that was not looked up */
    int32_t join; /* what it and the next symbol make; NONE: nothing, or it was joined to the one before it */
} symbol;

struct pen_spm {
    const pen_vocab *vocab;
    const pen_specials *specials;
    uint32_t *orders;   /* [vocabulary]: the better the score, the smaller; equal for equal scores */
    int32_t bytes[256]; /* byte tokens: all, or all NONE */
    int32_t unknown;
    size_t longest;               /* bytes of a token that joins can make */
    uint8_t beside[256][256 / 8]; /* whether a second byte follows a first one anywhere in such a token */
    bool space_prefix, removes_spaces;
    uint32_t *splits; /* [vocabulary]: bytes of the left one of two that made a token; NULL: none is unused */
    pen_word_cache *cache;
    /* For the text at hand; they grow to the longest seen. */
    char *text;
    size_t text_capacity;
    symbol *symbols;
    size_t symbol_capacity;
    pen_heap heap;
};

/* ---- Joining --------------------------------------------------------------------------------------------------- */

/* Room for the symbols of `length` bytes. Each has one join at the start, and each of the fewer joins done adds two. */
static pen_status reserve_symbols(pen_spm *spm, size_t length) {
    if (length <= spm->symbol_capacity) return PEN_OK;
    size_t capacity = length + length / 2 + 64;
    free(spm->symbols);
    free(spm->heap.items);
    spm->symbols = malloc(capacity * sizeof *spm->symbols);
    spm->heap.items = malloc(3 * capacity * sizeof *spm->heap.items);
    spm->symbol_capacity = spm->symbols && spm->heap.items ? capacity : 0;
    return spm->symbol_capacity ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for %zu bytes without a break", length);
}

/* Finds what a symbol and the next one make. */
static void propose(pen_spm *spm, int32_t index) {
    if (index == NONE) return;
    symbol *left = &spm->symbols[index];
    left->join = NONE;
    if (left->after == NONE) return;
    const symbol *right = &spm->symbols[left->after];
    size_t length = (size_t)left->length + right->length;
    if (length > spm->longest) return;
    left->join = pen_vocab_find_bytes(spm->vocab, spm->text + left->start, length);
    if (left->join == NONE) return;
    if (spm->splits) spm->splits[left->join] = left->length;
    pen_heap_push(&spm->heap, (uint64_t)spm->orders[left->join] << 32 | (uint32_t)index);
}

static void join(pen_spm *spm, uint64_t proposal) {
    int32_t index = (int32_t)(uint32_t)proposal;
    symbol *left = &spm->symbols[index];
    if (left->join == NONE || spm->orders[left->join] != proposal >> 32) return;
    symbol *right = &spm->symbols[left->after];
    left->id = left->join;
    left->length += right->length;
    left->after = right->after;
    right->join = NONE;
    if (left->after != NONE) spm->symbols[left->after].before = index;
    propose(spm, left->before);
    propose(spm, index);
}

/* Takes a symbol apart into the two that made it. What begins at its second half was a symbol once. */
static void unjoin(pen_spm *spm, int32_t index) {
    symbol *left = &spm->symbols[index];
    uint32_t split = spm->splits[left->id];
    int32_t second = index + 1;
    while (spm->symbols[second].start != left->start + split) second++;
    spm->symbols[second] = (symbol){.start = left->start + split,
                                    .length = left->length - split,
                                    .before = index,
                                    .after = left->after,
                                    .id = NONE,
                                    .join = NONE};
    left->length = split;
    left->after = second;
    left->id = NONE;
}

static pen_status append_symbol(const pen_spm *spm, const symbol *s, pen_tokens *tokens) {
    if (s->id != NONE) return pen_tokens_append(tokens, &s->id, 1);
    if (spm->bytes[0] == NONE) return pen_tokens_append(tokens, &spm->unknown, 1);
    for (uint32_t i = 0; i < s->length; i++)
        PEN_TRY(pen_tokens_append(tokens, &spm->bytes[(unsigned char)spm->text[s->start + i]], 1));
    return PEN_OK;
}

/* Makes the symbols of text[start … end): characters, or single bytes where it is not UTF-8. */
static int32_t make_symbols(pen_spm *spm, size_t start, size_t end) {
    int32_t count = 0;
    for (size_t at = start, length; at < end; at += length) {
        int step = pen_utf8_next(spm->text + at, end - at);
        length = step > 0 ? (size_t)step : 1;
        spm->symbols[count] = (symbol){(uint32_t)at, (uint32_t)length, count - 1, count + 1, NONE, NONE};
        count++;
    }
    spm->symbols[count - 1].after = NONE;
    return count;
}

/* Appends the tokens of text[start … end), which is not empty. */
static pen_status encode_span(pen_spm *spm, size_t start, size_t end, pen_tokens *tokens) {
    PEN_TRY(reserve_symbols(spm, end - start));
    int32_t count = make_symbols(spm, start, end);
    spm->heap.count = 0;
    for (int32_t i = 0; i < count; i++) propose(spm, i);
    while (spm->heap.count) join(spm, pen_heap_pop(&spm->heap));

    for (int32_t i = 0; i != NONE;) {
        symbol *s = &spm->symbols[i];
        if (s->id == NONE) s->id = pen_vocab_find_bytes(spm->vocab, spm->text + s->start, s->length);
        bool unused = spm->splits && s->id != NONE && pen_vocab_kind(spm->vocab, s->id) == PEN_TOKEN_UNUSED;
        if (unused && spm->splits[s->id]) {
            unjoin(spm, i);
            continue;
        }
        PEN_TRY(append_symbol(spm, s, tokens));
        i = s->after;
    }
    return PEN_OK;
}

/* ---- Words ----------------------------------------------------------------------------------------------------- */

static bool are_beside(const pen_spm *spm, unsigned char first, unsigned char second) {
    return spm->beside[first][second / 8] >> second % 8 & 1;
}

static void set_beside(pen_spm *spm, unsigned char first, unsigned char second) {
    spm->beside[first][second / 8] |= (uint8_t)(1 << second % 8);
}

static pen_status encode_word(pen_spm *spm, size_t start, size_t end, pen_tokens *tokens) {
    const char *word = spm->text + start;
    const pen_cached_word *cached = pen_word_cache_find(spm->cache, word, end - start);
    if (cached) return pen_tokens_append(tokens, cached->ids, cached->count);
    size_t first = tokens->count;
    PEN_TRY(encode_span(spm, start, end, tokens));
    pen_word_cache_keep(spm->cache, word, end - start, tokens, first);
    return PEN_OK;
}

/* Text without user-defined tokens, cut wherever no token can reach across. */
static pen_status encode_words(pen_spm *spm, size_t start, size_t end, pen_tokens *tokens) {
    for (size_t next; start < end; start = next) {
        for (next = start + 1; next < end; next++)
            if (!are_beside(spm, (unsigned char)spm->text[next - 1], (unsigned char)spm->text[next])) break;
        PEN_TRY(encode_word(spm, start, next, tokens));
    }
    return PEN_OK;
}

static pen_status encode_normalised(pen_spm *spm, size_t length, pen_tokens *tokens) {
    for (size_t start = 0, at = 0; start < length; start = at) {
        int32_t id = pen_specials_next(spm->specials, spm->text, length, false, &at);
        PEN_TRY(encode_words(spm, start, at, tokens));
        if (id == NONE) break;
        PEN_TRY(pen_tokens_append(tokens, &id, 1));
        at += pen_vocab_piece(spm->vocab, id).length;
    }
    return PEN_OK;
}

/* ---- A text ---------------------------------------------------------------------------------------------------- */

/* Writes what SentencePiece's normaliser makes of a text to spm->text, with plain spaces for "▁". */
static pen_status normalise(pen_spm *spm, const char *text, size_t length, size_t *written) {
    *written = 0;
    if (length == 0) return PEN_OK;
    if (length >= INT32_MAX) return pen_fail(PEN_UNSUPPORTED, "a text of %zu bytes cannot be tokenised", length);
    if (length >= spm->text_capacity) {
        char *larger = realloc(spm->text, length + length / 2 + 64);
        if (!larger) return pen_fail(PEN_NO_MEMORY, "no memory for a text of %zu bytes", length);
        spm->text = larger;
        spm->text_capacity = length + length / 2 + 64;
    }
    char *out = spm->text;
    size_t count = 0;
    if (spm->space_prefix) out[count++] = ' ';
    bool skips = spm->removes_spaces; /* spaces that come now */
    for (size_t i = 0; i < length; i++) {
        if (text[i] == ' ' && skips) continue;
        skips = spm->removes_spaces && text[i] == ' ';
        bool escaped = length - i >= 3 && !memcmp(text + i, "\u2581", 3);
        out[count++] = escaped ? ' ' : text[i];
        if (escaped) i += 2;
    }
    while (spm->removes_spaces && count && out[count - 1] == ' ') count--;
    *written = count;
    return PEN_OK;
}

/* A run of unknown tokens becomes one. */
static void squeeze_unknown(const pen_spm *spm, pen_tokens *tokens, size_t first) {
    size_t kept = first;
    for (size_t i = first; i < tokens->count; i++)
        if (i == first || tokens->ids[i] != spm->unknown || tokens->ids[i - 1] != spm->unknown)
            tokens->ids[kept++] = tokens->ids[i];
    tokens->count = kept;
}

pen_status pen_spm_encode(pen_spm *spm, const char *text, size_t length, pen_tokens *tokens) {
    size_t count, first = tokens->count;
    PEN_TRY(normalise(spm, text, length, &count));
    if (count == 0) return PEN_OK;
    PEN_TRY(encode_normalised(spm, count, tokens));
    if (spm->bytes[0] == NONE) squeeze_unknown(spm, tokens, first);
    return PEN_OK;
}

pen_spm_strip pen_spm_strips(const pen_spm *spm) {
    if (spm->removes_spaces) return PEN_SPM_STRIP_SPACES;
    return spm->space_prefix ? PEN_SPM_STRIP_SPACE : PEN_SPM_STRIP_NOTHING;
}

/* ---- Opening --------------------------------------------------------------------------------------------------- */

/* Numbers in the opposite order of floats, equal for equal ones. */
static uint32_t order_of(float score) {
    uint32_t bits;
    score += 0.0f; /* no −0 */
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000 ? bits : ~bits & 0x7fffffff;
}

static pen_status read_scores(const pen_gguf *gguf, pen_spm *spm) {
    const char *key = "tokenizer.ggml.scores", *path = pen_gguf_path(gguf);
    size_t count, size = (size_t)pen_vocab_size(spm->vocab);
    double score;
    PEN_TRY(pen_gguf_array(gguf, key, &count));
    if (count != size)
        return pen_fail(PEN_BAD_INPUT, "%s: key %s has %zu elements for %zu tokens", path, key, count, size);
    spm->orders = malloc(size * sizeof *spm->orders);
    if (!spm->orders) return pen_fail(PEN_NO_MEMORY, "no memory for %zu scores", size);
    for (size_t i = 0; i < size; i++) {
        PEN_TRY(pen_gguf_array_f64(gguf, key, i, &score));
        if (isnan(score)) return pen_fail(PEN_BAD_INPUT, "%s: key %s: that of token %zu is not a number", path, key, i);
        spm->orders[i] = order_of((float)score);
    }
    return PEN_OK;
}

static pen_status read_tokens(const pen_gguf *gguf, pen_spm *spm) {
    size_t size = (size_t)pen_vocab_size(spm->vocab);
    bool unused = false;
    for (int byte = 0; byte < 256; byte++) {
        spm->bytes[byte] = NONE;
        /* A character is not cut. */
        for (int second = 0x80; second < 0xc0; second++) set_beside(spm, (unsigned char)byte, (unsigned char)second);
    }
    for (int32_t id = 0; id < (int32_t)size; id++) {
        pen_text piece = pen_vocab_piece(spm->vocab, id);
        pen_token_kind kind = pen_vocab_kind(spm->vocab, id);
        if (kind == PEN_TOKEN_BYTE) {
            int32_t *token = &spm->bytes[(unsigned char)piece.data[0]];
            if (*token != NONE)
                return pen_fail(PEN_BAD_INPUT, "%s: key tokenizer.ggml.tokens: token %d is there twice",
                                pen_gguf_path(gguf), (int)id);
            *token = id;
        } else if (kind == PEN_TOKEN_UNKNOWN && spm->unknown == NONE) {
            spm->unknown = id;
        } else if (kind == PEN_TOKEN_NORMAL || kind == PEN_TOKEN_UNUSED) {
            for (size_t i = 1; i < piece.length; i++)
                set_beside(spm, (unsigned char)piece.data[i - 1], (unsigned char)piece.data[i]);
            if (piece.length > spm->longest) spm->longest = piece.length;
            unused = unused || kind == PEN_TOKEN_UNUSED;
        }
    }
    if (!unused) return PEN_OK;
    spm->splits = calloc(size, sizeof *spm->splits);
    return spm->splits ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for %zu tokens", size);
}

/* All bytes have tokens, or none has and there is an unknown token. */
static pen_status check_bytes(const pen_gguf *gguf, const pen_spm *spm) {
    int missing = 0, first = NONE;
    for (int byte = 255; byte >= 0; byte--) {
        if (spm->bytes[byte] != NONE) continue;
        missing++;
        first = byte;
    }
    if (missing > 0 && missing < 256)
        return pen_fail(
            PEN_BAD_INPUT, "%s: key tokenizer.ggml.tokens: of the 256 byte tokens %d %s missing, %s<0x%02X>",
            pen_gguf_path(gguf), missing, missing == 1 ? "is" : "are", missing == 1 ? "" : "such as ", (unsigned)first);
    if (missing == 256 && spm->unknown == NONE)
        return pen_fail(PEN_BAD_INPUT, "%s: there are neither byte tokens nor an unknown token", pen_gguf_path(gguf));
    return PEN_OK;
}

static pen_status read_all(const pen_gguf *gguf, pen_spm *spm) {
    const char *map = "tokenizer.ggml.precompiled_charsmap";
    size_t map_bytes = 0;
    int64_t unknown;
    if (pen_gguf_has(gguf, map)) PEN_TRY(pen_gguf_array(gguf, map, &map_bytes));
    if (map_bytes > 0)
        return pen_fail(PEN_UNSUPPORTED, "%s: key %s: text would have to be normalised by it", pen_gguf_path(gguf),
                        map);
    if (!pen_gguf_has(gguf, "tokenizer.ggml.token_type"))
        return pen_fail(PEN_BAD_INPUT, "%s: key tokenizer.ggml.token_type is missing", pen_gguf_path(gguf));
    PEN_TRY(
        pen_gguf_i64_or(gguf, "tokenizer.ggml.unknown_token_id", 0, pen_vocab_size(spm->vocab) - 1, NONE, &unknown));
    spm->unknown = (int32_t)unknown;
    PEN_TRY(pen_gguf_bool_or(gguf, "tokenizer.ggml.add_space_prefix", true, &spm->space_prefix));
    PEN_TRY(pen_gguf_bool_or(gguf, "tokenizer.ggml.remove_extra_whitespaces", false, &spm->removes_spaces));
    PEN_TRY(read_scores(gguf, spm));
    PEN_TRY(read_tokens(gguf, spm));
    return check_bytes(gguf, spm);
}

pen_status pen_spm_open(const pen_gguf *gguf, const pen_vocab *vocab, const pen_specials *specials, pen_spm **spm_out) {
    *spm_out = NULL;
    pen_spm *spm = calloc(1, sizeof *spm);
    if (!spm) return pen_fail(PEN_NO_MEMORY, "no memory for a tokenizer");
    spm->vocab = vocab;
    spm->specials = specials;
    spm->cache = pen_word_cache_create();
    pen_status status = spm->cache ? read_all(gguf, spm) : pen_fail(PEN_NO_MEMORY, "no memory for a tokenizer");
    if (status == PEN_OK)
        *spm_out = spm;
    else
        pen_spm_close(spm);
    return status;
}

void pen_spm_close(pen_spm *spm) {
    if (!spm) return;
    free(spm->orders);
    free(spm->splits);
    pen_word_cache_destroy(spm->cache);
    free(spm->text);
    free(spm->symbols);
    free(spm->heap.items);
    free(spm);
}
