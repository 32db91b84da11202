/*
 * Models: what a spec or a file must be read as, what must be refused by name, and that a shard reads its own units
 * only. Files are written here, from the tables of synthetic models.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arch.h"
#include "cpu.h"

#define TINY "synthetic:llama:layers=3,hidden=64,ffn=96/64*2,heads=4,kv_heads=2,vocab=160,context=64"

static pen_model *open_good(const char *name) {
    pen_model *model;
    pen_status status = pen_model_open(name, &model);
    if (status != PEN_OK) fail_msg("%s: %s", name, pen_last_error());
    return model;
}

/* Opening fails with this status and a text that has `part` in it. */
static void assert_refused(const char *name, pen_status expected, const char *part) {
    pen_model *model = (pen_model *)1;
    pen_status status = pen_model_open(name, &model);
    if (status != expected || !strstr(pen_last_error(), part))
        fail_msg("status %d, text: %s\nwanted status %d and '%s'", status, pen_last_error(), expected, part);
    assert_null(model);
}

/* ---- Specs ------------------------------------------------------------------------------------------------------- */

static void test_widths_may_be_listed_with_commas(void **state) {
    (void)state;
    pen_model *slashes = open_good("synthetic:llama:layers=3,hidden=64,ffn=96/64*2,heads=4,vocab=160");
    pen_model *commas = open_good("synthetic:llama:layers=3,hidden=64,ffn=96,64,64,heads=4,vocab=160");
    assert_true(pen_model_hash(slashes) == pen_model_hash(commas));
    pen_model_close(slashes);
    pen_model_close(commas);
}

static void test_spec_gives_shape_units_and_bytes(void **state) {
    (void)state;
    pen_model *model = open_good(TINY ",type=q4_1");
    const pen_hparams *h = pen_model_hparams(model);
    assert_int_equal(h->layers, 3);
    assert_int_equal(h->head_size, 16);
    assert_int_equal(h->ffn, 96);
    assert_false(h->tied);
    assert_string_equal(pen_model_arch(model), "llama");
    assert_null(pen_model_gguf(model));

    assert_int_equal(pen_model_unit_count(model), 5);
    const pen_unit *embedding = pen_model_unit(model, 0), *block = pen_model_unit(model, 1);
    const pen_unit *head = pen_model_unit(model, 4);
    assert_string_equal(embedding->name, "embedding");
    assert_string_equal(block->name, "block 0");
    assert_string_equal(head->name, "head");
    assert_int_equal(block->kind, PEN_UNIT_BLOCK);
    const uint64_t row64 = 64 / 32 * 20, row96 = 96 / 32 * 20; /* bytes of a row of Q4_1 */
    assert_int_equal(embedding->weight_bytes, 160 * row64);
    assert_int_equal(head->weight_bytes, 160 * row64 + 64 * 4);
    assert_int_equal(block->weight_bytes, (64 + 32 + 32 + 64 + 2 * 96) * row64 + 64 * row96 + 2 * 64 * 4);
    assert_int_equal(block->kv_bytes_per_token, 2 * 2 * 16 * 2);
    assert_int_equal(head->kv_bytes_per_token, 0);
    assert_int_equal(head->tied_bytes, 0);
    assert_true(pen_model_unit(model, 2)->class_hash == pen_model_unit(model, 3)->class_hash);
    assert_true(pen_model_unit(model, 1)->class_hash != pen_model_unit(model, 2)->class_hash);
    pen_model_close(model);
}

static void test_tied_table_is_both_ends_own(void **state) {
    (void)state;
    pen_model *model = open_good(TINY ",tied=1");
    uint64_t table = 160 * (64 / 32 * 18);
    assert_true(pen_model_hparams(model)->tied);
    assert_int_equal(pen_model_unit(model, 0)->tied_bytes, table);
    assert_int_equal(pen_model_unit(model, 4)->tied_bytes, table);
    assert_int_equal(pen_model_unit(model, 4)->weight_bytes, table + 64 * 4);
    pen_model_close(model);
}

