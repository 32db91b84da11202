/*
 * The tokenizer: reads a GGUF's tokenizer keys, finds special tokens in a text, and hands what is between them to the
 * pre-tokenizer and its words to BPE; see tokenizer.h.
 */
#include "tokenizer.h"

#include "log.h"
#include "tokenizer_private.h"

#include <stdlib.h>
#include <string.h>

/* ---- Special tokens -------------------------------------------------------------------------------------------- */

static int by_piece(const void *a, const void *b, void *vocab) {
    pen_text x = pen_vocab_piece(vocab, *(const int32_t *)a), y = pen_vocab_piece(vocab, *(const int32_t *)b);
    size_t common = x.length < y.length ? x.length : y.length;
    int order = common ? memcmp(x.data, y.data, common) : 0;
    return order ? order : (x.length > y.length) - (x.length < y.length);
}

static pen_status list_specials(pen_tokenizer *tokenizer) {
    const pen_vocab *vocab = tokenizer->vocab;
    int size = pen_vocab_size(vocab);
    tokenizer->specials = malloc((size_t)size * sizeof *tokenizer->specials);
    if (!tokenizer->specials) return pen_fail(PEN_NO_MEMORY, "no memory for special tokens");
    for (int32_t id = 0; id < size; id++) {
        pen_token_kind kind = pen_vocab_kind(vocab, id);
        pen_text piece = pen_vocab_piece(vocab, id);
        if ((kind != PEN_TOKEN_CONTROL && kind != PEN_TOKEN_USER_DEFINED) || piece.length == 0) continue;
        tokenizer->specials[tokenizer->special_count++] = id;
        tokenizer->begins_special[(unsigned char)piece.data[0]] = true;
    }
    qsort_r(tokenizer->specials, tokenizer->special_count, sizeof *tokenizer->specials, by_piece, tokenizer->vocab);
    return PEN_OK;
}

