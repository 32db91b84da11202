/*
 * SentencePiece's BPE on small vocabularies written here, against a plain quadratic method on random ones, and, where
 * PENSTOCK_TEST_GEMMA names Gemma's file, on the real one. That texts get the ids of the sentencepiece library is
 * checked by tests/reference/sentencepiece_compare.py.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>

#include "gguf_image.h"
#include "tokenizer_checks.h"

/* ---- The vocabulary -------------------------------------------------------------------------------------------- */

enum { NORMAL = 1, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE };

typedef struct entry {
    const char *name;
    int kind;
    float score;
} entry;

/* Ids 0, 1, 2 are <unk>, <s> and </s>, then come the bytes, then these. Converters spell a space in a user-defined
 * token either way; a normal token with a plain space is never made. */
// clang-format off
#define TOKENS(X) \
    X(SPACE, "▁", NORMAL, -20) \
    X(H, "h", NORMAL, -21) \
    X(E, "e", NORMAL, -22) \
    X(L, "l", NORMAL, -23) \
    X(O, "o", NORMAL, -24) \
    X(A, "a", NORMAL, -25) \
    X(B, "b", NORMAL, -26) \
    X(SUN, "日", NORMAL, -27) \
    X(LL, "ll", NORMAL, -2) \
    X(HE, "he", NORMAL, -3) \
    X(HELL, "hell", NORMAL, -4) \
    X(HELLO, "hello", NORMAL, -5) \
    X(SPACE_H, "▁h", NORMAL, -6) \
    X(SPACE_HELLO, "▁hello", NORMAL, -7) \
    X(AB, "ab", NORMAL, -9) \
    X(BA, "ba", NORMAL, -9) \
    X(O_SPACE, "o▁", NORMAL, -8) \
    X(O_SPACE_A, "o▁a", NORMAL, -10) \
    X(LO, "lo", UNUSED, -11) \
    X(LOA, "loa", UNUSED, -12) \
    X(OA, "oa", UNUSED, -11) \
    X(USER, "<user>", USER_DEFINED, -1000) \
    X(SPACES_2, "▁▁", USER_DEFINED, -1000) \
    X(SPACES_3, "   ", USER_DEFINED, -1000) \
    X(CONTROL_END, "<|end|>", CONTROL, -1000) \
    X(NEVER, "日日 日", NORMAL, -1)
// clang-format on

static const entry more_tokens[] = {
#define X(id, name, kind, score) {name, kind, score},
    TOKENS(X)
#undef X
};

enum {
    UNK,
    BEGIN,
    END,
    BYTES,
    BYTES_LAST = BYTES + 255,
#define X(id, name, kind, score) id,
    TOKENS(X)
#undef X
        VOCAB
};

/* What a test may change in the file. */
typedef struct variant {
    bool no_prefix, removes_spaces, no_bos, adds_eos, no_roles, no_unknown, no_unused, no_kinds, charsmap;
    int bytes;             /* how many byte tokens are of that kind; 0: all; −1: none */
    int scores, kinds;     /* elements of the arrays; 0: all */
    const char *instead;   /* the name of HELLO */
    float score;           /* of HELLO, where it is not 0 */
    int unknown_id;        /* 0: the key is left out, and <unk> is found by its kind */
    const char *byte_name; /* of byte 1 */
} variant;

static entry token(const variant *v, int id, char name[8]) {
    static const entry first[] = {{"<unk>", UNKNOWN, 0}, {"<s>", CONTROL, 0}, {"</s>", CONTROL, 0}};
    if (id == UNK && v->no_unknown) return (entry){"<unk>", NORMAL, 0};
    if (id < BYTES) return first[id];
    if (id < SPACE) {
        int byte = id - BYTES, count = v->bytes ? v->bytes : 256;
        sprintf(name, "<0x%02X>", (unsigned)byte);
        return (entry){byte == 1 && v->byte_name ? v->byte_name : name, byte < count ? BYTE : NORMAL, 0};
    }
    entry e = more_tokens[id - SPACE];
    if (e.kind == UNUSED && v->no_unused) e.kind = NORMAL;
    if (id == HELLO && v->instead) e.name = v->instead;
    if (id == HELLO && v->score != 0) e.score = v->score;
    return e;
}

