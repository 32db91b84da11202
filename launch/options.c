/* Parsing of the command line and the environment by the one option table; see options.h and option_table.h. */
#include "options.h"

#include "near.h"
#include "option_table.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct parser {
    pen_options *options;
    const char *given[PEN_OPTIONS_MAX]; /* per option: how it was spelled ("-p", "PENSTOCK_PROMPT"), or NULL */
    int arguments;                      /* positional ones */
} parser;

/* ---- Values ------------------------------------------------------------------------------------------------------ */

static void store_integer(void *field, size_t size, int64_t value) {
    if (size == sizeof(bool)) *(bool *)field = value != 0;
    if (size == sizeof(int)) *(int *)field = (int)value;
    if (size == sizeof(int64_t)) *(int64_t *)field = value;
}

/* Parses all of [text, end) as a decimal number; no blanks, no base prefixes. */
static bool parse_integer(const char *text, const char *end, int64_t *value) {
    char *stop;
    const char *digits = text + (*text == '-' || *text == '+');
    if (!isdigit((unsigned char)*digits)) return false;
    errno = 0;
    *value = strtoll(text, &stop, 10);
    return errno == 0 && stop == end;
}

static bool parse_u64(const char *text, uint64_t *value) {
    char *stop;
    if (!isdigit((unsigned char)*text)) return false;
    errno = 0;
    *value = strtoull(text, &stop, 10);
    return errno == 0 && *stop == '\0';
}

static bool parse_float(const char *text, double *value) {
    char *stop;
    if (isspace((unsigned char)*text)) return false;
    *value = strtod(text, &stop);
    return stop != text && *stop == '\0' && isfinite(*value);
}

/* "80GiB", "80G" and "80g" are powers of 1024, "80GB" of 1000, a bare number is bytes. */
static bool parse_size(const char *text, uint64_t *bytes) {
    static const char prefixes[] = "KMGT";
    char *unit;
    if (!isdigit((unsigned char)*text)) return false;
    double value = strtod(text, &unit);
    if (*unit != '\0' && strcasecmp(unit, "B") != 0) {
        const char *prefix = strchr(prefixes, toupper((unsigned char)*unit));
        if (!prefix) return false;
        bool decimal = strcasecmp(unit + 1, "B") == 0;
        if (!decimal && unit[1] != '\0' && strcasecmp(unit + 1, "iB") != 0) return false;
        value *= pow(decimal ? 1000 : 1024, (double)(prefix - prefixes + 1));
    }
    if (!(value >= 1 && value <= 0x1p53)) return false; /* which a plan can write as a number */
    *bytes = (uint64_t)value;
    return true;
}

static pen_status fail_value(const pen_option *option, const char *spelled, const char *text, const char *wanted) {
    if (option->min == option->max) return pen_fail(PEN_USAGE, "%s: '%s' is not %s", spelled, text, wanted);
    return pen_fail(PEN_USAGE, "%s: '%s' is not %s from %.15g to %.15g", spelled, text, wanted, option->min,
                    option->max);
}

static bool in_range(const pen_option *option, double value) {
    return value >= option->min && value <= option->max;
}

static bool repeats(const pen_option *option) {
    return option->type == PEN_OPTION_TEXTS || option->type == PEN_OPTION_BIASES;
}

static pen_status add_text(const char *spelled, const char *text, pen_option_texts *texts) {
    if (*text == '\0') return pen_fail(PEN_USAGE, "%s needs a value that is not empty", spelled);
    if (texts->count == PEN_OPTION_TEXTS_MAX)
        return pen_fail(PEN_USAGE, "%s is given more than %d times", spelled, PEN_OPTION_TEXTS_MAX);
    texts->list[texts->count++] = text;
    return PEN_OK;
}

