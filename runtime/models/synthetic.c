/*
 * Synthetic models: `synthetic:ARCH:key=value,…`, a model of any shape without a file.
 *
 * A row of a tensor is a function of (seed, tensor name, row) alone, made by a counter-based generator directly in the
 * type's GGUF blocks. So each rank makes its own part, and every split of the same spec is the same model. Values have
 * mean 0 and a deviation that keeps activations near 1 through any number of layers.
 */
#include "arch.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* ---- The spec ---------------------------------------------------------------------------------------------------- */

typedef enum spec_key {
    KEY_LAYERS,
    KEY_HIDDEN,
    KEY_HEADS,
    KEY_KV_HEADS,
    KEY_HEAD_SIZE,
    KEY_VOCAB,
    KEY_CONTEXT,
    KEY_WINDOW,
    KEY_TIED,
    KEY_SEED,
    KEY_NUMBERS, /* the keys above are plain numbers */
    KEY_FFN = KEY_NUMBERS,
    KEY_TYPE,
    KEY_COUNT
} spec_key;

static const char *const key_names[KEY_COUNT] = {
    [KEY_LAYERS] = "layers",       [KEY_HIDDEN] = "hidden", [KEY_HEADS] = "heads",     [KEY_KV_HEADS] = "kv_heads",
    [KEY_HEAD_SIZE] = "head_size", [KEY_VOCAB] = "vocab",   [KEY_CONTEXT] = "context", [KEY_WINDOW] = "window",
    [KEY_TIED] = "tied",           [KEY_SEED] = "seed",     [KEY_FFN] = "ffn",         [KEY_TYPE] = "type",
};

typedef struct synthetic_spec {
    bool given[KEY_COUNT];
    int64_t number[KEY_NUMBERS];
    char ffn[4096];
    pen_type type;
} synthetic_spec;

static const char *key_list(void) {
    static _Thread_local char list[160];
    size_t used = 0;
    for (int key = 0; key < KEY_COUNT; key++)
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", key ? ", " : "", key_names[key]);
    return list;
}

/* A whole number at *text, which is moved behind it. */
static bool read_number(const char **text, int64_t *value) {
    char *end;
    if (**text < '0' || **text > '9') return false;
    errno = 0;
    *value = strtoll(*text, &end, 10);
    *text = end;
    return errno == 0;
}

static pen_status set_value(synthetic_spec *spec, int key, const char *value) {
    if (key == KEY_FFN) {
        if (strlen(value) >= sizeof spec->ffn)
            return pen_fail(PEN_USAGE, "synthetic model: the list of ffn is longer than %zu characters",
                            sizeof spec->ffn - 1);
        snprintf(spec->ffn, sizeof spec->ffn, "%s", value);
        return PEN_OK;
    }
    if (key == KEY_TYPE) {
        if (pen_type_by_name(value, &spec->type) == 0) return PEN_OK;
        return pen_fail(PEN_USAGE, "synthetic model: type=%s is not a weight type", value);
    }
    int64_t least = key == KEY_TIED || key == KEY_SEED || key == KEY_WINDOW ? 0 : 1;
    int64_t most = key == KEY_TIED ? 1 : key == KEY_SEED ? INT64_MAX : 1 << 30;
    const char *end = value;
    if (!read_number(&end, &spec->number[key]) || *end || spec->number[key] < least || spec->number[key] > most)
        return pen_fail(PEN_USAGE, "synthetic model: %s=%s is not a whole number from %lld to %lld", key_names[key],
                        value, (long long)least, (long long)most);
    return PEN_OK;
}

static pen_status parse_item(synthetic_spec *spec, char *item) {
    char *value = strchr(item, '=');
    if (!value) return pen_fail(PEN_USAGE, "synthetic model: '%s' is not key=value", item);
    *value++ = 0;
    for (int key = 0; key < KEY_COUNT; key++) {
        if (strcmp(item, key_names[key]) != 0) continue;
        if (spec->given[key]) return pen_fail(PEN_USAGE, "synthetic model: %s is given twice", item);
        spec->given[key] = true;
        return set_value(spec, key, value);
    }
    return pen_fail(PEN_USAGE, "synthetic model: unknown key '%s', known are %s", item, key_list());
}