static void test_hash_tells_specs_apart(void **state) {
    (void)state;
    static const char *const specs[] = {TINY, TINY ",seed=2", TINY ",type=q8_0", TINY ",tied=1"};
    uint64_t hashes[4];
    for (int i = 0; i < 4; i++) {
        pen_model *model = open_good(specs[i]);
        hashes[i] = pen_model_hash(model);
        pen_model_close(model);
        for (int j = 0; j < i; j++) assert_true(hashes[i] != hashes[j]);
    }
    pen_model *again = open_good(TINY ",seed=1");
    assert_true(pen_model_hash(again) == hashes[0]);
    pen_model_close(again);
}

static void test_bad_specs_are_refused_by_key(void **state) {
    (void)state;
#define SHAPE "layers=2,hidden=64,heads=4,vocab=32"
    assert_refused("synthetic:mamba:layers=2", PEN_UNSUPPORTED, "architecture 'mamba', known are: gemma3 gpt2 llama");
    assert_refused("synthetic:llama", PEN_USAGE, "no shape");
    assert_refused("synthetic:llama:" SHAPE, PEN_USAGE, "ffn is missing");
    assert_refused("synthetic:llama:" SHAPE ",ffn=64,layer=3", PEN_USAGE, "unknown key 'layer', known are layers, ");
    assert_refused("synthetic:llama:" SHAPE ",ffn=64,layers=3", PEN_USAGE, "layers is given twice");
    assert_refused("synthetic:llama:" SHAPE ",ffn=64,", PEN_USAGE, "'' is not key=value");
    assert_refused("synthetic:llama:" SHAPE ",ffn=64,context=4k", PEN_USAGE, "context=4k is not a whole number");
    assert_refused("synthetic:llama:" SHAPE ",ffn=64,context=-1", PEN_USAGE, "context=-1 is not a whole number");
    assert_refused("synthetic:llama:" SHAPE ",ffn=64,seed=99999999999999999999", PEN_USAGE, "seed=9999");
    assert_refused("synthetic:llama:" SHAPE ",ffn=64,tied=2", PEN_USAGE, "tied=2 is not");
    assert_refused("synthetic:llama:" SHAPE ",ffn=64,type=q9", PEN_USAGE, "type=q9 is not a weight type");
    assert_refused("synthetic:llama:" SHAPE ",ffn=64/", PEN_USAGE, "ffn=64/ is not a width");
    assert_refused("synthetic:llama:" SHAPE ",ffn=64*", PEN_USAGE, "ffn=64* is not a width");
    assert_refused("synthetic:llama:" SHAPE ",ffn=64/64/64", PEN_USAGE, "more widths than the 2 layers");
    assert_refused("synthetic:llama:" SHAPE ",ffn=32*1", PEN_USAGE, "gives 1 widths for 2 layers");
    assert_refused("synthetic:llama:" SHAPE ",ffn=65", PEN_BAD_INPUT, "rows of blk.0.ffn_down.weight have 65 values");
    assert_refused("synthetic:llama:" SHAPE ",ffn=64,kv_heads=3", PEN_BAD_INPUT, "3 KV heads do not divide 4 heads");
    assert_refused("synthetic:llama:" SHAPE ",ffn=64,kv_heads=8", PEN_BAD_INPUT, "number of KV heads is 8");
    assert_refused("synthetic:llama:" SHAPE ",ffn=64,head_size=15", PEN_BAD_INPUT, "15 rotated dimensions");
    assert_refused("synthetic:llama:layers=5000,hidden=64,heads=4,vocab=32,ffn=64", PEN_BAD_INPUT, "5000 layers");
    assert_refused("synthetic:llama:layers=2,hidden=64,heads=5,vocab=32,ffn=64", PEN_USAGE, "heads=5 does not divide");
    assert_refused("synthetic:llama:layers=2,hidden=64,heads=4,vocab=99999999,ffn=64", PEN_BAD_INPUT, "vocabulary is");
#undef SHAPE
}

/* ---- Synthetic weights ------------------------------------------------------------------------------------------- */