/* One "ID:VALUE" in [text, end). */
static pen_status add_bias(const pen_option *option, const char *spelled, const char *text, const char *end,
                           pen_option_biases *biases) {
    const char *colon = memchr(text, ':', (size_t)(end - text));
    char value[64];
    int64_t id;
    double number = 0;
    bool good =
        colon && parse_integer(text, colon, &id) && id >= 0 && id <= INT32_MAX && (size_t)(end - colon) <= sizeof value;
    if (good) {
        snprintf(value, sizeof value, "%.*s", (int)(end - colon - 1), colon + 1);
        good = parse_float(value, &number) && in_range(option, number);
    }
    if (!good)
        return pen_fail(PEN_USAGE, "%s: '%.*s' is not a token id and a number from %g to %g, as 11:-5", spelled,
                        (int)(end - text), text, option->min, option->max);
    for (int i = 0; i < biases->count; i++)
        if (biases->list[i].token == id) return pen_fail(PEN_USAGE, "%s: token %d has two values", spelled, (int)id);
    if (biases->count == PEN_OPTION_BIASES_MAX)
        return pen_fail(PEN_USAGE, "%s: more than %d tokens", spelled, PEN_OPTION_BIASES_MAX);
    biases->list[biases->count++] = (pen_logit_bias){(int32_t)id, (float)number};
    return PEN_OK;
}

static pen_status add_biases(const pen_option *option, const char *spelled, const char *text,
                             pen_option_biases *biases) {
    for (const char *end;; text = end + 1) {
        end = text + strcspn(text, ",");
        PEN_TRY(add_bias(option, spelled, text, end, biases));
        if (*end == '\0') return PEN_OK;
    }
}

static pen_status set_value(const pen_option *option, const char *spelled, const char *text, pen_options *options) {
    void *field = (char *)options + option->offset;
    int choice = option->choices ? pen_option_choice(option->choices, text) : 0;
    if (choice < 0) return pen_fail(PEN_USAGE, "%s: '%s' is not one of %s", spelled, text, option->choices);

    int64_t integer, second;
    double number;
    switch (option->type) {
    case PEN_OPTION_FLAG: *(bool *)field = true; break;
    case PEN_OPTION_TEXT: *(const char **)field = text; break;
    case PEN_OPTION_STRING:
    case PEN_OPTION_CHOICE:
        if (*text == '\0') return pen_fail(PEN_USAGE, "%s needs a value that is not empty", spelled);
        if (strlen(text) >= option->size)
            return pen_fail(PEN_USAGE, "%s: longer than %zu characters", spelled, option->size - 1);
        strcpy(field, text);
        break;
    case PEN_OPTION_INDEX: store_integer(field, option->size, choice); break;
    case PEN_OPTION_INT:
        if (!parse_integer(text, text + strlen(text), &integer) || !in_range(option, (double)integer))
            return fail_value(option, spelled, text, "a whole number");
        store_integer(field, option->size, integer);
        break;
    case PEN_OPTION_U64:
        if (!parse_u64(text, field)) return fail_value(option, spelled, text, "a whole number from 0 to 2^64 - 1");
        break;
    case PEN_OPTION_FLOAT:
        if (!parse_float(text, &number) || !in_range(option, number))
            return fail_value(option, spelled, text, "a number");
        if (option->size == sizeof(float))
            *(float *)field = (float)number;
        else
            *(double *)field = number;
        break;
    case PEN_OPTION_SIZE:
        if (!parse_size(text, field)) return fail_value(option, spelled, text, "a size as 80GiB, 512MiB or 1000000");
        break;
    case PEN_OPTION_LIST: {
        pen_int_list *list = field;
        list->count = 0;
        for (const char *word = text;; word++) {
            const char *end = word + strcspn(word, ",");
            if (!parse_integer(word, end, &integer) || !in_range(option, (double)integer))
                return fail_value(option, spelled, text, "a list as 1,4,16 of whole numbers, each");
            if (list->count == PEN_LIST_MAX)
                return pen_fail(PEN_USAGE, "%s: more than %d numbers", spelled, PEN_LIST_MAX);
            list->values[list->count++] = (int)integer;
            word = end;
            if (*word == '\0') break;
        }
        break;
    }
    case PEN_OPTION_PAIR: {
        const char *colon = strchr(text, ':');
        if (!colon || !parse_integer(text, colon, &integer) ||
            !parse_integer(colon + 1, text + strlen(text), &second) || !in_range(option, (double)integer) ||
            !in_range(option, (double)second))
            return fail_value(option, spelled, text, "two whole numbers as 512:128, each");
        ((int *)field)[0] = (int)integer;
        ((int *)field)[1] = (int)second;
        break;
    }
    case PEN_OPTION_TEXTS: return add_text(spelled, text, field);
    case PEN_OPTION_BIASES: return add_biases(option, spelled, text, field);
    }
    return PEN_OK;
}

