/*
 * Hyper-parameters that no model has: negative, absurd, contradictory, no numbers or of another type. Each is refused
 * by name before anything is allocated for it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>

#include "gguf_image.h"
#include "model.h"

enum { HIDDEN = 64, FFN = 96, VOCAB = 40, TYPE_F32 = 0 };

/* A value of a key `llama.<name>`, instead of the good one. `type` U8 with no name: nothing is changed. */
typedef struct change {
    const char *name;
    uint32_t type;
    int64_t integer; /* of integers; of arrays, the number of u32 elements, all FFN */
    double real;
} change;

static void put_integer(image *f, const char *name, uint32_t type, int64_t value) {
    key(f, name, type);
    put(f, &value, type == U64 || type == I64 ? 8 : 4);
}

static void put_change(image *f, const char *name, const change *c) {
    switch (c->type) {
    case F32: key(f, name, F32), put(f, &(float){(float)c->real}, 4); break;
    case F64: key(f, name, F64), put(f, &c->real, 8); break;
    case STRING: key_string(f, name, "many"); break;
    case ARRAY:
        key_array(f, name, U32, (uint64_t)c->integer);
        for (int64_t i = 0; i < c->integer; i++) put_u32(f, FFN);
        break;
    default: put_integer(f, name, c->type, c->integer); break;
    }
}

static void put_keys(image *f, const change *c) {
    static const change good[] = {
        {"block_count", U32, 1, 0},
        {"context_length", U32, 128, 0},
        {"embedding_length", U32, HIDDEN, 0},
        {"feed_forward_length", U32, FFN, 0},
        {"attention.head_count", U32, 4, 0},
        {"attention.head_count_kv", U32, 2, 0},
        {"attention.layer_norm_rms_epsilon", F32, 0, 1e-5},
    };
    char name[80];
    bool replaced = false;
    key_string(f, "general.architecture", "llama");
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        bool changed = c->name && strcmp(c->name, good[i].name) == 0;
        snprintf(name, sizeof name, "llama.%s", good[i].name);
        put_change(f, name, changed ? c : &good[i]);
        replaced |= changed;
    }
    snprintf(name, sizeof name, "llama.%s", c->name ? c->name : "");
    if (c->name && !replaced) put_change(f, name, c);
}

/* A header without data. */
static pen_status open_with(const change *c, int64_t vocab, pen_model **model) {
    static const struct {
        const char *name;
        int dims, cols, rows;
    } tensors[] = {
        {"blk.0.attn_norm.weight", 1, HIDDEN, 1},        {"blk.0.attn_q.weight", 2, HIDDEN, HIDDEN},
        {"blk.0.attn_k.weight", 2, HIDDEN, 32},          {"blk.0.attn_v.weight", 2, HIDDEN, 32},
        {"blk.0.attn_output.weight", 2, HIDDEN, HIDDEN}, {"blk.0.ffn_norm.weight", 1, HIDDEN, 1},
        {"blk.0.ffn_gate.weight", 2, HIDDEN, FFN},       {"blk.0.ffn_up.weight", 2, HIDDEN, FFN},
        {"blk.0.ffn_down.weight", 2, FFN, HIDDEN},       {"output_norm.weight", 1, HIDDEN, 1},
    };
    image f;
    uint64_t offset = 0;
    begin(&f);
    put_keys(&f, c);
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        tensor(&f, tensors[i].name, TYPE_F32, offset, (uint32_t)tensors[i].dims,
               (uint64_t[]){(uint64_t)tensors[i].cols, (uint64_t)tensors[i].rows});
        offset += (uint64_t)(tensors[i].cols * tensors[i].rows) * 4;
    }
    tensor(&f, "token_embd.weight", TYPE_F32, offset, 2, (uint64_t[]){HIDDEN, (uint64_t)vocab});
    finish(&f, 32, 0);
    pen_gguf *gguf;
    assert_int_equal(open_bytes(f.bytes, f.length, &gguf), PEN_OK); /* writes `path` */
    pen_gguf_close(gguf);
    return pen_model_open(path, model);
}

