/* Near names; see near.h. */
#include "near.h"

#include <string.h>

enum { LONGEST = 48 };

static int min2(int a, int b) {
    return a < b ? a : b;
}

/* Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours. */
static int distance(const char *a, size_t a_length, const char *b, size_t b_length) {
    int d[LONGEST + 1][LONGEST + 1];
    for (size_t i = 0; i <= a_length; i++) d[i][0] = (int)i;
    for (size_t j = 0; j <= b_length; j++) d[0][j] = (int)j;
    for (size_t i = 1; i <= a_length; i++)
        for (size_t j = 1; j <= b_length; j++) {
            int best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            best = min2(best, 1 + min2(d[i - 1][j], d[i][j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) best = min2(best, 1 + d[i - 2][j - 2]);
            d[i][j] = best;
        }
    return d[a_length][b_length];
}

void pen_near_offer(pen_near *near, const char *word, size_t length, const char *known) {
    if (!known || length == 0 || length > LONGEST || strlen(known) > LONGEST) return;
    size_t known_length = strlen(known);
    int wrong = distance(word, length, known, known_length);
    if (length >= 2 && length < known_length && memcmp(word, known, length) == 0) wrong = 1;
    size_t longer = length > known_length ? length : known_length;
    if (wrong > (int)(longer + 2) / 3) return;
    if (near->name && wrong >= near->distance) return;
    *near = (pen_near){.name = known, .distance = wrong};
}
