/*
 * What the command line and the environment asked for: one struct for all commands, filled by the one option table
 * (option_table.c). The engine's part is pen_config; the rest belongs to single commands.
 *
 * Strings point into argv or the environment and live as long as the process.
 */
#ifndef PEN_OPTIONS_H
#define PEN_OPTIONS_H

#include "config.h"
#include "history.h"
#include "status.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum pen_command {
    PEN_COMMAND_none, /* only --help, --version or --completion */
#define PEN_COMMAND(name, usage, about) PEN_COMMAND_##name,
#include "commands.def"
#undef PEN_COMMAND
    PEN_COMMAND_COUNT
} pen_command;

/* The values of an option that may be given several times. */
enum { PEN_OPTION_TEXTS_MAX = 16, PEN_OPTION_BIASES_MAX = 1024 };
typedef struct pen_option_texts {
    int count;
    const char *list[PEN_OPTION_TEXTS_MAX];
} pen_option_texts;
typedef struct pen_option_biases {
    int count;
    pen_logit_bias list[PEN_OPTION_BIASES_MAX];
} pen_option_biases;
enum { PEN_LIST_MAX = 16 };

typedef struct pen_int_list {
    int count;
    int values[PEN_LIST_MAX];
} pen_int_list;

typedef struct pen_options {
    pen_command command;
    pen_config config;

    /* run, perplexity, tokenize: the text, and what is made of it. */
    const char *prompt; /* NULL where a file is given */
    const char *file;   /* "-" is stdin; NULL where a prompt is given */
    int max_tokens, choices;
    float temperature, top_p, min_p; /* temperature 0: greedy */
    int top_k;                       /* 0: off */
    uint64_t seed;
    float repetition_penalty, presence_penalty, frequency_penalty; /* 1, 0, 0: off */
    pen_option_biases logit_bias;
    pen_option_texts stop;
    int min_tokens;
    int logprobs, prompt_logprobs; /* best K to report per token; 0: none */
    int tokens;                    /* perplexity: score the first N; 0: all */
    bool token_logprobs;           /* perplexity: also one per token */

    /* batch. */
    const char *input, *output;

    /* bench: the load. */
    int prompt_tokens;
    pen_int_list output_tokens; /* of the requests, in turn */
    double length_spread;
    pen_int_list concurrency; /* a run for each */
    int num_prompts;          /* of a run; 0: 8 times its concurrency */
    double request_rate;      /* per second; 0: a request follows when another ends */
    double burstiness;        /* shape of the gaps */
    bool phases;

    /* tokenize. */
    bool no_bos, no_parse_special;

    const char *svg; /* plan: file to draw it to; NULL: none */

    bool json;
    bool help, version;
    const char *completion; /* shell, or NULL */
} pen_options;

/* Parses argv, and where `environment` is set the PENSTOCK_* variables for whatever argv leaves open. Everything that
 * can be known to be wrong without reading a file is refused here, with PEN_USAGE and a text that names the option. */
pen_status pen_options_parse(int argc, char *const *argv, bool environment, pen_options *options);

#endif