static void put_f32(image *f, float value) {
    put(f, &value, sizeof value);
}

static void write_vocabulary(image *f, const variant *v) {
    char name[8];
    begin(f);
    key_string(f, "tokenizer.ggml.model", "llama");
    key_array(f, "tokenizer.ggml.tokens", STRING, VOCAB);
    for (int id = 0; id < VOCAB; id++) put_string(f, token(v, id, name).name);
    int scores = v->scores ? v->scores : VOCAB, kinds = v->kinds ? v->kinds : VOCAB;
    key_array(f, "tokenizer.ggml.scores", F32, (uint64_t)scores);
    for (int id = 0; id < scores; id++) put_f32(f, id < VOCAB ? token(v, id, name).score : 0);
    if (!v->no_kinds) {
        key_array(f, "tokenizer.ggml.token_type", I32, (uint64_t)kinds);
        for (int id = 0; id < kinds; id++) put_u32(f, (uint32_t)(id < VOCAB ? token(v, id, name).kind : NORMAL));
    }
    if (!v->no_roles) {
        key_u32(f, "tokenizer.ggml.bos_token_id", BEGIN);
        key_u32(f, "tokenizer.ggml.eos_token_id", CONTROL_END);
    }
    if (v->unknown_id) key_u32(f, "tokenizer.ggml.unknown_token_id", (uint32_t)v->unknown_id);
    if (v->no_prefix) key_bool(f, "tokenizer.ggml.add_space_prefix", false);
    if (v->removes_spaces) key_bool(f, "tokenizer.ggml.remove_extra_whitespaces", true);
    if (v->no_bos) key_bool(f, "tokenizer.ggml.add_bos_token", false);
    if (v->adds_eos) key_bool(f, "tokenizer.ggml.add_eos_token", true);
    if (v->charsmap) {
        key_array(f, "tokenizer.ggml.precompiled_charsmap", U8, 4);
        put_u32(f, 0);
    }
    finish(f, 1, 0);
}

static pen_status open_image(const image *f, pen_tokenizer **tokenizer) {
    pen_gguf *gguf = opened(f);
    pen_status status = pen_tokenizer_open(gguf, tokenizer);
    pen_gguf_close(gguf); /* nothing of it is needed any more */
    return status;
}

static pen_tokenizer *open_tokenizer(const variant *v) {
    image f;
    pen_tokenizer *tokenizer;
    write_vocabulary(&f, v);
    if (open_image(&f, &tokenizer) != PEN_OK) fail_msg("%s", pen_last_error());
    return tokenizer;
}

/* ---- Encoding -------------------------------------------------------------------------------------------------- */

static void check_joins(const variant *v) {
    pen_tokenizer *t = open_tokenizer(v);
    assert_int_equal(pen_tokenizer_vocab_size(t), VOCAB);
    ASSERT_ENCODES(t, "hello", 0, HELLO);
    ASSERT_ENCODES(t, "hell", 0, HELL);
    ASSERT_ENCODES(t, "hel", 0, HE, L);
    ASSERT_ENCODES(t, " h", 0, SPACE_H);
    ASSERT_ENCODES(t, " hello", 0, SPACE_HELLO);
    ASSERT_ENCODES(t, "aba", 0, AB, A); /* "ab" and "ba" have the same score */
    ASSERT_ENCODES(t, "baba", 0, BA, BA);
    ASSERT_ENCODES(t, "o a", 0, O_SPACE_A); /* across a space */
    ASSERT_ENCODES(t, "o ab", 0, O_SPACE, AB);
    ASSERT_ENCODES(t, "日日 日", 0, SUN, SUN, SPACE, SUN);
    assert_encodes(t, "", 0, 0, NULL);
    pen_tokenizer_close(t);
}

static void test_joins_by_score_then_place(void **state) {
    (void)state;
    check_joins(&(variant){.no_prefix = true});
    check_joins(&(variant){.no_prefix = true, .no_unused = true});
}

