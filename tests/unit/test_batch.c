/*
 * The lines of a batch: what is taken and what is refused and why, the reading of files that are not as they should be,
 * ids that were there before, and what progress says.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "batch_answer.h"
#include "batch_input.h"
#include "batch_line.h"
#include "batch_progress.h"
#include "id_set.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ABOUT      "\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\""
#define BODY(body) "{" ABOUT ",\"body\":{" body "}}"
#define WITH(more) BODY("\"prompt\":\"x\"," more)

/* ---- Lines ------------------------------------------------------------------------------------------------------- */

static void test_refused(void **state) {
    (void)state;
    static const struct {
        const char *line;
        pen_status status;
        const char *says;
        bool has_id;
    } rows[] = {
        {"", PEN_BAD_INPUT, "not a JSON", false},
        {"{", PEN_BAD_INPUT, "not a JSON", false},
        {"[]", PEN_BAD_INPUT, "not a JSON object", false},
        {"[[[[\"custom_id\"]]]]", PEN_BAD_INPUT, "not a JSON object", false},
        {"7", PEN_BAD_INPUT, "not a JSON", false},
        {"{} {}", PEN_BAD_INPUT, "end of file", false},
        {"{\"custom_id\":\"\xff\"}", PEN_BAD_INPUT, "not a JSON object: unable to decode", false},
        {"{\"custom_id\":\"\xed\xa0\x80\"}", PEN_BAD_INPUT, "not a JSON", false},
        {WITH("\"seed\":99999999999999999999"), PEN_BAD_INPUT, "too big integer", false},
        {WITH("\"top_p\":1e999"), PEN_BAD_INPUT, "overflow", false},
        {WITH("\"n\":1,\"n\":2"), PEN_BAD_INPUT, "duplicate", false},
        {"{}", PEN_USAGE, "custom_id", false},
        {"{\"custom_id\":7}", PEN_USAGE, "custom_id", false},
        {"{\"custom_id\":\"a\"}", PEN_USAGE, "method", true},
        {"{\"custom_id\":\"a\",\"method\":\"GET\"}", PEN_USAGE, "method", true},
        {"{\"custom_id\":\"a\",\"method\":\"POST\"}", PEN_USAGE, "url", true},
        {"{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/embeddings\"}", PEN_UNSUPPORTED, "/v1/embeddings",
         true},
        {"{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\"}", PEN_UNSUPPORTED,
         "no chat templates here yet", true},
        {"{" ABOUT "}", PEN_USAGE, "body", true},
        {"{" ABOUT ",\"body\":[]}", PEN_USAGE, "body", true},
        {"{" ABOUT ",\"extra\":1,\"body\":{}}", PEN_USAGE, "'extra'", true},
        {BODY(""), PEN_USAGE, "no prompt", true},
        {BODY("\"prompt\":null"), PEN_USAGE, "no prompt", true},
        {BODY("\"prompt\":7"), PEN_USAGE, "prompt", true},
        {BODY("\"prompt\":[]"), PEN_USAGE, "prompt is empty", true},
        {BODY("\"prompt\":[[]]"), PEN_USAGE, "prompt is empty", true},
        {BODY("\"prompt\":[1,\"x\"]"), PEN_USAGE, "entry 1", true},
        {BODY("\"prompt\":[\"x\",1]"), PEN_USAGE, "prompt", true},
        {BODY("\"prompt\":[[1,2],[3,[4]]]"), PEN_USAGE, "entry 1", true},
        {BODY("\"prompt\":[1,-1]"), PEN_USAGE, "entry 1", true},
        {BODY("\"prompt\":[1,2147483648]"), PEN_USAGE, "entry 1", true},
        {BODY("\"prompt\":[1,2.5]"), PEN_USAGE, "entry 1", true},
        {WITH("\"max_token\":3"), PEN_USAGE, "'max_token'", true},
        {WITH("\"suffix\":\"x\""), PEN_USAGE, "'suffix'", true},
        {WITH("\"max_tokens\":\"3\""), PEN_USAGE, "max_tokens", true},
        {WITH("\"max_tokens\":3.5"), PEN_USAGE, "max_tokens", true},
        {WITH("\"max_tokens\":-1"), PEN_USAGE, "max_tokens", true},
        {WITH("\"max_tokens\":2147483648"), PEN_USAGE, "max_tokens", true},
        {WITH("\"max_tokens\":0"), PEN_USAGE, "max_tokens can be 0", true},
        {WITH("\"max_tokens\":0,\"echo\":true,\"n\":2"), PEN_USAGE, "max_tokens can be 0", true},
        {WITH("\"min_tokens\":17"), PEN_USAGE, "min_tokens 17", true},
        {WITH("\"n\":0"), PEN_USAGE, "n must", true},
        {BODY("\"prompt\":[\"a\",\"b\",\"c\"],\"n\":1000"), PEN_USAGE, "n: 1000 completions of 3", true},
        {WITH("\"best_of\":2"), PEN_UNSUPPORTED, "best_of", true},
        {WITH("\"stream\":true"), PEN_UNSUPPORTED, "stream", true},
        {WITH("\"stream\":1"), PEN_USAGE, "stream", true},
        {WITH("\"temperature\":-0.1"), PEN_USAGE, "temperature", true},
        {WITH("\"temperature\":true"), PEN_USAGE, "temperature", true},
        {WITH("\"top_p\":1.5"), PEN_USAGE, "top_p", true},
        {WITH("\"logprobs\":21"), PEN_USAGE, "logprobs", true},
        {WITH("\"logprobs\":true"), PEN_USAGE, "logprobs", true},
        {WITH("\"presence_penalty\":3"), PEN_USAGE, "presence_penalty", true},
        {WITH("\"stop\":\"\""), PEN_USAGE, "stop", true},
        {WITH("\"stop\":[\"a\",7]"), PEN_USAGE, "stop", true},
        {WITH("\"stop\":\"a\\u0000b\""), PEN_USAGE, "stop", true},
        {WITH("\"stop\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]"), PEN_USAGE, "more than 16", true},
        {WITH("\"logit_bias\":[]"), PEN_USAGE, "logit_bias", true},
        {WITH("\"logit_bias\":{\"x\":1}"), PEN_USAGE, "'x'", true},
        {WITH("\"logit_bias\":{\"-1\":1}"), PEN_USAGE, "'-1'", true},
        {WITH("\"logit_bias\":{\"99999999999\":1}"), PEN_USAGE, "'99999999999'", true},
        {WITH("\"logit_bias\":{\"7\":101}"), PEN_USAGE, "'7'", true},
        {WITH("\"logit_bias\":{\"7\":1,\"07\":2}"), PEN_USAGE, "token 7 has two", true},
        {WITH("\"model\":7"), PEN_USAGE, "model", true},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        pen_batch_line line;
        pen_status status = pen_batch_line_parse(rows[i].line, strlen(rows[i].line), &line);
        if (status != rows[i].status || !strstr(pen_last_error(), rows[i].says))
            fail_msg("%s: %d, '%s' lacks '%s'", rows[i].line, (int)status, pen_last_error(), rows[i].says);
        assert_int_equal(line.custom_id.data != NULL, rows[i].has_id);
        pen_batch_line_free(&line);
    }
}