/* ---- The command line -------------------------------------------------------------------------------------------- */

/* The option whose long name or alias is the first `length` characters of `name`, whatever command takes it. */
enum { QUEUE_TIMEOUT_S = 30 }; /* of requests that arrive by themselves, as people's do */

static const pen_option *find_long(const char *name, size_t length) {
    for (int i = 0; i < pen_option_count; i++) {
        const char *names[] = {pen_option_table[i].name, pen_option_table[i].alias};
        for (int j = 0; j < 2; j++)
            if (names[j] && strlen(names[j]) == length && memcmp(names[j], name, length) == 0)
                return &pen_option_table[i];
    }
    return NULL;
}

static const pen_option *find_letter(char letter) {
    for (int i = 0; i < pen_option_count; i++)
        if (pen_option_table[i].letter == letter) return &pen_option_table[i];
    return NULL;
}

static const char *command_name(pen_command command) {
    return command == PEN_COMMAND_none ? "penstock" : pen_command_table[command].name;
}

static pen_status fail_unknown(const char *argument, pen_command command) {
    int length = (int)strcspn(argument, "=");
    pen_near near = {0};
    if (argument[1] == '-')
        for (int i = 0; i < pen_option_count; i++)
            if (pen_option_taken(&pen_option_table[i], command)) {
                pen_near_offer(&near, argument + 2, (size_t)length - 2, pen_option_table[i].name);
                pen_near_offer(&near, argument + 2, (size_t)length - 2, pen_option_table[i].alias);
            }
    if (near.name)
        return pen_fail(PEN_USAGE, "%s has no option %.*s; did you mean --%s?", command_name(command), length, argument,
                        near.name);
    return pen_fail(PEN_USAGE, "%s has no option %.*s; see penstock %s--help", command_name(command), length, argument,
                    command == PEN_COMMAND_none ? "" : "COMMAND ");
}

static pen_status fail_elsewhere(const pen_option *option, const char *spelled, pen_command command) {
    for (pen_command other = 1; other < PEN_COMMAND_COUNT; other++)
        if (pen_option_taken(option, other))
            return pen_fail(PEN_USAGE, "%s belongs to penstock %s, not to %s", spelled, command_name(other),
                            command == PEN_COMMAND_none ? "penstock alone: the command comes first"
                                                        : command_name(command));
    return pen_fail(PEN_USAGE, "%s stands alone: penstock %s", spelled, spelled);
}

/* Whether an argument where a value is wanted is rather the next option. Negative numbers and "-" are values. */
static bool is_option(const char *argument) {
    if (argument[0] != '-' || argument[1] == '\0') return false;
    if (argument[1] == '-') return find_long(argument + 2, strcspn(argument + 2, "=")) != NULL;
    return argument[2] == '\0' && find_letter(argument[1]) != NULL;
}

