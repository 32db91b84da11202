/* Pre-tokenizers over PCRE2; see pretokenizer.h. */
#include "pretokenizer.h"

#include "nfc.h"
#include "utf8.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define BYTES "(?#bytes)" /* begins a pattern that sees bytes; to PCRE2 it is a comment */

typedef struct cutter {
    pcre2_code *code;
    pcre2_match_data *match;
    uint32_t options; /* of each match */
} cutter;

struct pen_pretokenizer {
    cutter steps[PEN_PRETOKENIZER_PATTERNS];
    int count;
    pcre2_match_context *limits;
    pen_nfc *nfc; /* NULL: the text is taken as it is */
};

static const pen_pretokenizer_kind kinds[] = {
#define PEN_PRETOKENIZER(name, flags, ...)                                                                             \
    {name,                                                                                                             \
     ((flags)&PEN_PRETOKENIZER_BOS) != 0,                                                                              \
     ((flags)&PEN_PRETOKENIZER_WHOLE) != 0,                                                                            \
     ((flags)&PEN_PRETOKENIZER_NFC) != 0,                                                                              \
     {__VA_ARGS__}},
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
#define PEN_PRETOKENIZER(name, flags, ...) ", " name
#include "pretokenizers.def"
#undef PEN_PRETOKENIZER
        ;
    return names + 2;
}

/* ---- Making ---------------------------------------------------------------------------------------------------- */

static pen_status pcre_failed(const char *what, int error) {
    char text[128] = "unknown error";
    pcre2_get_error_message(error, (PCRE2_UCHAR *)text, sizeof text);
    return pen_fail(error == PCRE2_ERROR_NOMEMORY ? PEN_NO_MEMORY : PEN_INTERNAL, "%s: %s", what, text);
}

static pen_status add_step(pen_pretokenizer *pretokenizer, const char *pattern) {
    bool bytes = !strncmp(pattern, BYTES, strlen(BYTES));
    cutter *s = &pretokenizer->steps[pretokenizer->count++];
    int error;
    PCRE2_SIZE where;
    s->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, bytes ? 0 : PCRE2_UTF | PCRE2_UCP, &error,
                            &where, NULL);
    if (!s->code) return pcre_failed("pre-tokenizer pattern", error);
    /* Where no executable memory is to be had, the interpreter does it. */
    (void)pcre2_jit_compile(s->code, PCRE2_JIT_COMPLETE);
    s->match = pcre2_match_data_create_from_pattern(s->code, NULL);
    if (!s->match) return pen_fail(PEN_NO_MEMORY, "no memory for a pre-tokenizer");
    s->options = PCRE2_NOTEMPTY | (bytes ? 0 : PCRE2_NO_UTF_CHECK);
    return PEN_OK;
}

pen_status pen_pretokenizer_create(const pen_pretokenizer_kind *kind, pen_pretokenizer **pretokenizer_out) {
    *pretokenizer_out = NULL;
    pen_pretokenizer *pretokenizer = calloc(1, sizeof *pretokenizer);
    pen_status status = PEN_OK;
    if (pretokenizer) pretokenizer->limits = pcre2_match_context_create(NULL);
    if (!pretokenizer || !pretokenizer->limits) status = pen_fail(PEN_NO_MEMORY, "no memory for a pre-tokenizer");
    if (status == PEN_OK && kind->composes) status = pen_nfc_create(&pretokenizer->nfc);
    for (int i = 0; status == PEN_OK && i < PEN_PRETOKENIZER_PATTERNS && kind->patterns[i]; i++)
        status = add_step(pretokenizer, kind->patterns[i]);
    if (status != PEN_OK) {
        pen_pretokenizer_destroy(pretokenizer);
        return status;
    }
    /* No pattern takes more than linear time: nothing is to be cut short. */
    pcre2_set_match_limit(pretokenizer->limits, UINT32_MAX);
    pcre2_set_depth_limit(pretokenizer->limits, UINT32_MAX);
    pcre2_set_heap_limit(pretokenizer->limits, UINT32_MAX);
    *pretokenizer_out = pretokenizer;
    return PEN_OK;
}

void pen_pretokenizer_destroy(pen_pretokenizer *pretokenizer) {
    if (!pretokenizer) return;
    for (int i = 0; i < pretokenizer->count; i++) {
        pcre2_match_data_free(pretokenizer->steps[i].match);
        pcre2_code_free(pretokenizer->steps[i].code);
    }
    pcre2_match_context_free(pretokenizer->limits);
    pen_nfc_destroy(pretokenizer->nfc);
    free(pretokenizer);
}

/* ---- Cutting --------------------------------------------------------------------------------------------------- */

typedef struct sink {
    pen_word *word;
    void *context;
} sink;

/* The text is UTF-8 wherever a step takes characters. The steps before `index` have been done. */
static pen_status cut(pen_pretokenizer *pretokenizer, int index, const char *text, size_t length, const sink *out) {
    if (length == 0) return PEN_OK;
    if (index == pretokenizer->count) return out->word(out->context, text, length);
    const cutter *s = &pretokenizer->steps[index];
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(s->match);
    for (size_t at = 0, end; at < length; at = end) {
        int found = pcre2_match(s->code, (PCRE2_SPTR)text, length, at, s->options, s->match, pretokenizer->limits);
        if (found == PCRE2_ERROR_NOMATCH) return cut(pretokenizer, index + 1, text + at, length - at, out);
        if (found < 0) return pcre_failed("pre-tokenizer", found);
        size_t start = span[0];
        end = span[1];
        PEN_TRY(cut(pretokenizer, index + 1, text + at, start - at, out));
        PEN_TRY(cut(pretokenizer, index + 1, text + start, end - start, out));
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
    const sink out = {word, context};
    for (size_t at = 0; at < length;) {
        size_t valid = run_length(text + at, length - at, true);
        const char *characters = text + at;
        size_t count = valid;
        if (pretokenizer->nfc) PEN_TRY(pen_nfc_compose(pretokenizer->nfc, characters, valid, &characters, &count));
        PEN_TRY(cut(pretokenizer, 0, characters, count, &out));
        at += valid;
        size_t invalid = run_length(text + at, length - at, false);
        if (invalid) PEN_TRY(word(context, text + at, invalid));
        at += invalid;
    }
    return PEN_OK;
}