static void test_space_prefix(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){0});
    ASSERT_ENCODES(t, "hello", 0, SPACE_HELLO);
    ASSERT_ENCODES(t, "o", 0, SPACE, O);
    ASSERT_ENCODES(t, " hello", 0, SPACES_2, HELLO); /* one space is ours, the other is in the text */
    ASSERT_ENCODES(t, " ", 0, SPACES_2);
    assert_encodes(t, "", 0, 0, NULL);
    /* Each text between control tokens is one by itself, user-defined tokens are part of it. */
    ASSERT_ENCODES(t, "hello<|end|>hello", PEN_ENCODE_SPECIAL, SPACE_HELLO, CONTROL_END, SPACE_HELLO);
    ASSERT_ENCODES(t, "<|end|><|end|>o", PEN_ENCODE_SPECIAL, CONTROL_END, CONTROL_END, SPACE, O);
    ASSERT_ENCODES(t, "hello<user>hello", 0, SPACE_HELLO, USER, HELLO);
    ASSERT_ENCODES(t, "<user>hello", 0, SPACE, USER, HELLO);
    pen_tokenizer_close(t);
}

static void test_special_tokens(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){.no_prefix = true});
    ASSERT_ENCODES(t, "o<|end|>", PEN_ENCODE_SPECIAL, O, CONTROL_END);
    ASSERT_ENCODES(t, "<|e", PEN_ENCODE_SPECIAL, BYTES + '<', BYTES + '|', E);
    ASSERT_ENCODES(t, "<|e<|end|>", PEN_ENCODE_SPECIAL, BYTES + '<', BYTES + '|', E, CONTROL_END);
    ASSERT_ENCODES(t, "<s>", 0, BYTES + '<', BYTES + 's', BYTES + '>');
    ASSERT_ENCODES(t, "<unk>", PEN_ENCODE_SPECIAL, BYTES + '<', BYTES + 'u', BYTES + 'n', BYTES + 'k', BYTES + '>');
    ASSERT_ENCODES(t, "<0x0A>", PEN_ENCODE_SPECIAL, BYTES + '<', BYTES + '0', BYTES + 'x', BYTES + '0', BYTES + 'A',
                   BYTES + '>');
    /* User-defined tokens are never split and never joined, the longest first. */
    ASSERT_ENCODES(t, "a  hello", 0, A, SPACES_2, HELLO);
    ASSERT_ENCODES(t, "a   hello", 0, A, SPACES_3, HELLO);
    ASSERT_ENCODES(t, "a    hello", 0, A, SPACES_3, SPACE_HELLO);
    ASSERT_ENCODES(t, "o  a", 0, O, SPACES_2, A);
    pen_tokenizer_close(t);
}

static void test_begin_and_end(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){.adds_eos = true});
    assert_int_equal(pen_tokenizer_bos(t), BEGIN);
    assert_int_equal(pen_tokenizer_eos(t), CONTROL_END);
    assert_true(pen_tokenizer_is_end(t, CONTROL_END) && pen_tokenizer_is_end(t, END) &&
                !pen_tokenizer_is_end(t, BEGIN));
    ASSERT_ENCODES(t, "hello", PEN_ENCODE_BOS, BEGIN, SPACE_HELLO); /* this kind begins with BOS */
    ASSERT_ENCODES(t, "hello", PEN_ENCODE_BOS | PEN_ENCODE_EOS, BEGIN, SPACE_HELLO, CONTROL_END);
    ASSERT_ENCODES(t, "", PEN_ENCODE_BOS, BEGIN);
    pen_tokenizer_close(t);
    t = open_tokenizer(&(variant){.no_bos = true});
    ASSERT_ENCODES(t, "hello", PEN_ENCODE_BOS | PEN_ENCODE_EOS, SPACE_HELLO);
    pen_tokenizer_close(t);
    t = open_tokenizer(&(variant){.no_roles = true}); /* by their names */
    assert_int_equal(pen_tokenizer_bos(t), BEGIN);
    assert_int_equal(pen_tokenizer_eos(t), END);
    pen_tokenizer_close(t);
}

