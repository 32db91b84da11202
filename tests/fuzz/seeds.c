/*
 * The valid inputs that the fuzzers begin with: fuzz_seeds FOLDER [PROFILE.json…] writes FOLDER/TARGET/NAME.
 *
 * Models are headers without data: of every architecture, whole and in two files, with the keys that any of them asks
 * for. Each is opened here, so that a seed which no longer gets past the first checks is an error.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gguf_image.h"

#include "arch.h"
#include "batch_line.h"
#include "front_wire.h"
#include "plan_json.h"
#include "pretokenizer.h"
#include "profile.h"
#include "tokenizer.h"
#include "wire.h"

#include <stdio.h>
#include <sys/stat.h>
#include <xxhash.h>

enum { PATH_SIZE = 512, LAYERS = 2, HIDDEN = 64, FFN = 64, HEADS = 4, KV_HEADS = 2, VOCAB = 288, CONTEXT = 64 };

static const char *folder;

static void check(bool good, const char *what) {
    if (good) return;
    fprintf(stderr, "fuzz_seeds: %s: %s\n", what, pen_last_error());
    exit(1);
}

static void write_seed(const char *target, const char *name, const void *first, size_t first_bytes, const void *second,
                       size_t second_bytes) {
    char made[PATH_SIZE];
    snprintf(made, sizeof made, "%s/%s", folder, target);
    mkdir(made, 0777);
    snprintf(made, sizeof made, "%s/%s/%s", folder, target, name);
    FILE *file = fopen(made, "wb");
    check(file && fwrite(first, 1, first_bytes, file) == first_bytes &&
              fwrite(second, 1, second_bytes, file) == second_bytes && fclose(file) == 0,
          made);
}

/* ---- Vocabularies ------------------------------------------------------------------------------------------------ */

static void key_strings(image *f, const char *name, const char *const *strings, size_t count) {
    key_array(f, name, STRING, count);
    for (size_t i = 0; i < count; i++) put_string(f, strings[i]);
}

