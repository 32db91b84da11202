/*
 * The one option table: parsing, --help, the PENSTOCK_* environment and shell completion all read it, so that none of
 * them can disagree with another. Adding an option is one field in pen_options (or pen_config) and one entry here.
 */
#ifndef PEN_OPTION_TABLE_H
#define PEN_OPTION_TABLE_H

#include "options.h"

#include <stddef.h>

typedef enum pen_option_type {
    PEN_OPTION_FLAG,   /* takes no value; a bool that becomes true */
    PEN_OPTION_TEXT,   /* const char * */
    PEN_OPTION_STRING, /* char[size] */
    PEN_OPTION_CHOICE, /* char[size]: one word of `choices` */
    PEN_OPTION_INDEX,  /* bool or int: which word of `choices` */
    PEN_OPTION_INT,    /* int or int64_t, min … max */
    PEN_OPTION_U64,    /* uint64_t */
    PEN_OPTION_FLOAT,  /* float or double, min … max */
    PEN_OPTION_SIZE,   /* uint64_t bytes: 80GiB, 512MiB, 1.5GB, 4096 */
    PEN_OPTION_PAIR,   /* two adjacent ints, each min … max: 512:128 */
    PEN_OPTION_TEXTS,  /* pen_option_texts; may be given again */
    PEN_OPTION_BIASES, /* pen_option_biases, values min … max: 11:-5,13:2.5; may be given again */
    PEN_OPTION_LIST,   /* pen_int_list, each min … max: 1,4,16 */
} pen_option_type;

#define PEN_OPTION_GROUPS(X)                                                                                           \
    X(INPUT, "Input")                                                                                                  \
    X(SAMPLING, "Sampling")                                                                                            \
    X(LOAD, "Load")                                                                                                    \
    X(PLAN, "Plan")                                                                                                    \
    X(REPLICAS, "Replicas")                                                                                            \
    X(MACHINE, "Machine")                                                                                              \
    X(OUTPUT, "Output")                                                                                                \
    X(GENERAL, "General")

typedef enum pen_option_group {
#define X(name, title) PEN_GROUP_##name,
    PEN_OPTION_GROUPS(X)
#undef X
        PEN_GROUP_COUNT
} pen_option_group;

typedef struct pen_option {
    const char *name;  /* long name, without dashes */
    const char *alias; /* a second long name, or NULL */
    char letter;       /* short name, or 0 */
    pen_option_type type;
    unsigned commands; /* bit per pen_command that takes it */
    pen_option_group group;
    size_t offset, size;  /* of the field in pen_options */
    const char *argument; /* what help calls the value; NULL for a flag */
    double min, max;
    const char *choices;  /* "auto|cpu" */
    const char *fallback; /* the default, parsed as if it were given; NULL: zero */
    const char *excludes; /* name of an option that contradicts it, or NULL */
    const char *help;
} pen_option;

typedef struct pen_command_info {
    const char *name, *usage, *about;
} pen_command_info;

enum { PEN_OPTIONS_MAX = 80, PEN_ENVIRONMENT_NAME = 64 };

extern const pen_option pen_option_table[];
extern const int pen_option_count;
extern const pen_command_info pen_command_table[PEN_COMMAND_COUNT]; /* [PEN_COMMAND_none] is empty */

static inline bool pen_option_taken(const pen_option *option, pen_command command) {
    return option->commands >> command & 1;
}

/* Writes the name of the option's environment variable: max-num-seqs → PENSTOCK_MAX_NUM_SEQS. */
void pen_option_environment(const pen_option *option, char name[PEN_ENVIRONMENT_NAME]);

/* Position of `word` among the '|'-separated choices, or −1. */
int pen_option_choice(const char *choices, const char *word);

#endif
