/*
 * Composing characters; see nfc.h. utf8proc has the tables.
 *
 * Characters below U+0300 never change beside one another, so only stretches of higher ones, with the character before
 * them, are taken apart. Their marks are put in order here, because utf8proc's own sort is quadratic.
 */
#include "nfc.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

enum {
    HIGH = 0xcc,         /* begins U+0300 in UTF-8 */
    POINTS_PER_BYTE = 2, /* a character of n bytes is taken apart into fewer than 2n */
    BYTES_PER_BYTE = 3,  /* and composed it takes at most 3n */
    CLASSES = 256        /* of marks; 0 is no mark */
};

struct pen_nfc {
    char *text;
    size_t text_capacity;
    utf8proc_int32_t *points, *sorted; /* of a stretch */
    size_t points_capacity;
};

pen_status pen_nfc_create(pen_nfc **nfc) {
    *nfc = calloc(1, sizeof **nfc);
    return *nfc ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for composing characters");
}

void pen_nfc_destroy(pen_nfc *nfc) {
    if (!nfc) return;
    free(nfc->text);
    free(nfc->points);
    free(nfc->sorted);
    free(nfc);
}

static pen_status reserve_text(pen_nfc *nfc, size_t length) {
    if (BYTES_PER_BYTE * length <= nfc->text_capacity) return PEN_OK;
    free(nfc->text);
    nfc->text = malloc(BYTES_PER_BYTE * length);
    nfc->text_capacity = nfc->text ? BYTES_PER_BYTE * length : 0;
    return nfc->text ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for a text of %zu bytes", length);
}

static pen_status reserve_points(pen_nfc *nfc, size_t length) {
    size_t capacity = POINTS_PER_BYTE * length + 1; /* utf8proc ends a text with a zero */
    if (capacity <= nfc->points_capacity) return PEN_OK;
    free(nfc->points);
    free(nfc->sorted);
    nfc->points = malloc(capacity * sizeof *nfc->points);
    nfc->sorted = malloc(capacity * sizeof *nfc->sorted);
    nfc->points_capacity = nfc->points && nfc->sorted ? capacity : 0;
    return nfc->points_capacity ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for a text of %zu bytes", length);
}

static int mark_class(utf8proc_int32_t point) {
    return utf8proc_get_property(point)->combining_class;
}

/* Sorts marks by class; those of a class stay in their order. */
static void sort_marks(pen_nfc *nfc, utf8proc_int32_t *marks, size_t count) {
    size_t places[CLASSES + 1] = {0};
    for (size_t i = 0; i < count; i++) places[mark_class(marks[i]) + 1]++;
    for (int class = 0; class < CLASSES; class ++) places[class + 1] += places[class];
    for (size_t i = 0; i < count; i++) nfc->sorted[places[mark_class(marks[i])]++] = marks[i];
    memcpy(marks, nfc->sorted, count * sizeof *marks);
}

/* Appends a stretch, composed, to nfc->text. */
static pen_status compose(pen_nfc *nfc, const char *text, size_t length, size_t *written) {
    PEN_TRY(reserve_points(nfc, length));
    size_t count = 0, first_mark = 0; /* those from first_mark on are marks */
    for (size_t at = 0; at < length;) {
        utf8proc_int32_t character;
        at +=
            (size_t)utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(length - at), &character);
        size_t before = count;
        count += (size_t)utf8proc_decompose_char(character, nfc->points + count,
                                                 (utf8proc_ssize_t)(nfc->points_capacity - count),
                                                 UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, NULL);
        for (size_t i = before; i < count; i++) {
            if (mark_class(nfc->points[i])) continue;
            if (i - first_mark > 1) sort_marks(nfc, nfc->points + first_mark, i - first_mark);
            first_mark = i + 1;
        }
    }
    if (count - first_mark > 1) sort_marks(nfc, nfc->points + first_mark, count - first_mark);
    utf8proc_ssize_t bytes =
        utf8proc_reencode(nfc->points, (utf8proc_ssize_t)count, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (bytes < 0) return pen_fail(PEN_INTERNAL, "composing characters: %s", utf8proc_errmsg(bytes));
    memcpy(nfc->text + *written, nfc->points, (size_t)bytes);
    *written += (size_t)bytes;
    return PEN_OK;
}

static size_t next_high(const char *text, size_t at, size_t length) {
    while (at < length && (unsigned char)text[at] < HIGH) at++;
    return at;
}

/* The end of the characters from U+0300 on that begin at `at`. */
static size_t end_of_high(const char *text, size_t at, size_t length) {
    while (at < length && (unsigned char)text[at] >= HIGH)
        for (at++; at < length && ((unsigned char)text[at] & 0xc0) == 0x80;) at++;
    return at;
}

pen_status pen_nfc_compose(pen_nfc *nfc, const char *text, size_t length, const char **composed,
                           size_t *composed_length) {
    size_t high = next_high(text, 0, length), written = 0;
    *composed = text;
    *composed_length = length;
    if (high == length) return PEN_OK;

    PEN_TRY(reserve_text(nfc, length));
    for (size_t at = 0; at < length; high = next_high(text, at, length)) {
        size_t start = high;
        if (high < length && start > at)
            for (start--; ((unsigned char)text[start] & 0xc0) == 0x80;) start--;
        memcpy(nfc->text + written, text + at, start - at);
        written += start - at;
        at = end_of_high(text, high, length);
        if (at > start) PEN_TRY(compose(nfc, text + start, at - start, &written));
    }
    *composed = nfc->text;
    *composed_length = written;
    return PEN_OK;
}