static void assert_refused(change c, pen_status expected, const char *words) {
    pen_model *model;
    pen_status status = open_with(&c, VOCAB, &model);
    if (status != expected) fail_msg("llama.%s, '%s': status %d, %s", c.name, words, status, pen_last_error());
    assert_null(model);
    assert_error_names(path);
    assert_error_names(words);
}

static void test_good_file_is_good(void **state) {
    (void)state;
    pen_model *model;
    assert_int_equal(open_with(&(change){0}, VOCAB, &model), PEN_OK);
    assert_int_equal(pen_model_hparams(model)->vocab, VOCAB);
    pen_model_close(model);
}

static void test_whole_numbers_out_of_range(void **state) {
    (void)state;
    static const char *const names[] = {
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
        "rope.scaling.original_context_length",
        "attention.sliding_window_pattern",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_refused((change){names[i], U32, 0, 0}, PEN_BAD_INPUT, names[i]);
        assert_refused((change){names[i], I32, -1, 0}, PEN_BAD_INPUT, names[i]);
        assert_refused((change){names[i], I64, INT64_MIN, 0}, PEN_BAD_INPUT, names[i]);
        assert_refused((change){names[i], U32, INT64_C(1) << 31, 0}, PEN_BAD_INPUT, names[i]);
        assert_refused((change){names[i], U64, -1, 0}, PEN_BAD_INPUT, names[i]);
        assert_refused((change){names[i], STRING, 0, 0}, PEN_BAD_INPUT, names[i]);
        assert_refused((change){names[i], F32, 0, 1}, PEN_BAD_INPUT, names[i]);
    }
    assert_refused((change){"attention.sliding_window", I32, -1, 0}, PEN_BAD_INPUT, "attention.sliding_window is -1");
    assert_refused((change){"expert_count", I32, -1, 0}, PEN_BAD_INPUT, "llama.expert_count is -1");
}

