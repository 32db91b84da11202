/*
 * Stop strings; see stopper.h. Each string has its own Knuth-Morris-Pratt automaton, whose state says how much of the
 * string the text ends with. What must be kept back is the longest of these, and as it is the beginning of a string
 * that we have, nothing needs to be stored.
 */
#include "stopper.h"

#include "utf8.h"

#include <stdlib.h>
#include <string.h>

typedef struct pattern {
    char *bytes; /* [length] */
    int *border; /* [length + 1]: of the first n bytes, the longest beginning that is also their end, and shorter */
    int length;
    int matched; /* the state: bytes of the pattern that the text ends with */
} pattern;

struct pen_stopper {
    int count;
    pattern *patterns;
    const pattern *longest; /* whose matched bytes are kept back; NULL: no pattern */
};

static bool is_utf8(const char *text, size_t length) {
    for (size_t at = 0; at < length;) {
        int step = pen_utf8_next(text + at, length - at);
        if (step <= 0) return false;
        at += (size_t)step;
    }
    return true;
}

/* The state behind one more byte. */
static int step(const pattern *p, int matched, char byte) {
    if (matched == p->length) matched = p->border[matched];
    while (matched > 0 && p->bytes[matched] != byte) matched = p->border[matched];
    return matched + (p->bytes[matched] == byte);
}

static pen_status make_pattern(const char *string, pattern *p) {
    size_t length = strlen(string);
    if (length == 0) return pen_fail(PEN_USAGE, "a stop string is empty");
    if (length > INT32_MAX / 2 || !is_utf8(string, length)) return pen_fail(PEN_USAGE, "a stop string is not UTF-8");
    *p = (pattern){.bytes = malloc(length), .border = calloc(length + 1, sizeof *p->border), .length = (int)length};
    if (!p->bytes || !p->border) return pen_fail(PEN_NO_MEMORY, "no memory for a stop string of %zu bytes", length);
    memcpy(p->bytes, string, length);
    for (int n = 2; n <= p->length; n++) p->border[n] = step(p, p->border[n - 1], p->bytes[n - 1]);
    return PEN_OK;
}

pen_status pen_stopper_create(const char *const *strings, int count, pen_stopper **out) {
    *out = NULL;
    pen_stopper *stopper = calloc(1, sizeof *stopper);
    if (stopper) stopper->patterns = calloc((size_t)count + 1, sizeof *stopper->patterns);
    pen_status status =
        stopper && stopper->patterns ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for %d stop strings", count);
    for (int i = 0; status == PEN_OK && i < count; i++) {
        stopper->count++;
        status = make_pattern(strings[i], &stopper->patterns[i]);
    }
    if (status != PEN_OK) {
        pen_stopper_destroy(stopper);
        return status;
    }
    if (count > 0) stopper->longest = &stopper->patterns[0];
    *out = stopper;
    return PEN_OK;
}

void pen_stopper_destroy(pen_stopper *stopper) {
    if (!stopper) return;
    for (int i = 0; i < stopper->count; i++) {
        free(stopper->patterns[i].bytes);
        free(stopper->patterns[i].border);
    }
    free(stopper->patterns);
    free(stopper);
}

/* Moves all patterns on by a byte, and finds the one that keeps back most. Returns the length of the longest that is
 * complete, or 0. */
static int take_byte(pen_stopper *stopper, char byte) {
    int complete = 0;
    for (int i = 0; i < stopper->count; i++) {
        pattern *p = &stopper->patterns[i];
        p->matched = step(p, p->matched, byte);
        if (p->matched == p->length && p->length > complete) complete = p->length;
    }
    return complete;
}

/* What the text to come could still make a stop string: a complete pattern counts as its border. */
static int kept_back(pen_stopper *stopper) {
    int most = 0;
    for (int i = 0; i < stopper->count; i++) {
        pattern *p = &stopper->patterns[i];
        if (p->matched == p->length) p->matched = p->border[p->matched];
        if (p->matched < most) continue;
        most = p->matched;
        stopper->longest = p;
    }
    return most;
}

pen_stopper_text pen_stopper_push(pen_stopper *stopper, pen_text text, bool armed) {
    const char *before = stopper->longest ? stopper->longest->bytes : NULL;
    size_t held = stopper->longest ? (size_t)stopper->longest->matched : 0, shown = held + text.length;
    bool stopped = false;
    for (size_t i = 0; i < text.length && !stopped; i++) {
        int complete = take_byte(stopper, text.data[i]);
        stopped = armed && complete > 0;
        if (stopped) shown = held + i + 1 - (size_t)complete;
    }
    if (!stopped) shown -= (size_t)kept_back(stopper);
    size_t first = shown < held ? shown : held;
    return (pen_stopper_text){{before, first}, {text.data, shown - first}, stopped};
}

pen_text pen_stopper_finish(pen_stopper *stopper) {
    pen_text rest = {NULL, 0};
    if (stopper->longest) rest = (pen_text){stopper->longest->bytes, (size_t)stopper->longest->matched};
    for (int i = 0; i < stopper->count; i++) stopper->patterns[i].matched = 0;
    return rest;
}
