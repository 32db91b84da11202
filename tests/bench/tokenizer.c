/*
 * How fast texts become tokens, in time of one core: of each FILE, and of 1 MB words that no cache helps with. The
 * first pass over a text begins with an empty cache of words; the best of several is what long work sees.
 *
 *     bench_tokenizer MODEL [FILE…]
 */
#include "tokenizer.h"
#include "clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORD = 1 << 20, PASSES = 5 };

static pen_status measure(const char *model, const char *name, const char *text, size_t length) {
    pen_gguf *gguf;
    pen_tokenizer *tokenizer;
    PEN_TRY(pen_gguf_open(model, &gguf));
    PEN_TRY(pen_tokenizer_open(gguf, &tokenizer));
    pen_gguf_close(gguf);
    double first = 0, best = 0;
    size_t count = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        pen_tokens tokens = {0};
        int64_t start = pen_clock_thread_cpu_ns();
        PEN_TRY(pen_tokenizer_encode(tokenizer, text, length, PEN_ENCODE_SPECIAL, &tokens));
        double speed = (double)length * 1e3 / (double)(pen_clock_thread_cpu_ns() - start + 1);
        if (pass == 0) first = speed;
        if (speed > best) best = speed;
        count = tokens.count;
        pen_tokens_free(&tokens);
    }
    pen_tokenizer_close(tokenizer);
    printf("%-24s %10zu bytes %9zu tokens   first pass %6.1f MB/s   best %6.1f MB/s\n", name, length, count, first,
           best);
    return PEN_OK;
}

static pen_status measure_file(const char *model, const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) return pen_fail(PEN_IO, "%s: cannot be opened", path);
    char *text = NULL;
    size_t length = 0, capacity = 0, got;
    do {
        capacity = 2 * capacity + WORD;
        text = realloc(text, capacity);
        if (!text) return pen_fail(PEN_NO_MEMORY, "no memory for %s", path);
        length += got = fread(text + length, 1, capacity - length, file);
    } while (got);
    fclose(file);
    const char *slash = strrchr(path, '/');
    pen_status status = measure(model, slash ? slash + 1 : path, text, length);
    free(text);
    return status;
}

static pen_status measure_words(const char *model) {
    static const struct {
        const char *name, *letters; /* taken at random */
    } words[] = {{"one letter", "a"},
                 {"one space", " "},
                 {"one line end", "\n"},
                 {"one digit", "7"},
                 {"one sign", "="},
                 {"random letters", "abcdefghijklmnopqrstuvwxyz"},
                 {"random letters and spaces", "ab cde fghi "},
                 {"random white space", " \t\r\n"},
                 {"bytes that are no UTF-8", "\xff\xfe\x80"}};
    char *word = malloc(WORD);
    if (!word) return pen_fail(PEN_NO_MEMORY, "no memory for a word");
    pen_status status = PEN_OK;
    for (size_t w = 0; w < sizeof words / sizeof *words && status == PEN_OK; w++) {
        size_t letters = strlen(words[w].letters);
        srand(1);
        for (size_t i = 0; i < WORD; i++) word[i] = words[w].letters[(size_t)rand() % letters];
        status = measure(model, words[w].name, word, WORD);
    }
    free(word);
    return status;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: bench_tokenizer MODEL [FILE…]\n");
        return 2;
    }
    pen_status status = PEN_OK;
    for (int i = 2; i < argc && status == PEN_OK; i++) status = measure_file(argv[1], argv[i]);
    if (argc == 2) status = measure_words(argv[1]);
    if (status != PEN_OK) fprintf(stderr, "bench_tokenizer: %s\n", pen_last_error());
    return (int)status;
}
