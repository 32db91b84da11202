/*
 * Fuzzes tokenizers: a vocabulary from a file, and a text. An input is the text, then the file.
 *
 * Whatever the vocabulary: ids are the vocabulary's, the same text gives the same ids, and what the detokenizer returns
 * is valid UTF-8, a bounded number of bytes, and the same in a stream as at once.
 */
#include "gguf_input.h"
#include "tokenizer.h"
#include "utf8.h"

#include <stdlib.h>
#include <string.h>

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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t begin = gguf_begin(data, 0, size);
    if (begin == size) return 0;
    pen_gguf *gguf;
    pen_tokenizer *tokenizer;
    if (pen_gguf_open(gguf_files(data + begin, size - begin), &gguf) != PEN_OK) return 0;
    pen_status status = pen_tokenizer_open(gguf, &tokenizer);
    pen_gguf_close(gguf);
    if (status != PEN_OK) return 0;
    char *text = malloc(begin ? begin : 1); /* of its own, so that a read past its end is seen */
    if (text) {
        memcpy(text, data, begin);
        encode(tokenizer, text, begin, PEN_ENCODE_BOS | PEN_ENCODE_SPECIAL);
        encode(tokenizer, text, begin, 0);
    }
    free(text);
    for (int32_t id = -1; id <= pen_tokenizer_vocab_size(tokenizer); id++) {
        (void)pen_tokenizer_piece(tokenizer, id);
        (void)pen_tokenizer_is_end(tokenizer, id);
        (void)pen_tokenizer_is_control(tokenizer, id);
    }
    pen_tokenizer_close(tokenizer);
    return 0;
}
