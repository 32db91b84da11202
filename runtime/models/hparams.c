/*
 * Hyper-parameters: what a file's keys `<architecture>.…` say, checked, and what follows from them. The keys are those
 * that GGUF files of all architectures share; what is particular is data in pen_arch, or its adapt().
 */
#include "arch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Keys of an architecture ------------------------------------------------------------------------------------- */

typedef struct key {
    char name[96];
} key;

static key key_of(const pen_model *model, const char *suffix) {
    key k;
    snprintf(k.name, sizeof k.name, "%s.%s", model->arch->name, suffix);
    return k;
}

static bool has(const pen_model *model, const char *suffix) {
    return pen_gguf_has(model->gguf, key_of(model, suffix).name);
}

static pen_status read_int(const pen_model *model, const char *suffix, int *value) {
    int64_t wide;
    PEN_TRY(pen_gguf_i64(model->gguf, key_of(model, suffix).name, 1, INT32_MAX, &wide));
    *value = (int)wide;
    return PEN_OK;
}

static pen_status read_int_or(const pen_model *model, const char *suffix, int fallback, int *value) {
    *value = fallback;
    return has(model, suffix) ? read_int(model, suffix, value) : PEN_OK;
}

static pen_status read_double_or(const pen_model *model, const char *suffix, double fallback, double *value) {
    return pen_gguf_f64_or(model->gguf, key_of(model, suffix).name, fallback, value);
}

static bool is(pen_gguf_string string, const char *text) {
    return string.length == strlen(text) && memcmp(string.data, text, string.length) == 0;
}

/* ---- Layers ------------------------------------------------------------------------------------------------------ */

pen_status pen_hparams_set_layers(pen_model *model, int64_t layers) {
    if (layers < 1 || layers > PEN_UNITS_MAX - 2)
        return pen_fail(PEN_BAD_INPUT, "%s: %lld layers, there may be 1 to %d", model->path, (long long)layers,
                        PEN_UNITS_MAX - 2);
    model->hparams.layers = (int)layers;
    model->layers = calloc((size_t)layers, sizeof *model->layers);
    if (!model->layers) return pen_fail(PEN_NO_MEMORY, "%s: no memory for its layers", model->path);
    int period = model->arch->sliding_period;
    for (int layer = 0; layer < layers; layer++)
        model->layers[layer].sliding = period == 0 || (layer + 1) % period != 0;
    return PEN_OK;
}

/* feed_forward_length: one width, or an array of a width per layer. */
static pen_status read_ffn(pen_model *model) {
    const key k = key_of(model, "feed_forward_length");
    size_t count = 0;
    bool array = pen_gguf_array(model->gguf, k.name, &count) == PEN_OK;
    if (array && count != (size_t)model->hparams.layers)
        return pen_fail(PEN_BAD_INPUT, "%s: %s has %zu widths for %d layers", model->path, k.name, count,
                        model->hparams.layers);
    for (int layer = 0; layer < model->hparams.layers; layer++) {
        int64_t width;
        if (array)
            PEN_TRY(pen_gguf_array_i64(model->gguf, k.name, (size_t)layer, &width));
        else
            PEN_TRY(pen_gguf_i64(model->gguf, k.name, 1, INT32_MAX, &width));
        if (width < 1 || width > INT32_MAX)
            return pen_fail(PEN_BAD_INPUT, "%s: %s of layer %d is %lld", model->path, k.name, layer, (long long)width);
        model->layers[layer].ffn = (int)width;
    }
    return PEN_OK;
}

/* ---- Rotation ---------------------------------------------------------------------------------------------------- */

/* Sets what a file says about stretching the rotation to a longer context. */
static pen_status read_rope_scaling(const pen_model *model, pen_hparams *h, pen_rotation *rotation) {
    pen_gguf_string type = {.data = "", .length = 0};
    double factor, attention_factor;
    PEN_TRY(read_int_or(model, "rope.scaling.original_context_length", h->context, &h->original_context));
    PEN_TRY(read_double_or(model, "rope.scaling.attn_factor", 1, &attention_factor));
    PEN_TRY(read_double_or(model, "rope.scale_linear", 1, &factor)); /* the key of older files */
    PEN_TRY(read_double_or(model, "rope.scaling.factor", factor, &factor));
    if (!(factor > 0 && factor < 1e6)) /* also where it is no number */
        return pen_fail(PEN_BAD_INPUT, "%s: rope scaling factor %g is not above 0", model->path, factor);
    if (!(attention_factor > 0 && attention_factor < 1e6))
        return pen_fail(PEN_BAD_INPUT, "%s: rope attention factor %g is not above 0", model->path, attention_factor);
    if (has(model, "rope.scaling.type"))
        PEN_TRY(pen_gguf_str(model->gguf, key_of(model, "rope.scaling.type").name, &type));
    rotation->magnitude = attention_factor;
    if (is(type, "") || is(type, "linear")) {
        rotation->scale = 1 / factor;
    } else if (is(type, "yarn")) {
        rotation->yarn = factor;
        rotation->magnitude *= 1 + 0.1 * log(factor);
        PEN_TRY(read_double_or(model, "rope.scaling.yarn_beta_fast", 32, &rotation->beta_fast));
        PEN_TRY(read_double_or(model, "rope.scaling.yarn_beta_slow", 1, &rotation->beta_slow));
        if (!(rotation->beta_fast > rotation->beta_slow && rotation->beta_slow > 0 && rotation->beta_fast < 1e6))
            return pen_fail(PEN_BAD_INPUT, "%s: YaRN's betas are %g and %g", model->path, rotation->beta_fast,
                            rotation->beta_slow);
    } else if (!is(type, "none") && !is(type, "longrope")) { /* longrope's factors are tensors */
        return pen_fail(PEN_UNSUPPORTED, "%s: %s is '%.*s', known are none, linear, yarn, longrope", model->path,
                        key_of(model, "rope.scaling.type").name, (int)type.length, type.data);
    }
    return PEN_OK;
}

