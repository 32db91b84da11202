/*
 * The GGUF reader on files written here: what it must read, everything that it must reject by name, and what it must
 * survive (every truncation and thousands of flipped bytes of a valid file).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

#include "gguf_image.h"

enum { TYPE_F32 = 0, TYPE_Q4_1 = 3, TYPE_IQ3_S = 21 };

static void tensor_2d(image *f, const char *name, uint32_t type, uint64_t offset, uint64_t cols, uint64_t rows) {
    tensor(f, name, type, offset, 2, (uint64_t[]){cols, rows});
}

/* The file is refused with this status, and the message holds the path and the words. */
static void assert_refused(const image *f, pen_status expected, const char *words) {
    pen_gguf *gguf;
    assert_int_equal(open_bytes(f->bytes, f->length, &gguf), expected);
    assert_null(gguf);
    assert_error_names(path);
    assert_error_names(words);
}

/* A file with some of everything. */
static void write_small(image *f) {
    begin(f);
    key_string(f, "general.architecture", "llama");
    key_u32(f, "general.alignment", 16);
    key(f, "small", I8);
    put(f, &(int8_t){-5}, 1);
    key(f, "large", U64);
    put_u64(f, UINT64_MAX);
    key(f, "single", F32);
    put(f, &(float){0.5f}, 4);
    key(f, "double", F64);
    put(f, &(double){-2.25}, 8);
    key_bool(f, "yes", true);
    key_array(f, "tokens", STRING, 3);
    put_string(f, "a");
    put_string(f, "");
    put_string(f, "käse\n");
    key_array(f, "scores", F32, 2);
    put(f, (float[]){1, -1}, 8);
    key_array(f, "numbers", I16, 3);
    put(f, (int16_t[]){1, -2, 300}, 6);
    tensor_2d(f, "one", TYPE_Q4_1, 0, 64, 2);           /* 80 bytes */
    tensor(f, "two", TYPE_F32, 80, 1, (uint64_t[]){3}); /* 12 bytes */
    tensor_2d(f, "later", TYPE_IQ3_S, 96, 256, 1);      /* a type that is not known yet */
    finish(f, 16, 96 + 144);
}

/* ---- Reading --------------------------------------------------------------------------------------------------- */

static void test_reads_metadata(void **state) {
    (void)state;
    image f;
    write_small(&f);
    pen_gguf *gguf = opened(&f);
    assert_int_equal(pen_gguf_version(gguf), 3);
    assert_string_equal(pen_gguf_path(gguf), path);
    assert_int_equal(pen_gguf_file_bytes(gguf), f.length);

    int64_t integer;
    double real;
    bool flag;
    size_t count;
    pen_gguf_string string;
    assert_true(pen_gguf_has(gguf, "small"));
    assert_false(pen_gguf_has(gguf, "smal"));
    assert_int_equal(pen_gguf_i64(gguf, "small", -5, 5, &integer), PEN_OK);
    assert_int_equal(integer, -5);
    assert_int_equal(pen_gguf_i64_or(gguf, "absent", 0, 5, 4, &integer), PEN_OK);
    assert_int_equal(integer, 4);
    assert_int_equal(pen_gguf_f64(gguf, "single", &real), PEN_OK);
    assert_true(real == 0.5);
    assert_int_equal(pen_gguf_f64_or(gguf, "double", 1, &real), PEN_OK);
    assert_true(real == -2.25);
    assert_int_equal(pen_gguf_f64_or(gguf, "absent", 7, &real), PEN_OK);
    assert_true(real == 7);
    assert_int_equal(pen_gguf_bool_or(gguf, "yes", false, &flag), PEN_OK);
    assert_true(flag);
    assert_int_equal(pen_gguf_bool_or(gguf, "absent", true, &flag), PEN_OK);
    assert_true(flag);
    assert_int_equal(pen_gguf_str(gguf, "general.architecture", &string), PEN_OK);
    assert_int_equal(string.length, 5);
    assert_memory_equal(string.data, "llama", 5);

    assert_int_equal(pen_gguf_array(gguf, "tokens", &count), PEN_OK);
    assert_int_equal(count, 3);
    assert_int_equal(pen_gguf_array_str(gguf, "tokens", 2, &string), PEN_OK);
    assert_int_equal(string.length, 6);
    assert_memory_equal(string.data, "käse\n", 6);
    assert_int_equal(pen_gguf_array_str(gguf, "tokens", 1, &string), PEN_OK);
    assert_int_equal(string.length, 0);
    assert_int_equal(pen_gguf_array_i64(gguf, "numbers", 1, &integer), PEN_OK);
    assert_int_equal(integer, -2);
    assert_int_equal(pen_gguf_array_f64(gguf, "scores", 1, &real), PEN_OK);
    assert_true(real == -1);
    pen_gguf_close(gguf);
}

