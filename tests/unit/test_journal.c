/*
 * The journal: a batch that was stopped at any byte of either file goes on, and in the end every line is there once.
 * What is not ours is not touched, and two do not write at once.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "clock.h"
#include "journal.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LINES = 5, TEXT = 64, FILE_MOST = 1024 };

/* In memory where that is possible: the files are made safe some thousand times. */
static char folder[64] = "/dev/shm/penstock_journal_XXXXXX";
static char output[80], journal_path[96];
static const pen_journal_key key = {100, 200, 300, 400};
static const pen_journal_options options = {.lines = LINES};

static bool exists(const char *path) {
    return access(path, F_OK) == 0;
}

static void begin_anew(void) {
    unlink(output);
    unlink(journal_path);
}

static size_t read_file(const char *path, char *data) {
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    size_t got = fread(data, 1, FILE_MOST, file);
    fclose(file);
    return got;
}

static void write_file(const char *path, const char *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

static pen_status open_it(pen_journal **journal) {
    return pen_journal_open(output, &key, &options, journal);
}

/* The answer to a line, in the given attempt; longer for later lines. */
static size_t answer(int line, int attempt, char text[TEXT]) {
    return (size_t)sprintf(text, "%d:%d%.*s\n", line, attempt, 3 * line, "...............");
}

/* Answers what is not there yet, in an order of its own, as far as `count` more lines. */
static void go_on(pen_journal *journal, int attempt, int count) {
    for (int i = 0; i < LINES && count > 0; i++) {
        int line = (i * 3 + attempt) % LINES + 1;
        char text[TEXT];
        if (pen_journal_has(journal, line)) continue;
        assert_int_equal(pen_journal_write(journal, line, text, answer(line, attempt, text)), PEN_OK);
        count--;
    }
}

/* Every line is there once, whole, whoever wrote it, and nothing else. */
static void check_complete(void) {
    char data[FILE_MOST + 1];
    int seen[LINES + 1] = {0};
    data[read_file(output, data)] = '\0';
    for (char *at = data; *at; at = strchr(at, '\n') + 1) {
        int line = 0, attempt = 0;
        char text[TEXT];
        assert_int_equal(sscanf(at, "%d:%d", &line, &attempt), 2);
        size_t length = answer(line, attempt, text);
        assert_memory_equal(at, text, length);
        seen[line]++;
    }
    for (int line = 1; line <= LINES; line++) assert_int_equal(seen[line], 1);
    assert_false(exists(journal_path));
}

static void complete(int attempt) {
    pen_journal *journal;
    if (open_it(&journal) != PEN_OK) fail_msg("%s", pen_last_error());
    int64_t count = pen_journal_count(journal);
    go_on(journal, attempt, LINES);
    assert_int_equal(pen_journal_count(journal), LINES);
    assert_true(count <= LINES);
    pen_journal_close(journal);
    assert_int_equal(open_it(&journal), PEN_OK); /* as it was left */
    assert_int_equal(pen_journal_count(journal), LINES);
    assert_int_equal(pen_journal_finish(journal), PEN_OK);
    pen_journal_close(journal);
    check_complete();
}

/* What is there after `count` lines and `losses` of replicas. */
static void make_stopped(int count, int losses, char *out, size_t *out_bytes, char *log, size_t *log_bytes) {
    pen_journal *journal;
    begin_anew();
    assert_int_equal(open_it(&journal), PEN_OK);
    go_on(journal, 1, count);
    for (int i = 0; i < losses; i++) assert_int_equal(pen_journal_note_loss(journal, i + 1), PEN_OK);
    pen_journal_close(journal);
    *out_bytes = read_file(output, out);
    *log_bytes = read_file(journal_path, log);
}

static void test_stopped_and_gone_on(void **state) {
    (void)state;
    for (int count = 0; count <= LINES; count++) {
        char out[FILE_MOST], log[FILE_MOST];
        size_t out_bytes, log_bytes;
        pen_journal *journal;
        make_stopped(count, count % 3, out, &out_bytes, log, &log_bytes);
        assert_int_equal(open_it(&journal), PEN_OK);
        assert_int_equal(pen_journal_count(journal), count); /* nothing is done twice */
        assert_int_equal(pen_journal_losses(journal), count % 3);
        assert_int_equal(pen_journal_note_loss(journal, 7), PEN_OK);
        pen_journal_close(journal);
        complete(2);
    }
}

/* Both files cut at every pair of lengths: a torn write, and what a lost disk cache leaves. */
static void test_torn_anywhere(void **state) {
    (void)state;
    char out[FILE_MOST], log[FILE_MOST];
    size_t out_bytes, log_bytes, kept = 0;
    make_stopped(3, 0, out, &out_bytes, log, &log_bytes);
    for (size_t cut_log = 0; cut_log <= log_bytes; cut_log++)
        for (size_t cut_out = 0; cut_out <= out_bytes; cut_out++) {
            pen_journal *journal;
            begin_anew();
            write_file(journal_path, log, cut_log);
            write_file(output, out, cut_out);
            pen_status status = open_it(&journal);
            if (cut_log < 64) { /* before the header is whole there is no output of ours */
                assert_int_equal(status, PEN_USAGE);
                assert_true(exists(output) && !exists(journal_path));
                continue;
            }
            assert_int_equal(status, PEN_OK);
            /* As many as are whole in both. */
            int64_t whole = 0;
            for (size_t i = 0; i < cut_out; i++) whole += out[i] == '\n';
            if (whole > (int64_t)(cut_log - 64) / 32) whole = (int64_t)(cut_log - 64) / 32;
            assert_int_equal(pen_journal_count(journal), whole);
            kept += whole > 0;
            pen_journal_close(journal);
            complete(2);
        }
    assert_true(kept > 100);
    /* A header that was begun, and no output yet. */
    for (size_t cut_log = 0; cut_log < 64; cut_log++) {
        begin_anew();
        write_file(journal_path, log, cut_log);
        complete(2);
    }
}

/* A changed byte of either file costs what is behind it, at most. */
static void test_changed_bytes(void **state) {
    (void)state;
    char out[FILE_MOST], log[FILE_MOST];
    size_t out_bytes, log_bytes;
    make_stopped(LINES, 0, out, &out_bytes, log, &log_bytes);
    size_t first_line = (size_t)((char *)memchr(out, '\n', out_bytes) - out) + 1;
    for (size_t i = 64; i < log_bytes + out_bytes; i++) {
        bool in_log = i < log_bytes;
        char *byte = in_log ? &log[i] : &out[i - log_bytes];
        begin_anew();
        *byte ^= 0x20;
        write_file(journal_path, log, log_bytes);
        write_file(output, out, out_bytes);
        *byte ^= 0x20;
        pen_journal *journal;
        pen_status status = open_it(&journal);
        if (!in_log && i - log_bytes < first_line) { /* somebody else's file, it seems */
            assert_int_equal(status, PEN_USAGE);
            continue;
        }
        assert_int_equal(status, PEN_OK);
        assert_true(pen_journal_count(journal) < LINES);
        pen_journal_close(journal);
        complete(3);
    }
}

static void test_what_is_not_ours(void **state) {
    (void)state;
    pen_journal *journal;
    char out[FILE_MOST], log[FILE_MOST], now[FILE_MOST];
    size_t out_bytes, log_bytes;
    make_stopped(2, 0, out, &out_bytes, log, &log_bytes);
    /* Another batch under this name. */
    static const struct {
        pen_journal_key key;
        const char *says;
    } others[] = {{{101, 200, 300, 400}, "another input"},
                  {{100, 201, 300, 400}, "another input"},
                  {{100, 200, 301, 400}, "another model"},
                  {{100, 200, 300, 401}, "other options"}};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pen_journal_open(output, &others[i].key, &options, &journal), PEN_USAGE);
        assert_non_null(strstr(pen_last_error(), others[i].says));
        assert_non_null(strstr(pen_last_error(), journal_path));
    }
    /* Files that only have the name. */
    write_file(journal_path, "notes\n", 6);
    assert_int_equal(open_it(&journal), PEN_USAGE);
    assert_int_equal(read_file(journal_path, now), 6);
    log[30] ^= 1;
    write_file(journal_path, log, log_bytes);
    assert_int_equal(open_it(&journal), PEN_BAD_INPUT);
    log[30] ^= 1;
    write_file(journal_path, log, log_bytes);
    write_file(output, "somebody else's text, which is long enough\n", 43);
    assert_int_equal(open_it(&journal), PEN_USAGE);
    assert_non_null(strstr(pen_last_error(), "is not the output"));
    assert_int_equal(read_file(output, now), 43);
    /* An output without a journal. */
    unlink(journal_path);
    assert_int_equal(open_it(&journal), PEN_USAGE);
    assert_non_null(strstr(pen_last_error(), "exists"));
    assert_false(exists(journal_path));
    assert_int_equal(read_file(output, now), 43);
    begin_anew();
    assert_int_equal(pen_journal_open("/tmp/penstock/there/is/none", &key, &options, &journal), PEN_IO);
}

