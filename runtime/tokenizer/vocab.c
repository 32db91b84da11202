/* The vocabulary; see vocab.h. One arena holds all pieces, one hash table finds ids by piece. */
#include "vocab.h"

#include "utf8.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define UNKNOWN " \u2047 " /* SentencePiece's " ⁇ " */
enum { ALPHABET_END = 0x144 /* its characters are below */, UNKNOWN_BYTES = sizeof UNKNOWN - 1 };

typedef struct token {
    uint32_t start, length; /* of its piece in the arena */
    uint8_t kind;           /* pen_token_kind */
    bool literal;
} token;

struct pen_vocab {
    pen_spelling spelling;
    int size;
    token *tokens; /* [size] */
    char *arena;
    size_t longest;      /* piece */
    size_t longest_name; /* in the file, where a byte can take two */
    char *spelt;         /* [longest_name] */
    uint32_t *slots;     /* id + 1, by hash of the piece; literal pieces and others may be equal */
    size_t mask;
    int16_t byte_of[ALPHABET_END]; /* the alphabet: character to byte, or −1 */
};

/* ---- Spelling -------------------------------------------------------------------------------------------------- */

/* Printable Latin-1 characters stand for themselves, the other bytes, in order, for the characters from U+0100. */
static void make_alphabet(int16_t byte_of[ALPHABET_END]) {
    int next = 0x100;
    memset(byte_of, -1, ALPHABET_END * sizeof *byte_of);
    for (int byte = 0; byte < 256; byte++) {
        bool printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
        byte_of[printable ? byte : next++] = (int16_t)byte;
    }
    assert(next == ALPHABET_END);
}

static bool spell_alphabet(const pen_vocab *vocab, const char *name, size_t length, char *bytes, size_t *count) {
    *count = 0;
    for (size_t i = 0; i < length;) {
        int step = pen_utf8_next(name + i, length - i);
        if (step != 1 && step != 2) return false;
        int character = step == 1 ? name[i] : (name[i] & 0x1f) << 6 | (name[i + 1] & 0x3f);
        if (character >= ALPHABET_END || vocab->byte_of[character] < 0) return false;
        bytes[(*count)++] = (char)vocab->byte_of[character];
        i += (size_t)step;
    }
    return true;
}

static bool spell_sentencepiece(const char *name, size_t length, char *bytes, size_t *count) {
    *count = 0;
    for (size_t i = 0; i < length; i++) {
        bool space = length - i >= 3 && !memcmp(name + i, "\u2581", 3);
        if (space) i += 2;
        bytes[(*count)++] = space ? ' ' : name[i];
    }
    return !memchr(name, ' ', length);
}

/* Writes the bytes that a name spells (never more than the name has); false where it is not spelt as it should be. */
static bool spell(const pen_vocab *vocab, const char *name, size_t length, char *bytes, size_t *count) {
    return vocab->spelling == PEN_SPELLING_ALPHABET ? spell_alphabet(vocab, name, length, bytes, count)
                                                    : spell_sentencepiece(name, length, bytes, count);
}

/* ---- Finding --------------------------------------------------------------------------------------------------- */

/* The slot of the token with this piece, or the empty one where it belongs. */
static size_t find_slot(const pen_vocab *vocab, const char *piece, size_t length, bool literal) {
    size_t slot = XXH3_64bits_withSeed(piece, length, literal) & vocab->mask;
    for (; vocab->slots[slot]; slot = (slot + 1) & vocab->mask) {
        const token *other = &vocab->tokens[vocab->slots[slot] - 1];
        if (other->literal == literal && other->length == length && !memcmp(vocab->arena + other->start, piece, length))
            break;
    }
    return slot;
}

static int32_t find(const pen_vocab *vocab, const char *piece, size_t length, bool literal) {
    return (int32_t)vocab->slots[find_slot(vocab, piece, length, literal)] - 1;
}

int32_t pen_vocab_find_bytes(const pen_vocab *vocab, const char *bytes, size_t length) {
    return find(vocab, bytes, length, false);
}

int32_t pen_vocab_find_name(pen_vocab *vocab, const char *name, size_t length) {
    size_t count;
    int32_t id = -1;
    if (length > vocab->longest_name) return -1;
    if (spell(vocab, name, length, vocab->spelt, &count)) id = find(vocab, vocab->spelt, count, false);
    return id >= 0 ? id : find(vocab, name, length, true);
}

/* ---- Making ---------------------------------------------------------------------------------------------------- */