static void test_getters_name_file_and_key(void **state) {
    (void)state;
    image f;
    write_small(&f);
    pen_gguf *gguf = opened(&f);
    int64_t integer;
    double real;
    bool flag;
    size_t count;
    pen_gguf_string string;
#define ASSERT_FAILS(call, words)                                                                                      \
    do {                                                                                                               \
        assert_int_equal(call, PEN_BAD_INPUT);                                                                         \
        assert_error_names(path);                                                                                      \
        assert_error_names(words);                                                                                     \
    } while (0)
    ASSERT_FAILS(pen_gguf_i64(gguf, "absent", 0, 1, &integer), "key absent is missing");
    ASSERT_FAILS(pen_gguf_i64(gguf, "small", 0, 9, &integer), "key small is -5, outside 0 to 9");
    ASSERT_FAILS(pen_gguf_i64(gguf, "large", 0, 9, &integer), "key large does not fit");
    ASSERT_FAILS(pen_gguf_i64_or(gguf, "single", 0, 9, 3, &integer), "key single should be an integer, but is f32");
    ASSERT_FAILS(pen_gguf_f64(gguf, "small", &real), "key small should be a float, but is i8");
    ASSERT_FAILS(pen_gguf_f64_or(gguf, "yes", 1, &real), "key yes should be a float, but is bool");
    ASSERT_FAILS(pen_gguf_bool_or(gguf, "small", true, &flag), "key small should be a bool");
    ASSERT_FAILS(pen_gguf_str(gguf, "tokens", &string), "key tokens should be a string, but is an array of string");
    ASSERT_FAILS(pen_gguf_array(gguf, "small", &count), "key small should be an array");
    ASSERT_FAILS(pen_gguf_array_str(gguf, "scores", 0, &string), "key scores should be an array of strings");
    ASSERT_FAILS(pen_gguf_array_i64(gguf, "tokens", 0, &integer), "key tokens should be an array of integers");
    ASSERT_FAILS(pen_gguf_array_f64(gguf, "numbers", 0, &real), "key numbers should be an array of floats");
#undef ASSERT_FAILS
    pen_gguf_close(gguf);
}

static void test_refuses_numbers_that_are_not_finite(void **state) {
    (void)state;
    image f;
    begin(&f);
    key(&f, "eps", F32);
    put_u32(&f, 0x7fc00000);
    finish(&f, 32, 0);
    pen_gguf *gguf = opened(&f);
    double real;
    assert_int_equal(pen_gguf_f64(gguf, "eps", &real), PEN_BAD_INPUT);
    assert_error_names("key eps is not a finite number");
    pen_gguf_close(gguf);
}

static void test_shows_keys_as_text(void **state) {
    (void)state;
    image f;
    write_small(&f);
    pen_gguf *gguf = opened(&f);
    static const char *const expected[][2] = {
        {"general.architecture", "\"llama\""},
        {"general.alignment", "16"},
        {"small", "-5"},
        {"large", "18446744073709551615"},
        {"single", "0.5"},
        {"double", "-2.25"},
        {"yes", "true"},
        {"tokens", "string[3] {\"a\", \"\", \"käse\\n\"}"},
        {"scores", "f32[2] {1, -1}"},
        {"numbers", "i16[3] {1, -2, 300}"},
    };
    char name[64], value[128];
    assert_int_equal(pen_gguf_key_count(gguf), 10);
    for (size_t i = 0; i < 10; i++) {
        pen_gguf_key_text(gguf, i, name, sizeof name, value, sizeof value);
        assert_string_equal(name, expected[i][0]);
        assert_string_equal(value, expected[i][1]);
        pen_gguf_key_text(gguf, i, name, 4, value, 3); /* and cut to what fits */
        assert_int_equal(strlen(name), 3);
        assert_int_equal(strlen(value), 2);
    }
    pen_gguf_close(gguf);
}

