/*
 * The tokenizer on a small vocabulary written here (all bytes, a few merges and special tokens), and, where
 * PENSTOCK_TEST_MODEL names SmolLM2's file, on the real one. That whole texts get Hugging Face's ids is checked by
 * tests/reference/tokenizer_compare.py.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gguf_image.h"
#include "log.h"
#include "pretokenizer.h"
#include "tokenizer.h"
#include "tokenizer_checks.h"

/* ---- The vocabulary -------------------------------------------------------------------------------------------- */

/* Ids 0 … 255 are the bytes; the rest come in this order. */
static const struct {
    const char *name;
    int type;
} more_tokens[] = {
    {"he", 1},       /* 256 */
    {"ll", 1},       /* 257 */
    {"hell", 1},     /* 258 */
    {"hello", 1},    /* 259 */
    {"Ġw", 1},       /* 260: a space and w */
    {"aa", 1},       /* 261 */
    {"aaaa", 1},     /* 262 */
    {"Ã¤", 1},       /* 263: ä, by its two bytes */
    {"ĠĠ", 1},       /* 264 */
    {"unseen", 1},   /* 265: no merge makes it */
    {"<|end|>", 3},  /* 266 */
    {"<|end|>!", 3}, /* 267: longer */
    {"<user>", 4},   /* 268 */
    {"<|begin|>", 3} /* 269 */
};
enum { HE = 256, LL, HELL, HELLO, SPACE_W, AA, AAAA, A_UMLAUT, SPACES, UNSEEN, END, END_LONG, USER, BEGIN, VOCAB };

static const char *const merges[] = {"h e", "l l", "he ll", "hell o", "Ġ w", "a a", "aa aa", "Ã ¤", "Ġ Ġ"};
enum { MERGES = sizeof merges / sizeof *merges };

/* What a test may change in the file. */
typedef struct variant {
    const char *model, *pre;
    const char *instead_of_hello; /* the name of token 259 */
    const char *last_merge;
    int missing_byte; /* its token is spelt otherwise; 0: none */
    int types;        /* how many elements token_type has; 0: all */
    int type_of_hello;
    int scores;   /* how many there are; 0: no key */
    int bos, eos; /* ids; 0: BEGIN, END; −1: no key */
    int eot, eom; /* ids; 0: no key */
    bool add_bos, no_merges, no_pre;
} variant;

static void put_byte_name(image *f, int byte) {
    int next = 0x100;
    for (int b = 0; b < byte; b++) next += b <= 0x20 || (b >= 0x7f && b <= 0xa0) || b == 0xad;
    bool printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
    int character = printable ? byte : next;
    char name[4] = {0};
    utf8proc_encode_char(character, (utf8proc_uint8_t *)name);
    put_string(f, name);
}

static void write_vocabulary(image *f, const variant *v) {
    begin(f);
    key_string(f, "tokenizer.ggml.model", v->model ? v->model : "gpt2");
    if (!v->no_pre) key_string(f, "tokenizer.ggml.pre", v->pre ? v->pre : "smollm");
    key_array(f, "tokenizer.ggml.tokens", STRING, VOCAB);
    for (int id = 0; id < VOCAB; id++) {
        if (id < 256 && id == v->missing_byte && id)
            put_string(f, "日本");
        else if (id < 256)
            put_byte_name(f, id);
        else
            put_string(f, id == HELLO && v->instead_of_hello ? v->instead_of_hello : more_tokens[id - 256].name);
    }
    key_array(f, "tokenizer.ggml.token_type", I32, v->types ? (uint64_t)v->types : VOCAB);
    for (int id = 0; id < (v->types ? v->types : VOCAB); id++) {
        int type = id < 256 || id >= VOCAB ? 1 : more_tokens[id - 256].type;
        put_u32(f, (uint32_t)(id == HELLO && v->type_of_hello ? v->type_of_hello : type));
    }
    if (!v->no_merges) {
        key_array(f, "tokenizer.ggml.merges", STRING, MERGES + (v->last_merge != NULL));
        for (int i = 0; i < MERGES; i++) put_string(f, merges[i]);
        if (v->last_merge) put_string(f, v->last_merge);
    }
    if (v->bos >= 0) key_u32(f, "tokenizer.ggml.bos_token_id", (uint32_t)(v->bos ? v->bos : BEGIN));
    if (v->eos >= 0) key_u32(f, "tokenizer.ggml.eos_token_id", (uint32_t)(v->eos ? v->eos : END));
    if (v->eot) key_u32(f, "tokenizer.ggml.eot_token_id", (uint32_t)v->eot);
    if (v->eom) key_u32(f, "tokenizer.ggml.eom_token_id", (uint32_t)v->eom);
    if (v->scores) {
        key_array(f, "tokenizer.ggml.scores", F32, (uint64_t)v->scores);
        for (int i = 0; i < v->scores; i++) put_u32(f, 0);
    }
    if (v->add_bos) key_bool(f, "tokenizer.ggml.add_bos_token", true);
    finish(f, 1, 0);
}