/* The widths of ffn may be separated by commas, too: ffn=8192,4096 is ffn=8192/4096. */
static bool continue_ffn(synthetic_spec *spec, const char *item) {
    size_t used = strlen(spec->ffn);
    if (*item < '0' || *item > '9' || strchr(item, '=')) return false;
    return (size_t)snprintf(spec->ffn + used, sizeof spec->ffn - used, "/%s", item) < sizeof spec->ffn - used;
}

static pen_status parse_items(synthetic_spec *spec, char *text) {
    bool in_ffn = false;
    for (char *next = text, *item; (item = strsep(&next, ","));) {
        if (in_ffn && continue_ffn(spec, item)) continue;
        in_ffn = strncmp(item, "ffn=", 4) == 0;
        PEN_TRY(parse_item(spec, item));
    }
    static const spec_key required[] = {KEY_LAYERS, KEY_HIDDEN, KEY_FFN, KEY_HEADS, KEY_VOCAB};
    for (size_t i = 0; i < sizeof required / sizeof *required; i++)
        if (!spec->given[required[i]])
            return pen_fail(PEN_USAGE, "synthetic model: %s is missing", key_names[required[i]]);
    return PEN_OK;
}

/* ffn=W for all layers, or a width for each: W/W/…, where W*N stands for N layers of width W. */
static pen_status parse_ffn(const synthetic_spec *spec, pen_model *model) {
    int layers = model->hparams.layers, layer = 0;
    for (const char *c = spec->ffn;; c++) {
        int64_t width, times = 1;
        bool good = read_number(&c, &width) && width >= 1 && width <= INT32_MAX;
        if (good && *c == '*') {
            c++;
            good = read_number(&c, &times) && times >= 1;
        } else if (good && c[0] == 0 && layer == 0) {
            times = layers;
        }
        if (!good || (*c && *c != '/'))
            return pen_fail(PEN_USAGE, "synthetic model: ffn=%s is not a width, or widths as in 8192,4096*3,1024",
                            spec->ffn);
        if (times > layers - layer)
            return pen_fail(PEN_USAGE, "synthetic model: ffn=%s gives more widths than the %d layers", spec->ffn,
                            layers);
        while (times-- > 0) model->layers[layer++].ffn = (int)width;
        if (!*c) break;
    }
    if (layer < layers)
        return pen_fail(PEN_USAGE, "synthetic model: ffn=%s gives %d widths for %d layers", spec->ffn, layer, layers);
    return PEN_OK;
}

static pen_status apply(const synthetic_spec *spec, pen_model *model) {
    pen_hparams *h = &model->hparams;
    const int64_t *n = spec->number;
    if (!spec->given[KEY_HEAD_SIZE] && n[KEY_HIDDEN] % n[KEY_HEADS])
        return pen_fail(PEN_USAGE, "synthetic model: heads=%lld does not divide hidden=%lld, and there is no head_size",
                        (long long)n[KEY_HEADS], (long long)n[KEY_HIDDEN]);
    PEN_TRY(pen_hparams_set_layers(model, n[KEY_LAYERS]));
    PEN_TRY(parse_ffn(spec, model));
    h->hidden = (int)n[KEY_HIDDEN];
    h->heads = (int)n[KEY_HEADS];
    h->kv_heads = (int)(spec->given[KEY_KV_HEADS] ? n[KEY_KV_HEADS] : n[KEY_HEADS]);
    h->head_size = (int)(spec->given[KEY_HEAD_SIZE] ? n[KEY_HEAD_SIZE] : n[KEY_HIDDEN] / n[KEY_HEADS]);
    h->vocab = (int)n[KEY_VOCAB];
    h->context = (int)n[KEY_CONTEXT];
    h->tied = n[KEY_TIED];
    h->window = (int)n[KEY_WINDOW];
    pen_hparams_default(model);
    model->synthetic_type = spec->type;
    model->seed = (uint64_t)n[KEY_SEED];
    return PEN_OK;
}

