/* Pre-tokenizers over PCRE2; see pretokenizer.h. */
#include "pretokenizer.h"

#include "utf8.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

struct pen_pretokenizer {
    pcre2_code *code;
    pcre2_match_data *match;
};

static const pen_pretokenizer_kind kinds[] = {
#define PEN_PRETOKENIZER(name, adds_bos, whole_words, pattern) {name, adds_bos, whole_words, pattern},
#include "pretokenizers.def"
#undef PEN_PRETOKENIZER
};

const pen_pretokenizer_kind *pen_pretokenizer_find(const char *name, size_t length) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strlen(kinds[i].name) == length && !memcmp(kinds[i].name, name, length)) return &kinds[i];
    return NULL;
}

const char *pen_pretokenizer_names(void) {
    static const char names[] =
#define PEN_PRETOKENIZER(name, adds_bos, whole_words, pattern) ", " name
#include "pretokenizers.def"
#undef PEN_PRETOKENIZER
        ;
    return names + 2;
}

static pen_status pcre_failed(const char *what, int error) {
    char text[128] = "unknown error";
    pcre2_get_error_message(error, (PCRE2_UCHAR *)text, sizeof text);
    return pen_fail(error == PCRE2_ERROR_NOMEMORY ? PEN_NO_MEMORY : PEN_INTERNAL, "%s: %s", what, text);
}

pen_status pen_pretokenizer_create(const pen_pretokenizer_kind *kind, pen_pretokenizer **pretokenizer_out) {
    *pretokenizer_out = NULL;
    pen_pretokenizer *pretokenizer = calloc(1, sizeof *pretokenizer);
    if (!pretokenizer) return pen_fail(PEN_NO_MEMORY, "no memory for a pre-tokenizer");
    int error;
    PCRE2_SIZE where;
    pretokenizer->code =
        pcre2_compile((PCRE2_SPTR)kind->pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &error, &where, NULL);
    if (!pretokenizer->code) {
        pen_pretokenizer_destroy(pretokenizer);
        return pcre_failed("pre-tokenizer pattern", error);
    }
    /* Where no executable memory is to be had, the interpreter does it. */
    (void)pcre2_jit_compile(pretokenizer->code, PCRE2_JIT_COMPLETE);
    pretokenizer->match = pcre2_match_data_create_from_pattern(pretokenizer->code, NULL);
    if (!pretokenizer->match) {
        pen_pretokenizer_destroy(pretokenizer);
        return pen_fail(PEN_NO_MEMORY, "no memory for a pre-tokenizer");
    }
    *pretokenizer_out = pretokenizer;
    return PEN_OK;
}

void pen_pretokenizer_destroy(pen_pretokenizer *pretokenizer) {
    if (!pretokenizer) return;
    pcre2_match_data_free(pretokenizer->match);
    pcre2_code_free(pretokenizer->code);
    free(pretokenizer);
}

/* The text is UTF-8. */
static pen_status split_valid(pen_pretokenizer *pretokenizer, const char *text, size_t length, pen_word *word,
                              void *context) {
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(pretokenizer->match);
    for (size_t at = 0; at < length; at = span[1]) {
        int found = pcre2_match(pretokenizer->code, (PCRE2_SPTR)text, length, at, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY,
                                pretokenizer->match, NULL);
        if (found == PCRE2_ERROR_NOMATCH) return word(context, text + at, length - at);
        if (found < 0) return pcre_failed("pre-tokenizer", found);
        if (span[0] > at) PEN_TRY(word(context, text + at, span[0] - at));
        PEN_TRY(word(context, text + span[0], span[1] - span[0]));
    }
    return PEN_OK;
}

/* The length of the longest beginning that is (valid) or that is nowhere (!valid) UTF-8. */
static size_t run_length(const char *text, size_t length, bool valid) {
    size_t end = 0;
    while (end < length) {
        int step = pen_utf8_next(text + end, length - end);
        if ((step > 0) != valid) break;
        end += step > 0 ? (size_t)step : step < 0 ? (size_t)-step : length - end;
    }
    return end;
}

pen_status pen_pretokenizer_split(pen_pretokenizer *pretokenizer, const char *text, size_t length, pen_word *word,
                                  void *context) {
    for (size_t at = 0; at < length;) {
        size_t valid = run_length(text + at, length - at, true);
        PEN_TRY(split_valid(pretokenizer, text + at, valid, word, context));
        at += valid;
        size_t invalid = run_length(text + at, length - at, false);
        if (invalid) PEN_TRY(word(context, text + at, invalid));
        at += invalid;
    }
    return PEN_OK;
}
