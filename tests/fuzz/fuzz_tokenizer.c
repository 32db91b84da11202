/*
 * Fuzzes tokenizers: a vocabulary from a file, and a text. An input is the text, then the file.
 *
 * Whatever the vocabulary: ids are the vocabulary's, the same text gives the same ids, and what the detokenizer returns
 * is valid UTF-8. With the vocabulary of a seed, which has all bytes and does not contradict itself, the tokens spell
 * the text.
 */
#include "gguf_input.h"
#include "log.h"
#include "pretokenizer.h"
#include "tokenizer.h"
#include "utf8.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool truth) {
    if (!truth) abort();
}

static void require_utf8(pen_text text) {
    for (size_t i = 0; i < text.length;) {
        int step = pen_utf8_next(text.data + i, text.length - i);
        require(step > 0);
        i += (size_t)step;
    }
}

static void detokenize(const pen_tokenizer *tokenizer, const pen_tokens *tokens, bool control) {
    pen_detokenizer *detokenizer;
    if (pen_detokenizer_create(tokenizer, control, &detokenizer) != PEN_OK) return;
    for (size_t i = 0; i < tokens->count; i++) require_utf8(pen_detokenizer_push(detokenizer, tokens->ids[i]));
    require_utf8(pen_detokenizer_push(detokenizer, pen_tokenizer_vocab_size(tokenizer))); /* of a padded output */
    require_utf8(pen_detokenizer_finish(detokenizer));
    pen_detokenizer_destroy(detokenizer);
}

static void encode(pen_tokenizer *tokenizer, const char *text, size_t length, unsigned flags) {
    pen_tokens first = {0}, again = {0};
    pen_status status = pen_tokenizer_encode(tokenizer, text, length, flags, &first);
    require(status == pen_tokenizer_encode(tokenizer, text, length, flags, &again));
    require(first.count == again.count);
    if (first.count) require(memcmp(first.ids, again.ids, first.count * sizeof *first.ids) == 0);
    for (size_t i = 0; i < first.count; i++)
        require(first.ids[i] >= 0 && first.ids[i] < pen_tokenizer_vocab_size(tokenizer));
    detokenize(tokenizer, &first, flags & PEN_ENCODE_SPECIAL);
    pen_tokens_free(&first);
    pen_tokens_free(&again);
}

/* A seed's file ends with its hash. */
static bool is_seed(const uint8_t *file, size_t size) {
    uint64_t hash;
    if (size < sizeof hash) return false;
    memcpy(&hash, file + size - sizeof hash, sizeof hash);
    return hash == XXH64(file, size - sizeof hash, 0);
}

/* Whether a text may come back as another one: composed, or with spaces where it had the character that means one. */
static bool changes(const pen_gguf *gguf, const char *text, size_t length) {
    pen_gguf_string pre;
    if (!pen_gguf_has(gguf, "tokenizer.ggml.pre")) return memmem(text, length, "\342\226\201", 3) != NULL;
    require(pen_gguf_str(gguf, "tokenizer.ggml.pre", &pre) == PEN_OK);
    return pen_pretokenizer_find(pre.data, pre.length)->composes;
}

/* SentencePiece puts a space before a text. */
static void check_spelling(pen_tokenizer *tokenizer, const char *text, size_t length) {
    pen_tokens tokens = {0};
    size_t at = 0;
    require(pen_tokenizer_encode(tokenizer, text, length, 0, &tokens) == PEN_OK);
    for (size_t i = 0; i < tokens.count; i++) {
        pen_text piece = pen_tokenizer_piece(tokenizer, tokens.ids[i]);
        bool prefix = i == 0 && piece.length > 0 && piece.data[0] == ' ' && text[0] != ' ';
        require(piece.length - prefix <= length - at);
        require(memcmp(piece.data + prefix, text + at, piece.length - prefix) == 0);
        at += piece.length - prefix;
    }
    require(at == length);
    pen_tokens_free(&tokens);
}

static void use(pen_tokenizer *tokenizer, const char *text, size_t length) {
    encode(tokenizer, text, length, PEN_ENCODE_BOS | PEN_ENCODE_SPECIAL | PEN_ENCODE_EOS);
    encode(tokenizer, text, length, 0);
    for (int32_t id = -1; id <= pen_tokenizer_vocab_size(tokenizer); id++) {
        (void)pen_tokenizer_piece(tokenizer, id);
        (void)pen_tokenizer_is_end(tokenizer, id);
        (void)pen_tokenizer_is_control(tokenizer, id);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t begin = gguf_begin(data, 0, size);
    pen_gguf *gguf;
    pen_tokenizer *tokenizer;
    pen_log_init(PEN_LOG_ERROR, -1);
    if (begin == size || pen_gguf_open(gguf_files(data + begin, size - begin), &gguf) != PEN_OK) return 0;
    if (pen_tokenizer_open(gguf, &tokenizer) == PEN_OK) {
        char *text = malloc(begin ? begin : 1); /* of its own, so that a read past its end is seen */
        require(text != NULL);
        memcpy(text, data, begin);
        use(tokenizer, text, begin);
        if (is_seed(data + begin, size - begin) && !changes(gguf, text, begin)) check_spelling(tokenizer, text, begin);
        free(text);
        pen_tokenizer_close(tokenizer);
    }
    pen_gguf_close(gguf);
    return 0;
}
