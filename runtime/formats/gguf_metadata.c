/* GGUF metadata: typed getters over the entries that gguf.c has checked, and their text for people. */
#include "gguf_private.h"

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>

static const char *const type_names[PEN_GGUF_VALUE_COUNT] = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64",
};

static const pen_gguf_entry *find(const pen_gguf *gguf, const char *key) {
    size_t i = pen_gguf_directory_find(&gguf->keys, key);
    return i == PEN_GGUF_NONE ? NULL : &gguf->entries[i];
}

static pen_status get(const pen_gguf *gguf, const char *key, const pen_gguf_entry **entry) {
    *entry = find(gguf, key);
    return *entry ? PEN_OK : pen_fail(PEN_BAD_INPUT, "%s: key %s is missing", gguf->path, key);
}

static pen_status wrong_type(const pen_gguf *gguf, const char *key, const char *wanted, const pen_gguf_entry *entry) {
    bool array = entry->type == PEN_GGUF_ARRAY;
    return pen_fail(PEN_BAD_INPUT, "%s: key %s should be %s, but is %s%s", gguf->path, key, wanted,
                    array ? "an array of " : "", type_names[array ? entry->item_type : entry->type]);
}

/* ---- Values in the header -------------------------------------------------------------------------------------- */

static pen_gguf_string string_at(const pen_gguf *gguf, uint32_t at) {
    uint64_t length;
    memcpy(&length, gguf->header + at, sizeof length);
    return (pen_gguf_string){(const char *)gguf->header + at + sizeof length, length};
}

#define CASE_VALUE(value_type, c_type)                                                                                 \
    case value_type: {                                                                                                 \
        c_type value_;                                                                                                 \
        memcpy(&value_, at, sizeof value_);                                                                            \
        *value = value_;                                                                                               \
        return true;                                                                                                   \
    }

/* False where the type is no integer or the value does not fit. */
static bool integer_at(uint32_t type, const unsigned char *at, int64_t *value) {
    switch (type) {
        CASE_VALUE(PEN_GGUF_U8, uint8_t)
        CASE_VALUE(PEN_GGUF_I8, int8_t)
        CASE_VALUE(PEN_GGUF_U16, uint16_t)
        CASE_VALUE(PEN_GGUF_I16, int16_t)
        CASE_VALUE(PEN_GGUF_U32, uint32_t)
        CASE_VALUE(PEN_GGUF_I32, int32_t)
        CASE_VALUE(PEN_GGUF_I64, int64_t)
    case PEN_GGUF_U64: memcpy(value, at, sizeof *value); return *value >= 0;
    default: return false;
    }
}

static bool real_at(uint32_t type, const unsigned char *at, double *value) {
    switch (type) {
        CASE_VALUE(PEN_GGUF_F32, float)
        CASE_VALUE(PEN_GGUF_F64, double)
    default: return false;
    }
}

/* ---- Getters --------------------------------------------------------------------------------------------------- */

bool pen_gguf_has(const pen_gguf *gguf, const char *key) {
    return find(gguf, key) != NULL;
}

pen_status pen_gguf_i64(const pen_gguf *gguf, const char *key, int64_t min, int64_t max, int64_t *value) {
    const pen_gguf_entry *entry;
    PEN_TRY(get(gguf, key, &entry));
    int64_t got;
    if (!integer_at(entry->type, gguf->header + entry->value, &got)) {
        if (entry->type == PEN_GGUF_U64)
            return pen_fail(PEN_BAD_INPUT, "%s: key %s does not fit in 63 bits", gguf->path, key);
        return wrong_type(gguf, key, "an integer", entry);
    }
    if (got < min || got > max)
        return pen_fail(PEN_BAD_INPUT, "%s: key %s is %lld, outside %lld to %lld", gguf->path, key, (long long)got,
                        (long long)min, (long long)max);
    *value = got;
    return PEN_OK;
}

pen_status pen_gguf_i64_or(const pen_gguf *gguf, const char *key, int64_t min, int64_t max, int64_t fallback,
                           int64_t *value) {
    if (pen_gguf_has(gguf, key)) return pen_gguf_i64(gguf, key, min, max, value);
    *value = fallback;
    return PEN_OK;
}

pen_status pen_gguf_f64(const pen_gguf *gguf, const char *key, double *value) {
    const pen_gguf_entry *entry;
    PEN_TRY(get(gguf, key, &entry));
    double got;
    if (!real_at(entry->type, gguf->header + entry->value, &got)) return wrong_type(gguf, key, "a float", entry);
    if (!isfinite(got)) return pen_fail(PEN_BAD_INPUT, "%s: key %s is not a finite number", gguf->path, key);
    *value = got;
    return PEN_OK;
}

pen_status pen_gguf_f64_or(const pen_gguf *gguf, const char *key, double fallback, double *value) {
    if (pen_gguf_has(gguf, key)) return pen_gguf_f64(gguf, key, value);
    *value = fallback;
    return PEN_OK;
}

pen_status pen_gguf_bool_or(const pen_gguf *gguf, const char *key, bool fallback, bool *value) {
    const pen_gguf_entry *entry = find(gguf, key);
    if (entry && entry->type != PEN_GGUF_BOOL) return wrong_type(gguf, key, "a bool", entry);
    *value = entry ? gguf->header[entry->value] : fallback;
    return PEN_OK;
}

