/*
 * Stop strings against a plain search of the whole text: random strings of few letters, also such of several bytes, in
 * random pieces, also inside characters. Nothing of a stop string may ever come out, and nothing more than it must be
 * kept back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "stopper.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { STRINGS_MOST = 4, STRING_MOST = 40, TEXT_MOST = 400 };

static int below(int n) {
    return rand() % n;
}

/* Appends up to `count` characters of an alphabet in which much begins alike. */
static void random_text(char *text, int count) {
    static const char *const letters[] = {"a", "b", "\xc3\xa9", "\xc3\xa8", "\xe2\x82\xac", "\xe2\x82\xad"};
    int used = 1 + below(6);
    text[0] = '\0';
    for (int i = 0; i < count; i++) strcat(text, letters[below(used)]);
}

static bool ends_with(const char *text, size_t length, const char *string) {
    size_t size = strlen(string);
    return size <= length && memcmp(text + length - size, string, size) == 0;
}

/* Where the text ends: before the longest string of those that end first at a byte that is armed; or its length. */
static size_t find_end(const char *text, char strings[][STRING_MOST], int count, size_t armed_from, bool *stopped) {
    for (size_t end = armed_from + 1; end <= strlen(text); end++) {
        size_t longest = 0;
        for (int s = 0; s < count; s++)
            if (ends_with(text, end, strings[s]) && strlen(strings[s]) > longest) longest = strlen(strings[s]);
        *stopped = longest > 0;
        if (*stopped) return end - longest;
    }
    *stopped = false;
    return strlen(text);
}

/* How much of the text's end could begin a stop string. */
static size_t must_hold(const char *text, size_t length, char strings[][STRING_MOST], int count) {
    size_t most = 0;
    for (int s = 0; s < count; s++)
        for (size_t n = 1; n < strlen(strings[s]) && n <= length; n++)
            if (memcmp(text + length - n, strings[s], n) == 0 && n > most) most = n;
    return most;
}

static void test_text_ends_before_the_stop_string(void **state) {
    (void)state;
    int stops = 0, ends = 0, held = 0;
    srand(3);
    for (int round = 0; round < 20000; round++) {
        char strings[STRINGS_MOST][STRING_MOST], text[TEXT_MOST], shown[TEXT_MOST];
        const char *list[STRINGS_MOST];
        int count = below(STRINGS_MOST + 1);
        for (int s = 0; s < count; s++) {
            random_text(strings[s], 1 + below(1 + below(8)));
            list[s] = strings[s];
        }
        random_text(text, below(60));
        size_t length = strlen(text), at = 0, out = 0, armed_from = below(2) ? 0 : (size_t)below((int)length + 1);
        bool expect_stop, stopped = false;
        size_t end = find_end(text, strings, count, armed_from, &expect_stop);
        pen_stopper *stopper;
        assert_int_equal(pen_stopper_create(list, count, &stopper), PEN_OK);
        while (at < length && !stopped) {
            /* A piece, in memory of its own; arming changes between pieces. */
            size_t piece = (size_t)below((int)(length - at) + 1);
            if (at < armed_from && at + piece > armed_from) piece = armed_from - at;
            char *copy = malloc(piece + 1);
            memcpy(copy, text + at, piece);
            pen_stopper_text got = pen_stopper_push(stopper, (pen_text){copy, piece}, at >= armed_from);
            if (got.held.length) memcpy(shown + out, got.held.data, got.held.length);
            out += got.held.length;
            if (got.fresh.length) memcpy(shown + out, got.fresh.data, got.fresh.length);
            out += got.fresh.length;
            free(copy);
            at += piece;
            stopped = got.stopped;
            if (!stopped) {
                size_t hold = must_hold(text, at, strings, count);
                assert_int_equal(at - out, hold);
                held += hold > 0;
            }
        }
        if (!stopped) {
            pen_text rest = pen_stopper_finish(stopper);
            if (rest.length) memcpy(shown + out, rest.data, rest.length);
            out += rest.length;
        }
        assert_int_equal(stopped, expect_stop);
        assert_int_equal(out, end);
        assert_memory_equal(shown, text, out);
        ++*(stopped ? &stops : &ends);
        pen_stopper_destroy(stopper);
    }
    assert_true(stops > 3000 && ends > 3000 && held > 3000);
}

static void test_strings_that_cannot_be_found_are_refused(void **state) {
    (void)state;
    pen_stopper *stopper;
    static const char *const bad[] = {"", "\xff", "a\xc3", "\xa9"};
    for (int i = 0; i < 4; i++) {
        const char *list[] = {"fine", bad[i]};
        assert_int_equal(pen_stopper_create(list, 2, &stopper), PEN_USAGE);
        assert_null(stopper);
    }
}

static void test_a_stopper_can_be_used_again(void **state) {
    (void)state;
    const char *list[] = {"stop"};
    pen_stopper *stopper;
    assert_int_equal(pen_stopper_create(list, 1, &stopper), PEN_OK);
    assert_int_equal(pen_stopper_push(stopper, (pen_text){"a sto", 5}, true).fresh.length, 2);
    assert_int_equal(pen_stopper_finish(stopper).length, 3);
    pen_stopper_text got = pen_stopper_push(stopper, (pen_text){"p", 1}, true);
    assert_true(!got.stopped && got.held.length == 0 && got.fresh.length == 1);
    pen_stopper_destroy(stopper);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_ends_before_the_stop_string),
        cmocka_unit_test(test_strings_that_cannot_be_found_are_refused),
        cmocka_unit_test(test_a_stopper_can_be_used_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
