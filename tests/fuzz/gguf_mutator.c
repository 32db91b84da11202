/*
 * Mutations that leave a GGUF file one: blind ones break the lengths that everything hangs on, and then hardly anything
 * behind the first key is ever reached.
 *
 * The header is scanned for numbers, strings and entries. A mutation puts an interesting number in a number's place,
 * changes a string together with its length, or removes, repeats or moves an entry together with the count that it
 * belongs to. Of an input that begins with something else, that is what every other mutation changes. Every fourth is
 * blind all the same, and so is every one of an input that has no file.
 */
#include "gguf_input.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

enum { SPANS_MAX = 8192, STRING_GROWTH = 64, VALUE_STRING = 8, VALUE_ARRAY = 9 };

typedef enum kind { NUMBER, STRING, ENTRY, KINDS } kind;

typedef struct span {
    size_t at, length; /* of a string: its text, behind the 8 bytes of its length */
    size_t count_at;   /* of an entry: the number of such entries, 8 bytes */
} span;

/* What was found, by kind. */
static span spans[KINDS][SPANS_MAX];
static size_t found[KINDS];

typedef struct reader {
    const uint8_t *data;
    size_t at, end;
} reader;

static void add(kind k, span s) {
    if (found[k] < SPANS_MAX) spans[k][found[k]++] = s;
}

static bool number(reader *r, size_t bytes, uint64_t *value) {
    if (bytes > r->end - r->at) return false;
    *value = 0;
    memcpy(value, r->data + r->at, bytes);
    add(NUMBER, (span){r->at, bytes, 0});
    r->at += bytes;
    return true;
}

static bool string(reader *r) {
    uint64_t length;
    if (!number(r, 8, &length) || length > r->end - r->at) return false;
    add(STRING, (span){r->at, length, 0});
    r->at += length;
    return true;
}

static bool scalar(reader *r, uint64_t type) {
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    uint64_t value;
    if (type == VALUE_STRING) return string(r);
    return type < sizeof bytes && bytes[type] && number(r, bytes[type], &value);
}

static bool key(reader *r) {
    uint64_t type, count;
    if (!string(r) || !number(r, 4, &type)) return false;
    if (type != VALUE_ARRAY) return scalar(r, type);
    if (!number(r, 4, &type)) return false;
    size_t count_at = r->at;
    if (!number(r, 8, &count)) return false;
    for (uint64_t i = 0; i < count; i++) {
        size_t start = r->at;
        if (!scalar(r, type)) return false;
        add(ENTRY, (span){start, r->at - start, count_at});
    }
    return true;
}

static bool tensor(reader *r) {
    uint64_t dims, value;
    if (!string(r) || !number(r, 4, &dims)) return false;
    for (uint64_t d = 0; d < dims; d++)
        if (!number(r, 8, &value)) return false;
    return number(r, 4, &value) && number(r, 8, &value);
}

static void entries(reader *r, uint64_t count, size_t count_at, bool (*one)(reader *)) {
    for (uint64_t i = 0; i < count; i++) {
        size_t start = r->at;
        if (!one(r)) {
            r->at = r->end;
            return;
        }
        add(ENTRY, (span){start, r->at - start, count_at});
    }
}

static void scan(const uint8_t *data, size_t begin, size_t end) {
    reader r = {data, begin + 8, end};
    uint64_t tensors, keys;
    memset(found, 0, sizeof found);
    if (!number(&r, 8, &tensors) || !number(&r, 8, &keys)) return;
    entries(&r, keys, begin + 16, key);
    entries(&r, tensors, begin + 8, tensor);
}

static uint64_t interesting(uint64_t old, unsigned bits) {
    uint64_t power = UINT64_C(1) << (unsigned)rand() % bits;
    switch (rand() % 7) {
    case 0: return 0;
    case 1: return UINT64_MAX;
    case 2: return power;
    case 3: return power - 1;
    case 4: return old + (uint64_t)(rand() % 9) - 4;
    case 5: return old * 2;
    default: return (uint64_t)rand() % 300;
    }
}