static void test_what_is_no_token(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){.no_prefix = true});
    ASSERT_ENCODES(t, "é", 0, BYTES + 0xc3, BYTES + 0xa9);
    ASSERT_ENCODES(t, "h\n", 0, H, BYTES + '\n');
    ASSERT_ENCODES(t, "\xff\xe6\x97h", 0, BYTES + 0xff, BYTES + 0xe6, BYTES + 0x97, H); /* a part of 日 */
    ASSERT_ENCODES(t, "\xe6\x97", 0, BYTES + 0xe6, BYTES + 0x97);
    ASSERT_ENCODES(t, "\xa5日", 0, BYTES + 0xa5, SUN);
    pen_tokenizer_close(t);
    t = open_tokenizer(&(variant){.no_prefix = true, .bytes = -1});
    ASSERT_ENCODES(t, "é", 0, UNK);
    ASSERT_ENCODES(t, "é☃\xff\n", 0, UNK); /* one for a run */
    ASSERT_ENCODES(t, "éhé é", 0, UNK, H, UNK, SPACE, UNK);
    assert_streams(t, (int32_t[]){H, UNK, O}, 3, false, "h ⁇ o", 7);
    pen_tokenizer_close(t);
    t = open_tokenizer(&(variant){.no_prefix = true, .bytes = -1, .unknown_id = SUN});
    ASSERT_ENCODES(t, "hé", 0, H, SUN);
    pen_tokenizer_close(t);
}

static void test_white_space(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){.no_prefix = true});
    ASSERT_ENCODES(t, "▁hello", 0, SPACE_HELLO); /* U+2581 and a space are the same */
    ASSERT_ENCODES(t, "a▁ hello", 0, A, SPACES_2, HELLO);
    ASSERT_ENCODES(t, "\xe2\x96", 0, BYTES + 0xe2, BYTES + 0x96); /* a part of it is not */
    pen_tokenizer_close(t);
    t = open_tokenizer(&(variant){.removes_spaces = true});
    ASSERT_ENCODES(t, "  hello   hello  ", 0, SPACE_HELLO, SPACE_HELLO);
    ASSERT_ENCODES(t, "hello \n hello", 0, SPACE_HELLO, SPACE, BYTES + '\n', SPACE_HELLO);
    ASSERT_ENCODES(t, "hello <|end|> hello", PEN_ENCODE_SPECIAL, SPACE_HELLO, CONTROL_END, SPACE_HELLO);
    assert_encodes(t, "    ", 0, 0, NULL);
    assert_encodes(t, "▁", 0, 0, NULL);
    pen_tokenizer_close(t);
    t = open_tokenizer(&(variant){.removes_spaces = true, .no_prefix = true});
    ASSERT_ENCODES(t, " hello  hello", 0, HELLO, SPACE_HELLO);
    pen_tokenizer_close(t);
}

/* They may be made on the way, but do not stay. */
static void test_unused_tokens(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){.no_prefix = true});
    ASSERT_ENCODES(t, "lo", 0, L, O);
    ASSERT_ENCODES(t, "loa", 0, L, O, A);
    ASSERT_ENCODES(t, "loa hello loa", 0, L, O, A, SPACE_HELLO, SPACE, L, O, A);
    pen_tokenizer_close(t);
}

/* ---- Decoding -------------------------------------------------------------------------------------------------- */

#define ASSERT_STREAMS(tokenizer, text, ...)                                                                           \
    assert_streams(tokenizer, (int32_t[]){__VA_ARGS__}, sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t), true,      \
                   text, strlen(text))