/* While one has it another waits, and finds what the first one left. The other is there before the first one opens
 * anything, since an open file that it inherited would hold the lock, too. */
static void test_two_at_once(void **state) {
    (void)state;
    const pen_journal_options patient = {.lines = LINES, .patience_s = 20};
    for (int finishes = 0; finishes < 2; finishes++) {
        pen_journal *journal, *other;
        int begun[2], code;
        char go = 1;
        begin_anew();
        assert_int_equal(pipe(begun), 0);
        pid_t child = fork();
        if (child == 0) {
            if (!freopen("/dev/null", "w", stderr) || read(begun[0], &go, 1) != 1) _exit(99);
            pen_status status = pen_journal_open(output, &key, &patient, &other);
            if (status == PEN_OK && pen_journal_count(other) != 2) _exit(98);
            _exit((int)status);
        }
        assert_int_equal(open_it(&journal), PEN_OK);
        assert_int_equal(open_it(&other), PEN_USAGE);
        assert_non_null(strstr(pen_last_error(), "another process"));
        assert_int_equal(write(begun[1], &go, 1), 1);
        go_on(journal, 1, finishes ? LINES : 2);
        pen_clock_sleep_until(pen_clock_ns() + 100 * 1000000);
        if (finishes) assert_int_equal(pen_journal_finish(journal), PEN_OK);
        pen_journal_close(journal);
        assert_int_equal(waitpid(child, &code, 0), child);
        assert_true(WIFEXITED(code));
        assert_int_equal(WEXITSTATUS(code), finishes ? PEN_USAGE : PEN_OK);
        close(begun[0]);
        close(begun[1]);
    }
}