static void accept(const char *text, pen_batch_line *line) {
    if (pen_batch_line_parse(text, strlen(text), line) != PEN_OK) fail_msg("%s: %s", text, pen_last_error());
}

static void test_defaults(void **state) {
    (void)state;
    /* null is as good as nothing, and some fields do no harm. */
    static const char *const lines[] = {
        BODY("\"prompt\":\"x\""),
        BODY("\"prompt\":\"x\",\"max_tokens\":null,\"temperature\":null,\"stop\":null,\"logprobs\":null,\"n\":null,"
             "\"seed\":null,\"suffix\":null,\"stream\":false,\"user\":\"u\",\"best_of\":1,\"logit_bias\":{},"
             "\"stop\":[],\"stream_options\":null,\"model\":null"),
    };
    for (int i = 0; i < 2; i++) {
        pen_batch_line line;
        char text[1024];
        snprintf(text, sizeof text, "%s", lines[i]);
        char *twice = strstr(text, "\"stop\":null,"); /* a field that is there twice is refused */
        if (twice) memset(twice, ' ', strlen("\"stop\":null,"));
        accept(text, &line);
        assert_memory_equal(line.custom_id.data, "a", 2);
        assert_null(line.model.data);
        assert_int_equal(line.prompt_count, 1);
        assert_int_equal(line.prompts[0].text.length, 1);
        assert_int_equal(line.max_tokens, 16);
        assert_true(line.temperature == 1 && line.top_p == 1 && line.min_p == 0 && line.top_k == 0);
        assert_true(line.repetition_penalty == 1 && line.presence_penalty == 0 && line.frequency_penalty == 0);
        assert_true(line.choices == 1 && line.logprobs == -1 && line.stop_count == 0 && line.bias_count == 0);
        assert_false(line.seeded || line.echo || line.ignore_eos);
        pen_batch_line_free(&line);
    }
}