/* The first of specials[low, high), which agree in their first `depth` bytes and go on, whose next byte is ≥ `byte`. */
static size_t bound(const pen_tokenizer *tokenizer, size_t low, size_t high, size_t depth, int byte) {
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((unsigned char)pen_vocab_piece(tokenizer->vocab, tokenizer->specials[middle]).data[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest special token that the text begins with, or −1. */
static int32_t special_at(const pen_tokenizer *tokenizer, const char *text, size_t length, bool control) {
    int32_t longest = -1;
    size_t low = 0, high = tokenizer->special_count;
    for (size_t depth = 0; low < high; depth++) {
        int32_t shortest = tokenizer->specials[low]; /* sorted: the one that ends here, if one does, comes first */
        if (pen_vocab_piece(tokenizer->vocab, shortest).length == depth) {
            if (control || pen_vocab_kind(tokenizer->vocab, shortest) == PEN_TOKEN_USER_DEFINED) longest = shortest;
            low++;
        }
        if (depth == length) break;
        int byte = (unsigned char)text[depth];
        low = bound(tokenizer, low, high, depth, byte);
        high = bound(tokenizer, low, high, depth, byte + 1);
    }
    return longest;
}

/* ---- Encoding -------------------------------------------------------------------------------------------------- */

typedef struct target {
    pen_tokenizer *tokenizer;
    pen_tokens *tokens;
} target;

static pen_status encode_word(void *context, const char *word, size_t length) {
    target *t = context;
    if (t->tokenizer->kind->whole_words) {
        int32_t id = pen_vocab_find_bytes(t->tokenizer->vocab, word, length);
        if (id >= 0) return pen_tokens_append(t->tokens, &id, 1);
    }
    return pen_bpe_encode(t->tokenizer->bpe, word, length, t->tokens);
}

static pen_status encode_ids_only(const pen_tokenizer *tokenizer, const char *text, size_t length, pen_tokens *tokens) {
    for (size_t i = 0; i < length; i++)
        PEN_TRY(pen_tokens_append(tokens, &(int32_t){(unsigned char)text[i] % pen_vocab_size(tokenizer->vocab)}, 1));
    return PEN_OK;
}

pen_status pen_tokenizer_encode(pen_tokenizer *tokenizer, const char *text, size_t length, unsigned flags,
                                pen_tokens *tokens) {
    if (tokenizer->ids_only) return encode_ids_only(tokenizer, text, length, tokens);
    target t = {tokenizer, tokens};
    if ((flags & PEN_ENCODE_BOS) && tokenizer->adds_bos) PEN_TRY(pen_tokens_append(tokens, &tokenizer->bos, 1));
    size_t start = 0; /* of the text since the last special token */
    for (size_t at = 0; at < length;) {
        int32_t id = -1;
        if (tokenizer->begins_special[(unsigned char)text[at]])
            id = special_at(tokenizer, text + at, length - at, flags & PEN_ENCODE_SPECIAL);
        if (id < 0) {
            at++;
            continue;
        }
        PEN_TRY(pen_pretokenizer_split(tokenizer->pretokenizer, text + start, at - start, encode_word, &t));
        PEN_TRY(pen_tokens_append(tokens, &id, 1));
        start = at += pen_vocab_piece(tokenizer->vocab, id).length;
    }
    return pen_pretokenizer_split(tokenizer->pretokenizer, text + start, length - start, encode_word, &t);
}

/* ---- Opening --------------------------------------------------------------------------------------------------- */

static pen_status check_kind(const pen_gguf *gguf, const pen_pretokenizer_kind **kind) {
    pen_gguf_string model, pre;
    PEN_TRY(pen_gguf_str(gguf, "tokenizer.ggml.model", &model));
    if (model.length != 4 || memcmp(model.data, "gpt2", 4))
        return pen_fail(PEN_UNSUPPORTED, "%s: tokenizer.ggml.model is \"%.*s\"; known: gpt2", pen_gguf_path(gguf),
                        model.length < 64 ? (int)model.length : 64, model.data);
    if (!pen_gguf_has(gguf, "tokenizer.ggml.pre")) {
        PEN_WARN(
            "%s: key tokenizer.ggml.pre is missing; words are cut by \"default\", which may not be the model's way",
            pen_gguf_path(gguf));
        *kind = pen_pretokenizer_find("default", strlen("default"));
        return PEN_OK;
    }
    PEN_TRY(pen_gguf_str(gguf, "tokenizer.ggml.pre", &pre));
    *kind = pen_pretokenizer_find(pre.data, pre.length);
    if (*kind) return PEN_OK;
    return pen_fail(PEN_UNSUPPORTED, "%s: tokenizer.ggml.pre is \"%.*s\"; known: %s", pen_gguf_path(gguf),
                    pre.length < 64 ? (int)pre.length : 64, pre.data, pen_pretokenizer_names());
}

/* "left right", all three of whose tokens are in the vocabulary. Names hold no spaces: the alphabet has none. */
static pen_status read_merge(const pen_gguf *gguf, pen_vocab *vocab, size_t i, char *joined, pen_merge *merge) {
    pen_gguf_string text;
    PEN_TRY(pen_gguf_array_str(gguf, "tokenizer.ggml.merges", i, &text));
    const char *space = memchr(text.data, ' ', text.length);
    if (!space)
        return pen_fail(PEN_BAD_INPUT,
                        "%s: key tokenizer.ggml.merges: merge %zu is not two tokens with a space between",
                        pen_gguf_path(gguf), i);
    size_t left = (size_t)(space - text.data), right = text.length - left - 1;
    memcpy(joined, text.data, left);
    memcpy(joined + left, space + 1, right);
    *merge = (pen_merge){
        .left = pen_vocab_find_name(vocab, text.data, left),
        .right = pen_vocab_find_name(vocab, space + 1, right),
        .result = pen_vocab_find_name(vocab, joined, left + right),
    };
    if (merge->left < 0 || merge->right < 0 || merge->result < 0)
        return pen_fail(PEN_BAD_INPUT,
                        "%s: key tokenizer.ggml.merges: merge %zu has a token that is not in the vocabulary",
                        pen_gguf_path(gguf), i);
    return PEN_OK;
}

static pen_status read_merges(const pen_gguf *gguf, pen_vocab *vocab, size_t count, pen_merge *merges) {
    pen_gguf_string text;
    size_t longest = 0;
    for (size_t i = 0; i < count; i++) {
        PEN_TRY(pen_gguf_array_str(gguf, "tokenizer.ggml.merges", i, &text));
        if (text.length > longest) longest = text.length;
    }
    char *joined = malloc(longest + 1);
    if (!joined) return pen_fail(PEN_NO_MEMORY, "no memory for a merge of %zu bytes", longest);
    pen_status status = PEN_OK;
    for (size_t i = 0; i < count && status == PEN_OK; i++) status = read_merge(gguf, vocab, i, joined, &merges[i]);
    free(joined);
    return status;
}

static pen_status open_bpe(const pen_gguf *gguf, pen_tokenizer *tokenizer) {
    size_t count;
    PEN_TRY(pen_gguf_array(gguf, "tokenizer.ggml.merges", &count));
    pen_merge *merges = malloc((count + 1) * sizeof *merges);
    if (!merges) return pen_fail(PEN_NO_MEMORY, "no memory for %zu merges", count);
    pen_status status = read_merges(gguf, tokenizer->vocab, count, merges);
    if (status != PEN_OK) {
        free(merges);
        return status;
    }
    int32_t bytes[256];
    for (int byte = 0; byte < 256; byte++) bytes[byte] = pen_vocab_find_bytes(tokenizer->vocab, &(char){(char)byte}, 1);
    int64_t repeated;
    PEN_TRY(pen_bpe_create(merges, count, bytes, &tokenizer->bpe, &repeated));
    if (repeated >= 0)
        return pen_fail(PEN_BAD_INPUT, "%s: key tokenizer.ggml.merges: merge %lld is there twice", pen_gguf_path(gguf),
                        (long long)repeated);
    return PEN_OK;
}

static void add_end(pen_tokenizer *tokenizer, int32_t id) {
    if (id >= 0 && !pen_tokenizer_is_end(tokenizer, id) && tokenizer->end_count < PEN_TOKENIZER_ENDS)
        tokenizer->ends[tokenizer->end_count++] = id;
}

/* BOS, EOS, and the tokens at which generation ends: those that the file names, and control tokens that models use so
 * without saying it. */
static pen_status read_roles(const pen_gguf *gguf, pen_tokenizer *tokenizer) {
    static const char *const end_keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                           "tokenizer.ggml.eom_token_id"};
    static const char *const end_names[] = {"<|endoftext|>", "<|im_end|>",    "<|end_of_text|>", "<|eot_id|>",
                                            "<|eom_id|>",    "<end_of_turn>", "<|end|>",         "</s>"};
    int64_t id, last = pen_vocab_size(tokenizer->vocab) - 1;
    PEN_TRY(pen_gguf_i64_or(gguf, "tokenizer.ggml.bos_token_id", 0, last, -1, &id));
    tokenizer->bos = (int32_t)id;
    for (size_t i = 0; i < sizeof end_keys / sizeof *end_keys; i++) {
        PEN_TRY(pen_gguf_i64_or(gguf, end_keys[i], 0, last, -1, &id));
        if (i == 0) tokenizer->eos = (int32_t)id;
        add_end(tokenizer, (int32_t)id);
    }
    for (size_t i = 0; i < sizeof end_names / sizeof *end_names; i++) {
        int32_t named = pen_vocab_find_name(tokenizer->vocab, end_names[i], strlen(end_names[i]));
        if (pen_tokenizer_is_control(tokenizer, named)) add_end(tokenizer, named);
    }
    bool by_default = tokenizer->kind->adds_bos && tokenizer->bos >= 0;
    PEN_TRY(pen_gguf_bool_or(gguf, "tokenizer.ggml.add_bos_token", by_default, &tokenizer->adds_bos));
    if (tokenizer->adds_bos && tokenizer->bos < 0)
        return pen_fail(PEN_BAD_INPUT, "%s: tokenizer.ggml.add_bos_token without tokenizer.ggml.bos_token_id",
                        pen_gguf_path(gguf));
    return PEN_OK;
}

static pen_status read_all(const pen_gguf *gguf, pen_tokenizer *tokenizer) {
    PEN_TRY(check_kind(gguf, &tokenizer->kind));
    PEN_TRY(pen_vocab_open(gguf, &tokenizer->vocab));
    PEN_TRY(list_specials(tokenizer));
    PEN_TRY(open_bpe(gguf, tokenizer));
    PEN_TRY(read_roles(gguf, tokenizer));
    return pen_pretokenizer_create(tokenizer->kind, &tokenizer->pretokenizer);
}

/* Without a file: only ids. */
static pen_status create(const pen_gguf *gguf, int vocab_size, pen_tokenizer **tokenizer_out) {
    *tokenizer_out = NULL;
    pen_tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (!tokenizer) return pen_fail(PEN_NO_MEMORY, "no memory for a tokenizer");
    tokenizer->ids_only = !gguf;
    tokenizer->bos = tokenizer->eos = -1;
    pen_status status = gguf ? read_all(gguf, tokenizer) : pen_vocab_create_ids(vocab_size, &tokenizer->vocab);
    if (status == PEN_OK)
        *tokenizer_out = tokenizer;
    else
        pen_tokenizer_close(tokenizer);
    return status;
}

pen_status pen_tokenizer_open(const pen_gguf *gguf, pen_tokenizer **tokenizer) {
    return create(gguf, 0, tokenizer);
}

pen_status pen_tokenizer_create_ids(int vocab_size, pen_tokenizer **tokenizer) {
    return create(NULL, vocab_size, tokenizer);
}

void pen_tokenizer_close(pen_tokenizer *tokenizer) {
    if (!tokenizer) return;
    pen_vocab_close(tokenizer->vocab);
    pen_pretokenizer_destroy(tokenizer->pretokenizer);
    pen_bpe_destroy(tokenizer->bpe);
    free(tokenizer->specials);
    free(tokenizer);
}

/* ---- Asking ---------------------------------------------------------------------------------------------------- */

int pen_tokenizer_vocab_size(const pen_tokenizer *tokenizer) {
    return pen_vocab_size(tokenizer->vocab);
}
int32_t pen_tokenizer_bos(const pen_tokenizer *tokenizer) {
    return tokenizer->bos;
}
int32_t pen_tokenizer_eos(const pen_tokenizer *tokenizer) {
    return tokenizer->eos;
}

bool pen_tokenizer_is_end(const pen_tokenizer *tokenizer, int32_t id) {
    for (int i = 0; i < tokenizer->end_count; i++)
        if (tokenizer->ends[i] == id) return true;
    return false;
}

bool pen_tokenizer_is_control(const pen_tokenizer *tokenizer, int32_t id) {
    return pen_vocab_kind(tokenizer->vocab, id) == PEN_TOKEN_CONTROL;
}

pen_text pen_tokenizer_piece(const pen_tokenizer *tokenizer, int32_t id) {
    return pen_vocab_piece(tokenizer->vocab, id);
}