static void test_takes_its_own_space_off(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){0});
    ASSERT_STREAMS(t, "hello hello", SPACE_HELLO, SPACE_HELLO);
    ASSERT_STREAMS(t, "<s>hello", BEGIN, SPACE_HELLO);
    ASSERT_STREAMS(t, " hello", SPACES_2, HELLO);
    ASSERT_STREAMS(t, " hello", SPACE, SPACE_HELLO);
    ASSERT_STREAMS(t, "hello hello", HELLO, SPACE_HELLO);
    ASSERT_STREAMS(t, " hello", BYTES + ' ', HELLO); /* bytes are what they are */
    ASSERT_STREAMS(t, "é h", BYTES + 0xc3, BYTES + 0xa9, SPACE_H);
    ASSERT_STREAMS(t, " ⁇ h", UNK, H);
    ASSERT_STREAMS(t, "\xef\xbf\xbd h", BYTES + 0xc3, SPACE_H);
    pen_tokenizer_close(t);
    t = open_tokenizer(&(variant){.no_prefix = true});
    ASSERT_STREAMS(t, " hello", SPACE_HELLO);
    pen_tokenizer_close(t);
    t = open_tokenizer(&(variant){.removes_spaces = true});
    ASSERT_STREAMS(t, "hello hello", SPACE, SPACE, SPACE_HELLO, SPACE_HELLO);
    ASSERT_STREAMS(t, " hello", SPACES_2, HELLO); /* one for each token, as the library does */
    pen_tokenizer_close(t);
}

static void test_a_continuation_keeps_its_space(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){0});
    pen_detokenizer *d;
    assert_int_equal(pen_detokenizer_create(t, PEN_DECODE_CONTINUED, &d), PEN_OK);
    assert_int_equal(pen_detokenizer_push(d, SPACE_HELLO).length, 6);
    assert_int_equal(pen_detokenizer_finish(d).length, 0);
    assert_int_equal(pen_detokenizer_push(d, SPACE_HELLO).length, 6);
    pen_detokenizer_destroy(d);
    assert_int_equal(pen_detokenizer_create(t, 0, &d), PEN_OK);
    for (int text = 0; text < 2; text++) { /* the second begins anew */
        assert_int_equal(pen_detokenizer_push(d, SPACE_HELLO).length, 5);
        assert_int_equal(pen_detokenizer_push(d, SPACE_HELLO).length, 6);
        assert_int_equal(pen_detokenizer_finish(d).length, 0);
    }
    pen_detokenizer_destroy(d);
    pen_tokenizer_close(t);
}

/* U+2581 would come back as a space. */
static size_t random_text_without_marks(uint64_t *seed, char *text) {
    size_t length = random_text(seed, text);
    for (size_t i = 0; i + 3 <= length; i++)
        if (!memcmp(text + i, "▁", 3)) memcpy(text + i, "日", 3);
    return length;
}

static void test_valid_text_comes_back_as_it_was(void **state) {
    (void)state;
    for (int prefix = 0; prefix < 2; prefix++) {
        pen_tokenizer *t = open_tokenizer(&(variant){.no_prefix = !prefix});
        uint64_t seed = 1;
        char text[160];
        for (int round = 0; round < 3000; round++) {
            size_t length = random_text_without_marks(&seed, text);
            pen_tokens tokens = encoded(t, text, length, PEN_ENCODE_SPECIAL);
            assert_streams(t, tokens.ids, tokens.count, true, text, length);
            pen_tokens_free(&tokens);
        }
        pen_tokenizer_close(t);
    }
}

static void test_any_bytes_survive(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){.no_prefix = true});
    uint64_t seed = 2;
    char text[200];
    for (int round = 0; round < 3000; round++) {
        size_t length = random_text_without_marks(&seed, text);
        for (uint64_t broken = next_random(&seed) % 6; broken; broken--) {
            size_t at = next_random(&seed) % (length + 1);
            memmove(text + at + 1, text + at, length++ - at);
            text[at] = (char)(next_random(&seed) % 256);
        }
        pen_tokens tokens = encoded(t, text, length, 0);
        size_t at = 0;
        for (size_t i = 0; i < tokens.count; i++) {
            pen_text piece = pen_tokenizer_piece(t, tokens.ids[i]);
            assert_true(at + piece.length <= length);
            assert_memory_equal(piece.data, text + at, piece.length);
            at += piece.length;
        }
        assert_int_equal(at, length);
        pen_tokens_free(&tokens);
    }
    pen_tokenizer_close(t);
}

/* ---- Against a plain method ------------------------------------------------------------------------------------ */

/* A random vocabulary of letters and strings of them, ids 1 …; id 0 is unknown. Scores are few, so that many are equal.
 */