static void test_reads_tensors(void **state) {
    (void)state;
    image f;
    write_small(&f);
    pen_gguf *gguf = opened(&f);
    assert_int_equal(pen_gguf_tensor_count(gguf), 3);
    const pen_gguf_tensor *one = pen_gguf_tensor_find(gguf, "one"), *two = pen_gguf_tensor_find(gguf, "two");
    const pen_gguf_tensor *later = pen_gguf_tensor_find(gguf, "later");
    assert_null(pen_gguf_tensor_find(gguf, "three"));
    assert_ptr_equal(one, pen_gguf_tensor_at(gguf, 0));
    assert_string_equal(two->name, "two");
    assert_true(one->known && two->known);
    assert_int_equal(one->type, PEN_TYPE_Q4_1);
    assert_int_equal(one->dims, 2);
    assert_int_equal(one->shape[0], 64);
    assert_int_equal(one->shape[1], 2);
    assert_int_equal(one->shape[2], 1);
    assert_int_equal(one->bytes, 80);
    assert_int_equal(two->bytes, 12);
    assert_int_equal(one->offset % 16, 0);
    assert_int_equal(two->offset, one->offset + 80);

    unsigned char data[12];
    assert_int_equal(pen_gguf_read(gguf, two, 4, 8, data), PEN_OK);
    for (int i = 0; i < 8; i++) assert_int_equal(data[i], 84 + i);

    assert_false(later->known);
    assert_int_equal(later->gguf_type, TYPE_IQ3_S);
    assert_int_equal(later->bytes, 0);
    assert_int_equal(pen_gguf_read(gguf, later, 0, 1, data), PEN_UNSUPPORTED);
    assert_error_names("tensor later has type IQ3_S (21)");
    assert_string_equal(pen_gguf_type_name(5), "unknown");
    assert_string_equal(pen_gguf_type_name(UINT32_MAX), "unknown");
    pen_gguf_close(gguf);
}

static void test_hash_is_of_header_and_length_only(void **state) {
    (void)state;
    image f;
    write_small(&f);
    pen_gguf *gguf = opened(&f);
    uint64_t hash = pen_gguf_hash(gguf);
    pen_gguf_close(gguf);

    f.bytes[f.length - 1] ^= 1; /* data */
    gguf = opened(&f);
    assert_true(pen_gguf_hash(gguf) == hash);
    pen_gguf_close(gguf);

    f.length++;
    gguf = opened(&f);
    assert_true(pen_gguf_hash(gguf) != hash);
    pen_gguf_close(gguf);
    f.length--;

    *(char *)memmem(f.bytes, f.length, "llama", 5) = 'L';
    gguf = opened(&f);
    assert_true(pen_gguf_hash(gguf) != hash);
    pen_gguf_close(gguf);
}

static void test_file_cut_short_after_opening_is_an_error(void **state) {
    (void)state;
    image f;
    write_small(&f);
    pen_gguf *gguf = opened(&f);
    const pen_gguf_tensor *two = pen_gguf_tensor_find(gguf, "two");
    assert_int_equal(truncate(path, (off_t)two->offset + 5), 0);
    unsigned char data[12];
    assert_int_equal(pen_gguf_read(gguf, two, 0, 12, data), PEN_BAD_INPUT);
    assert_error_names(path);
    assert_error_names("tensor two");
    assert_error_names("7 short");

    assert_int_equal(truncate(path, 0), 0); /* and the metadata is ours */
    pen_gguf_string string;
    assert_int_equal(pen_gguf_array_str(gguf, "tokens", 2, &string), PEN_OK);
    assert_memory_equal(string.data, "käse\n", 6);
    pen_gguf_close(gguf);
}

static const char *numbered(int i) {
    static char text[21];
    snprintf(text, sizeof text, "token %14d", i);
    return text;
}