/* A row is the same however it is asked for, unlike every other row, with mean 0 and the deviation aimed at. */
static void test_synthetic_rows_are_sane_and_addressable(void **state) {
    (void)state;
    for (int t = 0; t < PEN_TYPE_COUNT; t++) {
        char spec[256];
        snprintf(spec, sizeof spec, "synthetic:llama:layers=2,hidden=256,ffn=256,heads=4,vocab=512,type=%s",
                 pen_type_get((pen_type)t)->name);
        pen_model *model = open_good(spec);
        const pen_tensor *table = &model->tensors[0];
        size_t row_bytes = pen_type_row_bytes(table->type, 256);
        unsigned char *all = malloc(512 * row_bytes), *one = malloc(row_bytes);
        pen_synthetic_rows(table, &model->hparams, model->seed, 0, 512, all);
        pen_synthetic_rows(table, &model->hparams, model->seed, 300, 1, one);
        assert_memory_equal(all + 300 * row_bytes, one, row_bytes);
        assert_memory_not_equal(all + 299 * row_bytes, one, row_bytes);
        double sum = 0, squares = 0;
        for (int row = 0; row < 512; row++) {
            float values[256];
            pen_type_dequantize_row(table->type, all + (size_t)row * row_bytes, 256, values);
            for (int i = 0; i < 256; i++) {
                sum += (double)values[i];
                squares += (double)values[i] * (double)values[i];
            }
        }
        double deviation = sqrt(squares / (512 * 256));
        assert_true(fabs(sum / (512 * 256)) < 0.001);
        assert_true(fabs(deviation * 16 - 1) < 0.05); /* 1/√256, the scales' spread included */
        free(all);
        free(one);
        pen_model_close(model);
    }
}

/* ---- Files ------------------------------------------------------------------------------------------------------- */

/* A GGUF file made from a synthetic model, with one thing wrong where a field says so. */
typedef struct recipe {
    const char *arch;           /* instead of llama */
    const char *without_key;    /* a key left out, by the end of its name */
    const char *without_tensor; /* a tensor left out */
    const char *reshaped;       /* a tensor with half its rows … */
    const char *retyped;        /* … or of a type that we have not */
    const char *nan_in;         /* a norm with a NaN */
    const char *extra;          /* a tensor too many */
    int heads, rope_dims;       /* instead of the model's */
    const char *scaling;        /* llama.rope.scaling.type, with factor 4 */
    float factor;               /* of rope_freqs.weight, where it is above 0 */
    bool experts;
} recipe;

typedef struct writer {
    FILE *file;
    uint64_t keys, tensors, offset;
    const recipe *recipe;
    char path[64];
} writer;

static void put(writer *w, const void *bytes, size_t size) {
    assert_int_equal(fwrite(bytes, 1, size, w->file), size);
}

static void put_u32(writer *w, uint32_t value) {
    put(w, &value, sizeof value);
}

static void put_u64(writer *w, uint64_t value) {
    put(w, &value, sizeof value);
}

static void put_string(writer *w, const char *text) {
    put_u64(w, strlen(text));
    put(w, text, strlen(text));
}

enum { GGUF_U32 = 4, GGUF_F32 = 6, GGUF_STRING = 8 };

/* Writes a key's name and type; false where the recipe leaves it out. */
static bool put_key(writer *w, const char *name, uint32_t type) {
    const char *without = w->recipe->without_key;
    if (without && strstr(name, without)) return false;
    w->keys++;
    put_string(w, name);
    put_u32(w, type);
    return true;
}

static void key_u32(writer *w, const char *name, int value) {
    if (put_key(w, name, GGUF_U32)) put_u32(w, (uint32_t)value);
}

static void key_f32(writer *w, const char *name, float value) {
    if (put_key(w, name, GGUF_F32)) put(w, &value, sizeof value);
}