/* One option at argv[*i]; moves *i to the last argument that it used. */
static pen_status parse_option(parser *p, int argc, char *const *argv, int *i) {
    const char *argument = argv[*i];
    pen_command command = p->options->command;
    bool is_long = argument[1] == '-';
    size_t length = is_long ? strcspn(argument + 2, "=") : 1;
    const pen_option *option = is_long ? find_long(argument + 2, length) : find_letter(argument[1]);
    if (!option) return fail_unknown(argument, command);

    char spelled[PEN_ENVIRONMENT_NAME];
    snprintf(spelled, sizeof spelled, "%.*s", (int)length + (is_long ? 2 : 1), argument);
    if (!pen_option_taken(option, command)) return fail_elsewhere(option, spelled, command);

    const char *rest = argument + strlen(spelled); /* "=value" of a long option, "value" of a short one, or "" */
    const char *value = *rest == '\0' ? NULL : rest + is_long;
    if (option->type == PEN_OPTION_FLAG) {
        if (value) return pen_fail(PEN_USAGE, "%s takes no value", spelled);
    } else if (!value) {
        if (*i + 1 >= argc) return pen_fail(PEN_USAGE, "%s needs a value: %s", spelled, option->argument);
        if (is_option(argv[*i + 1]))
            return pen_fail(PEN_USAGE, "%s needs a value, and %s is an option (write --%s=%s if you mean it)", spelled,
                            argv[*i + 1], option->name, argv[*i + 1]);
        value = argv[++*i];
    }

    const char **given = &p->given[option - pen_option_table];
    if (*given && !repeats(option)) return pen_fail(PEN_USAGE, "%s is given twice", spelled);
    *given = argument;
    return set_value(option, spelled, value, p->options);
}

static pen_status parse_argument(parser *p, const char *argument) {
    const pen_option *model = find_long("model", strlen("model"));
    const char **given = &p->given[model - pen_option_table];
    if (p->options->command == PEN_COMMAND_none)
        return pen_fail(PEN_USAGE, "unexpected '%s': the command comes first", argument);
    if (p->arguments++ > 0)
        return pen_fail(PEN_USAGE, "unexpected '%s': a prompt of several words needs quotes, and one MODEL is taken",
                        argument);
    if (*given) return pen_fail(PEN_USAGE, "unexpected '%s': the model is given by --model", argument);
    *given = "MODEL";
    return set_value(model, "MODEL", argument, p->options);
}

static pen_status find_command(const char *name, pen_command *command) {
    pen_near near = {0};
    for (*command = 1; *command < PEN_COMMAND_COUNT; ++*command) {
        if (strcmp(pen_command_table[*command].name, name) == 0) return PEN_OK;
        pen_near_offer(&near, name, strlen(name), pen_command_table[*command].name);
    }
    if (near.name) return pen_fail(PEN_USAGE, "unknown command '%s'; did you mean %s?", name, near.name);
    return pen_fail(PEN_USAGE, "unknown command '%s'; see penstock --help", name);
}

/* ---- The environment, and what holds between options ------------------------------------------------------------- */

static const char **given_partner(parser *p, const pen_option *option) {
    if (!option->excludes) return NULL;
    return &p->given[find_long(option->excludes, strlen(option->excludes)) - pen_option_table];
}

/* The command line wins over the environment, also where the two name options that exclude each other. */
static pen_status parse_environment(parser *p) {
    bool typed[PEN_OPTIONS_MAX];
    for (int i = 0; i < pen_option_count; i++) typed[i] = p->given[i] != NULL;
    for (int i = 0; i < pen_option_count; i++) {
        const pen_option *option = &pen_option_table[i];
        if (!pen_option_taken(option, p->options->command) || option->group == PEN_GROUP_GENERAL) continue;
        char name[PEN_ENVIRONMENT_NAME];
        pen_option_environment(option, name);
        const char *value = getenv(name);
        const char **partner = given_partner(p, option);
        if (!value || *value == '\0' || typed[i] || (partner && typed[partner - p->given])) continue;
        if (option->type == PEN_OPTION_FLAG) {
            int on = pen_option_choice("0|1|false|true", value);
            if (on < 0) return pen_fail(PEN_USAGE, "%s: '%s' is not one of 0|1|false|true", name, value);
            if (on % 2 == 0) continue;
        }
        PEN_TRY(set_value(option, name, value, p->options));
        p->given[i] = option->name;
    }
    return PEN_OK;
}