static void test_reads_headers_longer_than_one_step(void **state) {
    (void)state;
    enum { STRINGS = 40000 };
    size_t length = 24 + (8 + 6 + 4 + 4 + 8) + STRINGS * (8 + 20);
    unsigned char *bytes = malloc(length), *at = bytes;
    image f;
    begin(&f);
    key_array(&f, "tokens", STRING, STRINGS);
    finish(&f, 1, 0);
    memcpy(at, f.bytes, f.length);
    at += f.length;
    for (int i = 0; i < STRINGS; i++, at += 28) {
        memcpy(at, &(uint64_t){20}, 8);
        memcpy(at + 8, numbered(i), 20);
    }
    assert_int_equal(at - bytes, length);
    pen_gguf *gguf;
    assert_int_equal(open_bytes(bytes, length, &gguf), PEN_OK);
    for (int i = 0; i < STRINGS; i++) {
        pen_gguf_string string;
        assert_int_equal(pen_gguf_array_str(gguf, "tokens", (size_t)i, &string), PEN_OK);
        assert_int_equal(string.length, 20);
        assert_memory_equal(string.data, numbered(i), 20);
    }
    pen_gguf_close(gguf);
    free(bytes);
}

/* A million keys and a million tensors: names are found by hash, not by search. */
static void test_large_files_are_read_in_linear_time(void **state) {
    (void)state;
    enum { COUNT = 1000000, NAME = 14, KEY = 8 + NAME + 4 + 1, ENTRY = 8 + NAME + 4 + 8 + 4 + 8 };
    size_t header = 24 + (size_t)COUNT * (KEY + ENTRY), length = (header + 31) / 32 * 32 + (size_t)COUNT * 32;
    unsigned char *bytes = calloc(1, length), *at = bytes + 24;
    memcpy(bytes, "GGUF\3\0\0", 8);
    memcpy(bytes + 8, &(uint64_t){COUNT}, 8);
    memcpy(bytes + 16, &(uint64_t){COUNT}, 8);
    char name[NAME + 1];
    for (int i = 0; i < COUNT; i++, at += KEY) { /* bytes (type 0) */
        snprintf(name, sizeof name, "key %10d", i);
        memcpy(at, &(uint64_t){NAME}, 8);
        memcpy(at + 8, name, NAME);
        at[8 + NAME + 4] = (unsigned char)i;
    }
    for (int i = 0; i < COUNT; i++, at += ENTRY) { /* one float (type 0) each */
        snprintf(name, sizeof name, "ten %10d", i);
        memcpy(at, &(uint64_t){NAME}, 8);
        memcpy(at + 8, name, NAME);
        memcpy(at + 8 + NAME, &(uint32_t){1}, 4);
        memcpy(at + 12 + NAME, &(uint64_t){1}, 8);
        memcpy(at + 24 + NAME, &(uint64_t){32 * (uint64_t)i}, 8);
    }
    assert_int_equal(at - bytes, header);
    clock_t start = clock();
    pen_gguf *gguf;
    assert_int_equal(open_bytes(bytes, length, &gguf), PEN_OK);
    assert_int_equal(pen_gguf_check_data(gguf), PEN_OK);
    for (int i = 0; i < COUNT; i++) {
        int64_t value;
        snprintf(name, sizeof name, "key %10d", i);
        assert_int_equal(pen_gguf_i64(gguf, name, 0, 255, &value), PEN_OK);
        assert_int_equal(value, i & 255);
        snprintf(name, sizeof name, "ten %10d", i);
        assert_ptr_equal(pen_gguf_tensor_find(gguf, name), pen_gguf_tensor_at(gguf, (size_t)i));
    }
    /* About a second; by search it would be most of an hour. */
    assert_true((double)(clock() - start) / CLOCKS_PER_SEC < 30);
    pen_gguf_close(gguf);
    free(bytes);
}

static void test_header_without_its_data_opens(void **state) {
    (void)state;
    image f;
    begin(&f);
    tensor_2d(&f, "there", TYPE_F32, 0, 8, 4);
    tensor_2d(&f, "last", TYPE_F32, 256, 8, 2);
    tensor_2d(&f, "half", TYPE_F32, 128, 8, 4);
    finish(&f, 32, 256 + 64);
    size_t data = f.length - 256 - 64;
    const struct {
        size_t length;
        const char *words;
    } cases[] = {
        {data + 192, "of 480 bytes 128 are missing, from tensor half on"},
        {data + 319, "of 480 bytes 1 are missing, from tensor last on"},
        {data, "of 480 bytes 320 are missing, from tensor there on"},
        {data - 3, "of 480 bytes 323 are missing, from tensor there on"}, /* some of the padding */
    };
    assert_int_equal(f.length, 480);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pen_gguf *gguf;
        assert_int_equal(open_bytes(f.bytes, cases[i].length, &gguf), PEN_OK);
        assert_int_equal(pen_gguf_tensor_count(gguf), 3);
        assert_int_equal(pen_gguf_tensor_find(gguf, "last")->bytes, 64);
        assert_int_equal(pen_gguf_check_data(gguf), PEN_BAD_INPUT);
        assert_error_names(path);
        assert_error_names(cases[i].words);
        unsigned char bytes[64];
        assert_int_equal(pen_gguf_read(gguf, pen_gguf_tensor_find(gguf, "last"), 0, 64, bytes), PEN_BAD_INPUT);
        assert_error_names("tensor last: the file ends at byte");
        pen_gguf_close(gguf);
    }
}