static void put_keys(writer *w, const pen_hparams *h) {
    const recipe *r = w->recipe;
    put_key(w, "general.architecture", GGUF_STRING);
    put_string(w, r->arch ? r->arch : "llama");
    key_u32(w, "llama.block_count", h->layers);
    key_u32(w, "llama.context_length", h->context);
    key_u32(w, "llama.embedding_length", h->hidden);
    if (put_key(w, "llama.feed_forward_length", 9)) { /* an array of a width per layer: 96, 64, 64 */
        put_u32(w, GGUF_U32);
        put_u64(w, (uint64_t)h->layers);
        for (int layer = 0; layer < h->layers; layer++) put_u32(w, layer == 0 ? 96 : 64);
    }
    key_u32(w, "llama.attention.head_count", r->heads ? r->heads : h->heads);
    key_u32(w, "llama.attention.head_count_kv", h->kv_heads);
    key_f32(w, "llama.attention.layer_norm_rms_epsilon", h->norm_eps);
    key_f32(w, "llama.rope.freq_base", (float)h->rotations[0].base);
    if (r->rope_dims) key_u32(w, "llama.rope.dimension_count", r->rope_dims);
    if (r->experts) key_u32(w, "llama.expert_count", 8);
    if (r->scaling) {
        put_key(w, "llama.rope.scaling.type", GGUF_STRING);
        put_string(w, r->scaling);
        key_f32(w, "llama.rope.scaling.factor", 4);
    }
}

static bool same(const char *a, const char *b) {
    return a && strcmp(a, b) == 0;
}

/* Whether the tensor has an entry of its own: not left out, and not the other end of a tied table. */
static bool is_written(const writer *w, const pen_model *model, const pen_tensor *tensor) {
    return !same(w->recipe->without_tensor, tensor->name) && !(tensor->tied && tensor != &model->tensors[0]);
}

static void put_entry(writer *w, const char *name, pen_form form, uint32_t type, int rows, int cols, uint64_t bytes) {
    put_string(w, name);
    put_u32(w, form == PEN_FORM_MATRIX ? 2 : 1);
    put_u64(w, (uint64_t)cols);
    if (form == PEN_FORM_MATRIX) put_u64(w, (uint64_t)rows);
    put_u32(w, type);
    put_u64(w, w->offset);
    w->offset += (bytes + 31) / 32 * 32;
    w->tensors++;
}

static void pad(writer *w) {
    while (ftell(w->file) % 32) fputc(0, w->file);
}

/* Writes the file and returns its path. */
static const char *write_file(writer *w, const pen_model *model, const recipe *made) {
    const pen_tensor *tensors = model->tensors, *end = tensors + model->tensor_first[model->unit_count];
    *w = (writer){.recipe = made};
    strcpy(w->path, "/tmp/penstock-models-XXXXXX");
    w->file = fdopen(mkstemp(w->path), "w");
    assert_non_null(w->file);
    put(w, "GGUF", 4);
    put_u32(w, 3);
    put_u64(w, 0);
    put_u64(w, 0);
    put_keys(w, &model->hparams);
    for (const pen_tensor *t = tensors; t < end; t++) {
        if (!is_written(w, model, t)) continue;
        int rows = same(made->reshaped, t->name) ? t->rows / 2 : t->rows;
        uint32_t type = same(made->retyped, t->name) ? 16 /* IQ2_XXS */ : (uint32_t)pen_type_get(t->type)->gguf;
        put_entry(w, t->name, t->rule->form, type, rows, t->cols, 2 * pen_tensor_bytes(t));
    }
    int pairs = (made->rope_dims ? made->rope_dims : model->hparams.rope_dims) / 2;
    if (made->factor != 0) put_entry(w, "rope_freqs.weight", PEN_FORM_VECTOR, 0, 1, pairs, (uint64_t)pairs * 4);
    if (made->extra) put_entry(w, made->extra, PEN_FORM_VECTOR, 0, 1, 8, 32);
    pad(w);
    for (const pen_tensor *t = tensors; t < end; t++) {
        if (!is_written(w, model, t)) continue;
        size_t bytes = pen_tensor_bytes(t), room = (2 * bytes + 31) / 32 * 32;
        unsigned char *data = calloc(1, room);
        pen_synthetic_rows(t, &model->hparams, model->seed, 0, t->rows, data);
        if (same(made->nan_in, t->name)) memcpy(data + 20, &(float){NAN}, sizeof(float));
        put(w, data, room);
        free(data);
    }
    for (int i = 0; made->factor != 0 && i < pairs; i++) put(w, &made->factor, sizeof made->factor);
    pad(w);
    if (made->extra) put(w, (char[32]){0}, 32);
    fseek(w->file, 8, SEEK_SET);
    put_u64(w, w->tensors);
    put_u64(w, w->keys);
    fclose(w->file);
    return w->path;
}