static pen_status open_variant(const variant *v, pen_tokenizer **tokenizer) {
    image f;
    write_vocabulary(&f, v);
    pen_gguf *gguf = opened(&f);
    pen_status status = pen_tokenizer_open(gguf, tokenizer);
    pen_gguf_close(gguf); /* nothing of it is needed any more */
    return status;
}

static pen_tokenizer *open_tokenizer(const variant *v) {
    pen_tokenizer *tokenizer;
    if (open_variant(v, &tokenizer) != PEN_OK) fail_msg("%s", pen_last_error());
    return tokenizer;
}

/* ---- Encoding -------------------------------------------------------------------------------------------------- */

static void test_merges_in_order_of_rank_then_place(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){0});
    assert_int_equal(pen_tokenizer_vocab_size(t), VOCAB);
    ASSERT_ENCODES(t, "hello", 0, HELLO);
    ASSERT_ENCODES(t, "hell", 0, HELL);
    ASSERT_ENCODES(t, "help", 0, HE, 'l', 'p');
    ASSERT_ENCODES(t, "hello world", 0, HELLO, SPACE_W, 'o', 'r', 'l', 'd');
    ASSERT_ENCODES(t, "aaa", 0, AA, 'a');
    ASSERT_ENCODES(t, "aaaaaaa", 0, AAAA, AA, 'a');
    ASSERT_ENCODES(t, "llll", 0, LL, LL);
    ASSERT_ENCODES(t, "ä", 0, A_UMLAUT);
    ASSERT_ENCODES(t, "unseen", 0, 'u', 'n', 's', 'e', 'e', 'n');
    assert_encodes(t, "", 0, 0, NULL);
    pen_tokenizer_close(t);
}

static void test_pretokenizer_keeps_words_apart(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){0});
    /* Of three spaces the last one belongs to the word; before a digit all three stay together. */
    ASSERT_ENCODES(t, "a   w", 0, 'a', SPACES, SPACE_W);
    ASSERT_ENCODES(t, "a   1", 0, 'a', SPACES, ' ', '1');
    ASSERT_ENCODES(t, "a a", 0, 'a', ' ', 'a');
    ASSERT_ENCODES(t, "a'll", 0, 'a', '\'', LL);
    pen_tokenizer_close(t);
    t = open_tokenizer(&(variant){.pre = "gpt-2"});
    ASSERT_ENCODES(t, "a   1", 0, 'a', SPACES, ' ', '1');
    ASSERT_ENCODES(t, "a  \n1", 0, 'a', SPACES, '\n', '1');
    pen_tokenizer_close(t);
}

static void test_whole_words_come_before_merges_where_the_kind_says_so(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){.pre = "llama-bpe"});
    ASSERT_ENCODES(t, "unseen", 0, UNSEEN);
    ASSERT_ENCODES(t, "unseenx", 0, 'u', 'n', 's', 'e', 'e', 'n', 'x');
    pen_tokenizer_close(t);
}