static void test_version_2_and_files_without_tensors(void **state) {
    (void)state;
    image f;
    begin(&f);
    f.bytes[4] = 2;
    key_string(&f, "general.architecture", "llama");
    finish(&f, 1, 0);
    pen_gguf *gguf = opened(&f);
    assert_int_equal(pen_gguf_version(gguf), 2);
    assert_int_equal(pen_gguf_tensor_count(gguf), 0);
    assert_null(pen_gguf_tensor_find(gguf, "x"));
    pen_gguf_close(gguf);
}

/* ---- Refusing -------------------------------------------------------------------------------------------------- */

static void test_refuses_what_is_no_file(void **state) {
    (void)state;
    pen_gguf *gguf;
    assert_int_equal(pen_gguf_open("/nonexistent/model.gguf", &gguf), PEN_IO);
    assert_error_names("/nonexistent/model.gguf");
    assert_int_equal(pen_gguf_open("/tmp", &gguf), PEN_BAD_INPUT);
    assert_error_names("not a regular file");
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(pen_gguf_open(path, &gguf), PEN_BAD_INPUT);
    assert_error_names("not a regular file");
    unlink(path);
    assert_int_equal(open_bytes("", 0, &gguf), PEN_BAD_INPUT);
    assert_int_equal(open_bytes("{\"json\": true}", 14, &gguf), PEN_BAD_INPUT);
    assert_error_names("not a GGUF file");
}

static void test_refuses_versions(void **state) {
    (void)state;
    image f;
    begin(&f);
    f.bytes[4] = 1;
    assert_refused(&f, PEN_UNSUPPORTED, "version 1");
    f.bytes[4] = 4;
    assert_refused(&f, PEN_UNSUPPORTED, "version 4");
    memcpy(f.bytes + 4, "\0\0\0\3", 4);
    assert_refused(&f, PEN_UNSUPPORTED, "big-endian");
}

static void test_refuses_counts_beyond_the_file(void **state) {
    (void)state;
    image f;
    static const uint64_t counts[] = {2, 1 << 20, UINT64_C(1) << 60, UINT64_MAX};
    for (size_t i = 0; i < 4; i++) {
        begin(&f);
        f.tensors = counts[i];
        finish(&f, 1, 0);
        assert_refused(&f, PEN_BAD_INPUT, "tensors, more than the file could hold");
        begin(&f);
        f.keys = counts[i];
        finish(&f, 1, 0);
        assert_refused(&f, PEN_BAD_INPUT, "keys, more than the file could hold");
        begin(&f);
        key_array(&f, "list", U64, counts[i]);
        finish(&f, 1, 0);
        assert_refused(&f, PEN_BAD_INPUT, "key list has");
        begin(&f);
        key_array(&f, "list", STRING, counts[i]);
        finish(&f, 1, 0);
        assert_refused(&f, PEN_BAD_INPUT, "key list has");
    }
}

static void test_refuses_strings_beyond_the_file(void **state) {
    (void)state;
    image f;
    static const uint64_t lengths[] = {1 << 20, INT64_MAX, UINT64_MAX - 7, UINT64_MAX};
    for (size_t i = 0; i < 4; i++) {
        begin(&f);
        key(&f, "name", STRING);
        put_u64(&f, lengths[i]);
        finish(&f, 1, 0);
        assert_refused(&f, PEN_BAD_INPUT, "key name needs");
        begin(&f);
        put_u64(&f, lengths[i]);
        put(&f, "name12", 6);
        f.keys = 1;
        finish(&f, 1, 0);
        assert_refused(&f, PEN_BAD_INPUT, "key 0 needs");
        begin(&f);
        key_array(&f, "list", STRING, 1);
        put_u64(&f, lengths[i]);
        finish(&f, 1, 0);
        assert_refused(&f, PEN_BAD_INPUT, "key list needs");
    }
}