/* Byte-level BPE: the alphabet, some merges, some special tokens, and tokens that are only there. VOCAB in all. */
static void put_bpe(image *f, const char *pre) {
    static const char *const merges[] = {"h e", "l l", "he ll", "hell o", "\304\240 w", "o r", "\304\240w or", "1 2"};
    static const char *const merged[] = {"he", "ll", "hell", "hello", "\304\240w", "or", "\304\240wor", "12"};
    static const char *const special[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>"};
    enum { MERGES = sizeof merges / sizeof *merges, SPECIAL = sizeof special / sizeof *special };
    key_string(f, "tokenizer.ggml.model", "gpt2");
    key_string(f, "tokenizer.ggml.pre", pre);
    key_strings(f, "tokenizer.ggml.merges", merges, MERGES);
    key_array(f, "tokenizer.ggml.tokens", STRING, VOCAB);
    int next = 0x100;
    for (int byte = 0; byte < 256; byte++) {
        bool printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
        int character = printable ? byte : next++;
        char text[3] = {(char)character};
        if (character >= 0x80) {
            text[0] = (char)(0xc0 | character >> 6);
            text[1] = (char)(0x80 | (character & 0x3f));
        }
        put_string(f, text);
    }
    for (int i = 0; i < MERGES; i++) put_string(f, merged[i]);
    for (int i = 0; i < SPECIAL; i++) put_string(f, special[i]);
    for (int i = 256 + MERGES + SPECIAL; i < VOCAB; i++) {
        char text[16];
        snprintf(text, sizeof text, "<unused%d>", i);
        put_string(f, text);
    }
    key_array(f, "tokenizer.ggml.token_type", I32, VOCAB);
    for (int i = 0; i < VOCAB; i++) put_u32(f, i < 256 + MERGES ? 1 : i < 256 + MERGES + SPECIAL ? (i & 1 ? 3 : 4) : 5);
    key_u32(f, "tokenizer.ggml.bos_token_id", 256 + MERGES);
    key_u32(f, "tokenizer.ggml.eos_token_id", 256 + MERGES + 2);
    key_bool(f, "tokenizer.ggml.add_bos_token", true);
}

/* The file's last bytes are the hash of the others, by which fuzz_tokenizer.c sees that nobody has changed it. */
static void write_tokenizer(const char *name, image *f) {
    static const char text[] = "hello wor12 <|im_start|>k\303\244se\r\n  <tool>\360\237\246\231 \377\300 1234,56 It's";
    uint64_t hash = XXH64(f->bytes, f->length, 0);
    put_u64(f, hash);
    pen_gguf *gguf = opened(f);
    pen_tokenizer *tokenizer;
    check(pen_tokenizer_open(gguf, &tokenizer) == PEN_OK, name);
    pen_tokenizer_close(tokenizer);
    pen_gguf_close(gguf);
    write_seed("tokenizer", name, text, sizeof text - 1, f->bytes, f->length);
}

/* SentencePiece's BPE: three special tokens, the bytes, and pieces with scores. */
static void put_spm(image *f) {
    static const char *const special[] = {"<unk>", "<s>", "</s>", "<tool>"};
    static const char *const pieces[] = {"\342\226\201",
                                         "h",
                                         "e",
                                         "l",
                                         "o",
                                         "w",
                                         "r",
                                         "\342\226\201h",
                                         "ll",
                                         "\342\226\201he",
                                         "or",
                                         "\342\226\201wor",
                                         "\342\226\201w",
                                         "1",
                                         "2",
                                         "\303\244"};
    enum { SPECIAL = sizeof special / sizeof *special, PIECES = sizeof pieces / sizeof *pieces };
    enum { BYTES = 256, COUNT = SPECIAL + BYTES + PIECES };
    key_string(f, "tokenizer.ggml.model", "llama");
    key_array(f, "tokenizer.ggml.tokens", STRING, COUNT);
    for (int i = 0; i < SPECIAL; i++) put_string(f, special[i]);
    for (int byte = 0; byte < BYTES; byte++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)byte);
        put_string(f, text);
    }
    for (int i = 0; i < PIECES; i++) put_string(f, pieces[i]);
    key_array(f, "tokenizer.ggml.scores", F32, COUNT);
    for (int i = 0; i < COUNT; i++) put(f, &(float){i < SPECIAL + BYTES ? 0 : (float)(SPECIAL + BYTES - i)}, 4);
    key_array(f, "tokenizer.ggml.token_type", I32, COUNT);
    for (int i = 0; i < COUNT; i++)
        put_u32(f, i == 0 ? 2 : i < SPECIAL - 1 ? 3 : i < SPECIAL ? 4 : i < SPECIAL + BYTES ? 6 : 1);
    key_u32(f, "tokenizer.ggml.unknown_token_id", 0);
    key_u32(f, "tokenizer.ggml.bos_token_id", 1);
    key_u32(f, "tokenizer.ggml.eos_token_id", 2);
    key_bool(f, "tokenizer.ggml.add_bos_token", true);
    key_bool(f, "tokenizer.ggml.add_eos_token", true);
    key_bool(f, "tokenizer.ggml.add_space_prefix", true);
    key_bool(f, "tokenizer.ggml.remove_extra_whitespaces", false);
}

static void write_tokenizers(void) {
    image f;
    char names[2048], *rest = names;
    snprintf(names, sizeof names, "%s", pen_pretokenizer_names());
    for (char *pre; (pre = strsep(&rest, ", ")) != NULL;) {
        if (!*pre) continue;
        begin(&f);
        put_bpe(&f, pre);
        finish(&f, 32, 0);
        write_tokenizer(pre, &f);
    }
    begin(&f);
    put_spm(&f);
    finish(&f, 32, 0);
    write_tokenizer("sentencepiece", &f);
}

/* ---- Models ------------------------------------------------------------------------------------------------------ */