static void test_a_file_that_names_no_pretokenizer_gets_the_default(void **state) {
    (void)state;
    pen_log_init(PEN_LOG_ERROR, -1); /* it is said in a warning */
    pen_tokenizer *t = open_tokenizer(&(variant){.no_pre = true});
    ASSERT_ENCODES(t, "hello w!", 0, HELLO, SPACE_W, '!');
    ASSERT_ENCODES(t, " 12", 0, ' ', '1', '2');
    pen_tokenizer_close(t);
}

/* A character and a mark that compose; what is below U+0300 is not looked at. */
static void test_composes_where_the_kind_says_so(void **state) {
    (void)state;
    static const char apart[] = "xa\xcc\x88"
                                "\xff"
                                "a\xcc\x88\xff";
    pen_tokenizer *t = open_tokenizer(&(variant){.pre = "qwen2"});
    ASSERT_ENCODES(t, apart, 0, 'x', A_UMLAUT, 0xff, A_UMLAUT, 0xff);
    ASSERT_ENCODES(t, "\xc3\xa4\xcc\x88", 0, A_UMLAUT, 0xcc, 0x88);
    pen_tokenizer_close(t);
    t = open_tokenizer(&(variant){.pre = "deepseek-r1-qwen"});
    ASSERT_ENCODES(t, apart, 0, 'x', 'a', 0xcc, 0x88, 0xff, 'a', 0xcc, 0x88, 0xff);
    pen_tokenizer_close(t);
}

static void test_special_tokens(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){0});
    ASSERT_ENCODES(t, "<|end|>", PEN_ENCODE_SPECIAL, END);
    ASSERT_ENCODES(t, "<|end|>!", PEN_ENCODE_SPECIAL, END_LONG);
    ASSERT_ENCODES(t, "<<|end|><|end|>.", PEN_ENCODE_SPECIAL, '<', END, END, '.');
    ASSERT_ENCODES(t, "<|end|", PEN_ENCODE_SPECIAL, '<', '|', 'e', 'n', 'd', '|');
    ASSERT_ENCODES(t, "<|end|>", 0, '<', '|', 'e', 'n', 'd', '|', '>');
    ASSERT_ENCODES(t, "<user>", 0, USER);
    ASSERT_ENCODES(t, "hello<user> w", PEN_ENCODE_SPECIAL, HELLO, USER, SPACE_W);
    /* What is before a special token ends there: both spaces stay together. */
    ASSERT_ENCODES(t, "a  <|end|>", PEN_ENCODE_SPECIAL, 'a', SPACES, END);
    pen_tokenizer_close(t);
}

static void test_begin_and_end(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){0});
    assert_int_equal(pen_tokenizer_bos(t), BEGIN);
    assert_int_equal(pen_tokenizer_eos(t), END);
    assert_true(pen_tokenizer_is_end(t, END));
    assert_false(pen_tokenizer_is_end(t, BEGIN));
    assert_false(pen_tokenizer_is_end(t, -1));
    ASSERT_ENCODES(t, "a", PEN_ENCODE_BOS, 'a'); /* the file does not ask for it */
    pen_tokenizer_close(t);

    t = open_tokenizer(&(variant){.add_bos = true, .eos = -1});
    ASSERT_ENCODES(t, "a", PEN_ENCODE_BOS, BEGIN, 'a');
    ASSERT_ENCODES(t, "a", 0, 'a');
    assert_int_equal(pen_tokenizer_eos(t), -1);
    assert_true(pen_tokenizer_is_end(t, END)); /* by its name, <|end|> */
    pen_tokenizer_close(t);

    t = open_tokenizer(&(variant){.pre = "llama-bpe"}); /* this kind begins with BOS */
    ASSERT_ENCODES(t, "a", PEN_ENCODE_BOS, BEGIN, 'a');
    pen_tokenizer_close(t);
}

