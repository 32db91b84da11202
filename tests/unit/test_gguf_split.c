/*
 * Models in several files: all parts are found from any of them, every tensor is read from its own file, and parts that
 * do not belong together are refused by name.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>

#include "gguf_image.h"

enum { PARTS = 3, PATH_SIZE = 128 };

static char folder[] = "/tmp/penstock-split-XXXXXX";

static const char *part_path(int no) {
    static char paths[PARTS][PATH_SIZE];
    snprintf(paths[no], PATH_SIZE, "%s/model-%05d-of-%05d.gguf", folder, no + 1, PARTS);
    return paths[no];
}

static void write_image(const char *to, const image *f) {
    FILE *file = fopen(to, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(f->bytes, 1, f->length, file), f->length);
    assert_int_equal(fclose(file), 0);
}

static void key_int(image *f, const char *name, uint32_t type, int value) {
    key(f, name, type);
    put(f, &value, type == U16 ? 2 : 4);
}

/* What differs from a good set of parts, in part 1 where the field says nothing else. */
typedef struct fault {
    int no, count, tensors; /* other values of the keys: + what they are */
    const char *without;    /* a key that is left out */
    const char *twice;      /* part 1 has this tensor, too */
} fault;

/* Part `no` holds no + 1 tensors of 8 floats; the data of the k-th of all is 32 bytes k. */
static void make_part(image *f, int no, int count, int tensors, const fault *wrong) {
    bool bad = wrong && no == 1;
    begin(f);
    if (no == 0) key_string(f, "general.architecture", "llama");
    if (!bad || !wrong->without || strcmp(wrong->without, "split.no") != 0)
        key_int(f, "split.no", U16, no + (bad ? wrong->no : 0));
    if (!bad || !wrong->without || strcmp(wrong->without, "split.count") != 0)
        key_int(f, "split.count", U16, count + (bad ? wrong->count : 0));
    key_int(f, "split.tensors.count", I32, tensors + (bad ? wrong->tensors : 0));
    if (no > 0) key_string(f, "general.architecture", "not looked at");
    int first = no * (no + 1) / 2;
    for (int i = 0; i <= no; i++) {
        char name[32];
        snprintf(name, sizeof name, "tensor %d", first + i);
        tensor(f, bad && wrong->twice && i == 0 ? wrong->twice : name, 0, (uint64_t)i * 32, 1, (uint64_t[]){8});
    }
    finish(f, 32, 0);
    for (int i = 0; i <= no; i++)
        for (int b = 0; b < 32; b++) put(f, &(char){(char)(first + i)}, 1);
}

static void write_parts(const fault *wrong) {
    image f;
    for (int no = 0; no < PARTS; no++) {
        make_part(&f, no, PARTS, 6, wrong);
        write_image(part_path(no), &f);
    }
}

static void assert_refused(const char *given, pen_status expected, const char *words) {
    pen_gguf *gguf;
    assert_int_equal(pen_gguf_open(given, &gguf), expected);
    assert_null(gguf);
    assert_error_names(words);
}

static void test_any_part_opens_all(void **state) {
    (void)state;
    write_parts(NULL);
    uint64_t hash = 0;
    for (int given = 0; given < PARTS; given++) {
        pen_gguf *gguf;
        assert_int_equal(pen_gguf_open(part_path(given), &gguf), PEN_OK);
        assert_string_equal(pen_gguf_path(gguf), part_path(0));
        assert_int_equal(pen_gguf_part_count(gguf), PARTS);
        assert_int_equal(pen_gguf_tensor_count(gguf), 6);
        pen_gguf_string arch;
        assert_int_equal(pen_gguf_str(gguf, "general.architecture", &arch), PEN_OK);
        assert_memory_equal(arch.data, "llama", 5);
        for (int t = 0; t < 6; t++) {
            char name[32];
            unsigned char data[32], expected[32];
            snprintf(name, sizeof name, "tensor %d", t);
            memset(expected, t, sizeof expected);
            const pen_gguf_tensor *found = pen_gguf_tensor_find(gguf, name);
            assert_ptr_equal(found, pen_gguf_tensor_at(gguf, (size_t)t));
            assert_int_equal(found->part, t < 1 ? 0 : t < 3 ? 1 : 2);
            assert_int_equal(pen_gguf_read(gguf, found, 0, 32, data), PEN_OK);
            assert_memory_equal(data, expected, 32);
        }
        assert_int_equal(pen_gguf_check_data(gguf), PEN_OK);
        if (given > 0) assert_true(pen_gguf_hash(gguf) == hash);
        hash = pen_gguf_hash(gguf);
        pen_gguf_close(gguf);
    }
}

static void test_hash_is_of_all_parts(void **state) {
    (void)state;
    pen_gguf *gguf;
    write_parts(NULL);
    assert_int_equal(pen_gguf_open(part_path(0), &gguf), PEN_OK);
    uint64_t hash = pen_gguf_hash(gguf), bytes = pen_gguf_file_bytes(gguf);
    pen_gguf_close(gguf);
    FILE *last = fopen(part_path(2), "ab");
    fputc(0, last);
    fclose(last);
    assert_int_equal(pen_gguf_open(part_path(0), &gguf), PEN_OK);
    assert_true(pen_gguf_hash(gguf) != hash);
    assert_int_equal(pen_gguf_file_bytes(gguf), bytes + 1);
    pen_gguf_close(gguf);
}