static void put_shape(image *f, const char *arch) {
    static const struct {
        const char *name;
        uint32_t value;
    } numbers[] = {
        {"block_count", LAYERS},
        {"context_length", CONTEXT},
        {"embedding_length", HIDDEN},
        {"feed_forward_length", FFN},
        {"attention.head_count", HEADS},
        {"attention.head_count_kv", KV_HEADS},
        {"attention.key_length", HIDDEN / HEADS},
        {"attention.value_length", HIDDEN / HEADS},
        {"attention.sliding_window", CONTEXT / 2},
        {"attention.sliding_window_pattern", 2},
        {"rope.dimension_count", HIDDEN / HEADS},
        {"rope.scaling.original_context_length", CONTEXT / 2},
        {"expert_count", 0},
    };
    static const struct {
        const char *name;
        float value;
    } reals[] = {
        {"attention.layer_norm_rms_epsilon", 1e-5f},
        {"attention.layer_norm_epsilon", 1e-5f},
        {"rope.freq_base", 10000},
        {"rope.freq_base_swa", 10000},
        {"rope.scaling.factor", 2},
        {"rope.scaling.attn_factor", 1},
        {"rope.scaling.yarn_beta_fast", 32},
        {"rope.scaling.yarn_beta_slow", 1},
    };
    char name[80];
    key_string(f, "general.architecture", arch);
    key_string(f, "general.name", "A seed");
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        snprintf(name, sizeof name, "%s.%s", arch, numbers[i].name);
        key_u32(f, name, numbers[i].value);
    }
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
        snprintf(name, sizeof name, "%s.%s", arch, reals[i].name);
        key(f, name, F32);
        put(f, &reals[i].value, 4);
    }
    snprintf(name, sizeof name, "%s.rope.scaling.type", arch);
    key_string(f, name, "yarn");
}

/* Tensors [first, last) of the model's, without their data; returns how many there are. */
static int put_tensors(image *f, const pen_model *model, int first, int last) {
    uint64_t offset = 0;
    int count = 0;
    for (int u = 0; u < pen_model_unit_count(model); u++)
        for (int i = 0, next; i < pen_model_tensor_count(model, u); i = next) {
            pen_tensor_info t = pen_model_tensor(model, u, i);
            next = i + 1;
            if (t.tied && u > 0) continue;
            for (; next < pen_model_tensor_count(model, u); next++) { /* one in the file, several here */
                pen_tensor_info part = pen_model_tensor(model, u, next);
                if (strcmp(part.name, t.name) != 0) break;
                *(t.rows > 1 ? &t.rows : &t.cols) += t.rows > 1 ? part.rows : part.cols;
                t.bytes += part.bytes;
            }
            if (count >= first && count < last) {
                tensor(f, t.name, (uint32_t)pen_type_get(t.type)->gguf, offset, t.rows > 1 ? 2 : 1,
                       (uint64_t[]){(uint64_t)t.cols, (uint64_t)t.rows});
                offset += (t.bytes + 31) / 32 * 32;
            }
            count++;
        }
    return count;
}

static void put_split(image *f, uint16_t no, int tensors) {
    key(f, "split.no", U16);
    put(f, &no, 2);
    key(f, "split.count", U16);
    put(f, &(uint16_t){2}, 2);
    key(f, "split.tensors.count", I32);
    put(f, &tensors, 4);
}

static void write_model(const char *arch) {
    char spec[256], name[80];
    pen_model *made, *read;
    snprintf(spec, sizeof spec, "synthetic:%s:layers=%d,hidden=%d,ffn=%d,heads=%d,kv_heads=%d,vocab=%d,context=%d",
             arch, LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, VOCAB, CONTEXT);
    check(pen_model_open(spec, &made) == PEN_OK, spec);
    image whole, parts[2];
    begin(&whole);
    put_shape(&whole, arch);
    put_bpe(&whole, "smollm");
    int count = put_tensors(&whole, made, 0, INT32_MAX);
    finish(&whole, 32, 0);
    pen_gguf_close(opened(&whole)); /* writes `path` */
    check(pen_model_open(path, &read) == PEN_OK, arch);
    pen_model_close(read);
    write_seed("gguf", arch, whole.bytes, whole.length, "", 0);

    for (int no = 0; no < 2; no++) {
        begin(&parts[no]);
        if (no == 0) put_shape(&parts[no], arch);
        put_split(&parts[no], (uint16_t)no, count);
        put_tensors(&parts[no], made, no ? count / 2 : 0, no ? INT32_MAX : count / 2);
        finish(&parts[no], 32, 64);
    }
    snprintf(name, sizeof name, "%s-split", arch);
    write_seed("gguf", name, parts[0].bytes, parts[0].length, parts[1].bytes, parts[1].length);
    pen_model_close(made);
}