static void assert_file_refused(const recipe *made, pen_status expected, const char *part) {
    writer w;
    pen_model *model = open_good(TINY ",tied=1");
    write_file(&w, model, made);
    pen_model_close(model);
    assert_refused(w.path, expected, part);
    assert_non_null(strstr(pen_last_error(), w.path));
    unlink(w.path);
}

static void test_file_reads_as_the_model_it_was_made_from(void **state) {
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        writer w;
        pen_model *model = open_good(tied ? TINY ",tied=1" : TINY);
        pen_model *file = open_good(write_file(&w, model, &(recipe){0}));
        assert_memory_equal(pen_model_hparams(file), pen_model_hparams(model), sizeof(pen_hparams));
        assert_int_equal(pen_model_unit_count(file), pen_model_unit_count(model));
        for (int u = 0; u < pen_model_unit_count(model); u++)
            assert_memory_equal(pen_model_unit(file, u), pen_model_unit(model, u), sizeof(pen_unit));
        assert_non_null(pen_model_gguf(file));
        pen_model_close(file);
        pen_model_close(model);
        unlink(w.path);
    }
}

static void test_rope_keys_and_factors(void **state) {
    (void)state;
    writer w;
    pen_model *model = open_good(TINY);
    pen_model *file = open_good(write_file(&w, model, &(recipe){.scaling = "linear", .rope_dims = 8, .factor = 2}));
    assert_true(pen_model_hparams(file)->rotations[0].scale == 0.25);
    assert_int_equal(pen_model_hparams(file)->rope_dims, 8);
    pen_model_close(file);
    unlink(w.path);

    file = open_good(write_file(&w, model, &(recipe){.scaling = "yarn"}));
    const pen_rotation *yarn = &pen_model_hparams(file)->rotations[0];
    assert_true(yarn->scale == 1 && yarn->yarn == 4 && fabs(yarn->magnitude - (1 + 0.1 * log(4))) < 1e-12);
    pen_model_close(file);
    unlink(w.path);
    pen_model_close(model);
    assert_file_refused(&(recipe){.scaling = "dynamic"}, PEN_UNSUPPORTED, "llama.rope.scaling.type is 'dynamic'");
}

/* Between pairs that keep their angle and pairs that turn four times as slowly lies a ramp; base 10000 over 64
 * dimensions and 4096 positions puts it between the pairs 10 and 23. */
static void test_yarn_blends_along_a_ramp(void **state) {
    (void)state;
    const pen_rotation rotation = {.base = 10000, .yarn = 4, .beta_fast = 32, .beta_slow = 1};
    float factors[32];
    pen_rope_yarn(&rotation, 64, 4096, factors);
    for (int i = 0; i <= 10; i++) assert_true(factors[i] == 1);
    for (int i = 11; i < 23; i++) assert_true(factors[i] > factors[i - 1] && factors[i] < 4);
    for (int i = 23; i < 32; i++) assert_true(factors[i] == 4);
}

