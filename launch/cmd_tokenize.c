/*
 * `penstock tokenize`: the tokens of a text, as a table or with --json as one object. It needs a vocabulary and nothing
 * else: any GGUF file with tokenizer metadata will do, whatever its architecture, and without tensors.
 *
 * JSON is text, and a token may be a part of a character: `pieces` are what `run` would print as the ids come in, one
 * for each id, so that joined they are the text, with U+FFFD for what is no UTF-8. The table shows the bytes of each
 * token.
 */
#include "command.h"
#include "job.h"
#include "model.h"
#include "utf8.h"

#include <jansson.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pen_status open_file(const char *path, pen_tokenizer **tokenizer) {
    pen_gguf *gguf;
    PEN_TRY(pen_gguf_open(path, &gguf));
    pen_command_warn_if_cut(gguf);
    pen_status status = pen_tokenizer_open(gguf, tokenizer);
    pen_gguf_close(gguf);
    return status;
}

static pen_status open_synthetic(const char *name, pen_tokenizer **tokenizer) {
    pen_model *model;
    PEN_TRY(pen_model_open(name, &model));
    pen_status status = pen_tokenizer_create_ids(pen_model_hparams(model)->vocab, tokenizer);
    pen_model_close(model);
    return status;
}

/* ---- Text -------------------------------------------------------------------------------------------------------- */

/* In quotes, with escapes for what is no UTF-8 and for characters that would move the cursor. */
static void print_quoted(pen_text piece) {
    putchar('"');
    for (size_t at = 0; at < piece.length;) {
        const unsigned char *byte = (const unsigned char *)piece.data + at;
        int step = pen_utf8_next(piece.data + at, piece.length - at);
        bool control = *byte < 0x20 || *byte == 0x7f || (*byte == 0xc2 && step == 2 && byte[1] < 0xa0);
        at += step > 0 ? (size_t)step : 1;
        if (*byte == '\n')
            printf("\\n");
        else if (*byte == '"' || *byte == '\\')
            printf("\\%c", *byte);
        else if (step > 0 && !control)
            fwrite(byte, 1, (size_t)step, stdout);
        else
            for (int i = 0; i < (step > 0 ? step : 1); i++) printf("\\x%02x", byte[i]);
    }
    putchar('"');
}

static void print_table(const pen_tokenizer *tokenizer, const pen_tokens *tokens, size_t bytes) {
    for (size_t i = 0; i < tokens->count; i++) {
        pen_text piece = pen_tokenizer_piece(tokenizer, tokens->ids[i]);
        printf("%7zu %8d  ", i, (int)tokens->ids[i]);
        print_quoted(piece);
        puts(pen_tokenizer_is_control(tokenizer, tokens->ids[i]) ? "  control" : "");
    }
    printf("%zu tokens for %zu bytes\n", tokens->count, bytes);
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

/* The last piece ends what the ones before it left open. */
static json_t *json_pieces(pen_detokenizer *detokenizer, const pen_tokens *tokens) {
    json_t *pieces = json_array();
    for (size_t i = 0; i < tokens->count; i++) {
        pen_text text = pen_detokenizer_push(detokenizer, tokens->ids[i]);
        json_array_append_new(pieces, json_stringn(text.data, text.length));
    }
    pen_text rest = pen_detokenizer_finish(detokenizer);
    if (rest.length) {
        json_t *last = json_array_get(pieces, tokens->count - 1);
        json_t *both = json_pack("s%+%", json_string_value(last), json_string_length(last), rest.data, rest.length);
        json_array_set_new(pieces, tokens->count - 1, both);
    }
    return pieces;
}

static pen_status print_json(const pen_tokenizer *tokenizer, const pen_tokens *tokens) {
    pen_detokenizer *detokenizer;
    PEN_TRY(pen_detokenizer_create(tokenizer, PEN_DECODE_CONTROL, &detokenizer));
    json_t *ids = json_array();
    for (size_t i = 0; i < tokens->count; i++) json_array_append_new(ids, json_integer(tokens->ids[i]));
    json_t *root = json_pack("{s:o, s:o}", "ids", ids, "pieces", json_pieces(detokenizer, tokens));
    pen_detokenizer_destroy(detokenizer);
    bool failed = !root || json_dumpf(root, stdout, JSON_COMPACT) != 0 || putchar('\n') == EOF;
    json_decref(root);
    return failed ? pen_fail(PEN_IO, "standard output cannot be written") : PEN_OK;
}

/* ---- The command ------------------------------------------------------------------------------------------------- */

static pen_status tokenize(const pen_options *options, pen_tokenizer *tokenizer, const char *text, size_t length) {
    pen_tokens tokens = {0};
    unsigned flags =
        (options->no_bos ? 0 : PEN_ENCODE_BOS | PEN_ENCODE_EOS) | (options->no_parse_special ? 0 : PEN_ENCODE_SPECIAL);
    pen_status status = pen_tokenizer_encode(tokenizer, text, length, flags, &tokens);
    if (status == PEN_OK && options->json)
        status = print_json(tokenizer, &tokens);
    else if (status == PEN_OK)
        print_table(tokenizer, &tokens, length);
    pen_tokens_free(&tokens);
    return status;
}

pen_status pen_cmd_tokenize(const pen_options *options) {
    const char *model = options->config.model, *synthetic = "synthetic:";
    pen_tokenizer *tokenizer;
    char *text;
    size_t length;
    pen_log_init((pen_log_level)options->config.log_level, -1);
    PEN_TRY(strncmp(model, synthetic, strlen(synthetic)) == 0 ? open_synthetic(model, &tokenizer)
                                                              : open_file(model, &tokenizer));
    pen_status status = pen_job_text(options, &text, &length);
    if (status == PEN_OK) {
        status = tokenize(options, tokenizer, text, length);
        free(text);
    }
    pen_tokenizer_close(tokenizer);
    return status;
}
