/*
 * The tokenizer: reads a GGUF's tokenizer keys, finds special tokens in a text, and hands what is between them to
 * SentencePiece's BPE, or to the pre-tokenizer and its words to byte-level BPE; see tokenizer.h.
 */
#include "tokenizer.h"

#include "log.h"
#include "tokenizer_private.h"
#include "tokens.h"

#include <stdlib.h>
#include <string.h>

/* ---- Encoding -------------------------------------------------------------------------------------------------- */

typedef struct target {
    pen_tokenizer *tokenizer;
    pen_tokens *tokens;
} target;

static pen_status encode_word(void *context, const char *word, size_t length) {
    pen_tokenizer *tokenizer = ((target *)context)->tokenizer;
    pen_tokens *tokens = ((target *)context)->tokens;
    const pen_cached_word *cached = pen_word_cache_find(tokenizer->cache, word, length);
    if (cached) return pen_tokens_append(tokens, cached->ids, cached->count);

    size_t first = tokens->count;
    int32_t id = tokenizer->kind->whole_words ? pen_vocab_find_bytes(tokenizer->vocab, word, length) : -1;
    if (id >= 0)
        PEN_TRY(pen_tokens_append(tokens, &id, 1));
    else
        PEN_TRY(pen_bpe_encode(tokenizer->bpe, word, length, tokens));
    pen_word_cache_keep(tokenizer->cache, word, length, tokens, first);
    return PEN_OK;
}

static pen_status encode_ids_only(const pen_tokenizer *tokenizer, const char *text, size_t length, pen_tokens *tokens) {
    for (size_t i = 0; i < length; i++)
        PEN_TRY(pen_tokens_append(tokens, &(int32_t){(unsigned char)text[i] % pen_vocab_size(tokenizer->vocab)}, 1));
    return PEN_OK;
}

/* What is between special tokens. */
static pen_status encode_plain(pen_tokenizer *tokenizer, const char *text, size_t length, pen_tokens *tokens) {
    if (tokenizer->spm) return pen_spm_encode(tokenizer->spm, text, length, tokens);
    return pen_pretokenizer_split(tokenizer->pretokenizer, text, length, encode_word, &(target){tokenizer, tokens});
}

static pen_status encode_text(pen_tokenizer *tokenizer, const char *text, size_t length, bool control,
                              pen_tokens *tokens) {
    if (tokenizer->ids_only) return encode_ids_only(tokenizer, text, length, tokens);
    for (size_t start = 0, at = 0;;) {
        int32_t id = pen_specials_next(tokenizer->specials, text, length, control, &at);
        size_t bytes = id < 0 ? 0 : pen_vocab_piece(tokenizer->vocab, id).length;
        /* SentencePiece finds user-defined tokens itself, once the text is normalised. */
        bool cuts = id < 0 || !tokenizer->spm || pen_tokenizer_is_control(tokenizer, id);
        if (cuts) PEN_TRY(encode_plain(tokenizer, text + start, at - start, tokens));
        if (id < 0) return PEN_OK;
        if (cuts) PEN_TRY(pen_tokens_append(tokens, &id, 1));
        at += bytes;
        if (cuts) start = at;
    }
}

pen_status pen_tokenizer_encode(pen_tokenizer *tokenizer, const char *text, size_t length, unsigned flags,
                                pen_tokens *tokens) {
    if ((flags & PEN_ENCODE_BOS) && tokenizer->adds_bos) PEN_TRY(pen_tokens_append(tokens, &tokenizer->bos, 1));
    PEN_TRY(encode_text(tokenizer, text, length, flags & PEN_ENCODE_SPECIAL, tokens));
    if ((flags & PEN_ENCODE_EOS) && tokenizer->adds_eos) PEN_TRY(pen_tokens_append(tokens, &tokenizer->eos, 1));
    return PEN_OK;
}

/* ---- Opening --------------------------------------------------------------------------------------------------- */

static bool is(pen_gguf_string string, const char *text) {
    return string.length == strlen(text) && !memcmp(string.data, text, string.length);
}

static pen_status unknown_model(const pen_gguf *gguf, pen_gguf_string model) {
    static const char *const others[][2] = {
        {"bert", "WordPiece"}, {"t5", "SentencePiece unigram"}, {"rwkv", "RWKV"}, {"plamo2", "PLaMo-2"}};
    const char *about = NULL;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (is(model, others[i][0])) about = others[i][1];
    return pen_fail(PEN_UNSUPPORTED,
                    "%s: tokenizer.ggml.model is \"%.*s\"%s%s; known: gpt2 (byte-level BPE), llama (SentencePiece BPE)",
                    pen_gguf_path(gguf), model.length < 64 ? (int)model.length : 64, model.data, about ? ", " : "",
                    about ? about : "");
}