static bool is_given(const parser *p, const char *name) {
    return p->given[find_long(name, strlen(name)) - pen_option_table] != NULL;
}

static int mean_of(const pen_int_list *list) {
    int64_t sum = 0;
    for (int i = 0; i < list->count; i++) sum += list->values[i];
    return (int)((sum + list->count / 2) / list->count);
}

/* The plan of a load is for that load. */
static pen_status plan_for_load(parser *p) {
    pen_options *options = p->options;
    pen_config *config = &options->config;
    if (!is_given(p, "workload")) {
        config->workload_prompt = options->prompt_tokens;
        config->workload_output = mean_of(&options->output_tokens);
    }
    int most = 0;
    for (int i = 0; i < options->concurrency.count; i++)
        if (options->concurrency.values[i] > most) most = options->concurrency.values[i];
    int replicas = config->data_parallel > 0 ? config->data_parallel : 1;
    if (options->phases) replicas = 1; /* wherever they go: all run at a time */
    if (!is_given(p, "max-num-seqs")) config->max_num_seqs = (most + replicas - 1) / replicas;
    if (!is_given(p, "queue-timeout") && options->request_rate > 0) config->queue_timeout_s = QUEUE_TIMEOUT_S;
    if (options->phases && most > config->max_num_seqs)
        return pen_fail(PEN_USAGE, "--phases needs all %d requests to run at a time, and --max-num-seqs is %d", most,
                        config->max_num_seqs);
    return PEN_OK;
}

/* A simulated device is a profile, which stands for the model too. */
static pen_status check_device(pen_options *options) {
    pen_config *config = &options->config;
    const char *device = config->device;
    if (strncmp(device, "sim:", 4) != 0) {
        if (device[0] == '\0' || pen_option_choice("auto|cpu|cuda", device) >= 0) return PEN_OK;
        return pen_fail(PEN_USAGE, "--device: '%s' is not one of auto|cpu|cuda|sim:PROFILE.json", device);
    }
    if (device[4] == '\0') return pen_fail(PEN_USAGE, "--device sim: needs the profile's file: sim:PROFILE.json");
    if (config->model[0] != '\0')
        return pen_fail(PEN_USAGE, "--device %s stands for the model, and MODEL is '%s'", device, config->model);
    if (config->profile[0] != '\0') return pen_fail(PEN_USAGE, "--device sim: and --profile exclude each other");
    if (options->command == PEN_COMMAND_plan) snprintf(config->profile, sizeof config->profile, "%s", device + 4);
    return PEN_OK;
}

/* Both are read again when the batch goes on. */
static pen_status check_batch(const pen_options *options) {
    if (!options->input || !options->output) return pen_fail(PEN_USAGE, "batch needs -i FILE and -o FILE");
    if (strcmp(options->input, "-") == 0)
        return pen_fail(PEN_USAGE, "--input - cannot be: a batch must be able to read its input again");
    if (strcmp(options->output, "-") == 0)
        return pen_fail(PEN_USAGE, "--output - cannot be: a batch must be able to go on behind its output");
    return PEN_OK;
}

