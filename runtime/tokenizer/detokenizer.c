/* Streaming detokenisation; see tokenizer.h. The beginning of a character waits until its other bytes come. */
#include "tokenizer_private.h"
#include "utf8.h"
#include "vocab.h"

#include <stdlib.h>
#include <string.h>

enum { HELD_MAX = 3, REPLACEMENT_BYTES = 3 };

struct pen_detokenizer {
    const pen_tokenizer *tokenizer;
    unsigned flags;
    pen_spm_strip strips; /* what the next token loses at its beginning */
    size_t held;          /* bytes at the start of `bytes`: the beginning of a character */
    char *bytes;          /* [HELD_MAX + longest piece]: what is held and the new piece */
    char *text;           /* [REPLACEMENT_BYTES × the same]: what is returned */
};

static pen_spm_strip at_beginning(const pen_detokenizer *detokenizer) {
    const pen_spm *spm = detokenizer->tokenizer->spm;
    return spm && !(detokenizer->flags & PEN_DECODE_CONTINUED) ? pen_spm_strips(spm) : PEN_SPM_STRIP_NOTHING;
}

pen_status pen_detokenizer_create(const pen_tokenizer *tokenizer, unsigned flags, pen_detokenizer **detokenizer_out) {
    *detokenizer_out = NULL;
    pen_detokenizer *detokenizer = calloc(1, sizeof *detokenizer);
    size_t most = HELD_MAX + pen_vocab_longest(tokenizer->vocab);
    if (detokenizer) {
        detokenizer->tokenizer = tokenizer;
        detokenizer->flags = flags;
        detokenizer->strips = at_beginning(detokenizer);
        detokenizer->bytes = malloc(most);
        detokenizer->text = malloc(REPLACEMENT_BYTES * most);
    }
    if (!detokenizer || !detokenizer->bytes || !detokenizer->text) {
        pen_detokenizer_destroy(detokenizer);
        return pen_fail(PEN_NO_MEMORY, "no memory for a detokenizer");
    }
    *detokenizer_out = detokenizer;
    return PEN_OK;
}

void pen_detokenizer_destroy(pen_detokenizer *detokenizer) {
    if (!detokenizer) return;
    free(detokenizer->bytes);
    free(detokenizer->text);
    free(detokenizer);
}

static size_t replace(char *text) {
    memcpy(text, "\xef\xbf\xbd", REPLACEMENT_BYTES); /* U+FFFD */
    return REPLACEMENT_BYTES;
}

/* The first token that shows, and is no control token, loses a space; or it and all that follow, until one shows more
 * than spaces. Bytes and the unknown token are what they are. */
static void strip(pen_detokenizer *detokenizer, pen_token_kind kind, pen_text *piece) {
    if (kind == PEN_TOKEN_CONTROL || piece->length == 0) return;
    bool space = kind != PEN_TOKEN_BYTE && kind != PEN_TOKEN_UNKNOWN && piece->data[0] == ' ';
    if (space) *piece = (pen_text){piece->data + 1, piece->length - 1};
    if (!space || piece->length || detokenizer->strips == PEN_SPM_STRIP_SPACE)
        detokenizer->strips = PEN_SPM_STRIP_NOTHING;
}

pen_text pen_detokenizer_push(pen_detokenizer *detokenizer, int32_t id) {
    pen_token_kind kind = pen_vocab_kind(detokenizer->tokenizer->vocab, id);
    pen_text piece = {"", 0};
    if (kind != PEN_TOKEN_CONTROL || (detokenizer->flags & PEN_DECODE_CONTROL))
        piece = pen_tokenizer_piece(detokenizer->tokenizer, id);
    if (detokenizer->strips) strip(detokenizer, kind, &piece);
    char *bytes = detokenizer->bytes, *text = detokenizer->text;
    memcpy(bytes + detokenizer->held, piece.data, piece.length);

    size_t count = detokenizer->held + piece.length, at = 0, written = 0;
    while (at < count) {
        int step = pen_utf8_next(bytes + at, count - at);
        if (step == 0) break;
        if (step > 0) memcpy(text + written, bytes + at, (size_t)step);
        written += step > 0 ? (size_t)step : replace(text + written);
        at += (size_t)abs(step);
    }
    detokenizer->held = count - at;
    memmove(bytes, bytes + at, detokenizer->held);
    return (pen_text){text, written};
}

pen_text pen_detokenizer_finish(pen_detokenizer *detokenizer) {
    size_t written = detokenizer->held ? replace(detokenizer->text) : 0;
    detokenizer->held = 0;
    detokenizer->strips = at_beginning(detokenizer);
    return (pen_text){detokenizer->text, written};
}