enum { LETTERS = 5, STRINGS = 60, RANDOM_VOCAB = 1 + LETTERS + STRINGS, TEXT_MAX = 80 };

typedef struct vocabulary {
    char names[RANDOM_VOCAB][8];
    int kinds[RANDOM_VOCAB];
    float scores[RANDOM_VOCAB];
    int split[RANDOM_VOCAB]; /* how a token was last put together, anywhere in the text: bytes of its left part */
    int count;
} vocabulary;

static int find(const vocabulary *v, const char *text, int length) {
    for (int id = 1; id < v->count; id++)
        if ((int)strlen(v->names[id]) == length && !memcmp(v->names[id], text, (size_t)length)) return id;
    return -1;
}

static void make_vocabulary(vocabulary *v, uint64_t *seed) {
    *v = (vocabulary){.names = {"<unk>"}, .kinds = {UNKNOWN}, .count = 1};
    bool unused = next_random(seed) % 2;
    int strings =
        3 + (int)(next_random(seed) % (STRINGS - 2)); /* with few of them the text can be cut in many places */
    for (int i = 0; i < LETTERS + strings; i++) {
        char name[8] = {0};
        int length = i < LETTERS ? 1 : 2 + (int)(next_random(seed) % 4);
        for (int k = 0; k < length; k++) name[k] = " abcd"[i < LETTERS ? i : (int)(next_random(seed) % LETTERS)];
        if (find(v, name, length) >= 0 || (i < LETTERS && next_random(seed) % 8 == 0)) continue; /* letters may lack */
        v->kinds[v->count] = unused && length > 1 && next_random(seed) % 4 == 0 ? UNUSED : NORMAL;
        v->scores[v->count] = -(float)(next_random(seed) % 20);
        strcpy(v->names[v->count++], name);
    }
}

static void write_random(image *f, const vocabulary *v) {
    begin(f);
    key_string(f, "tokenizer.ggml.model", "llama");
    key_array(f, "tokenizer.ggml.tokens", STRING, (uint64_t)v->count);
    for (int id = 0; id < v->count; id++) {
        char spelt[32] = {0};
        for (const char *c = v->names[id]; *c; c++) strcat(spelt, *c == ' ' ? "▁" : (char[]){*c, 0});
        put_string(f, spelt);
    }
    key_array(f, "tokenizer.ggml.scores", F32, (uint64_t)v->count);
    for (int id = 0; id < v->count; id++) put_f32(f, v->scores[id]);
    key_array(f, "tokenizer.ggml.token_type", I32, (uint64_t)v->count);
    for (int id = 0; id < v->count; id++) put_u32(f, (uint32_t)v->kinds[id]);
    key_bool(f, "tokenizer.ggml.add_space_prefix", false);
    finish(f, 1, 0);
}

typedef struct span {
    int start, length;
} span;

/* What two neighbours make, or −1. */
static int made(vocabulary *v, const char *text, const span *left) {
    int id = find(v, text + left->start, left[0].length + left[1].length);
    if (id >= 0) v->split[id] = left->length;
    return id;
}

static void emit(const vocabulary *v, const char *text, span s, pen_tokens *tokens) {
    int id = find(v, text + s.start, s.length);
    if (id >= 0 && v->kinds[id] == UNUSED) {
        emit(v, text, (span){s.start, v->split[id]}, tokens);
        emit(v, text, (span){s.start + v->split[id], s.length - v->split[id]}, tokens);
        return;
    }
    if (id < 0 && tokens->count && tokens->ids[tokens->count - 1] == 0) return;
    tokens->ids[tokens->count++] = id < 0 ? 0 : id;
}

