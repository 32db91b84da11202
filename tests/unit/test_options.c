/* The option table: values, the environment, contradictions, errors that name the option, help, completion. */
#include "help.h"
#include "log.h"
#include "near.h"
#include "option_table.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { ARGUMENTS_MAX = 48 };

/* Parses a command line written as words separated by single blanks. */
static pen_status parse(const char *line, pen_options *options) {
    static char words[1024];
    char *argv[ARGUMENTS_MAX];
    int argc = 0;
    snprintf(words, sizeof words, "%s", line);
    for (char *word = strtok(words, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
    return pen_options_parse(argc, argv, true, options);
}

static void accept(const char *line, pen_options *options) {
    if (parse(line, options) != PEN_OK) fail_msg("%s: %s", line, pen_last_error());
}

/* The line is refused as wrong usage, in words that contain `why`. */
static void refuse(const char *line, const char *why) {
    pen_options options;
    assert_int_equal(parse(line, &options), PEN_USAGE);
    if (!strstr(pen_last_error(), why)) fail_msg("%s: '%s' lacks '%s'", line, pen_last_error(), why);
    assert_null(strchr(pen_last_error(), '\n'));
}

static void test_defaults(void **state) {
    (void)state;
    pen_options o;
    accept("penstock run m.gguf -p hello", &o);
    assert_int_equal(o.command, PEN_COMMAND_run);
    assert_string_equal(o.config.model, "m.gguf");
    assert_string_equal(o.prompt, "hello");
    assert_null(o.file);
    assert_int_equal(o.max_tokens, 128);
    assert_true(o.temperature == 0.0F && o.top_p == 1.0F && o.min_p == 0.0F);
    assert_int_equal(o.config.workload_prompt, 512);
    assert_int_equal(o.config.workload_output, 128);
    assert_string_equal(o.config.device, "auto");
    assert_string_equal(o.config.isa, "auto");
    assert_string_equal(o.config.link, "auto");
    assert_string_equal(o.config.method, "dp");
    assert_string_equal(o.config.cache, "");
    assert_false(o.config.exact);
    assert_false(o.config.kv_q8_0);
    assert_int_equal(o.config.log_level, PEN_LOG_WARN);
    assert_int_equal(o.config.threads, 0);
    assert_true(o.config.memory == 0 && o.config.kv_tokens == 0);
}

static void test_values(void **state) {
    (void)state;
    pen_options o;
    accept(
        "penstock run m -f text -n 7 --temperature=0.75 --top-k=40 --top-p .9 --min-p 5e-2 --seed 18446744073709551615 "
        "--ignore-eos --json --logprobs 10 -c 2048 -t2",
        &o);
    assert_string_equal(o.file, "text");
    assert_int_equal(o.max_tokens, 7);
    assert_true(o.temperature == 0.75F && o.top_p == 0.9F && o.min_p == 0.05F);
    assert_int_equal(o.top_k, 40);
    assert_true(o.seed == UINT64_MAX);
    assert_true(o.config.ignore_eos && o.json);
    assert_int_equal(o.logprobs, 10);
    assert_int_equal(o.config.max_model_len, 2048);
    assert_int_equal(o.config.threads, 2);

    accept("penstock plan --profile p.json --pp=8 --kv-tokens 1000000000000 --workload 100:20 --method equal-time "
           "--activations f32 --log-level debug --svg out.svg --cache -",
           &o);
    assert_int_equal(o.config.pipeline_parallel, 8);
    assert_true(o.config.kv_tokens == 1000000000000);
    assert_int_equal(o.config.workload_prompt, 100);
    assert_int_equal(o.config.workload_output, 20);
    assert_string_equal(o.config.method, "equal-time");
    assert_true(o.config.exact);
    assert_int_equal(o.config.log_level, PEN_LOG_DEBUG);
    assert_string_equal(o.svg, "out.svg");
    assert_string_equal(o.config.cache, "-");

    accept("penstock run m -p x --kv-type q8_0", &o);
    assert_true(o.config.kv_q8_0);
    refuse("penstock run m -p x --kv-type q8_0 --activations f32", "--kv-type q8_0 contradicts it");

    accept("penstock plan m --layers 10,10,12", &o);
    assert_string_equal(o.config.layers, "10,10,12");
    assert_string_equal(o.config.method, "custom");
    accept("penstock bench m --concurrency 1,4,32 --prompt-tokens 100 --request-rate 2.5 --length-spread 0.8", &o);
    assert_int_equal(o.concurrency.count, 3);
    assert_memory_equal(o.concurrency.values, ((int[]){1, 4, 32}), 3 * sizeof(int));
    assert_true(o.request_rate == 2.5);
    assert_true(o.length_spread == 0.8 && o.burstiness == 1);
    assert_int_equal(o.config.workload_prompt, 100); /* the plan is for the load */
    assert_int_equal(o.config.workload_output, 128);
    assert_int_equal(o.config.max_num_seqs, 32);
    accept("penstock bench m --output-tokens 10,100,50 --request-rate 3 --burstiness 0.25", &o);
    assert_int_equal(o.output_tokens.count, 3);
    assert_memory_equal(o.output_tokens.values, ((int[]){10, 100, 50}), 3 * sizeof(int));
    assert_int_equal(o.config.workload_output, 53);
    assert_true(o.burstiness == 0.25);
    accept("penstock bench m --workload 7:8 --max-num-seqs 4", &o);
    assert_int_equal(o.concurrency.count, 2);
    assert_int_equal(o.config.workload_prompt, 7);
    assert_int_equal(o.config.workload_output, 8);
    assert_int_equal(o.config.max_num_seqs, 4);
    /* A simulated device stands for the model; to plan it is the same as its profile. */
    accept("penstock run --device sim:p.json -p x --time-scale 0.5", &o);
    assert_string_equal(o.config.device, "sim:p.json");
    assert_string_equal(o.config.model, "");
    assert_true(o.config.time_scale == 0.5);
    accept("penstock plan --device sim:p.json", &o);
    assert_string_equal(o.config.profile, "p.json");

    accept("penstock perplexity -m m -f t --tokens 64 --step-timeout 2.5", &o);
    assert_string_equal(o.config.model, "m");
    assert_int_equal(o.tokens, 64);
    assert_true(o.config.step_timeout_s == 2.5);
}

static void test_sampling(void **state) {
    (void)state;
    pen_options o;
    accept("penstock run m -p x", &o);
    assert_true(o.repetition_penalty == 1 && o.presence_penalty == 0 && o.frequency_penalty == 0);
    assert_true(o.stop.count == 0 && o.logit_bias.count == 0 && o.min_tokens == 0 && o.prompt_logprobs == 0);
    assert_int_equal(o.choices, 1);
    accept("penstock run m -p x --choices 7", &o);
    assert_int_equal(o.choices, 7);
    accept("penstock run m -p x --repetition-penalty 1.25 --presence-penalty -2 --frequency-penalty 0.5 --stop a,b "
           "--stop=-- --logit-bias 7:-100,11:2.5 --logit-bias 0:1e1 --min-tokens 9 -n 9 --prompt-logprobs 4 --json",
           &o);
    assert_true(o.repetition_penalty == 1.25F && o.presence_penalty == -2 && o.frequency_penalty == 0.5F);
    assert_int_equal(o.stop.count, 2);
    assert_string_equal(o.stop.list[0], "a,b");
    assert_string_equal(o.stop.list[1], "--");
    assert_int_equal(o.logit_bias.count, 3);
    assert_true(o.logit_bias.list[0].token == 7 && o.logit_bias.list[0].value == -100);
    assert_true(o.logit_bias.list[1].token == 11 && o.logit_bias.list[1].value == 2.5F);
    assert_true(o.logit_bias.list[2].token == 0 && o.logit_bias.list[2].value == 10);
    assert_int_equal(o.min_tokens, 9);
    assert_int_equal(o.prompt_logprobs, 4);

    static const char *const biases[] = {"7",    "7:",   "7:x",     ":1",   "7:101",        "7:-100.5", "7:nan",
                                         "7:1,", ",7:1", "7:1;8:2", "-1:1", "2147483648:1", "1.5:1",    "7:1:2"};
    for (size_t i = 0; i < sizeof biases / sizeof biases[0]; i++) {
        char line[64];
        snprintf(line, sizeof line, "penstock run m -p x --logit-bias=%s", biases[i]);
        refuse(line, "--logit-bias: '");
    }
    refuse("penstock run m -p x --logit-bias 7:1 --logit-bias 8:1,7:2", "token 7 has two values");
    refuse("penstock run m -p x --stop=", "--stop needs a value that is not empty");
    refuse("penstock run m -p x --repetition-penalty 0", "'0' is not a number from 0.01 to 100");
    refuse("penstock run m -p x --presence-penalty 2.1", "--presence-penalty");
    refuse("penstock run m -p x --frequency-penalty inf", "--frequency-penalty");
    refuse("penstock run m -p x --min-tokens 9 -n 8", "--min-tokens 9 is more than --max-tokens 8");
    refuse("penstock run m -p x --choices 0", "--choices");
    refuse("penstock run m -p x --choices 1025", "from 1 to 1024");
    refuse("penstock run m -p x --choices=two", "--choices: 'two'");
    refuse("penstock bench m --choices 2", "--choices");
    refuse("penstock run m -p x --prompt-logprobs 3", "--prompt-logprobs is part of the JSON object");
    refuse("penstock run m -p x --json --prompt-logprobs 21", "from 0 to 20");
    refuse("penstock perplexity m -f x --stop a", "--stop belongs to penstock run");
    /* More than there is room for. */
    char line[512] = "penstock run m -p x", *end = line + strlen(line);
    for (int i = 0; i < 17; i++) end += sprintf(end, " --stop=%d", i);
    refuse(line, "--stop is given more than 16 times");
}

static void test_sizes(void **state) {
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } sizes[] = {
        {"1", 1},     {"4096B", 4096}, {"512MiB", 512ULL << 20}, {"80GiB", 80ULL << 30}, {"80g", 80ULL << 30},
        {"2K", 2048}, {"2kb", 2000},   {"1.5GB", 1500000000},    {"0.5TiB", 1ULL << 39},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        pen_options o;
        char line[128];
        snprintf(line, sizeof line, "penstock plan m --memory %s", sizes[i].text);
        accept(line, &o);
        assert_true(o.config.memory == sizes[i].bytes);
    }
    refuse("penstock plan m --memory 12XiB", "--memory: '12XiB' is not a size");
    refuse("penstock plan m --memory 0", "--memory");
    refuse("penstock plan m --memory -1GiB", "--memory");
    refuse("penstock plan m --memory 8193TiB", "--memory"); /* more than JSON has exact numbers for */
    refuse("penstock plan m --memory 1GiBs", "--memory");
}

static void test_bad_values(void **state) {
    (void)state;
    refuse("penstock run m -p x -n twelve", "-n: 'twelve' is not a whole number from 1 to 2147483647");
    refuse("penstock run m -p x -n -1", "-n: '-1' is not a whole number");
    refuse("penstock run m -p x -n 12x", "-n");
    refuse("penstock run m -p x -n 99999999999999999999", "-n");
    refuse("penstock run m -p x --max-tokens=", "--max-tokens: ''");
    refuse("penstock run m -p x --temperature warm", "--temperature");
    refuse("penstock run m -p x --temperature -0.5", "--temperature: '-0.5' is not a number from 0 to 100");
    refuse("penstock run m -p x --temperature nan", "--temperature");
    refuse("penstock run m -p x --top-p 1.5", "--top-p");
    refuse("penstock run m -p x --seed -1", "--seed");
    refuse("penstock run m -p x --seed 18446744073709551616", "--seed");
    refuse("penstock run m -p x --json --logprobs 21", "--logprobs: '21' is not a whole number from 0 to 20");
    refuse("penstock run m -p x --workload 512", "--workload: '512' is not two whole numbers");
    refuse("penstock run m -p x --workload 512:0", "--workload");
    refuse("penstock run m -p x --workload :5", "--workload");
    refuse("penstock bench m --concurrency 1,x", "--concurrency: '1,x' is not a list as 1,4,16");
    refuse("penstock bench m --concurrency 1,,2", "--concurrency");
    refuse("penstock bench m --concurrency 1,2,", "--concurrency");
    refuse("penstock bench m --concurrency 0", "each from 1 to 65536");
    refuse("penstock bench m --concurrency 1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", "more than 16 numbers");
    refuse("penstock run m -p x --device gpu", "--device: 'gpu' is not one of auto|cpu|cuda|sim:PROFILE.json");
    refuse("penstock run -p x --device sim:", "--device sim: needs the profile's file");
    refuse("penstock run m -p x --device sim:p.json", "--device sim:p.json stands for the model, and MODEL is 'm'");
    refuse("penstock run -p x --device sim:p.json --profile q.json", "exclude each other");
    refuse("penstock run -p x --device sim:p.json --time-scale 0", "--time-scale");
    refuse("penstock run -p x --device cpu", "run needs a MODEL");
    refuse("penstock batch -i a -o b", "batch needs a MODEL");
    refuse("penstock batch m -i a", "batch needs -i FILE and -o FILE");
    refuse("penstock batch m -i - -o b", "--input - cannot be");
    refuse("penstock batch m -i a -o -", "--output - cannot be");
    refuse("penstock run m -p x -o b", "-o belongs to penstock batch");
    refuse("penstock run m -p x --json=yes", "--json takes no value");
    refuse("penstock run m -p", "-p needs a value: TEXT");
    refuse("penstock run m -p --json", "-p needs a value, and --json is an option");
    refuse("penstock run --model= -p x", "--model needs a value");
}

static void test_words(void **state) {
    (void)state;
    pen_options o;
    accept("penstock run -p -dash m", &o); /* begins with a dash, but is no option */
    assert_string_equal(o.prompt, "-dash");
    accept("penstock run --prompt=--json -- -m", &o);
    assert_string_equal(o.prompt, "--json");
    assert_string_equal(o.config.model, "-m");
    assert_false(o.json);
    accept("penstock run m -f -", &o);
    assert_string_equal(o.file, "-");

    refuse("penstock", "no command given");
    refuse("penstock rnu m -p x", "unknown command 'rnu'; did you mean run?");
    refuse("penstock frobnicate", "unknown command 'frobnicate'; see penstock --help");
    refuse("penstock --threads 2 run m", "the command comes first");
    refuse("penstock --json", "the command comes first");
    refuse("penstock run m -p x --tempratur 1", "did you mean --temperature?");
    refuse("penstock run m -p x --temp=1", "--temp; did you mean --temperature?");
    refuse("penstock run m -p x --maxtokens 3", "did you mean --max-tokens?");
    refuse("penstock run m -p x --frobnicate", "run has no option --frobnicate; see");
    refuse("penstock run m -p x -z", "run has no option -z");
    refuse("penstock run m -p x --svg f", "--svg belongs to penstock plan, not to run");
    refuse("penstock inspect m --version", "--version stands alone");
    refuse("penstock run m -p The capital of France", "unexpected 'capital'");
    refuse("penstock run m -p x --model n", "--model is given twice");
    refuse("penstock run --model n -p x m", "unexpected 'm'");
}

static void test_contradictions(void **state) {
    (void)state;
    refuse("penstock run m -p x -f y", "--prompt and --file exclude each other");
    refuse("penstock run m -p x -p y", "-p is given twice");
    refuse("penstock plan m --stages 2 --pp 2", "exclude each other");
    refuse("penstock run m", "run needs a prompt");
    refuse("penstock run -p x", "run needs a MODEL");
    refuse("penstock inspect", "inspect needs a MODEL");
    refuse("penstock plan", "plan needs a MODEL or --profile FILE");
    refuse("penstock perplexity m", "perplexity needs a text");
    refuse("penstock bench", "bench needs a MODEL");
    refuse("penstock bench m --phases --num-prompts 9", "--num-prompts contradicts it");
    refuse("penstock bench m --phases --max-num-seqs 4", "all 16 requests");
    refuse("penstock bench m --burstiness 0.5", "add --request-rate");
    refuse("penstock bench m --phases --request-rate 9", "--request-rate contradicts it");
    refuse("penstock plan m --method custom", "needs --layers");
    refuse("penstock plan m --method dp --layers 1,2", "--method dp contradicts it");
    refuse("penstock run m -p x --logprobs 3", "add --json");
    refuse("penstock perplexity m -f t --token-logprobs", "add --json");
}

static void test_too_long(void **state) {
    (void)state;
    char *name = calloc(1, PEN_PATH_MAX + 1);
    assert_non_null(name);
    memset(name, 'x', PEN_PATH_MAX);
    char *argv[] = {"penstock", "inspect", name};
    pen_options o;
    assert_int_equal(pen_options_parse(3, argv, true, &o), PEN_USAGE);
    assert_non_null(strstr(pen_last_error(), "longer than 1023 characters"));
    name[PEN_PATH_MAX - 1] = '\0';
    assert_int_equal(pen_options_parse(3, argv, true, &o), PEN_OK);
    free(name);
}

static void test_environment(void **state) {
    (void)state;
    pen_options o;
    setenv("PENSTOCK_MAX_TOKENS", "5", 1);
    setenv("PENSTOCK_IGNORE_EOS", "1", 1);
    setenv("PENSTOCK_JSON", "0", 1);
    setenv("PENSTOCK_FILE", "from-environment", 1);
    setenv("PENSTOCK_SVG", "only for plan", 1);
    setenv("PENSTOCK_HELP", "1", 1);
    accept("penstock run m", &o);
    assert_int_equal(o.max_tokens, 5);
    assert_true(o.config.ignore_eos);
    assert_false(o.json || o.help);
    assert_string_equal(o.file, "from-environment");
    assert_null(o.svg);

    accept("penstock run m -n 6 -p typed", &o); /* what is typed wins, over its contradiction as well */
    assert_int_equal(o.max_tokens, 6);
    assert_string_equal(o.prompt, "typed");
    assert_null(o.file);

    char *argv[] = {"penstock", "run", "m", "-p", "x"};
    assert_int_equal(pen_options_parse(5, argv, false, &o), PEN_OK);
    assert_int_equal(o.max_tokens, 128);

    setenv("PENSTOCK_PROMPT", "as well", 1);
    refuse("penstock run m", "exclude each other");
    setenv("PENSTOCK_MAX_TOKENS", "many", 1);
    refuse("penstock run m -p x", "PENSTOCK_MAX_TOKENS: 'many' is not a whole number");
    unsetenv("PENSTOCK_MAX_TOKENS");
    setenv("PENSTOCK_IGNORE_EOS", "maybe", 1);
    refuse("penstock run m -p x", "PENSTOCK_IGNORE_EOS: 'maybe' is not one of");
    for (int i = 0; i < pen_option_count; i++) {
        char name[PEN_ENVIRONMENT_NAME];
        pen_option_environment(&pen_option_table[i], name);
        unsetenv(name);
    }
}

/* Names and letters are unique, every default parses, and exclusion is mutual. */
static void test_table(void **state) {
    (void)state;
    for (int i = 0; i < pen_option_count; i++) {
        const pen_option *a = &pen_option_table[i];
        assert_true(a->type == PEN_OPTION_FLAG ? !a->argument : a->argument != NULL);
        assert_true(a->help[strlen(a->help) - 1] != '.');
        bool partner = a->excludes == NULL;
        for (int j = 0; j < pen_option_count; j++) {
            const pen_option *b = &pen_option_table[j];
            if (a->excludes && strcmp(a->excludes, b->name) == 0)
                partner = b->excludes && strcmp(b->excludes, a->name) == 0;
            if (i == j) continue;
            assert_string_not_equal(a->name, b->name);
            assert_true(a->letter == 0 || a->letter != b->letter);
            assert_true(!a->alias || strcmp(a->alias, b->name) != 0);
        }
        assert_true(partner);
    }
}

static char *printed(void (*print)(FILE *, pen_command, int), pen_command command, int width) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    assert_non_null(out);
    print(out, command, width);
    fclose(out);
    return text;
}

