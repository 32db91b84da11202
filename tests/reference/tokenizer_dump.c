/*
 * The tokenizer as a filter, for tokenizer_compare.py: texts come in on stdin, each as a 32-bit little-endian length
 * and its bytes; for each, one line goes out: its ids, a tab, and in hex the text that they stream back to.
 */
#include "tokenizer.h"

#include <stdio.h>
#include <stdlib.h>

static pen_status print(pen_text text) {
    for (size_t i = 0; i < text.length; i++) printf("%02x", (unsigned char)text.data[i]);
    return PEN_OK;
}

static pen_status answer(pen_tokenizer *tokenizer, pen_detokenizer *detokenizer, const char *text, size_t length) {
    pen_tokens tokens = {0};
    PEN_TRY(pen_tokenizer_encode(tokenizer, text, length, PEN_ENCODE_BOS | PEN_ENCODE_SPECIAL, &tokens));
    for (size_t i = 0; i < tokens.count; i++) printf(i ? " %d" : "%d", tokens.ids[i]);
    putchar('\t');
    for (size_t i = 0; i < tokens.count; i++) PEN_TRY(print(pen_detokenizer_push(detokenizer, tokens.ids[i])));
    PEN_TRY(print(pen_detokenizer_finish(detokenizer)));
    putchar('\n');
    pen_tokens_free(&tokens);
    return PEN_OK;
}

static pen_status run(const char *path) {
    pen_gguf *gguf;
    pen_tokenizer *tokenizer;
    pen_detokenizer *detokenizer;
    PEN_TRY(pen_gguf_open(path, &gguf));
    PEN_TRY(pen_tokenizer_open(gguf, &tokenizer));
    pen_gguf_close(gguf);
    PEN_TRY(pen_detokenizer_create(tokenizer, PEN_DECODE_CONTROL, &detokenizer));
    uint32_t length;
    while (fread(&length, sizeof length, 1, stdin) == 1) {
        char *text = malloc(length + 1);
        if (!text || fread(text, 1, length, stdin) != length) return pen_fail(PEN_IO, "a text is cut short");
        PEN_TRY(answer(tokenizer, detokenizer, text, length));
        free(text);
    }
    pen_detokenizer_destroy(detokenizer);
    pen_tokenizer_close(tokenizer);
    return PEN_OK;
}

int main(int argc, char **argv) {
    if (argc == 2 && run(argv[1]) == PEN_OK) return 0;
    fprintf(stderr, "tokenizer_dump: %s\n", argc == 2 ? pen_last_error() : "usage: tokenizer_dump MODEL");
    return 1;
}