static pen_status allocate(pen_vocab *vocab, size_t size, size_t arena_bytes, size_t longest_name) {
    size_t slots = 16;
    while (slots < size * 2) slots *= 2;
    vocab->mask = slots - 1;
    vocab->tokens = calloc(size, sizeof *vocab->tokens);
    vocab->slots = calloc(slots, sizeof *vocab->slots);
    vocab->arena = malloc(arena_bytes + 1);
    vocab->longest_name = longest_name;
    vocab->spelt = malloc(longest_name + 1);
    if (!vocab->tokens || !vocab->slots || !vocab->arena || !vocab->spelt)
        return pen_fail(PEN_NO_MEMORY, "no memory for a vocabulary of %zu tokens", size);
    return PEN_OK;
}

/* Adds the next token, whose piece already stands at `start` in the arena. False where another has the same. */
static bool add(pen_vocab *vocab, size_t start, size_t length, pen_token_kind kind, bool literal) {
    size_t slot = find_slot(vocab, vocab->arena + start, length, literal);
    if (vocab->slots[slot]) return false;
    vocab->tokens[vocab->size++] = (token){(uint32_t)start, (uint32_t)length, (uint8_t)kind, literal};
    vocab->slots[slot] = (uint32_t)vocab->size;
    if (length > vocab->longest) vocab->longest = length;
    return true;
}

static pen_status read_kind(const pen_gguf *gguf, bool has_kinds, size_t i, pen_token_kind *kind) {
    int64_t number = PEN_TOKEN_NORMAL;
    if (has_kinds) PEN_TRY(pen_gguf_array_i64(gguf, "tokenizer.ggml.token_type", i, &number));
    if (number < PEN_TOKEN_NORMAL || number > PEN_TOKEN_BYTE)
        return pen_fail(PEN_BAD_INPUT, "%s: key tokenizer.ggml.token_type: token %zu has the unknown type %lld",
                        pen_gguf_path(gguf), i, (long long)number);
    *kind = (pen_token_kind)number;
    return PEN_OK;
}

/* SentencePiece's byte token "<0x0A>": its byte, or −1. */
static int named_byte(pen_gguf_string name) {
    static const char digits[] = "0123456789ABCDEF";
    if (name.length != 6 || memcmp(name.data, "<0x", 3) || name.data[5] != '>') return -1;
    const char *high = memchr(digits, name.data[3], 16), *low = memchr(digits, name.data[4], 16);
    return high && low ? (int)(high - digits) << 4 | (int)(low - digits) : -1;
}

/* SentencePiece's tokens of a byte and of what is unknown stand for something that their names do not spell: they are
 * added with it. */
static pen_status add_unspelt(const pen_gguf *gguf, pen_vocab *vocab, size_t start, pen_token_kind kind,
                              pen_gguf_string name, size_t *length) {
    int byte = named_byte(name);
    if (kind == PEN_TOKEN_BYTE && byte < 0)
        return pen_fail(PEN_BAD_INPUT, "%s: key tokenizer.ggml.tokens: token %d is of a byte but not named \"<0x00>\"",
                        pen_gguf_path(gguf), vocab->size);
    *length = kind == PEN_TOKEN_BYTE ? 1 : UNKNOWN_BYTES;
    memcpy(vocab->arena + start, kind == PEN_TOKEN_BYTE ? &(char){(char)byte} : UNKNOWN, *length);
    vocab->tokens[vocab->size++] = (token){(uint32_t)start, (uint32_t)*length, (uint8_t)kind, true};
    if (*length > vocab->longest) vocab->longest = *length;
    return PEN_OK;
}

/* Adds the next token, whose name is `name`, at `start` in the arena. */
static pen_status add_named(const pen_gguf *gguf, pen_vocab *vocab, size_t start, pen_token_kind kind,
                            pen_gguf_string name, size_t *length) {
    bool sentencepiece = vocab->spelling == PEN_SPELLING_SENTENCEPIECE;
    if (sentencepiece && (kind == PEN_TOKEN_BYTE || kind == PEN_TOKEN_UNKNOWN))
        return add_unspelt(gguf, vocab, start, kind, name, length);
    char *piece = vocab->arena + start;
    int32_t twin = pen_vocab_find_name(vocab, name.data, name.length);
    bool spelt = spell(vocab, name.data, name.length, piece, length);
    bool literal = kind == PEN_TOKEN_CONTROL || kind == PEN_TOKEN_USER_DEFINED || !spelt;
    if (literal && !(sentencepiece && kind == PEN_TOKEN_USER_DEFINED)) memcpy(piece, name.data, *length = name.length);
    if (twin >= 0 || !add(vocab, start, *length, kind, literal))
        return pen_fail(PEN_BAD_INPUT, "%s: key tokenizer.ggml.tokens: token %d is there twice", pen_gguf_path(gguf),
                        vocab->size);
    return PEN_OK;
}

/* An array that says something of each token, where the file has it. */
static pen_status check_count(const pen_gguf *gguf, const char *key, size_t tokens) {
    size_t count;
    if (!pen_gguf_has(gguf, key)) return PEN_OK;
    PEN_TRY(pen_gguf_array(gguf, key, &count));
    if (count == tokens) return PEN_OK;
    return pen_fail(PEN_BAD_INPUT, "%s: key %s has %zu elements for %zu tokens", pen_gguf_path(gguf), key, count,
                    tokens);
}