static void print_completion(FILE *out, pen_command command, int width) {
    (void)command;
    (void)width;
    pen_completion_print(out);
}

static void test_help(void **state) {
    (void)state;
    pen_options o;
    accept("penstock --help", &o);
    assert_true(o.help && o.command == PEN_COMMAND_none);
    accept("penstock run -h", &o); /* no MODEL needed to read about it */
    assert_true(o.help && o.command == PEN_COMMAND_run);

    for (pen_command c = PEN_COMMAND_none; c < PEN_COMMAND_COUNT; c++)
        for (int width = 60; width <= 120; width += 20) {
            char *text = printed(pen_help_print, c, width);
            for (int i = 0; i < pen_option_count; i++) {
                char name[64];
                snprintf(name, sizeof name, "--%s", pen_option_table[i].name);
                const char *at = strstr(text, name);
                if (pen_option_taken(&pen_option_table[i], c)) assert_non_null(at);
            }
            for (const char *line = text; *line; line += strcspn(line, "\n") + 1) {
                int columns = 0;
                for (size_t i = 0; i < strcspn(line, "\n"); i++) columns += ((unsigned char)line[i] & 0xC0) != 0x80;
                if (columns > width) fail_msg("%d columns of %d: %s", columns, width, line);
            }
            free(text);
        }
    char *text = printed(pen_help_print, PEN_COMMAND_inspect, 100);
    assert_null(strstr(text, "--prompt"));
    free(text);
}

