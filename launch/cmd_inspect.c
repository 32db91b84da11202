/*
 * `penstock inspect`: what a model file holds, unit by unit, from its header alone.
 *
 * Text from the file is untrusted: it reaches neither the terminal nor the JSON before plain() has looked at it.
 */
#include "command.h"
#include "model.h"
#include "size.h"

#include <jansson.h>

#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum { TEXT_MAX = 256, NAME_COLUMNS = 30 };

/* Copies text from a file without control characters, and where it is not UTF-8 without anything past ASCII. */
static const char *plain(const char *text, char out[TEXT_MAX]) {
    snprintf(out, TEXT_MAX, "%s", text);
    json_t *valid = json_string(out);
    for (char *c = out; *c; c++)
        if (iscntrl((unsigned char)*c) || (!valid && (unsigned char)*c >= 0x80)) *c = '?';
    json_decref(valid);
    return out;
}

typedef struct totals {
    uint64_t weight_bytes; /* a table that both ends share counts once */
    uint64_t kv_bytes_per_token;
} totals;

static totals total(const pen_model *model) {
    totals sum = {0};
    for (int u = 0; u < pen_model_unit_count(model); u++) {
        const pen_unit *unit = pen_model_unit(model, u);
        sum.weight_bytes += unit->weight_bytes - (unit->kind == PEN_UNIT_HEAD ? unit->tied_bytes : 0);
        sum.kv_bytes_per_token += unit->kv_bytes_per_token;
    }
    return sum;
}

/* ---- Text -------------------------------------------------------------------------------------------------------- */

static void print_metadata(const pen_gguf *gguf) {
    char key[TEXT_MAX], value[TEXT_MAX], key_text[TEXT_MAX], value_text[TEXT_MAX];
    printf("\nMetadata\n");
    for (size_t i = 0; i < pen_gguf_key_count(gguf); i++) {
        pen_gguf_key_text(gguf, i, key, sizeof key, value, sizeof value);
        printf("  %-40s %s\n", plain(key, key_text), plain(value, value_text));
    }
}

/* Units [first, last], which are alike: their tensors once. */
static void print_units(const pen_model *model, int first, int last) {
    const pen_unit *unit = pen_model_unit(model, first);
    char size[PEN_SIZE_TEXT];
    if (first == last)
        printf("\n%s: %s", unit->name, pen_size_text(unit->weight_bytes, size));
    else
        printf("\n%s … %s, each: %s", unit->name, pen_model_unit(model, last)->name,
               pen_size_text(unit->weight_bytes, size));
    if (unit->kv_bytes_per_token > 0) printf(", and %s of KV per token", pen_size_text(unit->kv_bytes_per_token, size));
    printf("\n");
    for (int i = 0; i < pen_model_tensor_count(model, first); i++) {
        pen_tensor_info tensor = pen_model_tensor(model, first, i);
        char shape[TEXT_MAX];
        if (tensor.rows > 1)
            snprintf(shape, sizeof shape, "[%d][%d]", tensor.rows, tensor.cols);
        else
            snprintf(shape, sizeof shape, "[%d]", tensor.cols);
        printf("  %-*s %-5s %-16s %10s%s\n", NAME_COLUMNS, tensor.name, pen_type_get(tensor.type)->name, shape,
               pen_size_text(tensor.bytes, size), tensor.tied ? "  shared by embedding and head" : "");
    }
}