static pen_status check(parser *p) {
    pen_options *options = p->options;
    pen_config *config = &options->config;
    const char *command = pen_command_table[options->command].name;
    for (int i = 0; i < pen_option_count; i++) {
        const char **partner = given_partner(p, &pen_option_table[i]);
        if (p->given[i] && partner && *partner)
            return pen_fail(PEN_USAGE, "--%s and --%s exclude each other", pen_option_table[i].name,
                            pen_option_table[i].excludes);
    }
    PEN_TRY(check_device(options));
    if (config->kv_q8_0 && config->exact)
        return pen_fail(PEN_USAGE, "--activations f32 keeps K and V in f32, so --kv-type q8_0 contradicts it");
    bool simulated = strncmp(config->device, "sim:", 4) == 0;
    if (config->model[0] == '\0' && options->command != PEN_COMMAND_plan && !simulated)
        return pen_fail(PEN_USAGE, "%s needs a MODEL", command);
    if (config->model[0] == '\0' && config->profile[0] == '\0' && !simulated)
        return pen_fail(PEN_USAGE, "plan needs a MODEL or --profile FILE");
    if (options->command == PEN_COMMAND_run && !options->prompt && !options->file)
        return pen_fail(PEN_USAGE, "run needs a prompt: -p TEXT or -f FILE");
    if (options->command == PEN_COMMAND_batch) PEN_TRY(check_batch(options));
    if (options->command == PEN_COMMAND_perplexity && !options->file)
        return pen_fail(PEN_USAGE, "perplexity needs a text: -f FILE");
    if (options->command == PEN_COMMAND_tokenize && !options->prompt && !options->file)
        return pen_fail(PEN_USAGE, "tokenize needs a text: -p TEXT or -f FILE");
    if (options->phases && (options->num_prompts > 0 || options->request_rate > 0))
        return pen_fail(PEN_USAGE, "--phases is one wave of requests: --%s contradicts it",
                        options->num_prompts > 0 ? "num-prompts" : "request-rate");
    if (is_given(p, "burstiness") && options->request_rate == 0)
        return pen_fail(PEN_USAGE, "--burstiness is about arrivals at a rate: add --request-rate");
    if ((options->logprobs > 0 || options->prompt_logprobs > 0 || options->token_logprobs) && !options->json)
        return pen_fail(PEN_USAGE, "--%slogprobs is part of the JSON object: add --json",
                        options->token_logprobs        ? "token-"
                        : options->prompt_logprobs > 0 ? "prompt-"
                                                       : "");
    if (options->min_tokens > options->max_tokens)
        return pen_fail(PEN_USAGE, "--min-tokens %d is more than --max-tokens %d", options->min_tokens,
                        options->max_tokens);

    bool custom = strcmp(config->method, "custom") == 0;
    if (config->layers[0] != '\0' && !custom && is_given(p, "method"))
        return pen_fail(PEN_USAGE, "--layers is a split by hand, so --method %s contradicts it", config->method);
    if (config->layers[0] == '\0' && custom) return pen_fail(PEN_USAGE, "--method custom needs --layers N,N,…");
    if (config->layers[0] != '\0') strcpy(config->method, "custom");
    return options->command == PEN_COMMAND_bench ? plan_for_load(p) : PEN_OK;
}

pen_status pen_options_parse(int argc, char *const *argv, bool environment, pen_options *options) {
    parser p = {.options = options};
    memset(options, 0, sizeof *options);
    for (int i = 0; i < pen_option_count; i++) {
        const pen_option *option = &pen_option_table[i];
        if (option->fallback) PEN_TRY(set_value(option, option->name, option->fallback, options));
    }
    if (argc < 2) return pen_fail(PEN_USAGE, "no command given; see penstock --help");

    int i = 1;
    if (argv[1][0] != '-') PEN_TRY(find_command(argv[i++], &options->command));
    bool only_arguments = false;
    for (; i < argc; i++) {
        if (!only_arguments && strcmp(argv[i], "--") == 0)
            only_arguments = true;
        else if (!only_arguments && argv[i][0] == '-' && argv[i][1] != '\0')
            PEN_TRY(parse_option(&p, argc, argv, &i));
        else
            PEN_TRY(parse_argument(&p, argv[i]));
        if (options->help) return PEN_OK;
    }
    if (options->command == PEN_COMMAND_none) return PEN_OK;
    if (environment) PEN_TRY(parse_environment(&p));
    return check(&p);
}