/* Numbers that an int can hold and no model has: nothing of that size is made before the tensors are compared. */
static void test_absurd_sizes(void **state) {
    (void)state;
    static const struct {
        change change;
        const char *words;
    } cases[] = {
        {{"block_count", U32, 4095, 0}, "4095 layers, there may be 1 to"},
        {{"block_count", U32, INT32_MAX, 0}, "2147483647 layers"},
        {{"block_count", U32, 4094, 0}, "there is no tensor blk.1."},
        {{"embedding_length", U32, (1 << 18) + 4, 0}, "hidden size is 262148"},
        {{"embedding_length", U32, 128, 0}, "tensor token_embd.weight is [40][64]"},
        {{"attention.head_count", U32, 1 << 14, 0}, "heads do not divide"},
        {{"attention.head_count", U32, 64, 0}, "rotated dimensions"},
        {{"attention.head_count", U32, 32, 0}, "tensor blk.0.attn_k.weight is [32][64]"},
        {{"attention.head_count_kv", U32, 3, 0}, "3 KV heads do not divide 4 heads"},
        {{"attention.head_count_kv", U32, 8, 0}, "number of KV heads is 8"},
        {{"attention.head_count_kv", U32, INT32_MAX, 0}, "number of KV heads is 2147483647"},
        {{"attention.key_length", U32, 16, 0}, NULL},
        {{"context_length", U32, (1 << 26) + 1, 0}, "context is 67108865"},
        {{"context_length", U32, 1 << 26, 0}, NULL},
        {{"feed_forward_length", U32, (1 << 20) + 1, 0}, "feed-forward size is 1048577"},
        {{"feed_forward_length", U32, 1 << 20, 0}, "tensor blk.0.ffn_gate.weight is [96][64]"},
        {{"feed_forward_length", ARRAY, 0, 0}, "has 0 widths for 1 layers"},
        {{"feed_forward_length", ARRAY, 1, 0}, NULL},
        {{"feed_forward_length", ARRAY, 2, 0}, "has 2 widths for 1 layers"},
        {{"attention.sliding_window_pattern", ARRAY, 0, 0}, "has 0 entries for 1 layers"},
        {{"rope.dimension_count", U32, 7, 0}, "7 rotated dimensions"},
        {{"rope.dimension_count", U32, 18, 0}, "18 rotated dimensions"},
        {{"rope.dimension_count", U32, INT32_MAX, 0}, "2147483647 rotated dimensions"},
        {{"expert_count", ARRAY, 3, 0}, "llama.expert_count should be an integer, but is an array"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pen_model *model;
        if (cases[i].words) {
            assert_refused(cases[i].change, PEN_BAD_INPUT, cases[i].words);
            continue;
        }
        if (open_with(&cases[i].change, VOCAB, &model) != PEN_OK) fail_msg("%s", pen_last_error());
        pen_model_close(model);
    }
    assert_refused((change){"attention.value_length", U32, 32, 0}, PEN_UNSUPPORTED, "values of 32 and keys of 16");
}

static void test_real_numbers_out_of_range(void **state) {
    (void)state;
    static const double no_numbers[] = {NAN, INFINITY, -INFINITY};
    static const char *const names[] = {"attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor",
                                        "rope.scaling.attn_factor"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char words[80];
        snprintf(words, sizeof words, "key llama.%s is not a finite number", names[i]);
        for (size_t k = 0; k < sizeof no_numbers / sizeof *no_numbers; k++) {
            assert_refused((change){names[i], F32, 0, no_numbers[k]}, PEN_BAD_INPUT, words);
            assert_refused((change){names[i], F64, 0, no_numbers[k]}, PEN_BAD_INPUT, words);
        }
        assert_refused((change){names[i], U32, 1, 0}, PEN_BAD_INPUT, "should be a float");
    }
    static const struct {
        const char *name;
        double value;
        const char *words;
    } cases[] = {
        {"attention.layer_norm_rms_epsilon", -1e-5, "norm epsilon"},
        {"attention.layer_norm_rms_epsilon", 1, "norm epsilon"},
        {"attention.layer_norm_rms_epsilon", 1e300, "norm epsilon"},
        {"rope.freq_base", 0, "rotation base 0"},
        {"rope.freq_base", -10000, "rotation base -10000"},
        {"rope.freq_base", 1e30, "rotation base 1e+30"},
        {"rope.scaling.factor", 0, "rope scaling factor 0"},
        {"rope.scaling.factor", -2, "rope scaling factor -2"},
        {"rope.scaling.factor", 1e300, "rope scaling factor"},
        {"rope.scaling.attn_factor", 0, "attention factor 0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_refused((change){cases[i].name, F64, 0, cases[i].value}, PEN_BAD_INPUT, cases[i].words);
}

static void test_absurd_vocabularies(void **state) {
    (void)state;
    pen_model *model;
    assert_int_equal(open_with(&(change){0}, (1 << 24) + 1, &model), PEN_BAD_INPUT);
    assert_error_names("vocabulary is 16777217");
    assert_int_equal(open_with(&(change){0}, INT64_C(1) << 32, &model), PEN_BAD_INPUT);
    assert_error_names("token_embd.weight has 4294967296 rows");
    assert_int_equal(open_with(&(change){0}, 1 << 24, &model), PEN_OK); /* 4 GiB, of which nothing is made */
    assert_int_equal(pen_model_unit(model, 0)->weight_bytes, (UINT64_C(1) << 24) * HIDDEN * 4);
    pen_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_file_is_good),   cmocka_unit_test(test_whole_numbers_out_of_range),
        cmocka_unit_test(test_absurd_sizes),        cmocka_unit_test(test_real_numbers_out_of_range),
        cmocka_unit_test(test_absurd_vocabularies),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