static void print_text(const pen_model *model) {
    const pen_hparams *h = pen_model_hparams(model);
    const pen_gguf *gguf = pen_model_gguf(model);
    char text[TEXT_MAX], size[PEN_SIZE_TEXT];
    printf("%s: %s", plain(pen_model_name(model), text), pen_model_arch(model));
    if (gguf) printf(", GGUF %d, %s", pen_gguf_version(gguf), pen_size_text(pen_gguf_file_bytes(gguf), size));
    if (gguf && pen_gguf_part_count(gguf) > 1) printf(" in %d files", pen_gguf_part_count(gguf));
    printf("\n%d layers, hidden %d, ffn %d, %d heads and %d of KV, each %d wide, vocabulary %d, context %d\n",
           h->layers, h->hidden, h->ffn, h->heads, h->kv_heads, h->head_size, h->vocab, h->context);
    if (gguf) print_metadata(gguf);

    int count = pen_model_unit_count(model);
    for (int first = 0, last; first < count; first = last + 1) {
        uint64_t class = pen_model_unit(model, first)->class_hash;
        for (last = first; last + 1 < count && pen_model_unit(model, last + 1)->class_hash == class; last++) continue;
        print_units(model, first, last);
    }
    totals sum = total(model);
    printf("\nAll %d units: %s", count, pen_size_text(sum.weight_bytes, size));
    printf(", and %s of KV per token\n", pen_size_text(sum.kv_bytes_per_token, size));
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static json_t *json_size(uint64_t bytes) {
    return json_integer((json_int_t)bytes);
}

static json_t *json_units(const pen_model *model) {
    json_t *units = json_array();
    for (int u = 0; u < pen_model_unit_count(model); u++) {
        const pen_unit *unit = pen_model_unit(model, u);
        json_t *tensors = json_array();
        for (int i = 0; i < pen_model_tensor_count(model, u); i++) {
            pen_tensor_info tensor = pen_model_tensor(model, u, i);
            json_t *shape =
                tensor.rows > 1 ? json_pack("[ii]", tensor.rows, tensor.cols) : json_pack("[i]", tensor.cols);
            json_array_append_new(tensors, json_pack("{s:s, s:s, s:o, s:o}", "name", tensor.name, "type",
                                                     pen_type_get(tensor.type)->name, "shape", shape, "bytes",
                                                     json_size(tensor.bytes)));
        }
        json_array_append_new(units,
                              json_pack("{s:s, s:o, s:o, s:o, s:o}", "name", unit->name, "weight_bytes",
                                        json_size(unit->weight_bytes), "tied_bytes", json_size(unit->tied_bytes),
                                        "kv_bytes_per_token", json_size(unit->kv_bytes_per_token), "tensors", tensors));
    }
    return units;
}

static void add_file(json_t *root, const pen_gguf *gguf) {
    char key[TEXT_MAX], value[TEXT_MAX], key_text[TEXT_MAX], value_text[TEXT_MAX];
    json_t *metadata = json_object();
    for (size_t i = 0; i < pen_gguf_key_count(gguf); i++) {
        pen_gguf_key_text(gguf, i, key, sizeof key, value, sizeof value);
        json_object_set_new(metadata, plain(key, key_text), json_string(plain(value, value_text)));
    }
    json_object_set_new(root, "version", json_integer(pen_gguf_version(gguf)));
    json_object_set_new(root, "files", json_integer(pen_gguf_part_count(gguf)));
    json_object_set_new(root, "file_bytes", json_size(pen_gguf_file_bytes(gguf)));
    json_object_set_new(root, "metadata", metadata);
}

static pen_status print_json(const pen_model *model) {
    const pen_hparams *h = pen_model_hparams(model);
    const pen_gguf *gguf = pen_model_gguf(model);
    char name[TEXT_MAX];
    totals sum = total(model);
    json_t *root = json_pack("{s:s, s:s, s:{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b}, s:o, s:o, s:o}", "name",
                             plain(pen_model_name(model), name), "architecture", pen_model_arch(model), "hparams",
                             "layers", h->layers, "hidden", h->hidden, "ffn", h->ffn, "heads", h->heads, "kv_heads",
                             h->kv_heads, "head_size", h->head_size, "vocab", h->vocab, "context", h->context, "tied",
                             h->tied, "weight_bytes", json_size(sum.weight_bytes), "kv_bytes_per_token",
                             json_size(sum.kv_bytes_per_token), "units", json_units(model));
    if (root && gguf) add_file(root, gguf);
    int failed = !root || json_dumpf(root, stdout, JSON_INDENT(1)) != 0 || putchar('\n') == EOF;
    json_decref(root);
    return failed ? pen_fail(PEN_IO, "standard output cannot be written") : PEN_OK;
}

pen_status pen_cmd_inspect(const pen_options *options) {
    pen_model *model;
    PEN_TRY(pen_model_open(options->config.model, &model));
    pen_command_warn_if_cut(pen_model_gguf(model));
    pen_status status = PEN_OK;
    if (options->json)
        status = print_json(model);
    else
        print_text(model);
    pen_model_close(model);
    return status;
}