static uint64_t hash_spec(const synthetic_spec *spec, const pen_model *model) {
    const pen_hparams *h = &model->hparams;
    uint64_t hash = XXH64(model->arch->name, strlen(model->arch->name), (uint64_t)spec->type);
    for (int layer = 0; layer < h->layers; layer++)
        hash = XXH64(&model->layers[layer].ffn, sizeof model->layers[layer].ffn, hash);
    const int64_t fields[] = {h->layers, h->hidden,  h->heads,  h->kv_heads, h->head_size,
                              h->vocab,  h->context, h->window, h->tied,     (int64_t)model->seed};
    return XXH64(fields, sizeof fields, hash);
}

pen_status pen_synthetic_parse(const char *text, pen_model *model) {
    const char *colon = strchr(text, ':');
    size_t length = colon ? (size_t)(colon - text) : strlen(text);
    model->arch = pen_arch_find(text, length);
    if (!model->arch)
        return pen_fail(PEN_UNSUPPORTED, "synthetic model: architecture '%.*s', known are: %s", (int)length, text,
                        pen_arch_names());
    if (!colon || !colon[1])
        return pen_fail(PEN_USAGE, "synthetic model: no shape, as in synthetic:%s:layers=16,hidden=2048,…",
                        model->arch->name);
    synthetic_spec spec = {.type = PEN_TYPE_Q4_0};
    spec.number[KEY_CONTEXT] = 4096;
    spec.number[KEY_SEED] = 1;
    char *items = strdup(colon + 1);
    if (!items) return pen_fail(PEN_NO_MEMORY, "synthetic model: no memory for its shape");
    pen_status status = parse_items(&spec, items);
    free(items);
    PEN_TRY(status);
    PEN_TRY(apply(&spec, model));
    model->hash = hash_spec(&spec, model);
    snprintf(model->name, sizeof model->name, "synthetic %s", model->arch->name);
    return PEN_OK;
}

/* ---- Weights ----------------------------------------------------------------------------------------------------- */

/* A row's stream of random words: word i depends on the key and i only (the finaliser of SplitMix64). */
typedef struct stream {
    uint64_t key, counter;
} stream;