static pen_status find_pretokenizer(const pen_gguf *gguf, const pen_pretokenizer_kind **kind) {
    pen_gguf_string pre;
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

/* SentencePiece's own name for a role, where the file does not give it to a token; −1: none. */
static int32_t named_role(const pen_tokenizer *tokenizer, const char *name) {
    int32_t id = tokenizer->spm ? pen_vocab_find_name(tokenizer->vocab, name, strlen(name)) : -1;
    return pen_tokenizer_is_control(tokenizer, id) ? id : -1;
}

static pen_status read_adds(const pen_gguf *gguf, const char *key, bool by_default, const char *id_key, int32_t id,
                            bool *adds) {
    PEN_TRY(pen_gguf_bool_or(gguf, key, by_default, adds));
    if (!*adds || id >= 0) return PEN_OK;
    return pen_fail(PEN_BAD_INPUT, "%s: %s without %s", pen_gguf_path(gguf), key, id_key);
}

/* BOS, EOS, and the tokens at which generation ends: those that the file names, and control tokens that models use so
 * without saying it. */
static pen_status read_roles(const pen_gguf *gguf, pen_tokenizer *tokenizer) {
    static const char *const end_keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                           "tokenizer.ggml.eom_token_id"};
    static const char *const end_names[] = {"<|endoftext|>", "<|im_end|>",    "<|end_of_text|>", "<|eot_id|>",
                                            "<|eom_id|>",    "<end_of_turn>", "<|end|>",         "</s>"};
    int64_t id, last = pen_vocab_size(tokenizer->vocab) - 1;
    PEN_TRY(pen_gguf_i64_or(gguf, "tokenizer.ggml.bos_token_id", 0, last, named_role(tokenizer, "<s>"), &id));
    tokenizer->bos = (int32_t)id;
    for (size_t i = 0; i < sizeof end_keys / sizeof *end_keys; i++) {
        PEN_TRY(pen_gguf_i64_or(gguf, end_keys[i], 0, last, i == 0 ? named_role(tokenizer, "</s>") : -1, &id));
        if (i == 0) tokenizer->eos = (int32_t)id;
        add_end(tokenizer, (int32_t)id);
    }
    for (size_t i = 0; i < sizeof end_names / sizeof *end_names; i++) {
        int32_t named = pen_vocab_find_name(tokenizer->vocab, end_names[i], strlen(end_names[i]));
        if (pen_tokenizer_is_control(tokenizer, named)) add_end(tokenizer, named);
    }
    bool by_default = tokenizer->bos >= 0 && (tokenizer->spm || tokenizer->kind->adds_bos);
    PEN_TRY(read_adds(gguf, "tokenizer.ggml.add_bos_token", by_default, "tokenizer.ggml.bos_token_id", tokenizer->bos,
                      &tokenizer->adds_bos));
    return read_adds(gguf, "tokenizer.ggml.add_eos_token", false, "tokenizer.ggml.eos_token_id", tokenizer->eos,
                     &tokenizer->adds_eos);
}

static pen_status open_sentencepiece(const pen_gguf *gguf, pen_tokenizer *tokenizer) {
    PEN_TRY(pen_vocab_open(gguf, PEN_SPELLING_SENTENCEPIECE, &tokenizer->vocab));
    PEN_TRY(pen_specials_create(tokenizer->vocab, &tokenizer->specials));
    PEN_TRY(pen_spm_open(gguf, tokenizer->vocab, tokenizer->specials, &tokenizer->spm));
    return read_roles(gguf, tokenizer);
}

static pen_status open_byte_level(const pen_gguf *gguf, pen_tokenizer *tokenizer) {
    PEN_TRY(find_pretokenizer(gguf, &tokenizer->kind));
    PEN_TRY(pen_vocab_open(gguf, PEN_SPELLING_ALPHABET, &tokenizer->vocab));
    PEN_TRY(pen_specials_create(tokenizer->vocab, &tokenizer->specials));
    PEN_TRY(open_bpe(gguf, tokenizer));
    PEN_TRY(read_roles(gguf, tokenizer));
    tokenizer->cache = pen_word_cache_create();
    if (!tokenizer->cache) return pen_fail(PEN_NO_MEMORY, "no memory for a cache of words");
    return pen_pretokenizer_create(tokenizer->kind, &tokenizer->pretokenizer);
}

static pen_status read_all(const pen_gguf *gguf, pen_tokenizer *tokenizer) {
    pen_gguf_string model;
    PEN_TRY(pen_gguf_str(gguf, "tokenizer.ggml.model", &model));
    if (is(model, "gpt2")) return open_byte_level(gguf, tokenizer);
    if (is(model, "llama")) return open_sentencepiece(gguf, tokenizer);
    return unknown_model(gguf, model);
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
    pen_word_cache_destroy(tokenizer->cache);
    pen_spm_close(tokenizer->spm);
    pen_specials_destroy(tokenizer->specials);
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