/* One value of each kind, and data. */
static void write_values(void) {
    image f;
    begin(&f);
    key_u32(&f, "general.alignment", 16);
    for (uint32_t type = U8; type <= F64; type++) {
        char name[16];
        snprintf(name, sizeof name, "value %u", type);
        if (type == STRING || type == ARRAY) continue;
        key(&f, name, type);
        put_u64(&f, 0);
        f.length -= type == U8 || type == I8 || type == BOOL ? 7 : type == U16 || type == I16 ? 6 : type < U64 ? 4 : 0;
        key_array(&f, strcat(name, "s"), type, 0);
    }
    tensor(&f, "f32", 0, 0, 1, (uint64_t[]){8});
    tensor(&f, "q8_0", 8, 32, 2, (uint64_t[]){32, 1});
    tensor(&f, "unknown", 16, 80, 4, (uint64_t[]){256, 1, 1, 1});
    finish(&f, 16, 100);
    pen_gguf_close(opened(&f));
    write_seed("gguf", "values", f.bytes, f.length, "", 0);
}

/* ---- Plans and profiles ------------------------------------------------------------------------------------------ */

static void write_plans(int count, char **files) {
    static const uint8_t options[4] = {3, 1, 255, 255};
    for (int i = 0; i < count; i++) {
        static char text[1 << 16];
        FILE *file = fopen(files[i], "rb");
        size_t length = file ? fread(text, 1, sizeof text, file) : 0;
        pen_plan *plan = NULL;
        check(file && fclose(file) == 0 && pen_plan_from_json(files[i], text, length, &plan) == PEN_OK, files[i]);
        char name[16];
        snprintf(name, sizeof name, "%d", i);
        write_seed("plan", name, options, sizeof options, text, length);
        check(pen_plan_solve(plan, &(pen_plan_options){0}) == PEN_OK, files[i]);
        char *solved;
        check(pen_plan_to_json(plan, &solved) == PEN_OK, files[i]);
        snprintf(name, sizeof name, "%d-solved", i);
        write_seed("plan", name, options, sizeof options, solved, strlen(solved));
        free(solved);
        pen_plan_destroy(plan);
    }
}

static void write_profile(void) {
    pen_model *model;
    check(pen_model_open("synthetic:llama:layers=2,hidden=32,ffn=64,heads=2,vocab=64", &model) == PEN_OK, "profile");
    pen_profile *profile = calloc(1, sizeof *profile + 4 * sizeof profile->classes[0]);
    check(profile != NULL, "profile");
    strcpy(profile->device, "a device");
    profile->class_count = pen_model_unit_count(model);
    for (int u = 0; u < profile->class_count; u++) {
        pen_profile_class *class = &profile->classes[u];
        *class = (pen_profile_class){.hash = pen_model_unit(model, u)->class_hash,
                                     .row_count = 4,
                                     .context_count = 2,
                                     .rows = {1, 4, 16, 64},
                                     .contexts = {0, 32}};
        for (int c = 0; c < 2; c++)
            for (int r = 0; r < 4; r++) class->points[c][r] = (pen_profile_point){r + 1, r + 1, 0, r + 1, r + 1, 3};
    }
    char *text = pen_profile_encode(profile);
    check(text != NULL, "profile");
    write_seed("plan", "profile", "\0\0\0", 4, text, strlen(text));
    free(text);
    free(profile);
    pen_model_close(model);
}