static void test_bytes_without_a_token_are_left_out(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){.missing_byte = 'x'});
    ASSERT_ENCODES(t, "axb", 0, 'a', 'b');
    ASSERT_ENCODES(t, "hxe", 0, HE);
    assert_encodes(t, "xx", 0, 0, NULL); /* fuzz_tokenizer: arithmetic on the null pointer of a list without ids */
    pen_tokenizer_close(t);
}

/* ---- Round trips ----------------------------------------------------------------------------------------------- */

static void test_valid_text_comes_back_as_it_was(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){0});
    uint64_t seed = 1;
    char text[160];
    for (int round = 0; round < 3000; round++) {
        size_t length = random_text(&seed, text);
        pen_tokens tokens = encoded(t, text, length, PEN_ENCODE_SPECIAL);
        assert_streams(t, tokens.ids, tokens.count, true, text, length);
        pen_tokens_free(&tokens);
    }
    pen_tokenizer_close(t);
}

/* Random bytes: no crash, all bytes are there, and the stream is valid text that does not depend on how bytes are
 * grouped into tokens. */
static void test_any_bytes_survive(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){0});
    uint64_t seed = 2;
    char text[200];
    for (int round = 0; round < 3000; round++) {
        size_t length = random_text(&seed, text);
        for (uint64_t broken = next_random(&seed) % 6; broken; broken--)
            text[length++] = (char)(next_random(&seed) % 256);
        for (uint64_t swaps = next_random(&seed) % 6; swaps && length; swaps--) {
            size_t a = next_random(&seed) % length, b = next_random(&seed) % length;
            char c = text[a];
            text[a] = text[b];
            text[b] = c;
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

        int32_t bytes[200];
        for (size_t i = 0; i < length; i++) bytes[i] = (unsigned char)text[i];
        pen_text whole = streamed(t, bytes, length, true);
        assert_streams(t, tokens.ids, tokens.count, true, whole.data, whole.length);
        free((char *)whole.data);
        pen_tokens_free(&tokens);
    }
    pen_tokenizer_close(t);
}

#define U "\xef\xbf\xbd"
static void test_replacement_characters(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){0});
    static const struct {
        const char *bytes, *text;
    } cases[] = {
        /* The Unicode standard's example (table 3-8, maximal subparts). */
        {"a\xf1\x80\x80\xe1\x80\xc2\x62\x80\x63\x80\xbf\x64", "a" U U U "b" U "c" U U "d"},
        {"\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", U U U U U U U U "A"},   /* overlong */
        {"\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", U U U U U U U U "A"},   /* surrogates */
        {"\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", U U U U U "A" U U "B"}, /* too large */
        {"\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80"},
        {"\xf0\x9f\x98", U}, /* the end of the text comes too soon */
        {"\xf0\x9f\xf0\x9f\x98\x80", U "\xf0\x9f\x98\x80"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t ids[16];
        size_t count = strlen(cases[i].bytes);
        for (size_t k = 0; k < count; k++) ids[k] = (unsigned char)cases[i].bytes[k];
        assert_streams(t, ids, count, true, cases[i].text, strlen(cases[i].text));
    }
    pen_tokenizer_close(t);
}

static void test_streams_text_as_soon_as_it_is_whole(void **state) {
    (void)state;
    pen_tokenizer *t = open_tokenizer(&(variant){0});
    pen_detokenizer *d;
    assert_int_equal(pen_detokenizer_create(t, 0, &d), PEN_OK);
    static const struct {
        int32_t id;
        const char *text;
    } steps[] = {{HELLO, "hello"}, {0xe2, ""},  {0x82, ""}, {END, ""},        {0xac, "€"}, {0xc3, ""},
                 {'x', U "x"},     {VOCAB, ""}, {-1, ""},   {USER, "<user>"}, {0xf0, ""}};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        pen_text part = pen_detokenizer_push(d, steps[i].id);
        assert_int_equal(part.length, strlen(steps[i].text));
        assert_memory_equal(part.data, steps[i].text, part.length);
    }
    assert_int_equal(pen_detokenizer_finish(d).length, 3); /* U+FFFD for the lone 0xf0 */
    assert_int_equal(pen_detokenizer_finish(d).length, 0); /* and then it is empty again */
    assert_int_equal(pen_detokenizer_push(d, 'a').length, 1);
    pen_detokenizer_destroy(d);
    assert_streams(t, (int32_t[]){'a', END}, 2, true, "a<|end|>", 8);
    assert_streams(t, (int32_t[]){'a', END}, 2, false, "a", 1);
    pen_tokenizer_close(t);
}
#undef U