static pen_status read_rope(const pen_model *model, pen_hparams *h) {
    if (model->arch->rope == PEN_ROPE_NONE) return PEN_OK;
    PEN_TRY(read_int_or(model, "rope.dimension_count", h->head_size, &h->rope_dims));
    PEN_TRY(read_double_or(model, "rope.freq_base", h->rotations[0].base, &h->rotations[0].base));
    PEN_TRY(read_double_or(model, "rope.freq_base_swa", h->rotations[1].base, &h->rotations[1].base));
    return read_rope_scaling(model, h, &h->rotations[0]); /* the local one is not stretched */
}

/* ---- Windows ----------------------------------------------------------------------------------------------------- */

/* sliding_window: what sliding layers see. sliding_window_pattern: which those are, as a period or layer by layer. */
static pen_status read_window(pen_model *model) {
    pen_hparams *h = &model->hparams;
    const key pattern = key_of(model, "attention.sliding_window_pattern");
    int64_t window, sliding;
    size_t count;
    PEN_TRY(pen_gguf_i64_or(model->gguf, key_of(model, "attention.sliding_window").name, 0, INT32_MAX, 0, &window));
    h->window = (int)window;
    if (!pen_gguf_has(model->gguf, pattern.name)) return PEN_OK;
    if (pen_gguf_array(model->gguf, pattern.name, &count) != PEN_OK) {
        int period;
        PEN_TRY(read_int(model, "attention.sliding_window_pattern", &period));
        for (int layer = 0; layer < h->layers; layer++) model->layers[layer].sliding = (layer + 1) % period != 0;
        return PEN_OK;
    }
    if (count < (size_t)h->layers)
        return pen_fail(PEN_BAD_INPUT, "%s: %s has %zu entries for %d layers", model->path, pattern.name, count,
                        h->layers);
    for (int layer = 0; layer < h->layers; layer++) {
        PEN_TRY(pen_gguf_array_i64(model->gguf, pattern.name, (size_t)layer, &sliding));
        model->layers[layer].sliding = sliding != 0;
    }
    return PEN_OK;
}

/* ---- All --------------------------------------------------------------------------------------------------------- */

void pen_hparams_default(pen_model *model) {
    pen_hparams *h = &model->hparams;
    h->embedding_scale = 1;
    h->attention_scale = 1 / sqrtf((float)h->head_size);
    h->norm_eps = 1e-5f;
    h->original_context = h->context;
    h->rope_dims = model->arch->rope == PEN_ROPE_NONE ? 0 : h->head_size;
    for (int i = 0; i < PEN_ROTATIONS; i++) h->rotations[i] = (pen_rotation){.base = 10000, .scale = 1, .magnitude = 1};
    if (model->arch->local_rope_base > 0) h->rotations[1].base = model->arch->local_rope_base;
    if (model->arch->adapt) model->arch->adapt(h);
}

/* The vocabulary is as large as the table: files have no key for it that all of them share. */
static pen_status read_vocab(pen_model *model) {
    const pen_gguf_tensor *table = pen_gguf_tensor_find(model->gguf, "token_embd.weight");
    if (!table) return pen_fail(PEN_BAD_INPUT, "%s: there is no tensor token_embd.weight", model->path);
    if (table->shape[1] > INT32_MAX)
        return pen_fail(PEN_BAD_INPUT, "%s: token_embd.weight has %lld rows", model->path, (long long)table->shape[1]);
    model->hparams.vocab = (int)table->shape[1];
    return PEN_OK;
}