pen_status pen_gguf_str(const pen_gguf *gguf, const char *key, pen_gguf_string *value) {
    const pen_gguf_entry *entry;
    PEN_TRY(get(gguf, key, &entry));
    if (entry->type != PEN_GGUF_STRING) return wrong_type(gguf, key, "a string", entry);
    *value = string_at(gguf, entry->value);
    return PEN_OK;
}

static pen_status get_array(const pen_gguf *gguf, const char *key, const pen_gguf_entry **entry) {
    PEN_TRY(get(gguf, key, entry));
    return (*entry)->type == PEN_GGUF_ARRAY ? PEN_OK : wrong_type(gguf, key, "an array", *entry);
}

pen_status pen_gguf_array(const pen_gguf *gguf, const char *key, size_t *length) {
    const pen_gguf_entry *entry;
    PEN_TRY(get_array(gguf, key, &entry));
    *length = entry->count;
    return PEN_OK;
}

pen_status pen_gguf_array_str(const pen_gguf *gguf, const char *key, size_t i, pen_gguf_string *value) {
    const pen_gguf_entry *entry;
    PEN_TRY(get_array(gguf, key, &entry));
    if (entry->item_type != PEN_GGUF_STRING) return wrong_type(gguf, key, "an array of strings", entry);
    assert(i < entry->count);
    *value = string_at(gguf, entry->strings[i]);
    return PEN_OK;
}

static const unsigned char *element(const pen_gguf *gguf, const pen_gguf_entry *entry, size_t i) {
    assert(i < entry->count);
    return gguf->header + entry->value + i * pen_gguf_value_bytes[entry->item_type];
}

pen_status pen_gguf_array_i64(const pen_gguf *gguf, const char *key, size_t i, int64_t *value) {
    const pen_gguf_entry *entry;
    PEN_TRY(get_array(gguf, key, &entry));
    if (integer_at(entry->item_type, element(gguf, entry, i), value)) return PEN_OK;
    if (entry->item_type == PEN_GGUF_U64)
        return pen_fail(PEN_BAD_INPUT, "%s: key %s: element %zu does not fit in 63 bits", gguf->path, key, i);
    return wrong_type(gguf, key, "an array of integers", entry);
}

pen_status pen_gguf_array_f64(const pen_gguf *gguf, const char *key, size_t i, double *value) {
    const pen_gguf_entry *entry;
    PEN_TRY(get_array(gguf, key, &entry));
    return real_at(entry->item_type, element(gguf, entry, i), value)
               ? PEN_OK
               : wrong_type(gguf, key, "an array of floats", entry);
}

/* ---- For people ------------------------------------------------------------------------------------------------ */

/* A text that is being written; what does not fit is left out. */
typedef struct text {
    char *at;
    size_t left; /* with the final zero */
} text;

__attribute__((format(printf, 2, 3))) static void append(text *t, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int length = vsnprintf(t->at, t->left, format, args);
    va_end(args);
    size_t written = length < 0 ? 0 : (size_t)length < t->left ? (size_t)length : t->left - 1;
    t->at += written;
    t->left -= written;
}

/* In quotes, on one line, cut at a character's start. */
static void append_string(text *t, pen_gguf_string string, size_t most) {
    size_t length = string.length < most ? string.length : most;
    while (length < string.length && length && ((unsigned char)string.data[length] & 0xc0) == 0x80) length--;
    append(t, "\"");
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)string.data[i];
        if (c == '\n')
            append(t, "\\n");
        else if (c < 0x20 || c == 0x7f)
            append(t, "\\x%02x", c);
        else
            append(t, "%c", c);
    }
    append(t, length < string.length ? "…\"" : "\"");
}

static void append_number(text *t, uint32_t type, const unsigned char *at) {
    int64_t integer;
    double real;
    if (integer_at(type, at, &integer))
        append(t, "%lld", (long long)integer);
    else if (real_at(type, at, &real))
        append(t, "%g", real);
    else if (type == PEN_GGUF_BOOL)
        append(t, "%s", *at ? "true" : "false");
    else {
        uint64_t large;
        memcpy(&large, at, sizeof large);
        append(t, "%llu", ULL(large));
    }
}

size_t pen_gguf_key_count(const pen_gguf *gguf) {
    return gguf->entry_count;
}

void pen_gguf_key_text(const pen_gguf *gguf, size_t i, char *key, size_t key_size, char *value, size_t value_size) {
    enum { STRING_SHOWN = 72, ITEM_SHOWN = 16, ITEMS_SHOWN = 6 };
    assert(i < gguf->entry_count && key_size && value_size);
    const pen_gguf_entry *entry = &gguf->entries[i];
    snprintf(key, key_size, "%.*s", (int)entry->name_length, (const char *)gguf->header + entry->name);

    text t = {value, value_size};
    *value = 0;
    if (entry->type == PEN_GGUF_STRING) {
        append_string(&t, string_at(gguf, entry->value), STRING_SHOWN);
    } else if (entry->type != PEN_GGUF_ARRAY) {
        append_number(&t, entry->type, gguf->header + entry->value);
    } else {
        append(&t, "%s[%llu] {", type_names[entry->item_type], ULL(entry->count));
        for (size_t k = 0; k < entry->count && k < ITEMS_SHOWN; k++) {
            if (k) append(&t, ", ");
            if (entry->strings)
                append_string(&t, string_at(gguf, entry->strings[k]), ITEM_SHOWN);
            else
                append_number(&t, entry->item_type, element(gguf, entry, k));
        }
        append(&t, entry->count > ITEMS_SHOWN ? ", …}" : "}");
    }
}
