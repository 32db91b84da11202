/*
 * Fuzzes model files: open, everything the reader offers, then the model and the tokenizer on top. An input is a file,
 * or the two files of a split model one behind the other.
 */
#include "gguf_input.h"
#include "log.h"
#include "model.h"
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { TEXT_MAX = 128, CHUNK = 4096, ITEMS_MAX = 1 << 16 };

static void require(bool truth) {
    if (!truth) abort();
}

static void read_array(const pen_gguf *gguf, const char *key) {
    size_t count, bytes = 0;
    if (pen_gguf_array(gguf, key, &count) != PEN_OK) return;
    for (size_t i = 0; i < count && i < ITEMS_MAX; i++) {
        int64_t integer;
        double real;
        pen_gguf_string string;
        if (pen_gguf_array_str(gguf, key, i, &string) == PEN_OK)
            for (size_t c = 0; c < string.length; c++) bytes += (unsigned char)string.data[c];
        else if (pen_gguf_array_i64(gguf, key, i, &integer) != PEN_OK)
            (void)pen_gguf_array_f64(gguf, key, i, &real);
    }
    require(bytes <= pen_gguf_file_bytes(gguf) * 255);
}

static void read_keys(const pen_gguf *gguf) {
    for (size_t i = 0; i < pen_gguf_key_count(gguf); i++) {
        char key[TEXT_MAX], value[TEXT_MAX];
        int64_t integer;
        double real;
        bool flag;
        pen_gguf_string string;
        pen_gguf_key_text(gguf, i, key, sizeof key, value, sizeof value);
        require(strlen(key) < sizeof key && strlen(value) < sizeof value);
        require(strlen(key) == sizeof key - 1 || pen_gguf_has(gguf, key));
        if (pen_gguf_i64_or(gguf, key, -3, 1000, 0, &integer) == PEN_OK) require(integer >= -3 && integer <= 1000);
        (void)pen_gguf_f64_or(gguf, key, 0, &real);
        (void)pen_gguf_bool_or(gguf, key, false, &flag);
        if (pen_gguf_str(gguf, key, &string) == PEN_OK) require(string.length <= pen_gguf_file_bytes(gguf));
        read_array(gguf, key);
    }
}

static void read_tensors(const pen_gguf *gguf) {
    bool whole = pen_gguf_check_data(gguf) == PEN_OK;
    for (size_t i = 0; i < pen_gguf_tensor_count(gguf); i++) {
        const pen_gguf_tensor *tensor = pen_gguf_tensor_at(gguf, i);
        unsigned char bytes[CHUNK];
        size_t count = tensor->bytes < CHUNK ? (size_t)tensor->bytes : CHUNK;
        require(pen_gguf_tensor_find(gguf, tensor->name) == tensor);
        require(tensor->part < pen_gguf_part_count(gguf));
        if (!tensor->known) continue;
        pen_status first = pen_gguf_read(gguf, tensor, 0, count, bytes);
        pen_status last = pen_gguf_read(gguf, tensor, tensor->bytes - count, count, bytes);
        require(!whole || (first == PEN_OK && last == PEN_OK));
    }
}

/* The sums over a model's units are those over its tensors, and none of them has overflowed. */
static void read_model(const char *path) {
    pen_model *model;
    if (pen_model_open(path, &model) != PEN_OK) return;
    for (int u = 0; u < pen_model_unit_count(model); u++) {
        uint64_t sum = 0;
        for (int i = 0; i < pen_model_tensor_count(model, u); i++) {
            pen_tensor_info tensor = pen_model_tensor(model, u, i);
            require(tensor.rows >= 1 && tensor.cols >= 1);
            require(!__builtin_add_overflow(sum, tensor.bytes, &sum));
        }
        require(pen_model_unit(model, u)->weight_bytes <= sum);
        require(pen_model_unit(model, u)->tied_bytes <= sum);
    }
    pen_model_close(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    pen_log_init(PEN_LOG_ERROR, -1);
    const char *path = gguf_files(data, size);
    pen_gguf *gguf;
    pen_tokenizer *tokenizer;
    if (pen_gguf_open(path, &gguf) != PEN_OK) return 0;
    read_keys(gguf);
    read_tensors(gguf);
    if (pen_tokenizer_open(gguf, &tokenizer) == PEN_OK) pen_tokenizer_close(tokenizer);
    pen_gguf_close(gguf);
    read_model(path);
    return 0;
}
