/* What --help and --completion print, both from the option table. */
#ifndef PEN_HELP_H
#define PEN_HELP_H

#include "options.h"

#include <stdio.h>

/* Columns of the terminal at standard output, or of a comfortable page where it is none. */
int pen_help_width(void);

/* Help for a command, or for penstock as a whole (PEN_COMMAND_none), wrapped at `width` columns. */
void pen_help_print(FILE *out, pen_command command, int width);

/* A bash completion script. */
void pen_completion_print(FILE *out);

#endif