static void test_missing_part_is_named(void **state) {
    (void)state;
    for (int missing = 0; missing < PARTS; missing++) {
        write_parts(NULL);
        const char *gone = part_path(missing);
        unlink(gone);
        assert_refused(part_path((missing + 1) % PARTS), PEN_IO, gone);
        assert_error_names("No such file");
        assert_error_names("of the 3 of");
    }
}

static void test_parts_that_do_not_belong_together_are_refused(void **state) {
    (void)state;
    const char *first = part_path(0), *second = part_path(1);
    static const struct {
        fault fault;
        const char *words;
    } cases[] = {
        {{.no = 1}, "this is part 3 of 3 by its keys"},
        {{.no = -1}, "this is part 1 of 3 by its keys"},
        {{.no = 7}, "key split.no is 8, outside 0 to 2"},
        {{.count = 1}, "this is part 2 of 4 by its keys"},
        {{.count = -2}, "this is part 1 of 1 by its keys"},
        {{.without = "split.count"}, "this is part 1 of 1 by its keys"},
        {{.without = "split.no"}, "key split.no is missing"},
        {{.tensors = 1}, "key split.tensors.count is 7, and 6 in another part"},
        {{.tensors = -7}, "key split.tensors.count is -1, outside 0 to"},
        {{.twice = "tensor 5"}, "tensor tensor 5 is there twice"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_parts(&cases[i].fault);
        assert_refused(first, PEN_BAD_INPUT, cases[i].words);
        if (!cases[i].fault.twice) assert_error_names(second);
    }

    image f;
    for (int no = 0; no < PARTS; no++) { /* all agree, on a wrong number */
        make_part(&f, no, PARTS, 5, NULL);
        write_image(part_path(no), &f);
    }
    assert_refused(second, PEN_BAD_INPUT, "its 3 parts have 6 tensors, split.tensors.count is 5");
}

static void test_name_must_tell_the_part(void **state) {
    (void)state;
    char other[PATH_SIZE];
    image f;
    make_part(&f, 0, PARTS, 6, NULL);
    static const char *const names[] = {"x.gguf", "model-00001-of-00004.gguf", "model-00002-of-00003.gguf"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(other, sizeof other, "%s/%s", folder, names[i]);
        write_image(other, &f);
        assert_refused(other, PEN_BAD_INPUT, "is part 1 of 3, so that its name must end in -00001-of-00003.gguf");
        unlink(other);
    }
    begin(&f); /* more parts than there can be */
    key_int(&f, "split.no", U16, 0);
    key_int(&f, "split.count", U16, 65535);
    finish(&f, 32, 0);
    write_image(part_path(0), &f);
    assert_refused(part_path(0), PEN_BAD_INPUT, "key split.count");
}

/* As gguf-split writes them: a merged file says 0, a split into one file 1. */
static void test_single_files_may_have_the_keys(void **state) {
    (void)state;
    for (int count = 0; count < 2; count++) {
        image f;
        make_part(&f, 0, count, 1, NULL);
        pen_gguf *gguf = opened(&f);
        assert_int_equal(pen_gguf_part_count(gguf), 1);
        assert_int_equal(pen_gguf_tensor_count(gguf), 1);
        pen_gguf_close(gguf);
    }
}

static void test_cut_part_is_named(void **state) {
    (void)state;
    write_parts(NULL);
    pen_gguf *gguf;
    const char *second = part_path(1);
    assert_int_equal(pen_gguf_open(second, &gguf), PEN_OK);
    off_t offset = (off_t)pen_gguf_tensor_find(gguf, "tensor 2")->offset;
    pen_gguf_close(gguf);
    assert_int_equal(truncate(second, offset + 30), 0);
    assert_int_equal(truncate(part_path(2), offset), 0);
    assert_int_equal(pen_gguf_open(part_path(0), &gguf), PEN_OK);
    assert_int_equal(pen_gguf_check_data(gguf), PEN_BAD_INPUT);
    assert_error_names(second);
    assert_error_names("2 are missing, from tensor tensor 2 on");
    unsigned char data[32];
    assert_int_equal(pen_gguf_read(gguf, pen_gguf_tensor_find(gguf, "tensor 1"), 0, 32, data), PEN_OK);
    assert_int_equal(pen_gguf_read(gguf, pen_gguf_tensor_find(gguf, "tensor 2"), 0, 32, data), PEN_BAD_INPUT);
    assert_error_names(second);
    pen_gguf_close(gguf);
    assert_int_equal(truncate(second, 100), 0); /* in the header */
    assert_refused(part_path(0), PEN_BAD_INPUT, second);
}

static int make_folder(void **state) {
    return make_path(state) || !mkdtemp(folder);
}

static int remove_folder(void **state) {
    for (int no = 0; no < PARTS; no++) unlink(part_path(no));
    return remove_path(state) || rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_part_opens_all),
        cmocka_unit_test(test_hash_is_of_all_parts),
        cmocka_unit_test(test_missing_part_is_named),
        cmocka_unit_test(test_parts_that_do_not_belong_together_are_refused),
        cmocka_unit_test(test_name_must_tell_the_part),
        cmocka_unit_test(test_single_files_may_have_the_keys),
        cmocka_unit_test(test_cut_part_is_named),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