/* As it is defined: look at all pairs, join the best, look again. */
static void encode_plainly(vocabulary *v, const char *text, int length, pen_tokens *tokens) {
    span spans[TEXT_MAX];
    int count = 0;
    for (int i = 0; i < length; i++) spans[count++] = (span){i, 1};
    for (int i = 0; i + 1 < count; i++) made(v, text, &spans[i]);
    for (;;) {
        int best = -1, best_id = 0;
        for (int i = 0; i + 1 < count; i++) {
            int id = find(v, text + spans[i].start, spans[i].length + spans[i + 1].length);
            if (id >= 0 && (best < 0 || v->scores[id] > v->scores[best_id])) best = i, best_id = id;
        }
        if (best < 0) break;
        spans[best].length += spans[best + 1].length;
        memmove(&spans[best + 1], &spans[best + 2], (size_t)(--count - best - 1) * sizeof *spans);
        if (best > 0) made(v, text, &spans[best - 1]);
        if (best + 1 < count) made(v, text, &spans[best]);
    }
    for (int i = 0; i < count; i++) emit(v, text, spans[i], tokens);
}

static void test_equals_a_plain_method_on_random_vocabularies(void **state) {
    (void)state;
    uint64_t seed = 5;
    for (int round = 0; round < 1000; round++) {
        vocabulary v;
        image f;
        pen_tokenizer *t;
        make_vocabulary(&v, &seed);
        write_random(&f, &v);
        if (open_image(&f, &t) != PEN_OK) fail_msg("%s", pen_last_error());
        for (int repeat = 0; repeat < 20; repeat++) {
            char text[TEXT_MAX];
            int32_t ids[TEXT_MAX];
            pen_tokens expected = {.ids = ids};
            int length = (int)(next_random(&seed) % TEXT_MAX);
            for (int i = 0; i < length; i++) text[i] = " abcde"[next_random(&seed) % 6]; /* e is never known */
            encode_plainly(&v, text, length, &expected);
            pen_tokens tokens = encoded(t, text, (size_t)length, 0);
            assert_int_equal(tokens.count, expected.count);
            if (tokens.count) assert_memory_equal(tokens.ids, ids, tokens.count * sizeof *ids);
            pen_tokens_free(&tokens);
        }
        pen_tokenizer_close(t);
    }
}

/* ---- Time ------------------------------------------------------------------------------------------------------ */

static void test_long_texts_without_spaces_take_linear_time(void **state) {
    (void)state;
    enum { LENGTH = 1 << 20 };
    pen_tokenizer *t = open_tokenizer(&(variant){0});
    char *text = malloc(LENGTH);
    uint64_t seed = 3;
    static const char *const alphabets[] = {"a", " ", "l", "ab", "helo", "helo ab", "<", "\xff", "\xe6\x97\xa5"};
    for (size_t k = 0; k < sizeof alphabets / sizeof *alphabets; k++) {
        size_t letters = strlen(alphabets[k]);
        for (size_t i = 0; i < LENGTH; i++) text[i] = alphabets[k][next_random(&seed) % letters];
        assert_linear(t, text, LENGTH);
    }
    free(text);
    pen_tokenizer_close(t);
}

/* ---- Files that are refused ------------------------------------------------------------------------------------ */