/* ---- Time ------------------------------------------------------------------------------------------------------ */

static void test_long_words_take_linear_time(void **state) {
    (void)state;
    enum { LENGTH = 1 << 20 };
    pen_tokenizer *t = open_tokenizer(&(variant){0});
    char *text = malloc(LENGTH);
    memset(text, 'a', LENGTH);
    assert_linear(t, text, LENGTH);
    memset(text, ' ', LENGTH);
    assert_linear(t, text, LENGTH);
    memset(text, '<', LENGTH); /* might always begin a special token */
    assert_linear(t, text, LENGTH);
    memset(text, 0xff, LENGTH);
    assert_linear(t, text, LENGTH);
    uint64_t seed = 3;
    for (size_t i = 0; i < LENGTH; i++) text[i] = "helo"[next_random(&seed) % 4];
    assert_linear(t, text, LENGTH);
    free(text);
    pen_tokenizer_close(t);
}

static bool same_patterns(const pen_pretokenizer_kind *a, const pen_pretokenizer_kind *b) {
    int i = 0;
    while (i < PEN_PRETOKENIZER_PATTERNS && a->patterns[i] && b->patterns[i] && !strcmp(a->patterns[i], b->patterns[i]))
        i++;
    return i == PEN_PRETOKENIZER_PATTERNS || (!a->patterns[i] && !b->patterns[i]);
}

/* Every pre-tokenizer, on long words of all sorts: the time is linear, no limit of PCRE2's is hit, nothing is lost. */
static void test_every_pretokenizer_takes_long_words(void **state) {
    (void)state;
    static const char *const words[] = {"a",
                                        "A",
                                        "1",
                                        " ",
                                        "\n",
                                        "\r\n",
                                        "\n ",
                                        " \t\n",
                                        "a ",
                                        "é",
                                        "日",
                                        "!",
                                        "'",
                                        "'s",
                                        "a\xcc\x88",
                                        "\xcc\x88",
                                        "\xcc\x88\xcc\xa7",
                                        "a1",
                                        "1½",
                                        " 1",
                                        "\xff",
                                        "\xc3",
                                        "Aa",
                                        "'ll12 日!\n",
                                        "IMGIMGA",
                                        "_"};
    enum { LENGTH = 1 << 18, KINDS_MAX = 256 };
    const pen_pretokenizer_kind *kinds[KINDS_MAX];
    size_t kind_count = 0;
    char *text = malloc(LENGTH + 1);
    for (const char *name = pen_pretokenizer_names(), *end; *name; name = *end ? end + 2 : end) {
        end = name + strcspn(name, ",");
        const pen_pretokenizer_kind *kind = pen_pretokenizer_find(name, (size_t)(end - name));
        size_t like = 0;
        while (like < kind_count && !same_patterns(kinds[like], kind)) like++;
        if (like < kind_count) continue;
        assert_true(kind_count < KINDS_MAX);
        kinds[kind_count++] = kind;
        pen_tokenizer *t = open_tokenizer(&(variant){.pre = kind->name});
        for (size_t w = 0; w < sizeof words / sizeof *words; w++) {
            size_t step = strlen(words[w]), length = 0;
            while (length + step <= LENGTH) {
                memcpy(text + length, words[w], step);
                length += step;
            }
            text[length++] = 'x';
            alarm(30); /* ends the program */
            pen_tokens tokens = encoded(t, text, length, 0);
            alarm(0);
            size_t bytes = 0;
            for (size_t i = 0; i < tokens.count; i++) bytes += pen_tokenizer_piece(t, tokens.ids[i]).length;
            if (strcmp(words[w], "a\xcc\x88")) assert_int_equal(bytes, length); /* that may be composed */
            pen_tokens_free(&tokens);
        }
        pen_tokenizer_close(t);
    }
    free(text);
}