/* ---- Messages ---------------------------------------------------------------------------------------------------- */

static void write_messages(void) {
    enum { EPOCH = 3 };                                       /* fuzz_wire.c's */
    static const uint8_t shape[6] = {63, 16, 4, 20, 70, 250}; /* its limits: 64 rows, 5 sequences, context 336, … */
    const pen_wire_limits limits = {.rows = 64,
                                    .logit_rows = 16,
                                    .sequences = 5,
                                    .context = 336,
                                    .vocab = 1001,
                                    .kv = {.count = 1, .blocks = {71}},
                                    .plan_epoch = EPOCH};
    static unsigned char message[1 << 16];
    pen_step step;
    check(pen_step_create(&limits, &step) == PEN_OK, "step");
    step.number = 7;
    step.completed = 5;
    step.rows = 6, step.run_count = 2, step.logit_count = 2, step.block_count = 1;
    step.runs[0] = (pen_step_run){.sequence = 1,
                                  .epoch = 2,
                                  .position = 16,
                                  .rows = 5,
                                  .logit_first = 4,
                                  .logit_rows = 1,
                                  .table_first = 1,
                                  .table_count = 1};
    step.runs[1] = (pen_step_run){.sequence = 2, .epoch = 1, .position = 3, .rows = 1, .logit_rows = 1};
    step.blocks[0] = 9;
    step.copy_count = 1;
    step.copies[0] = (pen_kv_copy){.group = 0, .from = 9, .to = 10};
    for (int i = 0; i < 2; i++) step.picks[i] = (pen_pick){.top_p = 1, .target = -1, .top_logprobs = i};
    size_t bytes = pen_wire_encode_step(&step, EPOCH, message);
    check(bytes <= sizeof message && pen_wire_decode_step(message, bytes, &limits, &step) == PEN_OK, "step");
    write_seed("wire", "step", shape, sizeof shape, message, bytes);
    pen_step_destroy(&step);

    pen_choice choices[3] = {{.token = 5, .argmax = 5}, {.token = 1, .argmax = 2}, {.bad_logits = 1}};
    for (int top = 0; top < 3; top++) {
        pen_pick picks[3] = {{.top_logprobs = top}, {.top_logprobs = 0}, {.top_logprobs = 2 * top}};
        char name[16];
        snprintf(name, sizeof name, "choices-%d", top);
        bytes = pen_wire_encode_choices(7, choices, picks, 3, EPOCH, message);
        write_seed("wire", name, shape, sizeof shape, message, bytes);
    }
    const int32_t ids[] = {5, 6, 7, 8, 9};
    const pen_logit_bias biases[] = {{3, -2}, {4, 0.5f}};
    const pen_told told[] = {{1, 2, 0, 5, {1.5f, 1, 0.5f, 3, 9, 2, 1}, biases, ids, ids},
                             {2, 1, 6, 2, {1, 0.5f, 0, 3, 0, 0, 0}, NULL, NULL, ids}};
    bytes = pen_wire_encode_history(7, told, 2, EPOCH, message);
    write_seed("wire", "history", shape, sizeof shape, message, bytes);
    for (int type = 1; type < PEN_MESSAGE_TYPES; type++) {
        char name[16];
        snprintf(name, sizeof name, "plain-%d", type);
        bytes = pen_wire_encode_plain((pen_message_type)type, 7, EPOCH, "0123456789abcdef", type % 3 * 8, message);
        write_seed("wire", name, shape, sizeof shape, message, bytes);
    }
}