static pen_status read_shape(pen_model *model) {
    pen_hparams *h = &model->hparams;
    int64_t experts;
    int layers, value_size;
    PEN_TRY(pen_gguf_i64_or(model->gguf, key_of(model, "expert_count").name, 0, INT32_MAX, 0, &experts));
    if (experts > 0) return pen_fail(PEN_UNSUPPORTED, "%s: a mixture of %lld experts", model->path, (long long)experts);
    PEN_TRY(read_int(model, "block_count", &layers));
    PEN_TRY(pen_hparams_set_layers(model, layers));
    PEN_TRY(read_int(model, "embedding_length", &h->hidden));
    PEN_TRY(read_int(model, "attention.head_count", &h->heads));
    PEN_TRY(read_int_or(model, "attention.head_count_kv", h->heads, &h->kv_heads));
    if (!has(model, "attention.key_length") && h->hidden % h->heads)
        return pen_fail(PEN_BAD_INPUT, "%s: %d heads do not divide the hidden size %d", model->path, h->heads,
                        h->hidden);
    PEN_TRY(read_int_or(model, "attention.key_length", h->hidden / h->heads, &h->head_size));
    PEN_TRY(read_int_or(model, "attention.value_length", h->head_size, &value_size));
    if (value_size != h->head_size)
        return pen_fail(PEN_UNSUPPORTED, "%s: values of %d and keys of %d per head", model->path, value_size,
                        h->head_size);
    return read_int(model, "context_length", &h->context);
}

pen_status pen_hparams_read(pen_model *model) {
    pen_hparams *h = &model->hparams;
    double eps;
    PEN_TRY(read_shape(model));
    PEN_TRY(read_vocab(model));
    pen_hparams_default(model);
    const char *epsilon = model->arch->layer_norm ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon";
    PEN_TRY(pen_gguf_f64(model->gguf, key_of(model, epsilon).name, &eps));
    h->norm_eps = (float)eps;
    PEN_TRY(read_rope(model, h));
    PEN_TRY(read_window(model));
    return read_ffn(model);
}

/* Sizes far above any model's, so that no product of two of them and a type's bytes overflows. */
static pen_status check_size(const pen_model *model, const char *what, int value, int most) {
    if (value >= 1 && value <= most) return PEN_OK;
    return pen_fail(PEN_BAD_INPUT, "%s: %s is %d, it may be 1 to %d", model->path, what, value, most);
}

static pen_status check_rope(const pen_model *model) {
    const pen_hparams *h = &model->hparams;
    if (h->rope_dims < 2 || h->rope_dims > h->head_size || h->rope_dims % 2)
        return pen_fail(PEN_BAD_INPUT, "%s: %d rotated dimensions, it must be an even number up to the head size %d",
                        model->path, h->rope_dims, h->head_size);
    for (int i = 0; i < PEN_ROTATIONS; i++)
        if (!(h->rotations[i].base > 1 && h->rotations[i].base < 1e12))
            return pen_fail(PEN_BAD_INPUT, "%s: rotation base %g is not between 1 and 1e12", model->path,
                            h->rotations[i].base);
    return PEN_OK;
}

/* A group for the layers that see everything and one for those that slide, as far as there are such. */
static void group_layers(pen_model *model) {
    pen_hparams *h = &model->hparams;
    if (h->window >= h->context) h->window = 0; /* it never hides anything */
    int sliding = 0;
    for (int layer = 0; layer < h->layers; layer++) sliding += model->layers[layer].sliding;
    if (sliding == 0) h->window = 0;
    h->kv_groups = h->window > 0 && sliding < h->layers ? 2 : 1;
    for (int group = 0; group < PEN_KV_GROUPS; group++)
        h->kv_windows[group] = group == h->kv_groups - 1 ? h->window : 0;
}

int pen_layer_kv_group(const pen_model *model, int layer) {
    return model->layers[layer].sliding ? model->hparams.kv_groups - 1 : 0;
}

pen_status pen_hparams_finish(pen_model *model) {
    pen_hparams *h = &model->hparams;
    PEN_TRY(check_size(model, "hidden size", h->hidden, 1 << 18));
    PEN_TRY(check_size(model, "number of heads", h->heads, 1 << 13));
    PEN_TRY(check_size(model, "number of KV heads", h->kv_heads, h->heads));
    PEN_TRY(check_size(model, "head size", h->head_size, 1 << 10));
    PEN_TRY(check_size(model, "vocabulary", h->vocab, 1 << 24));
    PEN_TRY(check_size(model, "context", h->context, 1 << 26));
    h->ffn = 0;
    for (int layer = 0; layer < h->layers; layer++) {
        PEN_TRY(check_size(model, "feed-forward size", model->layers[layer].ffn, 1 << 20));
        if (model->layers[layer].ffn > h->ffn) h->ffn = model->layers[layer].ffn;
    }
    if (h->heads % h->kv_heads)
        return pen_fail(PEN_BAD_INPUT, "%s: %d KV heads do not divide %d heads", model->path, h->kv_heads, h->heads);
    if (model->arch->rope != PEN_ROPE_NONE) PEN_TRY(check_rope(model));
    if (!(h->norm_eps >= 0 && h->norm_eps < 1))
        return pen_fail(PEN_BAD_INPUT, "%s: norm epsilon %g is not between 0 and 1", model->path, (double)h->norm_eps);
    group_layers(model);
    return PEN_OK;
}