/* A disk that is full at any byte: an error that says so, and then the batch goes on. */
static void test_full_disk(void **state) {
    (void)state;
    struct rlimit had;
    int failures = 0;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &had), 0);
    for (rlim_t most = 0; most < 300; most++) {
        pen_journal *journal;
        struct rlimit full = {most, had.rlim_max};
        begin_anew();
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &full), 0);
        pen_status status = open_it(&journal);
        for (int line = 1; line <= LINES && status == PEN_OK; line++) {
            char text[TEXT];
            status = pen_journal_write(journal, line, text, answer(line, 1, text));
        }
        pen_journal_close(journal);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &had), 0);
        if (status != PEN_OK) {
            failures++;
            assert_int_equal(status, PEN_IO);
            assert_non_null(strstr(pen_last_error(), output));
            assert_non_null(strstr(pen_last_error(), "the same command goes on"));
        }
        complete(2);
    }
    assert_true(failures > 100 && failures < 300);
}

int main(void) {
    if (!mkdtemp(folder) && !mkdtemp(strcpy(folder, "/tmp/penstock_journal_XXXXXX"))) return 1;
    snprintf(output, sizeof output, "%s/out", folder);
    snprintf(journal_path, sizeof journal_path, "%s.journal", output);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stopped_and_gone_on), cmocka_unit_test(test_torn_anywhere),
        cmocka_unit_test(test_changed_bytes),       cmocka_unit_test(test_what_is_not_ours),
        cmocka_unit_test(test_two_at_once),         cmocka_unit_test(test_full_disk),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    begin_anew();
    rmdir(folder);
    return failed;
}