/* Which layers slide decides on the KV groups. */
static void test_windows_make_kv_groups(void **state) {
    (void)state;
#define SHAPE ":layers=7,hidden=64,ffn=64,heads=4,vocab=32,context=128"
    static const struct {
        const char *spec;
        int groups, windows[2], group_of_layer_0, group_of_layer_5;
    } cases[] = {
        {"synthetic:llama" SHAPE, 1, {0, 0}, 0, 0},
        {"synthetic:llama" SHAPE ",window=16", 1, {16, 0}, 0, 0},
        {"synthetic:llama" SHAPE ",window=128", 1, {0, 0}, 0, 0},
        {"synthetic:gemma3" SHAPE ",window=16", 2, {0, 16}, 1, 0},
        {"synthetic:gemma3" SHAPE, 1, {0, 0}, 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pen_model *model = open_good(cases[i].spec);
        const pen_hparams *h = pen_model_hparams(model);
        assert_int_equal(h->kv_groups, cases[i].groups);
        assert_memory_equal(h->kv_windows, cases[i].windows, sizeof h->kv_windows);
        assert_int_equal(pen_model_unit(model, 1)->kv_group, cases[i].group_of_layer_0);
        assert_int_equal(pen_model_unit(model, 6)->kv_group, cases[i].group_of_layer_5);
        pen_model_close(model);
    }
#undef SHAPE
}

static void test_bad_files_are_refused_by_name(void **state) {
    (void)state;
    assert_file_refused(&(recipe){.arch = "mamba"}, PEN_UNSUPPORTED,
                        "architecture 'mamba', known are: gemma3 gpt2 llama");
    assert_file_refused(&(recipe){.without_key = "block_count"}, PEN_BAD_INPUT, "llama.block_count");
    assert_file_refused(&(recipe){.without_key = "rms_epsilon"}, PEN_BAD_INPUT, "layer_norm_rms_epsilon");
    assert_file_refused(&(recipe){.without_key = "feed_forward"}, PEN_BAD_INPUT, "llama.feed_forward_length");
    assert_file_refused(&(recipe){.without_tensor = "token_embd.weight"}, PEN_BAD_INPUT, "token_embd.weight");
    assert_file_refused(&(recipe){.without_tensor = "blk.2.attn_k.weight"}, PEN_BAD_INPUT,
                        "there is no tensor blk.2.attn_k.weight");
    assert_file_refused(&(recipe){.reshaped = "blk.1.ffn_up.weight"}, PEN_BAD_INPUT,
                        "tensor blk.1.ffn_up.weight is [32][64], llama of these parameters has [64][64]");
    assert_file_refused(&(recipe){.retyped = "blk.1.ffn_up.weight"}, PEN_UNSUPPORTED,
                        "tensor blk.1.ffn_up.weight has type IQ2_XXS");
    assert_file_refused(&(recipe){.extra = "blk.0.attn_sinks"}, PEN_UNSUPPORTED,
                        "has no use for tensor blk.0.attn_sinks");
    assert_file_refused(&(recipe){.heads = 6}, PEN_BAD_INPUT, "6 heads do not divide the hidden size 64");
    assert_file_refused(&(recipe){.rope_dims = 18}, PEN_BAD_INPUT, "18 rotated dimensions");
    assert_file_refused(&(recipe){.rope_dims = 7}, PEN_BAD_INPUT, "7 rotated dimensions");
    assert_file_refused(&(recipe){.experts = true}, PEN_UNSUPPORTED, "8 experts");
    assert_refused("/nonexistent/model.gguf", PEN_IO, "/nonexistent/model.gguf");
}

/* ---- Shards ------------------------------------------------------------------------------------------------------ */

static pen_device *new_device(void) {
    pen_device *device;
    const pen_cpu_options options = {.isa = PEN_CPU_PORTABLE, .activations = PEN_ACTIVATIONS_FAST, .threads = 1};
    assert_int_equal(pen_cpu_device_create(&options, &device), PEN_OK);
    return device;
}

static void test_value_that_is_no_number_names_its_tensor(void **state) {
    (void)state;
    writer w;
    pen_model *model = open_good(TINY), *file;
    pen_device *device = new_device();
    size_t before = pen_device_bytes_used(device);
    pen_shard *shard;

    file = open_good(write_file(&w, model, &(recipe){.nan_in = "blk.1.ffn_norm.weight"}));
    pen_shard_options options = {.first = 0, .last = 4, .context = 64};
    assert_int_equal(pen_shard_load(file, device, &options, &shard), PEN_BAD_INPUT);
    assert_non_null(strstr(pen_last_error(), "value 5 of tensor blk.1.ffn_norm.weight is nan"));
    options = (pen_shard_options){.first = 3, .last = 4, .context = 64}; /* who does not read it does not mind */
    assert_int_equal(pen_shard_load(file, device, &options, &shard), PEN_OK);
    pen_shard_destroy(shard);
    pen_model_close(file);
    unlink(w.path);

    file = open_good(write_file(&w, model, &(recipe){.factor = -1}));
    assert_int_equal(pen_shard_load(file, device, &options, &shard), PEN_BAD_INPUT);
    assert_non_null(strstr(pen_last_error(), "rope_freqs.weight is -1"));
    pen_model_close(file);
    unlink(w.path);

    assert_int_equal(pen_device_bytes_used(device), before);
    pen_device_destroy(device);
    pen_model_close(model);
}

/* Files are read, not mapped: what is gone when its turn comes is an error like another. */
static void test_file_cut_between_opening_and_loading(void **state) {
    (void)state;
    writer w;
    pen_model *model = open_good(TINY), *file = open_good(write_file(&w, model, &(recipe){0}));
    pen_device *device = new_device();
    size_t before = pen_device_bytes_used(device);
    const pen_gguf_tensor *cut = pen_gguf_tensor_find(pen_model_gguf(file), "blk.1.ffn_up.weight");
    pen_shard_options options = {.first = 0, .last = 4, .context = 64};
    pen_shard *shard;
    assert_int_equal(pen_gguf_check_data(pen_model_gguf(file)), PEN_OK);
    assert_int_equal(truncate(w.path, (off_t)(cut->offset + cut->bytes / 2)), 0);
    assert_int_equal(pen_shard_load(file, device, &options, &shard), PEN_BAD_INPUT);
    assert_null(shard);
    assert_non_null(strstr(pen_last_error(), w.path));
    assert_non_null(strstr(pen_last_error(), "tensor blk.1.ffn_up.weight: the file ends at byte"));
    options.last = 1; /* who needs only what is there gets it */
    assert_int_equal(pen_shard_load(file, device, &options, &shard), PEN_OK);
    pen_shard_destroy(shard);
    assert_int_equal(pen_device_bytes_used(device), before);
    pen_device_destroy(device);
    pen_model_close(file);
    pen_model_close(model);
    unlink(w.path);
}

typedef struct watch {
    uint64_t done, total;
    int calls, stop_at;
} watch;

static bool see_progress(void *context, uint64_t done, uint64_t total) {
    watch *w = context;
    assert_true(done > w->done || w->calls == 0);
    w->done = done;
    w->total = total;
    return ++w->calls != w->stop_at;
}

static void test_load_reports_its_own_bytes_and_stops_when_asked(void **state) {
    (void)state;
    pen_model *model = open_good(TINY ",tied=1");
    pen_device *device = new_device();
    size_t before = pen_device_bytes_used(device);
    pen_shard *shard;
    watch w = {0};
    pen_shard_options options = {
        .first = 0, .last = 4, .context = 64, .progress = see_progress, .progress_context = &w};

    assert_int_equal(pen_shard_load(model, device, &options, &shard), PEN_OK);
    uint64_t sum = 0;
    for (int u = 0; u < 5; u++) sum += pen_model_unit(model, u)->weight_bytes;
    sum -= pen_model_unit(model, 4)->tied_bytes; /* both ends: the table once */
    assert_int_equal(pen_shard_file_bytes(shard), sum);
    assert_int_equal(w.total, sum);
    assert_int_equal(pen_device_bytes_used(device) - before, pen_shard_bytes(model, device, &options));
    pen_shard_destroy(shard);

    w = (watch){.stop_at = 4};
    assert_int_equal(pen_shard_load(model, device, &options, &shard), PEN_INTERRUPTED);
    assert_null(shard);
    assert_int_equal(w.calls, 4);
    assert_int_equal(pen_device_bytes_used(device), before);
    pen_device_destroy(device);
    pen_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spec_gives_shape_units_and_bytes),
        cmocka_unit_test(test_widths_may_be_listed_with_commas),
        cmocka_unit_test(test_tied_table_is_both_ends_own),
        cmocka_unit_test(test_hash_tells_specs_apart),
        cmocka_unit_test(test_bad_specs_are_refused_by_key),
        cmocka_unit_test(test_synthetic_rows_are_sane_and_addressable),
        cmocka_unit_test(test_file_reads_as_the_model_it_was_made_from),
        cmocka_unit_test(test_rope_keys_and_factors),
        cmocka_unit_test(test_yarn_blends_along_a_ramp),
        cmocka_unit_test(test_windows_make_kv_groups),
        cmocka_unit_test(test_bad_files_are_refused_by_name),
        cmocka_unit_test(test_value_that_is_no_number_names_its_tensor),
        cmocka_unit_test(test_file_cut_between_opening_and_loading),
        cmocka_unit_test(test_load_reports_its_own_bytes_and_stops_when_asked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
