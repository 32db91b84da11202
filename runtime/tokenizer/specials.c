/*
 * Special tokens; see specials.h. They are listed by the order of their bytes, so that those which begin like the text
 * are a range of the list that shrinks from byte to byte. A bit for each pair of bytes says whether any begins with it:
 * most places in a text are left at that.
 */
#include "specials.h"

#include <stdlib.h>
#include <string.h>

struct pen_specials {
    const pen_vocab *vocab;
    int32_t *ids; /* [count], by the order of their bytes */
    size_t count;
    uint8_t begins[256][256 / 8]; /* by the first and the second byte */
};

static int by_piece(const void *a, const void *b, void *vocab) {
    pen_text x = pen_vocab_piece(vocab, *(const int32_t *)a), y = pen_vocab_piece(vocab, *(const int32_t *)b);
    size_t common = x.length < y.length ? x.length : y.length;
    int order = common ? memcmp(x.data, y.data, common) : 0;
    return order ? order : (x.length > y.length) - (x.length < y.length);
}

static void list(pen_specials *specials, int32_t id) {
    pen_token_kind kind = pen_vocab_kind(specials->vocab, id);
    pen_text piece = pen_vocab_piece(specials->vocab, id);
    if ((kind != PEN_TOKEN_CONTROL && kind != PEN_TOKEN_USER_DEFINED) || piece.length == 0) return;
    specials->ids[specials->count++] = id;
    uint8_t *seconds = specials->begins[(unsigned char)piece.data[0]];
    if (piece.length == 1)
        memset(seconds, 0xff, sizeof specials->begins[0]);
    else
        seconds[(unsigned char)piece.data[1] / 8] |= (uint8_t)(1 << (unsigned char)piece.data[1] % 8);
}

pen_status pen_specials_create(const pen_vocab *vocab, pen_specials **specials_out) {
    *specials_out = NULL;
    int size = pen_vocab_size(vocab);
    pen_specials *specials = calloc(1, sizeof *specials);
    if (specials) {
        specials->vocab = vocab;
        specials->ids = malloc((size_t)size * sizeof *specials->ids);
    }
    if (!specials || !specials->ids) {
        pen_specials_destroy(specials);
        return pen_fail(PEN_NO_MEMORY, "no memory for special tokens");
    }
    for (int32_t id = 0; id < size; id++) list(specials, id);
    qsort_r(specials->ids, specials->count, sizeof *specials->ids, by_piece, (void *)vocab);
    *specials_out = specials;
    return PEN_OK;
}

void pen_specials_destroy(pen_specials *specials) {
    if (!specials) return;
    free(specials->ids);
    free(specials);
}

/* The first of ids[low, high), which agree in their first `depth` bytes and go on, whose next byte is ≥ `byte`. */
static size_t bound(const pen_specials *specials, size_t low, size_t high, size_t depth, int byte) {
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((unsigned char)pen_vocab_piece(specials->vocab, specials->ids[middle]).data[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest special token that the text begins with, or −1. */
static int32_t longest_at(const pen_specials *specials, const char *text, size_t length, bool control) {
    int32_t longest = -1;
    size_t low = 0, high = specials->count;
    for (size_t depth = 0; low < high; depth++) {
        int32_t shortest = specials->ids[low]; /* sorted: the one that ends here, if one does, comes first */
        if (pen_vocab_piece(specials->vocab, shortest).length == depth) {
            if (control || pen_vocab_kind(specials->vocab, shortest) == PEN_TOKEN_USER_DEFINED) longest = shortest;
            low++;
        }
        if (depth == length) break;
        int byte = (unsigned char)text[depth];
        low = bound(specials, low, high, depth, byte);
        high = bound(specials, low, high, depth, byte + 1);
    }
    return longest;
}

static bool begins(const pen_specials *specials, unsigned char first, unsigned char second) {
    return specials->begins[first][second / 8] >> second % 8 & 1;
}

int32_t pen_specials_next(const pen_specials *specials, const char *text, size_t length, bool control, size_t *at) {
    for (size_t i = *at; i < length; i++) {
        if (i + 1 < length && !begins(specials, (unsigned char)text[i], (unsigned char)text[i + 1])) continue;
        int32_t id = longest_at(specials, text + i, length - i, control);
        if (id < 0) continue;
        *at = i;
        return id;
    }
    *at = length;
    return -1;
}
