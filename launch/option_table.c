/* The tables of options and commands; see option_table.h. */
#include "option_table.h"

#include "kernels.h"

#include <assert.h>
#include <ctype.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

const pen_command_info pen_command_table[PEN_COMMAND_COUNT] = {
#define PEN_COMMAND(name, usage, about) [PEN_COMMAND_##name] = {#name, usage, about},
#include "commands.def"
#undef PEN_COMMAND
};

/* Sets of commands. */
#define ON(command) (1U << PEN_COMMAND_##command)
#define ALL         (~0U)
#define COMMANDS    (ALL & ~ON(none))
#define MODELS      (ON(run) | ON(batch) | ON(perplexity) | ON(bench))
#define PLANS       (MODELS | ON(plan))
#define TEXTS       (ON(run) | ON(perplexity) | ON(tokenize))

#define RANGE(low, high) .min = (low), .max = (high)

static_assert(offsetof(pen_config, workload_output) == offsetof(pen_config, workload_prompt) + sizeof(int),
              "--workload P:G fills two adjacent fields");
static_assert(PEN_TOP_LOGPROBS == 20, "the help of --logprobs names the limit");

#define OPTION(name_, letter_, type_, commands_, group_, field, argument_, ...)                                        \
    {.name = name_,                                                                                                    \
     .letter = letter_,                                                                                                \
     .type = PEN_OPTION_##type_,                                                                                       \
     .commands = commands_,                                                                                            \
     .group = PEN_GROUP_##group_,                                                                                      \
     .offset = offsetof(pen_options, field),                                                                           \
     .size = sizeof(((pen_options *)NULL)->field),                                                                     \
     .argument = argument_,                                                                                            \
     .help = __VA_ARGS__},

const pen_option pen_option_table[] = {
#include "options.def"
};

const int pen_option_count = sizeof pen_option_table / sizeof pen_option_table[0];
static_assert(sizeof pen_option_table / sizeof pen_option_table[0] <= PEN_OPTIONS_MAX, "raise PEN_OPTIONS_MAX");

void pen_option_environment(const pen_option *option, char name[PEN_ENVIRONMENT_NAME]) {
    snprintf(name, PEN_ENVIRONMENT_NAME, "PENSTOCK_%s", option->name);
    for (char *c = name; *c; c++) *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
}

int pen_option_choice(const char *choices, const char *word) {
    size_t length = strlen(word);
    for (int i = 0;; i++) {
        size_t span = strcspn(choices, "|");
        if (span == length && memcmp(choices, word, length) == 0) return i;
        if (choices[span] == '\0') return -1;
        choices += span + 1;
    }
}