static void test_refuses_files_that_contradict_themselves(void **state) {
    (void)state;
    static const struct {
        variant v;
        pen_status status;
        const char *words;
    } cases[] = {
        {{.scores = VOCAB - 1}, PEN_BAD_INPUT, "key tokenizer.ggml.scores has 284 elements for 285 tokens"},
        {{.scores = VOCAB + 1}, PEN_BAD_INPUT, "key tokenizer.ggml.scores has 286 elements for 285 tokens"},
        {{.kinds = 3}, PEN_BAD_INPUT, "key tokenizer.ggml.token_type has 3 elements for 285 tokens"},
        {{.no_kinds = true}, PEN_BAD_INPUT, "key tokenizer.ggml.token_type is missing"},
        {{.score = NAN}, PEN_BAD_INPUT, "key tokenizer.ggml.scores: that of token 270 is not a number"},
        {{.bytes = 255}, PEN_BAD_INPUT, "of the 256 byte tokens 1 is missing, <0xFF>"},
        {{.bytes = 10}, PEN_BAD_INPUT, "of the 256 byte tokens 246 are missing, such as <0x0A>"},
        {{.byte_name = "<0x1>"}, PEN_BAD_INPUT, "token 4 is of a byte but not named \"<0x00>\""},
        {{.byte_name = "<0x0a>"}, PEN_BAD_INPUT, "token 4 is of a byte but not named \"<0x00>\""},
        {{.byte_name = "<0x00>"}, PEN_BAD_INPUT, "token 4 is there twice"},
        {{.bytes = -1, .no_unknown = true}, PEN_BAD_INPUT, "there are neither byte tokens nor an unknown token"},
        {{.unknown_id = VOCAB}, PEN_BAD_INPUT, "key tokenizer.ggml.unknown_token_id is 285, outside 0 to 284"},
        {{.instead = "hell"}, PEN_BAD_INPUT, "key tokenizer.ggml.tokens: token 270 is there twice"},
        {{.instead = "<user>"}, PEN_BAD_INPUT, "key tokenizer.ggml.tokens: token 280 is there twice"},
        {{.charsmap = true}, PEN_UNSUPPORTED, "key tokenizer.ggml.precompiled_charsmap"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        image f;
        pen_tokenizer *t;
        write_vocabulary(&f, &cases[i].v);
        assert_int_equal(open_image(&f, &t), cases[i].status);
        assert_null(t);
        assert_error_names(path);
        assert_error_names(cases[i].words);
    }
}

static void test_survives_flipped_bytes(void **state) {
    (void)state;
    image f;
    write_vocabulary(&f, &(variant){0});
    assert_survives_flipped_bytes(&f, (pen_text){"hello loa <|end|>\xff  o ab日日 日<user>",
                                                 sizeof "hello loa <|end|>\xff  o ab日日 日<user>" - 1});
}

/* ---- The real one ---------------------------------------------------------------------------------------------- */

static void test_gemma(void **state) {
    (void)state;
    const char *model = getenv("PENSTOCK_TEST_GEMMA");
    if (!model || !*model) skip();
    pen_gguf *gguf;
    pen_tokenizer *t;
    if (pen_gguf_open(model, &gguf) != PEN_OK || pen_tokenizer_open(gguf, &t) != PEN_OK)
        fail_msg("%s", pen_last_error());
    pen_gguf_close(gguf);
    assert_int_equal(pen_tokenizer_vocab_size(t), 262144);
    assert_int_equal(pen_tokenizer_bos(t), 2);
    assert_true(pen_tokenizer_is_end(t, 1) && pen_tokenizer_is_end(t, 106) && !pen_tokenizer_is_end(t, 2));
    ASSERT_ENCODES(t, "The capital of France is", PEN_ENCODE_BOS, 2, 818, 5279, 529, 7001, 563);
    ASSERT_ENCODES(t, "def fibonacci(n):\n    ", 0, 2063, 10779, 78113, 236769, 236749, 1473, 107, 140);
    static const char text[] = "Grüße aus Köln, 日本語, 👩‍👩‍👧‍👦 & 𝕏!\n\n\t<end_of_turn>";
    pen_tokens tokens = encoded(t, text, sizeof text - 1, PEN_ENCODE_SPECIAL);
    assert_streams(t, tokens.ids, tokens.count, true, text, sizeof text - 1);
    pen_tokens_free(&tokens);
    char *letters = malloc(1 << 20);
    memset(letters, 'a', 1 << 20);
    assert_linear(t, letters, 1 << 20);
    free(letters);
    pen_tokenizer_close(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_joins_by_score_then_place),
        cmocka_unit_test(test_space_prefix),
        cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_begin_and_end),
        cmocka_unit_test(test_what_is_no_token),
        cmocka_unit_test(test_white_space),
        cmocka_unit_test(test_unused_tokens),
        cmocka_unit_test(test_takes_its_own_space_off),
        cmocka_unit_test(test_a_continuation_keeps_its_space),
        cmocka_unit_test(test_valid_text_comes_back_as_it_was),
        cmocka_unit_test(test_any_bytes_survive),
        cmocka_unit_test(test_equals_a_plain_method_on_random_vocabularies),
        cmocka_unit_test(test_long_texts_without_spaces_take_linear_time),
        cmocka_unit_test(test_refuses_files_that_contradict_themselves),
        cmocka_unit_test(test_survives_flipped_bytes),
        cmocka_unit_test(test_gemma),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