static void test_values(void **state) {
    (void)state;
    pen_batch_line line;
    accept(
        BODY("\"model\":\"m\",\"prompt\":\"a\\u0000\xc3\xa9\",\"max_tokens\":7,\"min_tokens\":2,\"n\":3,\"best_of\":3,"
             "\"temperature\":0.5,\"top_p\":0.25,\"top_k\":-1,\"min_p\":0.125,\"seed\":-9223372036854775808,"
             "\"repetition_penalty\":1.5,\"presence_penalty\":-2,\"frequency_penalty\":2,\"logprobs\":0,"
             "\"logit_bias\":{\"0\":-100,\"12\":2.5},\"stop\":[\"u\",\"v\"],\"ignore_eos\":true,\"echo\":true"),
        &line);
    assert_int_equal(line.model.length, 1);
    assert_int_equal(line.prompts[0].text.length, 4);
    assert_memory_equal(line.prompts[0].text.data, "a\0\xc3\xa9", 4);
    assert_true(line.max_tokens == 7 && line.min_tokens == 2 && line.choices == 3 && line.top_k == -1);
    assert_true(line.temperature == 0.5F && line.top_p == 0.25F && line.min_p == 0.125F);
    assert_true(line.repetition_penalty == 1.5F && line.presence_penalty == -2 && line.frequency_penalty == 2);
    assert_true(line.seeded && line.seed == INT64_MIN);
    assert_true(line.logprobs == 0 && line.echo && line.ignore_eos);
    assert_true(pen_batch_line_scores(&line));
    assert_int_equal(line.stop_count, 2);
    assert_string_equal(line.stop[1], "v");
    assert_int_equal(line.bias_count, 2);
    assert_true(line.biases[0].token == 0 && line.biases[0].value == -100);
    assert_true(line.biases[1].token == 12 && line.biases[1].value == 2.5F);
    pen_batch_line_free(&line);

    accept(BODY("\"prompt\":[5,2147483647],\"stop\":\"s\""), &line);
    assert_true(line.prompt_count == 1 && line.prompts[0].count == 2 && line.prompts[0].ids[1] == INT32_MAX);
    assert_true(line.stop_count == 1);
    pen_batch_line_free(&line);
    accept(BODY("\"prompt\":[[5],[6,7]]"), &line);
    assert_true(line.prompt_count == 2 && line.prompts[1].count == 2 && line.prompts[1].ids[0] == 6);
    pen_batch_line_free(&line);
    accept(BODY("\"prompt\":[\"\",\"b\"],\"n\":1024"), &line);
    assert_true(line.prompt_count == 2 && line.prompts[0].text.length == 0 && !line.prompts[0].ids);
    pen_batch_line_free(&line);
    accept(BODY("\"prompt\":\"x\",\"max_tokens\":0,\"echo\":true"), &line);
    assert_true(pen_batch_line_scores(&line));
    pen_batch_line_free(&line);
    accept(" \t" BODY("\"prompt\":\"x\"") " \r", &line); /* the rest of a CRLF is white space */
    pen_batch_line_free(&line);
}

/* A raw NUL ends no line and is no JSON. */
static void test_nul_and_depth(void **state) {
    (void)state;
    pen_batch_line line;
    static const char nul[] = "{\"custom_id\":\"a\0b\"}";
    assert_int_equal(pen_batch_line_parse(nul, sizeof nul - 1, &line), PEN_BAD_INPUT);
    pen_batch_line_free(&line);
    enum { DEEP = 1 << 20 };
    char *deep = malloc(DEEP);
    memset(deep, '[', DEEP);
    assert_int_equal(pen_batch_line_parse(deep, DEEP, &line), PEN_BAD_INPUT);
    pen_batch_line_free(&line);
    free(deep);
}