static void write_letters(void) {
    static const int32_t ids[] = {5, 6, 7, 8, 9};
    static const pen_logit_bias biases[] = {{3, -2}, {4, 0.5f}};
    pen_queued entries[3];
    for (int i = 0; i < 3; i++) {
        pen_request request = {.prompt = ids,
                               .prompt_count = 3,
                               .given = i,
                               .max_tokens = 9,
                               .stop_ids = ids,
                               .stop_count = i,
                               .biases = biases,
                               .bias_count = 2 - i};
        pen_blob payload;
        check(pen_payload_encode(&request, &payload) == PEN_OK, "payload");
        entries[i] = (pen_queued){.stamp = {7 + i, i, 1},
                                  .arrived_ns = 10,
                                  .deadline_ns = i * 100,
                                  .cost_ms = 3,
                                  .prompt_ms = 1,
                                  .payload = payload.data,
                                  .bytes = payload.bytes};
    }
    pen_blob letter;
    check(pen_letter_encode_requests(PEN_LETTER_SUBMIT, entries, 1, 20, &letter) == PEN_OK, "submit");
    write_seed("front", "submit", letter.data, letter.bytes, "", 0);
    free(letter.data);
    check(pen_letter_encode_requests(PEN_LETTER_GIVE, entries, 3, 20, &letter) == PEN_OK, "give");
    write_seed("front", "give", letter.data, letter.bytes, "", 0);
    free(letter.data);
    for (int i = 0; i < 3; i++) free(entries[i].payload);

    pen_notices notices = {0};
    for (int kind = PEN_NOTICE_STARTED; kind <= PEN_NOTICE_DONE; kind++) {
        pen_notice notice = {.stamp = {7, 0, 1}, .kind = (pen_notice_kind)kind, .top = kind * 2};
        check(pen_notices_add(&notices, &notice) == PEN_OK, "notices");
    }
    letter = pen_notices_letter(&notices);
    write_seed("front", "notices", letter.data, letter.bytes, "", 0);
    pen_notices_free(&notices);

    for (int kind = 1; kind < PEN_LETTER_KINDS; kind++) {
        char name[16];
        snprintf(name, sizeof name, "plain-%d", kind);
        check(pen_letter_encode((pen_letter_kind)kind, "0123456789abcdef", (size_t)(kind % 3) * 8, &letter) == PEN_OK,
              name);
        write_seed("front", name, letter.data, letter.bytes, "", 0);
        free(letter.data);
    }
}

/* ---- Lines of a batch -------------------------------------------------------------------------------------------- */

static void write_lines(void) {
    static const char *const bodies[] = {
        "\"prompt\":\"a text\"",
        "\"prompt\":[1,2,3],\"n\":3,\"best_of\":3,\"seed\":-7,\"top_k\":40,\"top_p\":0.5,\"min_p\":0.1",
        "\"prompt\":[\"a\",\"b\"],\"echo\":true,\"logprobs\":5,\"max_tokens\":0,\"user\":\"u\",\"stream\":false",
        "\"prompt\":[[1],[2,3]],\"logit_bias\":{\"7\":-100,\"8\":2.5},\"stop\":[\"u\",\"v\"],\"suffix\":null",
        "\"model\":\"m\",\"prompt\":\"\",\"max_tokens\":9,\"min_tokens\":2,\"temperature\":0,\"stop\":\"s\"",
        "\"prompt\":\"x\",\"repetition_penalty\":1.1,\"presence_penalty\":1,\"ignore_eos\":true",
        "\"prompt\":\"x\",\"priority\":1",
    };
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        char name[16], text[1024];
        snprintf(name, sizeof name, "line-%zu", i);
        snprintf(text, sizeof text,
                 "{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{%s}}", bodies[i]);
        pen_batch_line line;
        check(pen_batch_line_parse(text, strlen(text), &line) == PEN_OK, text);
        pen_batch_line_free(&line);
        write_seed("batch", name, text, strlen(text), "", 0);
    }
}

int main(int argc, char **argv) {
    check(argc >= 2, "fuzz_seeds FOLDER [PROFILE.json…]");
    folder = argv[1];
    check(make_path(NULL) == 0, path);
    write_values();
#define PEN_ARCH(name) write_model(#name);
#include "arch.def"
#undef PEN_ARCH
    remove_path(NULL);
    check(make_path(NULL) == 0, path);
    write_tokenizers();
    remove_path(NULL);
    write_plans(argc - 2, argv + 2);
    write_profile();
    write_messages();
    write_letters();
    write_lines();
    return 0;
}