static void test_refuses_a_sparse_file_of_metadata(void **state) {
    (void)state;
    image f;
    begin(&f);
    key_array(&f, "list", STRING, UINT64_C(1) << 36);
    finish(&f, 1, 0);
    pen_gguf *gguf;
    (void)open_bytes(f.bytes, f.length, &gguf);
    if (truncate(path, (off_t)1 << 40) != 0) skip(); /* a file system without large sparse files */
    assert_int_equal(pen_gguf_open(path, &gguf), PEN_BAD_INPUT);
    assert_error_names("key list has 68719476736 strings, too many");
}

static void test_refuses_values(void **state) {
    (void)state;
    image f;
    begin(&f);
    key(&f, "odd", 13);
    put_u64(&f, 0);
    finish(&f, 1, 0);
    assert_refused(&f, PEN_BAD_INPUT, "key odd has the unknown type 13");
    begin(&f);
    key_array(&f, "odd", 4711, 0);
    finish(&f, 1, 0);
    assert_refused(&f, PEN_BAD_INPUT, "key odd is an array of the unknown type 4711");
    begin(&f);
    key_array(&f, "deep", ARRAY, 1);
    for (int depth = 0; depth < 1000; depth++) {
        put_u32(&f, ARRAY);
        put_u64(&f, 1);
    }
    finish(&f, 1, 0);
    assert_refused(&f, PEN_UNSUPPORTED, "key deep is a nested array");
    begin(&f);
    key(&f, "maybe", BOOL);
    put(&f, "\2", 1);
    finish(&f, 1, 0);
    assert_refused(&f, PEN_BAD_INPUT, "key maybe is neither true nor false");
}

static void test_refuses_names(void **state) {
    (void)state;
    image f;
    begin(&f);
    key_u32(&f, "twice", 1);
    key_u32(&f, "once", 2);
    key_u32(&f, "twice", 1);
    finish(&f, 1, 0);
    assert_refused(&f, PEN_BAD_INPUT, "key twice is there twice");
    begin(&f);
    key_u32(&f, "", 1);
    finish(&f, 1, 0);
    assert_refused(&f, PEN_BAD_INPUT, "name of key 0 has 0 bytes");
    begin(&f);
    key_u32(&f, "a\033[2Jb", 1);
    finish(&f, 1, 0);
    assert_refused(&f, PEN_BAD_INPUT, "name of key 0 holds the control character 0x1b");
    begin(&f);
    tensor_2d(&f, "same", TYPE_F32, 0, 8, 1);
    tensor_2d(&f, "same", TYPE_F32, 32, 8, 1);
    finish(&f, 32, 64);
    assert_refused(&f, PEN_BAD_INPUT, "tensor same is there twice");
    begin(&f);
    char name[66] = {0};
    memset(name, 'x', 65);
    tensor_2d(&f, name, TYPE_F32, 0, 8, 1);
    finish(&f, 32, 32);
    assert_refused(&f, PEN_BAD_INPUT, "name of tensor 0 has 65 bytes");
}