static void change_number(uint8_t *data) {
    span s = spans[NUMBER][(size_t)rand() % found[NUMBER]], other = spans[NUMBER][(size_t)rand() % found[NUMBER]];
    uint64_t value = 0;
    memcpy(&value, data + s.at, s.length);
    value = interesting(value, 8 * (unsigned)s.length);
    if (rand() % 4 == 0 && other.length == s.length) memcpy(&value, data + other.at, s.length);
    memcpy(data + s.at, &value, s.length);
}

/* Gives data[at, at + old) `length` bytes of text instead; the new size, or the old one where there is no room. */
static size_t replace(uint8_t *data, size_t size, size_t max_size, size_t at, size_t old, const uint8_t *text,
                      size_t length) {
    if (size - old + length > max_size) return size;
    memmove(data + at + length, data + at + old, size - at - old);
    memcpy(data + at, text, length);
    return size - old + length;
}

/* What stands before the file. */
static size_t change_start(uint8_t *data, size_t size, size_t max_size, size_t length) {
    uint8_t *text = malloc(length + STRING_GROWTH);
    if (!text) return size;
    memcpy(text, data, length);
    size = replace(data, size, max_size, 0, length, text, LLVMFuzzerMutate(text, length, length + STRING_GROWTH));
    free(text);
    return size;
}

static size_t change_string(uint8_t *data, size_t size, size_t max_size) {
    span s = spans[STRING][(size_t)rand() % found[STRING]], other = spans[STRING][(size_t)rand() % found[STRING]];
    if (rand() % 3) other = s;
    uint8_t *text = malloc(other.length + STRING_GROWTH);
    if (!text) return size;
    memcpy(text, data + other.at, other.length);
    uint64_t length = other.length;
    if (other.at == s.at) length = LLVMFuzzerMutate(text, other.length, other.length + STRING_GROWTH);
    if (size - s.length + length <= max_size) {
        size = replace(data, size, max_size, s.at, s.length, text, length);
        memcpy(data + s.at - 8, &length, 8);
    }
    free(text);
    return size;
}

static void change_count(uint8_t *data, size_t at, int by) {
    uint64_t count;
    memcpy(&count, data + at, 8);
    count += (uint64_t)(int64_t)by;
    memcpy(data + at, &count, 8);
}

static size_t change_entries(uint8_t *data, size_t size, size_t max_size) {
    span s = spans[ENTRY][(size_t)rand() % found[ENTRY]], other = spans[ENTRY][(size_t)rand() % found[ENTRY]];
    int what = rand() % 3;
    if (other.count_at != s.count_at) other = s;
    uint8_t *copy = malloc(s.length + 1);
    if (!copy) return size;
    memcpy(copy, data + s.at, s.length);
    if (what == 0 || (what == 1 && size + s.length <= max_size)) { /* removed, or repeated where another stands */
        size = replace(data, size, max_size, what ? other.at : s.at, what ? 0 : s.length, copy, what ? s.length : 0);
        change_count(data, s.count_at, what ? 1 : -1);
    } else if (what == 2) { /* moved before another */
        size = replace(data, size, max_size, s.at, s.length, copy, 0);
        size = replace(data, size, max_size, other.at > s.at ? other.at - s.length : other.at, 0, copy, s.length);
    }
    free(copy);
    return size;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    srand(seed);
    size_t begin = gguf_begin(data, 0, size), second = begin < size ? gguf_begin(data, begin + 1, size) : size;
    size_t end = second;
    if (second < size && rand() % 2) begin = second, end = size;
    if (begin == size || rand() % 4 == 0) return LLVMFuzzerMutate(data, size, max_size);
    if (begin > 0 && rand() % 2) return change_start(data, size, max_size, begin);
    scan(data, begin, end);
    int what = rand() % 4;
    if (what <= 1 && found[NUMBER]) change_number(data);
    if (what == 2 && found[STRING]) size = change_string(data, size, max_size);
    if (what == 3 && found[ENTRY]) size = change_entries(data, size, max_size);
    return size;
}