static pen_status read_tokens(const pen_gguf *gguf, pen_vocab *vocab) {
    const char *names = "tokenizer.ggml.tokens", *path = pen_gguf_path(gguf);
    size_t size, arena_bytes = 0, longest = 0, used = 0;
    PEN_TRY(pen_gguf_array(gguf, names, &size));
    if (size == 0 || size > INT32_MAX) return pen_fail(PEN_BAD_INPUT, "%s: key %s has %zu tokens", path, names, size);
    PEN_TRY(check_count(gguf, "tokenizer.ggml.token_type", size));
    PEN_TRY(check_count(gguf, "tokenizer.ggml.scores", size));
    bool has_kinds = pen_gguf_has(gguf, "tokenizer.ggml.token_type");
    pen_gguf_string name;
    for (size_t i = 0; i < size; i++) {
        PEN_TRY(pen_gguf_array_str(gguf, names, i, &name));
        arena_bytes += name.length < UNKNOWN_BYTES ? UNKNOWN_BYTES : name.length;
        if (name.length > longest) longest = name.length;
    }
    if (arena_bytes > UINT32_MAX)
        return pen_fail(PEN_UNSUPPORTED, "%s: key %s: %zu bytes of names", path, names, arena_bytes);
    PEN_TRY(allocate(vocab, size, arena_bytes, longest));

    for (size_t i = 0; i < size; i++) {
        pen_token_kind kind = PEN_TOKEN_NORMAL;
        size_t length;
        PEN_TRY(pen_gguf_array_str(gguf, names, i, &name));
        PEN_TRY(read_kind(gguf, has_kinds, i, &kind));
        PEN_TRY(add_named(gguf, vocab, used, kind, name, &length));
        used += length;
    }
    return PEN_OK;
}

static pen_status number_tokens(pen_vocab *vocab, int size) {
    enum { PIECE_MAX = 16, SIZE_MAX_IDS = 1 << 26 };
    size_t used = 0;
    if (size < 1 || size > SIZE_MAX_IDS)
        return pen_fail(PEN_UNSUPPORTED, "a vocabulary of %d tokens; 1 to %d are possible", size, SIZE_MAX_IDS);
    PEN_TRY(allocate(vocab, (size_t)size, (size_t)size * PIECE_MAX, PIECE_MAX));
    for (int id = 0; id < size; id++) {
        size_t length = (size_t)snprintf(vocab->arena + used, PIECE_MAX, "<%d>", id);
        (void)add(vocab, used, length, PEN_TOKEN_NORMAL, true);
        used += length;
    }
    return PEN_OK;
}

static pen_status create(const pen_gguf *gguf, pen_spelling spelling, int size, pen_vocab **vocab_out) {
    *vocab_out = NULL;
    pen_vocab *vocab = calloc(1, sizeof *vocab);
    if (!vocab) return pen_fail(PEN_NO_MEMORY, "no memory for a vocabulary");
    vocab->spelling = spelling;
    make_alphabet(vocab->byte_of);
    pen_status status = gguf ? read_tokens(gguf, vocab) : number_tokens(vocab, size);
    if (status == PEN_OK)
        *vocab_out = vocab;
    else
        pen_vocab_close(vocab);
    return status;
}

pen_status pen_vocab_open(const pen_gguf *gguf, pen_spelling spelling, pen_vocab **vocab) {
    return create(gguf, spelling, 0, vocab);
}
pen_status pen_vocab_create_ids(int size, pen_vocab **vocab) {
    return create(NULL, PEN_SPELLING_ALPHABET, size, vocab);
}

void pen_vocab_close(pen_vocab *vocab) {
    if (!vocab) return;
    free(vocab->tokens);
    free(vocab->slots);
    free(vocab->arena);
    free(vocab->spelt);
    free(vocab);
}

/* ---- Asking ---------------------------------------------------------------------------------------------------- */

int pen_vocab_size(const pen_vocab *vocab) {
    return vocab->size;
}
size_t pen_vocab_longest(const pen_vocab *vocab) {
    return vocab->longest;
}

pen_token_kind pen_vocab_kind(const pen_vocab *vocab, int32_t id) {
    return id >= 0 && id < vocab->size ? (pen_token_kind)vocab->tokens[id].kind : PEN_TOKEN_UNKNOWN;
}

pen_text pen_vocab_piece(const pen_vocab *vocab, int32_t id) {
    if (id < 0 || id >= vocab->size) return (pen_text){"", 0};
    return (pen_text){vocab->arena + vocab->tokens[id].start, vocab->tokens[id].length};
}