static void test_refuses_shapes(void **state) {
    (void)state;
    image f;
    static const struct {
        uint32_t type, dims;
        uint64_t shape[5];
        const char *words;
    } cases[] = {
        {TYPE_F32, 0, {0}, "tensor t has 0 dimensions"},
        {TYPE_F32, 5, {1, 1, 1, 1, 1}, "tensor t has 5 dimensions"},
        {TYPE_F32, 2, {0, 4}, "tensor t has a dimension that is zero"},
        {TYPE_F32, 2, {4, 0}, "tensor t has a dimension that is zero"},
        {TYPE_F32, 1, {UINT64_MAX}, "tensor t has a dimension that is zero or too large"},
        {TYPE_F32, 2, {UINT64_C(1) << 32, UINT64_C(1) << 32}, "tensor t has more values"},
        {TYPE_F32, 4, {65536, 65536, 65536, 65536}, "tensor t has more values"},
        {TYPE_IQ3_S, 2, {UINT64_C(1) << 62, 4}, "tensor t has more values"},
        {TYPE_F32, 1, {UINT64_C(1) << 62}, "tensor t has more bytes"},
        {TYPE_Q4_1, 2, {48, 2}, "tensor t has rows of 48 values, not a multiple of Q4_1's 32"},
        {TYPE_F32, 1, {UINT64_C(1) << 60}, "tensor t has 4611686018427387904 bytes at offset 0 of the data, where no"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        begin(&f);
        tensor(&f, "t", cases[i].type, 0, cases[i].dims, cases[i].shape);
        finish(&f, 32, 511);
        assert_refused(&f, PEN_BAD_INPUT, cases[i].words);
    }
}

static void test_refuses_places(void **state) {
    (void)state;
    image f;
    static const uint64_t beyond[] = {(UINT64_C(1) << 50) + 32, UINT64_C(1) << 63, UINT64_MAX - 31};
    for (size_t i = 0; i < 3; i++) {
        begin(&f);
        tensor_2d(&f, "far", TYPE_F32, beyond[i], 8, 1);
        finish(&f, 32, 96);
        assert_refused(&f, PEN_BAD_INPUT, "tensor far has 32 bytes at offset");
        begin(&f);
        tensor_2d(&f, "far", TYPE_IQ3_S, beyond[i], 256, 1);
        finish(&f, 32, 96);
        assert_refused(&f, PEN_BAD_INPUT, "tensor far has");
    }
    begin(&f);
    tensor_2d(&f, "askew", TYPE_F32, 16, 8, 1);
    finish(&f, 32, 96);
    assert_refused(&f, PEN_BAD_INPUT, "tensor askew is at offset 16, not a multiple of the alignment 32");
    begin(&f);
    tensor_2d(&f, "b", TYPE_F32, 32, 8, 1);
    tensor_2d(&f, "a", TYPE_F32, 0, 9, 1);
    finish(&f, 32, 96);
    assert_refused(&f, PEN_BAD_INPUT, "tensors a and b overlap");
    begin(&f);
    tensor_2d(&f, "a", TYPE_IQ3_S, 0, 256, 1);
    tensor_2d(&f, "b", TYPE_IQ3_S, 0, 256, 1);
    finish(&f, 32, 96);
    assert_refused(&f, PEN_BAD_INPUT, "overlap");
}

static void test_refuses_alignments(void **state) {
    (void)state;
    image f;
    static const uint32_t bad[] = {0, 3, 48, UINT32_MAX};
    for (size_t i = 0; i < 4; i++) {
        begin(&f);
        key_u32(&f, "general.alignment", bad[i]);
        finish(&f, 32, 96);
        assert_refused(&f, PEN_BAD_INPUT, "key general.alignment");
    }
    begin(&f);
    key_string(&f, "general.alignment", "32");
    finish(&f, 32, 96);
    assert_refused(&f, PEN_BAD_INPUT, "key general.alignment should be an integer");
    begin(&f);
    key(&f, "general.alignment", U64);
    put_u64(&f, UINT64_C(1) << 40);
    finish(&f, 32, 96);
    assert_refused(&f, PEN_BAD_INPUT, "key general.alignment is 1099511627776, outside 1 to");
    begin(&f); /* large, but possible: the data begins at 2 GiB */
    key_u32(&f, "general.alignment", UINT32_C(1) << 31);
    tensor_2d(&f, "t", TYPE_F32, 0, 8, 1);
    finish(&f, 32, 96);
    pen_gguf *gguf = opened(&f);
    assert_int_equal(pen_gguf_check_data(gguf), PEN_BAD_INPUT);
    assert_error_names("of 2147483680 bytes");
    pen_gguf_close(gguf);
    begin(&f);
    key_u32(&f, "general.alignment", 1);
    tensor_2d(&f, "t", TYPE_F32, 3, 8, 1);
    finish(&f, 1, 35);
    pen_gguf_close(opened(&f));
}

/* ---- Surviving ------------------------------------------------------------------------------------------------- */

/* Touches everything that an opened file offers. */
static void use(const pen_gguf *gguf) {
    char name[80], value[200];
    for (size_t i = 0; i < pen_gguf_key_count(gguf); i++) {
        pen_gguf_key_text(gguf, i, name, sizeof name, value, sizeof value);
        int64_t integer;
        double real;
        size_t count;
        pen_gguf_string string;
        (void)pen_gguf_i64(gguf, name, INT64_MIN, INT64_MAX, &integer);
        (void)pen_gguf_f64(gguf, name, &real);
        if (pen_gguf_array(gguf, name, &count) == PEN_OK)
            for (size_t k = 0; k < count; k++)
                if (pen_gguf_array_str(gguf, name, k, &string) == PEN_OK)
                    for (size_t c = 0; c < string.length; c++) assert_true(string.data[c] + 1 != -1000);
    }
    unsigned char data[sizeof((image *)0)->bytes];
    for (size_t i = 0; i < pen_gguf_tensor_count(gguf); i++) {
        const pen_gguf_tensor *t = pen_gguf_tensor_at(gguf, i);
        assert_ptr_equal(pen_gguf_tensor_find(gguf, t->name), t);
        bool whole = t->offset + t->bytes <= pen_gguf_file_bytes(gguf);
        if (!t->known || t->bytes > sizeof data) continue;
        assert_int_equal(pen_gguf_read(gguf, t, 0, t->bytes, data), whole ? PEN_OK : PEN_BAD_INPUT);
    }
}

static void test_survives_every_truncation(void **state) {
    (void)state;
    image f;
    write_small(&f);
    pen_gguf *gguf = opened(&f);
    size_t header = pen_gguf_tensor_at(gguf, 0)->offset - 15; /* before it there are at most 15 bytes of padding */
    pen_gguf_close(gguf);
    for (size_t length = 0; length < header; length++) {
        assert_int_equal(open_bytes(f.bytes, length, &gguf), PEN_BAD_INPUT);
        assert_null(gguf);
        assert_error_names(path);
    }
    for (size_t length = header + 15; length <= f.length; length++) {
        assert_int_equal(open_bytes(f.bytes, length, &gguf), PEN_OK);
        /* The last tensor's type is unknown: of its 144 bytes only the first must be there. */
        assert_int_equal(pen_gguf_check_data(gguf), length < f.length - 143 ? PEN_BAD_INPUT : PEN_OK);
        use(gguf);
        pen_gguf_close(gguf);
    }
}

static void test_survives_flipped_bytes(void **state) {
    (void)state;
    enum { ROUNDS = 10000 };
    image f, flipped;
    write_small(&f);
    uint64_t seed = 4711;
    int refused = 0;
    for (int round = 0; round < ROUNDS; round++) {
        flipped = f;
        for (int flips = 1 + (int)(next_random(&seed) % 4); flips; flips--) {
            size_t at = next_random(&seed) % (f.length - 240);
            flipped.bytes[at] = (unsigned char)next_random(&seed);
        }
        pen_gguf *gguf;
        if (open_bytes(flipped.bytes, flipped.length, &gguf) == PEN_OK) {
            use(gguf);
            pen_gguf_close(gguf);
        } else {
            assert_null(gguf);
            refused++;
        }
    }
    assert_in_range(refused, ROUNDS / 4, ROUNDS - 1); /* both happen */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_metadata),
        cmocka_unit_test(test_getters_name_file_and_key),
        cmocka_unit_test(test_refuses_numbers_that_are_not_finite),
        cmocka_unit_test(test_shows_keys_as_text),
        cmocka_unit_test(test_reads_tensors),
        cmocka_unit_test(test_hash_is_of_header_and_length_only),
        cmocka_unit_test(test_file_cut_short_after_opening_is_an_error),
        cmocka_unit_test(test_reads_headers_longer_than_one_step),
        cmocka_unit_test(test_large_files_are_read_in_linear_time),
        cmocka_unit_test(test_header_without_its_data_opens),
        cmocka_unit_test(test_version_2_and_files_without_tensors),
        cmocka_unit_test(test_refuses_what_is_no_file),
        cmocka_unit_test(test_refuses_versions),
        cmocka_unit_test(test_refuses_counts_beyond_the_file),
        cmocka_unit_test(test_refuses_strings_beyond_the_file),
        cmocka_unit_test(test_refuses_a_sparse_file_of_metadata),
        cmocka_unit_test(test_refuses_values),
        cmocka_unit_test(test_refuses_names),
        cmocka_unit_test(test_refuses_shapes),
        cmocka_unit_test(test_refuses_places),
        cmocka_unit_test(test_refuses_alignments),
        cmocka_unit_test(test_survives_every_truncation),
        cmocka_unit_test(test_survives_flipped_bytes),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
