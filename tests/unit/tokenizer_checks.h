/* What the tests of both kinds of tokenizer have in common. Include it after cmocka.h. */
#ifndef PEN_TOKENIZER_CHECKS_H
#define PEN_TOKENIZER_CHECKS_H

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utf8proc.h>

#include "clock.h"
#include "gguf_image.h"
#include "tokenizer.h"

static inline pen_tokens encoded(pen_tokenizer *tokenizer, const char *text, size_t length, unsigned flags) {
    pen_tokens tokens = {0};
    if (pen_tokenizer_encode(tokenizer, text, length, flags, &tokens) != PEN_OK) fail_msg("%s", pen_last_error());
    return tokens;
}

static inline void assert_encodes(pen_tokenizer *tokenizer, const char *text, unsigned flags, size_t count,
                                  const int32_t *ids) {
    for (int again = 0; again < 2; again++) { /* the second time from the cache */
        pen_tokens tokens = encoded(tokenizer, text, strlen(text), flags);
        assert_int_equal(tokens.count, count);
        if (count) assert_memory_equal(tokens.ids, ids, count * sizeof *ids);
        pen_tokens_free(&tokens);
    }
}
#define ASSERT_ENCODES(tokenizer, text, flags, ...)                                                                    \
    assert_encodes(tokenizer, text, flags, sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t), (int32_t[]){__VA_ARGS__})

static inline void assert_utf8(pen_text text) {
    utf8proc_int32_t character;
    for (size_t at = 0; at < text.length;) {
        utf8proc_ssize_t step = utf8proc_iterate((const utf8proc_uint8_t *)text.data + at,
                                                 (utf8proc_ssize_t)(text.length - at), &character);
        assert_true(step > 0);
        at += (size_t)step;
    }
}

/* The whole text of some ids, through a stream each of whose parts is checked. The caller frees it. */
static inline pen_text streamed(const pen_tokenizer *tokenizer, const int32_t *ids, size_t count, bool control) {
    pen_detokenizer *detokenizer;
    assert_int_equal(pen_detokenizer_create(tokenizer, control ? PEN_DECODE_CONTROL : 0, &detokenizer), PEN_OK);
    char *text = malloc(1);
    size_t length = 0;
    for (size_t i = 0; i <= count; i++) {
        pen_text part = i < count ? pen_detokenizer_push(detokenizer, ids[i]) : pen_detokenizer_finish(detokenizer);
        assert_utf8(part);
        text = realloc(text, length + part.length + 1);
        if (part.length) memcpy(text + length, part.data, part.length);
        length += part.length;
    }
    pen_detokenizer_destroy(detokenizer);
    return (pen_text){text, length};
}

static inline void assert_streams(const pen_tokenizer *tokenizer, const int32_t *ids, size_t count, bool control,
                                  const char *expected, size_t length) {
    pen_text text = streamed(tokenizer, ids, count, control);
    assert_int_equal(text.length, length);
    assert_memory_equal(text.data, expected, length);
    free((char *)text.data);
}

static inline size_t random_text(uint64_t *seed, char *text) {
    size_t length = 0;
    for (size_t i = next_random(seed) % 40; i; i--) {
        utf8proc_int32_t character;
        do {
            static const int ends[] = {0x80, 0x80, 0x100, 0x800, 0x3000, 0x10000, 0x110000};
            character = (utf8proc_int32_t)(next_random(seed) % (uint64_t)ends[next_random(seed) % 7]);
        } while (!utf8proc_codepoint_valid(character));
        length += (size_t)utf8proc_encode_char(character, (utf8proc_uint8_t *)text + length);
    }
    return length;
}

static inline double seconds_to_encode(pen_tokenizer *t, const char *text, size_t length) {
    int64_t start = pen_clock_thread_cpu_ns();
    pen_tokens tokens = encoded(t, text, length, PEN_ENCODE_SPECIAL);
    double seconds = (double)(pen_clock_thread_cpu_ns() - start) / 1e9;
    assert_true(tokens.count >= length / 16);
    pen_tokens_free(&tokens);
    return seconds;
}

/* Twice the text takes about twice the time: a quadratic method would take four times, and hours. */
static inline void assert_linear(pen_tokenizer *t, const char *text, size_t length) {
    alarm(120); /* ends the program */
    double half = 1e9, whole = 1e9;
    for (int repeat = 0; repeat < 2; repeat++) {
        double a = seconds_to_encode(t, text, length / 2), b = seconds_to_encode(t, text, length);
        if (a < half) half = a;
        if (b < whole) whole = b;
    }
    alarm(0);
    if (whole > 4 * half) fail_msg("%.3f s for half, %.3f s for the whole text", half, whole);
}

/* A vocabulary with a byte or two changed at random is refused, or is one that can encode the text and show it. */
static inline void assert_survives_flipped_bytes(const image *good, pen_text text) {
    uint64_t seed = 4;
    int accepted = 0;
    for (int round = 0; round < 3000; round++) {
        image flipped = *good;
        for (int flips = 1 + (int)(next_random(&seed) % 2); flips; flips--)
            flipped.bytes[next_random(&seed) % flipped.length] = (unsigned char)next_random(&seed);
        pen_gguf *gguf;
        pen_tokenizer *tokenizer;
        if (open_bytes(flipped.bytes, flipped.length, &gguf) != PEN_OK) continue;
        if (pen_tokenizer_open(gguf, &tokenizer) == PEN_OK) {
            pen_tokens tokens = encoded(tokenizer, text.data, text.length, PEN_ENCODE_BOS | PEN_ENCODE_SPECIAL);
            free((char *)streamed(tokenizer, tokens.ids, tokens.count, true).data);
            pen_tokens_free(&tokens);
            pen_tokenizer_close(tokenizer);
            accepted++;
        }
        pen_gguf_close(gguf);
    }
    assert_in_range(accepted, 1, 2999);
}

#endif
