/* The input of a batch; see batch_input.h. */
#include "batch_input.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { CHUNK = 1 << 16, LINES_PER_BEAT = 64 };

struct pen_batch_input {
    char path[4096];
    int file;
    size_t line_most;
    char *buffer; /* [capacity], of which [begin, end) is read and not yet given out */
    size_t capacity, begin, end;
    bool ended; /* the file */
    XXH3_state_t *hash;
    pen_batch_input_facts first, so_far; /* what the first reading found, and the current one until now */
};

/* Makes room behind `end`, at the cost of what was given out. */
static pen_status make_room(pen_batch_input *input) {
    memmove(input->buffer, input->buffer + input->begin, input->end - input->begin);
    input->end -= input->begin;
    input->begin = 0;
    if (input->capacity - input->end >= CHUNK) return PEN_OK;
    size_t capacity = 2 * input->capacity;
    char *grown = realloc(input->buffer, capacity);
    if (!grown) return pen_fail(PEN_NO_MEMORY, "%s: no memory for a line of %zu bytes", input->path, input->end);
    input->buffer = grown;
    input->capacity = capacity;
    return PEN_OK;
}

static pen_status read_more(pen_batch_input *input) {
    PEN_TRY(make_room(input));
    ssize_t got;
    do got = read(input->file, input->buffer + input->end, input->capacity - input->end);
    while (got < 0 && errno == EINTR);
    if (got < 0) return pen_fail(PEN_IO, "%s: %s", input->path, strerror(errno));
    XXH3_64bits_update(input->hash, input->buffer + input->end, (size_t)got);
    input->end += (size_t)got;
    input->so_far.bytes += (uint64_t)got;
    input->ended = got == 0;
    return PEN_OK;
}

/* The next line of any kind; one that gets too long is dropped as it comes. Its end is taken with it. */
static pen_status next_line(pen_batch_input *input, pen_text *text, bool *any) {
    size_t seen = 0;
    bool too_long = false;
    const char *end = NULL;
    for (;;) {
        end = memchr(input->buffer + input->begin + seen, '\n', input->end - input->begin - seen);
        if (end || input->ended) break;
        seen = input->end - input->begin;
        if (seen > input->line_most) {
            too_long = true;
            input->begin = input->end;
            seen = 0;
        }
        PEN_TRY(read_more(input));
    }
    const char *start = input->buffer + input->begin;
    size_t length = end ? (size_t)(end - start) : input->end - input->begin;
    *any = end || length > 0 || too_long;
    *text = too_long || length > input->line_most ? (pen_text){NULL, 0} : (pen_text){start, length};
    input->begin += length + (end != NULL);
    input->so_far.lines += *any;
    return PEN_OK;
}

static bool is_blank(pen_text text) {
    for (size_t i = 0; i < text.length; i++)
        if (!strchr(" \t\r", text.data[i]) || text.data[i] == '\0') return false;
    return text.data != NULL;
}

static pen_text without_mark(pen_text text) {
    if (text.length < 3 || memcmp(text.data, "\xef\xbb\xbf", 3) != 0) return text;
    return (pen_text){text.data + 3, text.length - 3};
}

pen_status pen_batch_input_next(pen_batch_input *input, pen_batch_input_line *line) {
    bool any;
    do {
        PEN_TRY(next_line(input, &line->text, &any));
        if (input->so_far.lines == 1 && any) line->text = without_mark(line->text);
    } while (any && is_blank(line->text));
    input->so_far.requests += any;
    line->number = any ? input->so_far.lines : 0;
    if (any) return PEN_OK;
    input->so_far.hash = XXH3_64bits_digest(input->hash);
    if (input->first.bytes != input->so_far.bytes || input->first.hash != input->so_far.hash)
        return pen_fail(PEN_BAD_INPUT, "%s: changed while it was read", input->path);
    return PEN_OK;
}

static pen_status rewind_input(pen_batch_input *input) {
    if (lseek(input->file, 0, SEEK_SET) < 0) return pen_fail(PEN_IO, "%s: %s", input->path, strerror(errno));
    input->begin = input->end = 0;
    input->ended = false;
    input->so_far = (pen_batch_input_facts){0};
    XXH3_64bits_reset(input->hash);
    return PEN_OK;
}

/* The first reading. */
static pen_status survey(pen_batch_input *input, void (*beat)(void *), void *beat_context) {
    pen_text text;
    bool any;
    PEN_TRY(rewind_input(input));
    do {
        PEN_TRY(next_line(input, &text, &any));
        if (input->so_far.lines == 1 && any) text = without_mark(text);
        input->so_far.requests += any && !is_blank(text);
        if (beat && input->so_far.lines % LINES_PER_BEAT == 0) beat(beat_context);
    } while (any);
    input->so_far.hash = XXH3_64bits_digest(input->hash);
    input->first = input->so_far;
    return rewind_input(input);
}

static pen_status open_file(pen_batch_input *input, const char *path) {
    struct stat about;
    if (strlen(path) >= sizeof input->path) return pen_fail(PEN_USAGE, "the input's name is too long");
    strcpy(input->path, path);
    /* A pipe without a writer is refused, not waited for. */
    input->file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (input->file < 0 || fstat(input->file, &about) != 0) return pen_fail(PEN_IO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(about.st_mode))
        return pen_fail(PEN_USAGE, "%s: is no regular file, and a batch must be able to read its input again", path);
    input->capacity = 2 * CHUNK;
    input->buffer = malloc(input->capacity);
    input->hash = XXH3_createState();
    if (!input->buffer || !input->hash) return pen_fail(PEN_NO_MEMORY, "%s: no memory to read it", path);
    return PEN_OK;
}

pen_status pen_batch_input_open(const char *path, size_t line_most, void (*beat)(void *), void *beat_context,
                                pen_batch_input **out) {
    *out = NULL;
    pen_batch_input *input = calloc(1, sizeof *input);
    if (!input) return pen_fail(PEN_NO_MEMORY, "no memory to read %s", path);
    input->file = -1;
    input->line_most = line_most;
    pen_status status = open_file(input, path);
    if (status == PEN_OK) status = survey(input, beat, beat_context);
    if (status == PEN_OK)
        *out = input;
    else
        pen_batch_input_close(input);
    return status;
}

void pen_batch_input_close(pen_batch_input *input) {
    if (!input) return;
    if (input->file >= 0) close(input->file);
    free(input->buffer);
    XXH3_freeState(input->hash);
    free(input);
}

pen_batch_input_facts pen_batch_input_about(const pen_batch_input *input) {
    return input->first;
}

bool pen_batch_input_is(const pen_batch_input *input, const char *path) {
    struct stat own, other;
    return fstat(input->file, &own) == 0 && stat(path, &other) == 0 && own.st_dev == other.st_dev &&
           own.st_ino == other.st_ino;
}