static uint64_t next(stream *s) {
    uint64_t z = s->key + ++s->counter * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Uniform in [−1, 1). */
static float next_uniform(stream *s) {
    return (float)(next(s) >> 40) * 0x1p-23f - 1;
}

/*
 * Blocks of quantised types are random bytes, so that each of their integers is equally likely, and the factors that
 * make of these what is wanted: the deviation of a block with d = 1, and −m/d, which balances its mean. Where there is
 * no m the mean of the integers is not 0; d, negative as often as not, sees to it.
 */
static const struct {
    float deviation, balance;
} made[PEN_TYPE_COUNT] = {
    [PEN_TYPE_Q4_0] = {4.6368F, 0},     [PEN_TYPE_Q4_1] = {4.6098F, 7.5F}, [PEN_TYPE_Q5_0] = {9.2466F, 0},
    [PEN_TYPE_Q5_1] = {9.2331F, 15.5F}, [PEN_TYPE_Q8_0] = {73.902F, 0},    [PEN_TYPE_Q2_K] = {13.874F, 1.5F},
    [PEN_TYPE_Q3_K] = {43.339F, 0},     [PEN_TYPE_Q4_K] = {258.32F, 7.5F}, [PEN_TYPE_Q5_K] = {526.93F, 15.5F},
    [PEN_TYPE_Q6_K] = {1365.7F, 0},     [PEN_TYPE_IQ4_NL] = {67.414F, 0},  [PEN_TYPE_MXFP4] = {5.8523F, 0},
};

static void put_f16(unsigned char *target, float value) {
    uint16_t half = pen_f32_to_f16(value);
    memcpy(target, &half, sizeof half);
}

/* Scales differ from block to block, by a quarter up and down, so that a scale taken from the wrong block shows. */
static float next_scale(stream *s, float scale) {
    float value = scale * (1 + 0.25F * next_uniform(s));
    return next(s) & 1 ? -value : value;
}

/* The power of two below `scale` or that above, of which the mean of squares is that of `scale`. */
static uint8_t next_exponent(stream *s, float scale) {
    int exponent; /* 2^(exponent − 1) ≤ scale < 2^exponent */
    float fraction = frexpf(scale, &exponent), excess = 4 * fraction * fraction - 1;
    return (uint8_t)(128 + exponent - (next_uniform(s) * 1.5F + 1.5F < excess ? 0 : 1));
}

static void make_block(stream *s, pen_type type, float deviation, unsigned char *block) {
    const pen_type_info *info = pen_type_get(type);
    const pen_quant *quant = &info->quant;
    for (int at = 0; at < info->block_bytes; at += 8) {
        uint64_t word = next(s);
        memcpy(block + at, &word, (size_t)(info->block_bytes - at < 8 ? info->block_bytes - at : 8));
    }
    float scale = deviation / made[type].deviation;
    if (quant->d < 0) {
        block[0] = next_exponent(s, scale);
        return;
    }
    float d = next_scale(s, scale), m = made[type].balance * d;
    put_f16(block + quant->d, d);
    if (quant->m >= 0) put_f16(block + quant->m, info->block_values == 32 ? -m : m); /* the K-types subtract it */
}

/* One number of a float type. */
static void make_number(stream *s, pen_type type, float deviation, unsigned char *number) {
    float value = next_uniform(s) * deviation * 1.7320508F; /* √3: the deviation of a uniform number is 1/√3 */
    if (type == PEN_TYPE_F16)
        put_f16(number, value);
    else if (type == PEN_TYPE_BF16)
        memcpy(number, (unsigned char *)&value + 2, 2);
    else
        memcpy(number, &value, sizeof value);
}

/* A product of a row with `cols` values near 1 shall be near 1; what is added to the residual, twice per layer, less.
 */
static float deviation_of(const pen_tensor *tensor, const pen_hparams *hparams) {
    float deviation = 1 / sqrtf((float)tensor->cols);
    bool adds = tensor->rule->slot == PEN_SLOT_ATTENTION_OUT || tensor->rule->slot == PEN_SLOT_DOWN;
    return adds ? deviation / sqrtf(2.0f * (float)hparams->layers) : deviation;
}

void pen_synthetic_rows(const pen_tensor *tensor, const pen_hparams *hparams, uint64_t seed, int first, int rows,
                        void *target) {
    const pen_type_info *info = pen_type_get(tensor->type);
    size_t row_bytes = pen_type_row_bytes(tensor->type, tensor->cols);
    uint64_t name = XXH64(tensor->name, strlen(tensor->name), seed);
    float deviation = deviation_of(tensor, hparams);
    for (int row = 0; row < rows; row++) {
        unsigned char *block = (unsigned char *)target + (size_t)row * row_bytes;
        const uint64_t index = (uint64_t)(first + row);
        stream s = {.key = XXH64(&index, sizeof index, name)};
        for (size_t at = 0; at < row_bytes; at += (size_t)info->block_bytes) {
            if (tensor->rule->form == PEN_FORM_MATRIX) {
                if (info->quant.bits)
                    make_block(&s, tensor->type, deviation, block + at);
                else
                    make_number(&s, tensor->type, deviation, block + at);
            } else { /* the weight of a norm, f32 */
                float value = 1 + 0.25f * next_uniform(&s);
                memcpy(block + at, &value, sizeof value);
            }
        }
    }
}