/* ---- Files ------------------------------------------------------------------------------------------------------- */

static char path[] = "/tmp/penstock_batch_XXXXXX";

static void write_file(const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

/* Reads it all and writes "number:text" for each line, a "!" for one that is too long. */
static void read_file(const void *data, size_t bytes, size_t line_most, pen_batch_input_facts *facts, char *seen) {
    pen_batch_input *input;
    pen_batch_input_line line;
    write_file(data, bytes);
    assert_int_equal(pen_batch_input_open(path, line_most, NULL, NULL, &input), PEN_OK);
    *facts = pen_batch_input_about(input);
    assert_int_equal(facts->bytes, bytes);
    int64_t requests = 0;
    for (seen[0] = '\0';; requests++) {
        assert_int_equal(pen_batch_input_next(input, &line), PEN_OK);
        if (line.number == 0) break;
        seen += sprintf(seen, "%d:%.*s|", (int)line.number, line.text.data ? (int)line.text.length : 1,
                        line.text.data ? line.text.data : "!");
    }
    assert_int_equal(requests, facts->requests);
    pen_batch_input_close(input);
}

static void test_files(void **state) {
    (void)state;
    static const struct {
        const char *data, *seen;
        int lines;
    } rows[] = {
        {"", "", 0},
        {"\n", "", 1},
        {"a", "1:a|", 1},
        {"a\n", "1:a|", 1},
        {"a\nb", "1:a|2:b|", 2},
        {"a\r\nb\r\n", "1:a\r|2:b\r|", 2},
        {"\n\n a\n \t\r\nb\n\n", "3: a|5:b|", 6},
        {"\xef\xbb\xbf"
         "a\n\xef\xbb\xbf"
         "b\n",
         "1:a|2:\xef\xbb\xbf"
         "b|",
         2},
        {"\xef\xbb\xbf", "", 1},
        {"\xef\xbb\xbf\n\n\xef\xbb\xbfx", "3:\xef\xbb\xbfx|", 3},
        {"12345678\n", "1:12345678|", 1},
        {"123456789\na\n", "1:!|2:a|", 2},
        {"123456789", "1:!|", 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char seen[256];
        pen_batch_input_facts facts;
        read_file(rows[i].data, strlen(rows[i].data), 8, &facts, seen);
        assert_string_equal(seen, rows[i].seen);
        assert_int_equal(facts.lines, rows[i].lines);
    }
}

/* Lines of all lengths around those of the reader's buffer, and one far too long. */
static void test_long_lines(void **state) {
    (void)state;
    enum { MOST = 300000, FILE_MOST = 4 * MOST };
    static const int lengths[] = {1, 65535, 65536, 65537, 131071, 131072, 131073, MOST - 1, MOST, MOST + 1, 3 * MOST};
    char *data = malloc(FILE_MOST);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        pen_batch_input *input;
        pen_batch_input_line line;
        memset(data, 'x', FILE_MOST);
        memcpy(data, "a\n", 2);
        memcpy(data + 2 + lengths[i], "\nz\n", 3);
        write_file(data, (size_t)lengths[i] + 5);
        assert_int_equal(pen_batch_input_open(path, MOST, NULL, NULL, &input), PEN_OK);
        assert_int_equal(pen_batch_input_next(input, &line), PEN_OK);
        assert_true(line.number == 1 && line.text.length == 1 && line.text.data[0] == 'a');
        assert_int_equal(pen_batch_input_next(input, &line), PEN_OK);
        assert_int_equal(line.number, 2);
        assert_int_equal(line.text.data != NULL, lengths[i] <= MOST);
        if (line.text.data) assert_int_equal(line.text.length, lengths[i]);
        if (line.text.data) assert_int_equal(line.text.data[lengths[i] - 1], 'x');
        assert_int_equal(pen_batch_input_next(input, &line), PEN_OK);
        assert_true(line.number == 3 && line.text.length == 1 && line.text.data[0] == 'z');
        assert_int_equal(pen_batch_input_next(input, &line), PEN_OK);
        assert_int_equal(line.number, 0);
        pen_batch_input_close(input);
    }
    free(data);
}

static void test_files_that_cannot_be_read_twice(void **state) {
    (void)state;
    pen_batch_input *input;
    pen_batch_input_line line;
    assert_int_equal(pen_batch_input_open("/dev/null", 8, NULL, NULL, &input), PEN_USAGE);
    assert_int_equal(pen_batch_input_open("/tmp", 8, NULL, NULL, &input), PEN_USAGE);
    assert_int_equal(pen_batch_input_open("/tmp/penstock/there/is/none", 8, NULL, NULL, &input), PEN_IO);
    write_file("a\nb\n", 4);
    assert_int_equal(pen_batch_input_open(path, 8, NULL, NULL, &input), PEN_OK);
    assert_true(pen_batch_input_is(input, path));
    assert_false(pen_batch_input_is(input, "/tmp"));
    write_file("a\nc\n", 4);
    assert_int_equal(pen_batch_input_next(input, &line), PEN_OK);
    assert_int_equal(pen_batch_input_next(input, &line), PEN_OK);
    assert_int_equal(pen_batch_input_next(input, &line), PEN_BAD_INPUT);
    assert_non_null(strstr(pen_last_error(), "changed while it was read"));
    pen_batch_input_close(input);
}

/* ---- Ids --------------------------------------------------------------------------------------------------------- */

static void test_ids(void **state) {
    (void)state;
    pen_id_set *set;
    assert_int_equal(pen_id_set_create(&set), PEN_OK);
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 20000; i++) {
            char id[16];
            bool added;
            pen_text text = {id, (size_t)snprintf(id, sizeof id, "%d", i)};
            if (i == 0) text.length = 0;
            assert_int_equal(pen_id_set_add(set, text, &added), PEN_OK);
            assert_int_equal(added, round == 0);
        }
    pen_id_set_destroy(set);
}