/* Bash itself says what the script completes. */
static void test_completion(void **state) {
    (void)state;
    static const struct {
        const char *words, *expected;
    } cases[] = {
        {"penstock pe", "perplexity"},   {"penstock --ver", "--version"}, {"penstock run --max-t", "--max-tokens"},
        {"penstock plan --sv", "--svg"}, {"penstock run --sv", ""},       {"penstock run --method eq", "equal-time"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *script = printed(print_completion, PEN_COMMAND_none, 0), *command, got[64] = "";
        int length =
            asprintf(&command,
                     "bash -c '%s' <<'END'\n%sCOMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _penstock\n"
                     "echo \"${COMPREPLY[*]}\"\nEND\n",
                     "source /dev/stdin", script, cases[i].words);
        assert_true(length > 0);
        FILE *shell = popen(command, "r");
        assert_non_null(shell);
        assert_non_null(fgets(got, sizeof got, shell));
        assert_int_equal(pclose(shell), 0);
        got[strcspn(got, "\n")] = '\0';
        assert_string_equal(got, cases[i].expected);
        free(command);
        free(script);
    }
}

static void test_near(void **state) {
    (void)state;
    pen_near near = {0};
    pen_near_offer(&near, "sead", 4, "threads");
    pen_near_offer(&near, "sead", 4, NULL);
    assert_null(near.name);
    pen_near_offer(&near, "sead", 4, "seed");
    assert_string_equal(near.name, "seed");
    pen_near_offer(&near, "sead", 4, "sed"); /* as near: the first stays */
    assert_string_equal(near.name, "seed");
    near = (pen_near){0};
    pen_near_offer(&near, "tihng", 5, "thing");
    assert_int_equal(near.distance, 1);
}

int main(void) {
    unsetenv("PENSTOCK_DEVICE"); /* ctest's */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),       cmocka_unit_test(test_values),     cmocka_unit_test(test_sampling),
        cmocka_unit_test(test_sizes),          cmocka_unit_test(test_bad_values), cmocka_unit_test(test_words),
        cmocka_unit_test(test_contradictions), cmocka_unit_test(test_too_long),   cmocka_unit_test(test_environment),
        cmocka_unit_test(test_table),          cmocka_unit_test(test_help),       cmocka_unit_test(test_completion),
        cmocka_unit_test(test_near),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