/* ---- Files that are refused ------------------------------------------------------------------------------------ */

static void test_refuses_files_that_contradict_themselves(void **state) {
    (void)state;
    static const struct {
        variant v;
        pen_status status;
        const char *words;
    } cases[] = {
        {{.model = "t5"},
         PEN_UNSUPPORTED,
         "tokenizer.ggml.model is \"t5\", SentencePiece unigram; known: gpt2 (byte-level BPE), llama"},
        {{.model = "martian"}, PEN_UNSUPPORTED, "tokenizer.ggml.model is \"martian\"; known: gpt2"},
        {{.model = "llama"}, PEN_BAD_INPUT, "key tokenizer.ggml.scores is missing"},
        {{.pre = "martian"}, PEN_UNSUPPORTED, "tokenizer.ggml.pre is \"martian\"; known: smollm, default, gpt-2"},
        {{.no_merges = true}, PEN_BAD_INPUT, "key tokenizer.ggml.merges is missing"},
        {{.instead_of_hello = "hell"}, PEN_BAD_INPUT, "tokenizer.ggml.tokens: token 259 is there twice"},
        {{.instead_of_hello = "<user>"}, PEN_BAD_INPUT, "tokenizer.ggml.tokens: token 268 is there twice"},
        {{.instead_of_hello = "goodbye"}, PEN_BAD_INPUT, "merge 3 has a token that is not in the vocabulary"},
        {{.last_merge = "a 日"}, PEN_BAD_INPUT, "merge 9 has a token that is not in the vocabulary"},
        {{.last_merge = "ab"}, PEN_BAD_INPUT, "merge 9 is not two tokens with a space between"},
        {{.last_merge = ""}, PEN_BAD_INPUT, "merge 9 is not two tokens"},
        {{.last_merge = " "}, PEN_BAD_INPUT, "merge 9 has a token that is not in the vocabulary"},
        {{.last_merge = "h e"}, PEN_BAD_INPUT, "merge 9 is there twice"},
        {{.types = VOCAB - 1}, PEN_BAD_INPUT, "token_type has 269 elements for 270 tokens"},
        {{.types = VOCAB + 1}, PEN_BAD_INPUT, "token_type has 271 elements for 270 tokens"},
        {{.scores = VOCAB - 1}, PEN_BAD_INPUT, "tokenizer.ggml.scores has 269 elements for 270 tokens"},
        {{.scores = VOCAB + 1}, PEN_BAD_INPUT, "tokenizer.ggml.scores has 271 elements for 270 tokens"},
        {{.type_of_hello = 7}, PEN_BAD_INPUT, "token_type: token 259 has the unknown type 7"},
        {{.bos = VOCAB}, PEN_BAD_INPUT, "key tokenizer.ggml.bos_token_id is 270, outside 0 to 269"},
        {{.eos = 1 << 30}, PEN_BAD_INPUT, "key tokenizer.ggml.eos_token_id is 1073741824, outside 0 to 269"},
        {{.eot = VOCAB}, PEN_BAD_INPUT, "key tokenizer.ggml.eot_token_id is 270, outside 0 to 269"},
        {{.eom = 1 << 20}, PEN_BAD_INPUT, "key tokenizer.ggml.eom_token_id is 1048576, outside 0 to 269"},
        {{.bos = -1, .add_bos = true}, PEN_BAD_INPUT, "add_bos_token without tokenizer.ggml.bos_token_id"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pen_tokenizer *t;
        assert_int_equal(open_variant(&cases[i].v, &t), cases[i].status);
        assert_null(t);
        assert_error_names(path);
        assert_error_names(cases[i].words);
    }
}

static void test_survives_flipped_bytes(void **state) {
    (void)state;
    image f;
    write_vocabulary(&f, &(variant){0});
    assert_survives_flipped_bytes(
        &f, (pen_text){"hello <|end|>\xff wäaaaaaaa 123 <user>", sizeof "hello <|end|>\xff wäaaaaaaa 123 <user>" - 1});
}

/* ---- Ids only -------------------------------------------------------------------------------------------------- */

static void test_ids_only(void **state) {
    (void)state;
    pen_tokenizer *t;
    assert_int_equal(pen_tokenizer_create_ids(0, &t), PEN_UNSUPPORTED);
    assert_int_equal(pen_tokenizer_create_ids(100, &t), PEN_OK);
    assert_int_equal(pen_tokenizer_vocab_size(t), 100);
    ASSERT_ENCODES(t, "\x01z\xff", PEN_ENCODE_BOS | PEN_ENCODE_SPECIAL, 1, 122 - 100, 255 - 200);
    assert_streams(t, (int32_t[]){0, 7, 99, 100}, 4, true, "<0><7><99>", 10);
    assert_int_equal(pen_tokenizer_bos(t), -1);
    assert_int_equal(pen_tokenizer_eos(t), -1);
    assert_false(pen_tokenizer_is_end(t, 0));
    pen_tokenizer_close(t);
}

/* ---- The real one ---------------------------------------------------------------------------------------------- */

static void test_smollm2(void **state) {
    (void)state;
    const char *model = getenv("PENSTOCK_TEST_MODEL");
    if (!model || !*model) skip();
    pen_gguf *gguf;
    pen_tokenizer *t;
    if (pen_gguf_open(model, &gguf) != PEN_OK || pen_tokenizer_open(gguf, &t) != PEN_OK)
        fail_msg("%s", pen_last_error());
    pen_gguf_close(gguf);
    assert_int_equal(pen_tokenizer_vocab_size(t), 49152);
    assert_int_equal(pen_tokenizer_bos(t), 1);
    assert_true(pen_tokenizer_is_end(t, 0) && pen_tokenizer_is_end(t, 2) && !pen_tokenizer_is_end(t, 1));
    ASSERT_ENCODES(t, "The capital of France is", PEN_ENCODE_BOS, 504, 3575, 282, 4649, 314);
    ASSERT_ENCODES(t, "def fibonacci(n):\n    ", 0, 1604, 3987, 46477, 24, 94, 727, 2367);
    ASSERT_ENCODES(t, "<|im_start|>", PEN_ENCODE_SPECIAL, 1);
    static const char text[] = "Grüße aus Köln, 日本語, 👩‍👩‍👧‍👦 & 𝕏!\n\n\t<|im_end|>";
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
        cmocka_unit_test(test_merges_in_order_of_rank_then_place),
        cmocka_unit_test(test_pretokenizer_keeps_words_apart),
        cmocka_unit_test(test_whole_words_come_before_merges_where_the_kind_says_so),
        cmocka_unit_test(test_a_file_that_names_no_pretokenizer_gets_the_default),
        cmocka_unit_test(test_composes_where_the_kind_says_so),
        cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_begin_and_end),
        cmocka_unit_test(test_bytes_without_a_token_are_left_out),
        cmocka_unit_test(test_valid_text_comes_back_as_it_was),
        cmocka_unit_test(test_any_bytes_survive),
        cmocka_unit_test(test_replacement_characters),
        cmocka_unit_test(test_streams_text_as_soon_as_it_is_whole),
        cmocka_unit_test(test_long_words_take_linear_time),
        cmocka_unit_test(test_every_pretokenizer_takes_long_words),
        cmocka_unit_test(test_refuses_files_that_contradict_themselves),
        cmocka_unit_test(test_survives_flipped_bytes),
        cmocka_unit_test(test_ids_only),
        cmocka_unit_test(test_smollm2),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