/* ---- Answers and progress ---------------------------------------------------------------------------------------- */

/* Whatever a message quotes, the line is JSON. */
static void test_errors(void **state) {
    (void)state;
    static const char *const messages[] = {"plain", "\xff\xfe near \xc3", "\xe2\x82", "\"\\\n"};
    for (int i = 0; i < 4; i++) {
        char *text;
        size_t length;
        pen_text id = {"i\0d", 3};
        pen_batch_origin origin = {7, 12345678901};
        assert_int_equal(pen_batch_error(i ? id : (pen_text){NULL, 0}, PEN_USAGE, messages[i], origin, &text, &length),
                         PEN_OK);
        assert_int_equal(length, strlen(text));
        assert_ptr_equal(strchr(text, '\n'), text + length - 1);
        json_t *line = json_loadb(text, length, JSON_ALLOW_NUL, NULL);
        json_t *error = json_object_get(line, "error");
        assert_string_equal(json_string_value(json_object_get(error, "code")), "invalid_request");
        assert_true(json_is_string(json_object_get(error, "message")));
        assert_true(json_integer_value(json_object_get(error, "line")) == 12345678901);
        assert_true(json_is_null(json_object_get(line, "response")));
        assert_int_equal(json_string_length(json_object_get(line, "custom_id")), i ? 3 : 0);
        json_decref(line);
        free(text);
    }
}

static void test_progress(void **state) {
    (void)state;
    char text[PEN_BATCH_PROGRESS_TEXT];
    pen_batch_state s = {.requests = 1000,
                         .done = 110,
                         .earlier = 100,
                         .failed = 2,
                         .prompt_tokens = 300,
                         .output_tokens = 100,
                         .seconds = 4,
                         .replicas = 1,
                         .busy = {0.5}};
    pen_batch_progress_text(&s, text);
    assert_string_equal(text, "110/1000 requests (2 failed), 100.0 tokens/s, 5m 56s left");
    s = (pen_batch_state){.requests = 3, .done = 3, .earlier = 3, .replicas = 3, .busy = {-1, 0.5, 2}};
    pen_batch_progress_text(&s, text);
    assert_string_equal(text, "3/3 requests, 0.0 tokens/s, replicas ▁▅█");
    s.replicas = 1000;
    pen_batch_progress_text(&s, text);
    assert_int_equal(strlen(text), strlen("3/3 requests, 0.0 tokens/s, replicas ") + 3 * PEN_BATCH_BARS_MOST);
}

int main(void) {
    int file = mkstemp(path);
    if (file < 0) return 1;
    close(file);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_nul_and_depth),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_long_lines),
        cmocka_unit_test(test_files_that_cannot_be_read_twice),
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_progress),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return failed;
}
